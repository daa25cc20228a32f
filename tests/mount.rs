//! The mount as processes see it: every operation through the kernel, on a
//! real FUSE mount of a real store in a temporary directory.
//!
//! Where FUSE cannot be used the tests print "SKIPPED: why" and pass. Those
//! that need several users run as root only.

#[path = "mount/attributes.rs"]
mod attributes;
#[path = "mount/cache.rs"]
mod cache;
#[path = "mount/data.rs"]
mod data;
#[path = "mount/directories.rs"]
mod directories;
#[path = "mount/forks.rs"]
mod forks;
#[path = "mount/lifecycle.rs"]
mod lifecycle;
#[path = "mount/many.rs"]
mod many;
#[path = "mount/names.rs"]
mod names;
#[path = "mount/users.rs"]
mod users;

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgcowfs::mount::{Mount, MountOptions};
use pgcowfs::{Fork, Options, Store};
use tempfile::TempDir;

/// A mounted store with one fork, "main", whose top directory all may use.
struct Mounted {
    mount: Option<Mount>,
    store: Arc<Store>,
    main: Arc<Fork>,
    mnt: PathBuf,
    dir: TempDir,
}

impl Mounted {
    /// `None`, and the reason on stdout, where FUSE cannot be used.
    fn start() -> Option<Mounted> {
        Mounted::with(&MountOptions::default())
    }

    fn with(options: &MountOptions) -> Option<Mounted> {
        if let Err(why) = usable() {
            println!("SKIPPED: {why}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let (store_dir, mnt) = (dir.path().join("store"), dir.path().join("mnt"));
        Store::init(&store_dir).unwrap();
        let store = Store::open(&store_dir, Options::default()).unwrap();
        fs::create_dir(&mnt).unwrap();
        let mount = Mount::start(store.clone(), &mnt, options).unwrap();
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let main = store.create("main", uid, gid, b"").unwrap();
        store.publish("main").unwrap();
        fs::set_permissions(mnt.join("main"), Permissions::from_mode(0o777)).unwrap();
        Some(Mounted { mount: Some(mount), store, main, mnt, dir })
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("taken only by tests that end with it")
    }

    /// A path in the fork "main".
    fn path(&self, name: &str) -> PathBuf {
        self.mnt.join("main").join(name)
    }

    /// How many requests of a kind have been served.
    fn count(&self, kind: &str) -> u64 {
        let stats = self.store.stats();
        let counts = [stats.requests(), stats.amounts.snapshot()].concat();
        counts.iter().find(|(name, _)| *name == kind).unwrap_or_else(|| panic!("no kind {kind}")).1
    }

    /// How many requests of a kind `work` causes.
    fn caused<T>(&self, kind: &str, work: impl FnOnce() -> T) -> u64 {
        let before = self.count(kind);
        work();
        self.count(kind) - before
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount(true).unwrap();
            drop(mount);
        }
        if !std::thread::panicking() {
            self.store.close().unwrap();
        }
    }
}

/// Whether this machine and user can mount at all.
fn usable() -> Result<(), String> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| format!("/dev/fuse: {e}"))?;
    if !root() {
        let version = std::process::Command::new("fusermount3").arg("-V").output();
        version.map_err(|e| format!("fusermount3: {e}"))?;
    }
    Ok(())
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// For tests that need other users.
fn root_or_skipped() -> bool {
    if !root() {
        println!("SKIPPED: needs root, for other users");
    }
    root()
}

/// The errno of what must fail.
#[track_caller]
fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(e) => e.raw_os_error().unwrap_or_else(|| panic!("not from the system: {e}")),
    }
}

/// A system call's result as `io::Result`.
fn check(result: impl TryInto<i64>) -> io::Result<i64> {
    match result.try_into() {
        Ok(n) if n >= 0 => Ok(n),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for what comes from another thread soon.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has the kernel drop a file's cached pages, so that the next read asks us.
fn drop_pages(file: &fs::File) {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(result, 0);
}

/// Runs `work` on a thread that is another user, with no capabilities.
fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The raw calls change this thread alone; libc's change all.
            // SAFETY: no memory is passed, but for an empty list.
            unsafe {
                check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>())).unwrap();
                check(libc::syscall(libc::SYS_setresgid, gid, gid, gid)).unwrap();
                check(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).unwrap();
            }
            work()
        });
        thread.join().unwrap()
    })
}

/// Bytes that differ everywhere, so that a shifted or mixed-up copy shows.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    })
    .take(len)
    .collect()
}

fn c_path(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap()
}
