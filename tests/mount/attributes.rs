//! Owners, permissions, times, locks, extended attributes, free space.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::time::{Duration, UNIX_EPOCH};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;

use crate::{Mounted, as_user, c_path, check, errno, root_or_skipped};

const USER: u32 = 4242;
const GROUP: u32 = 4343;

fn mode(m: &Mounted, name: &str) -> u32 {
    fs::symlink_metadata(m.path(name)).unwrap().mode() & 0o7777
}

fn chmod(m: &Mounted, name: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(m.path(name), Permissions::from_mode(mode))
}

#[test]
fn chmod_and_umask() {
    let Some(m) = Mounted::start() else { return };
    // The mask belongs to the process, so whatever it is, it shows.
    OpenOptions::new().write(true).create_new(true).mode(0o666).open(m.path("f")).unwrap();
    let masked = mode(&m, "f");
    let here = m.dir.path().join("f");
    OpenOptions::new().write(true).create_new(true).mode(0o666).open(&here).unwrap();
    assert_eq!(masked, fs::metadata(here).unwrap().mode() & 0o7777);
    for bits in [0o000, 0o640, 0o4755, 0o2755, 0o1777, 0o7777] {
        chmod(&m, "f", bits).unwrap();
        assert_eq!(mode(&m, "f"), bits);
    }
}

#[test]
fn owners_and_permissions() {
    let Some(m) = Mounted::start() else { return };
    if !root_or_skipped() {
        return;
    }
    fs::write(m.path("f"), "secret").unwrap();
    chmod(&m, "f", 0o600).unwrap();
    let read = || fs::read(m.path("f"));
    assert_eq!(errno(as_user(USER, GROUP, read)), libc::EACCES);
    assert_eq!(errno(as_user(USER, GROUP, || chmod(&m, "f", 0o644))), libc::EPERM);
    assert_eq!(errno(as_user(USER, GROUP, || chown(m.path("f"), Some(USER), None))), libc::EPERM);
    chown(m.path("f"), Some(USER), Some(GROUP)).unwrap();
    let meta = fs::metadata(m.path("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (USER, GROUP));
    assert_eq!(as_user(USER, GROUP, read).unwrap(), b"secret");
    chmod(&m, "f", 0o640).unwrap();
    assert_eq!(as_user(USER + 1, GROUP, read).unwrap(), b"secret");
    assert_eq!(errno(as_user(USER + 1, GROUP, || fs::write(m.path("f"), ""))), libc::EACCES);

    as_user(USER, GROUP, || fs::write(m.path("mine"), "")).unwrap();
    let meta = fs::metadata(m.path("mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (USER, GROUP));
    // A sticky directory keeps others from removing what is mine.
    chmod(&m, ".", 0o1777).unwrap();
    assert_eq!(errno(as_user(USER + 1, GROUP, || fs::remove_file(m.path("mine")))), libc::EPERM);
    as_user(USER, GROUP, || fs::remove_file(m.path("mine"))).unwrap();
}

#[test]
fn set_id_bits_go_when_a_user_changes_the_file() {
    let Some(m) = Mounted::start() else { return };
    if !root_or_skipped() {
        return;
    }
    type Change = dyn Fn(&File) + Sync;
    let changes: [(&str, &Change); 4] = [
        ("write", &|f| f.write_all_at(b"x", 0).unwrap()),
        ("truncate", &|f| f.set_len(1).unwrap()),
        ("allocate", &|f| fallocate(f, FallocateFlags::empty(), 0, 9000).unwrap()),
        ("punch", &|f| {
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(f, punch, 0, 4096).unwrap();
        }),
    ];
    for (what, change) in changes {
        fs::write(m.path("f"), "1234").unwrap();
        chown(m.path("f"), Some(USER), Some(GROUP)).unwrap();
        chmod(&m, "f", 0o6777).unwrap();
        // Root may; another user may not.
        change(&OpenOptions::new().write(true).open(m.path("f")).unwrap());
        let kept = mode(&m, "f");
        chmod(&m, "f", 0o6777).unwrap();
        as_user(USER + 1, GROUP + 1, || change(&OpenOptions::new().write(true).open(m.path("f")).unwrap()));
        assert_eq!((kept, mode(&m, "f")), (0o6777, 0o777), "{what}");
        fs::remove_file(m.path("f")).unwrap();
    }
    // By a new owner too, even if root gives it; by O_TRUNC as well.
    File::create(m.path("f")).unwrap();
    chmod(&m, "f", 0o6755).unwrap();
    chown(m.path("f"), Some(USER), Some(GROUP)).unwrap();
    assert_eq!(mode(&m, "f"), 0o755);
    chmod(&m, "f", 0o4777).unwrap();
    as_user(USER + 1, GROUP + 1, || File::create(m.path("f")).unwrap());
    assert_eq!(mode(&m, "f"), 0o777);
    // Who is not in the file's group cannot set its set-group-id bit.
    chown(m.path("f"), Some(USER), Some(GROUP + 9)).unwrap();
    as_user(USER, GROUP, || chmod(&m, "f", 0o2755)).unwrap();
    assert_eq!(mode(&m, "f"), 0o755);
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    let Some(m) = Mounted::start() else { return };
    if !root_or_skipped() {
        return;
    }
    fs::create_dir(m.path("d")).unwrap();
    chown(m.path("d"), None, Some(GROUP)).unwrap();
    chmod(&m, "d", 0o2777).unwrap();
    fs::create_dir(m.path("d/e")).unwrap();
    fs::write(m.path("d/e/f"), "").unwrap();
    std::os::unix::fs::symlink("x", m.path("d/l")).unwrap();
    let group = |name| fs::symlink_metadata(m.path(name)).unwrap().gid();
    assert_eq!([group("d/e"), group("d/e/f"), group("d/l")], [GROUP; 3]);
    assert_eq!((mode(&m, "d/e") & 0o2000, mode(&m, "d/e/f") & 0o2000), (0o2000, 0));
    fs::create_dir(m.path("plain")).unwrap();
    assert_eq!(group("plain"), 0);
}

#[test]
fn times() {
    let Some(m) = Mounted::start() else { return };
    let file = File::create(m.path("f")).unwrap();
    let set = |atime, mtime| {
        utimensat(nix::fcntl::AT_FDCWD, &m.path("f"), &atime, &mtime, UtimensatFlags::FollowSymlink)
    };
    let times = || {
        let meta = fs::metadata(m.path("f")).unwrap();
        ((meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()))
    };
    // Now, 1901, just before 1970, after 2038.
    for (secs, nanos) in
        [(1_700_000_000, 123_456_789), (-2_174_000_000, 5), (-1, 999_999_999), (5_000_000_000, 0)]
    {
        set(TimeSpec::new(secs, nanos), TimeSpec::new(secs + 1, nanos)).unwrap();
        assert_eq!(times(), ((secs, nanos), (secs + 1, nanos)));
    }
    set(TimeSpec::UTIME_OMIT, TimeSpec::new(7, 0)).unwrap();
    assert_eq!(times(), ((5_000_000_000, 0), (7, 0)));
    let now = || UNIX_EPOCH.elapsed().unwrap();
    let near = |secs: i64| (now().as_secs() as i64 - secs).abs() <= 2;
    set(TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT).unwrap();
    assert!(near(times().0.0) && times().1 == (7, 0));

    // A write sets mtime and ctime, a chmod ctime only, an entry its directory's mtime.
    set(TimeSpec::new(1, 0), TimeSpec::new(1, 0)).unwrap();
    let ctime = || fs::metadata(m.path("f")).map(|meta| (meta.ctime(), meta.ctime_nsec())).unwrap();
    (&file).write_all(b"x").unwrap();
    assert!(near(times().1.0));
    set(TimeSpec::new(1, 0), TimeSpec::new(1, 0)).unwrap();
    let before = ctime();
    std::thread::sleep(Duration::from_millis(20));
    chmod(&m, "f", 0o600).unwrap();
    assert!(ctime() > before && times().1 == (1, 0));
    let before = ctime();
    std::thread::sleep(Duration::from_millis(20));
    fs::rename(m.path("f"), m.path("g")).unwrap();
    fs::hard_link(m.path("g"), m.path("f")).unwrap();
    assert!(ctime() > before);
    utimensat(
        nix::fcntl::AT_FDCWD,
        &m.path("."),
        &TimeSpec::new(1, 0),
        &TimeSpec::new(1, 0),
        UtimensatFlags::FollowSymlink,
    )
    .unwrap();
    assert_eq!(fs::metadata(m.path(".")).unwrap().mtime(), 1);
    fs::remove_file(m.path("f")).unwrap();
    assert!(near(fs::metadata(m.path(".")).unwrap().mtime()));
}

#[test]
fn inode_numbers_say_fork_and_file() {
    let Some(m) = Mounted::start() else { return };
    let root = fs::metadata(m.path(".")).unwrap().ino();
    assert_eq!(root, u64::from(m.main.id().0) << 36 | 1);
    fs::write(m.path("f"), "").unwrap();
    let file = m.main.lookup(pgcowfs::FileId::ROOT, b"f").unwrap().file;
    assert_eq!(fs::metadata(m.path("f")).unwrap().ino(), u64::from(m.main.id().0) << 36 | file.0);
}

#[test]
fn free_space_is_the_hosts() {
    let Some(m) = Mounted::start() else { return };
    let (ours, host) = (statvfs(&m.path(".")).unwrap(), statvfs(m.store.dir()).unwrap());
    assert_eq!((ours.block_size(), ours.name_max()), (4096, 255));
    let bytes = |s: &nix::sys::statvfs::Statvfs| s.blocks() * s.fragment_size();
    assert_eq!(bytes(&ours), bytes(&host));
    let (free, host_free) = (ours.blocks_available() * 4096, host.blocks_available() * host.fragment_size());
    assert!(free > 0 && free <= host_free + (64 << 20), "{free} {host_free}");
    assert!(ours.blocks_available() <= ours.blocks_free());
}

#[test]
fn extended_attributes_are_not_supported_and_asked_for_once() {
    let Some(m) = Mounted::start() else { return };
    fs::write(m.path("f"), "").unwrap();
    let path = c_path(&m.path("f"));
    let (name, mut value) = (c"user.x", [0u8; 10]);
    for _ in 0..5 {
        // SAFETY: both strings end with NUL, and the buffer has that size.
        let results = unsafe {
            let buffer = value.as_mut_ptr();
            [
                check(libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), 10) as i64),
                check(libc::setxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), 1, 0)),
                check(libc::listxattr(path.as_ptr(), buffer.cast(), 10) as i64),
                check(libc::removexattr(path.as_ptr(), name.as_ptr())),
            ]
        };
        for result in results {
            assert_eq!(errno(result), libc::EOPNOTSUPP);
        }
    }
    for kind in ["getxattr", "setxattr", "listxattr", "removexattr"] {
        assert!(m.count(kind) <= 1, "{kind}");
    }
}

#[test]
fn locks() {
    let Some(m) = Mounted::start() else { return };
    File::create(m.path("f")).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(m.path("f")).unwrap();
    let (a, b) = (open(), open());
    let held = Flock::lock(a, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).unwrap();
    let (b, error) = Flock::lock(b, FlockArg::LockSharedNonblock).map(|_| ()).unwrap_err();
    assert_eq!(error, nix::errno::Errno::EWOULDBLOCK);
    let a = held.unlock().map_err(|(_, e)| e).unwrap();
    Flock::lock(b, FlockArg::LockSharedNonblock).map_err(|(_, e)| e).unwrap();

    // Record locks: of open files, as those of one process do not conflict.
    let b = open();
    let lock = |file: &File, command, kind: i32, start, len| {
        let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: start, l_len: len, l_pid: 0 };
        // SAFETY: the struct outlives the call.
        check(unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) })
    };
    lock(&a, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 100).unwrap();
    assert_eq!(errno(lock(&b, libc::F_OFD_SETLK, libc::F_RDLCK, 99, 1)), libc::EAGAIN);
    lock(&b, libc::F_OFD_SETLK, libc::F_WRLCK, 100, 100).unwrap();
    lock(&a, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    lock(&b, libc::F_OFD_SETLK, libc::F_RDLCK, 0, 100).unwrap();
    lock(&b, libc::F_SETLK, libc::F_RDLCK, 0, 100).unwrap();
}
