//! The mount point: may it be mounted on, is something there, how to take a
//! dead mount away.
//!
//! A mount whose daemon was killed answers ENOTCONN; one whose daemon is stuck
//! does not answer. So what is mounted is read from /proc, and a path below a
//! mount is only touched from a thread that may be left behind.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::Uid;
use pgcowfs::device::foreign::read_small;

use crate::config::passage_mode;
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::cluster::PID_FILE_MAX;
use crate::proc;

/// The topmost mount on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Its type, such as `fuse.pgcowfs`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

impl Mounted {
    /// Whether it is a mount of pgcowfs.
    pub fn is_ours(&self) -> bool {
        self.kind.starts_with("fuse")
            && (self.source.starts_with("pgcowfs") || self.kind.ends_with("pgcowfs"))
    }
}

/// What is mounted on `path` itself.
pub fn mounted(path: &Path) -> Result<Option<Mounted>> {
    let file = Path::new("/proc/self/mountinfo");
    let text = fs::read(file).at("read", file)?;
    Ok(find_mount(&String::from_utf8_lossy(&text), path))
}

/// All mounts, with where they are.
pub fn all() -> Result<Vec<(PathBuf, Mounted)>> {
    let file = Path::new("/proc/self/mountinfo");
    let text = fs::read(file).at("read", file)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<(PathBuf, Mounted)> {
    let (front, back) = line.split_once(" - ")?;
    let place = front.split(' ').nth(4)?;
    let mut back = back.split(' ');
    let (kind, source) = (back.next()?, back.next()?);
    Some((unescape(place), Mounted { kind: kind.to_string(), source: source.to_string() }))
}

fn find_mount(mountinfo: &str, path: &Path) -> Option<Mounted> {
    // Later mounts cover earlier ones.
    mountinfo
        .lines()
        .filter_map(parse_mount)
        .filter(|(place, _)| place == path)
        .map(|(_, mount)| mount)
        .next_back()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let code =
            bytes.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                at += 4;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Whether a mount answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Alive,
    /// Its daemon is gone.
    Dead,
    /// No answer: its daemon is stuck.
    Stuck,
}

/// Asks the mount on `path`.
pub fn health(path: &Path) -> Health {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_path_buf();
    std::thread::spawn(move || {
        // If nobody waits any more there is nobody to tell.
        let _ = sender.send(nix::sys::statvfs::statvfs(&path).err());
    });
    match receiver.recv_timeout(Duration::from_secs(3)) {
        Ok(Some(nix::errno::Errno::ENOTCONN | nix::errno::Errno::ECONNABORTED)) => Health::Dead,
        Ok(_) => Health::Alive,
        Err(_) => Health::Stuck,
    }
}

/// Clears what a killed daemon left at `mountpoint`, if anything: its servers'
/// processes, which must not reach the next mount, and the mount itself. Only
/// called when no daemon of the store lives.
pub fn clean_up(mountpoint: &Path, pid_files: &[PathBuf]) -> Result<bool> {
    // Looked for before the unmount: afterwards their directories have no path.
    kill_survivors(mountpoint, pid_files)?;
    let mut cleaned = false;
    while let Some(mount) = mounted(mountpoint)? {
        if !mount.is_ours() {
            return Err(occupied(mountpoint, &mount));
        }
        if health(mountpoint) == Health::Alive {
            return Err(Error::new(
                Kind::State,
                format!("another store is mounted at {}", mountpoint.display()),
            )
            .hint(
                "choose another mount point with `pgcowfs mount --mountpoint DIR`, or unmount that store",
            ));
        }
        log::warn!("detaching the dead mount at {}", mountpoint.display());
        detach(mountpoint)?;
        cleaned = true;
    }
    Ok(cleaned)
}

fn occupied(mountpoint: &Path, mount: &Mounted) -> Error {
    Error::new(Kind::State, format!("{} is mounted already", mountpoint.display()))
        .cause(format!("by {} (type {})", mount.source, mount.kind))
        .hint("choose another mount point with `pgcowfs mount --mountpoint DIR`")
}

/// Kills PostgreSQL processes that outlived the daemon. `socket_locks` name
/// servers as well: after somebody has detached the mount by hand, a process's
/// directory no longer tells where it was.
fn kill_survivors(mountpoint: &Path, socket_locks: &[PathBuf]) -> Result<()> {
    let survivors = || {
        let mut pids = proc::postgres_under(mountpoint);
        pids.extend(socket_locks.iter().filter_map(|lock| server_of_socket(lock, mountpoint)));
        pids.sort_unstable();
        pids.dedup();
        pids
    };
    let found = survivors();
    if found.is_empty() {
        return Ok(());
    }
    log::warn!("killing {} PostgreSQL processes that outlived the daemon: {found:?}", found.len());
    let gone = proc::wait_until(Duration::from_secs(20), || {
        let left = survivors();
        left.iter().for_each(|&pid| proc::signal(pid, Signal::SIGKILL));
        left.is_empty()
    });
    if gone {
        return Ok(());
    }
    Err(Error::new(
        Kind::State,
        format!("PostgreSQL processes still use the dead mount at {}", mountpoint.display()),
    )
    .cause(format!("processes {:?} do not end although they were killed", survivors()))
    .hint("look at them with ps; when they are gone, try again"))
}

/// The living server that a socket's lock file names, if it is one of a fork
/// under the mount point.
fn server_of_socket(lock: &Path, mountpoint: &Path) -> Option<i32> {
    let text = String::from_utf8(read_small(lock, PID_FILE_MAX).ok()?).ok()?;
    let mut lines = text.lines();
    let pid: i32 = lines.next()?.trim().parse().ok()?;
    let pgdata = Path::new(lines.next()?);
    let serves = pgdata.starts_with(mountpoint) && proc::alive(pid) && proc::is_postgres(pid);
    // The number may be another server's by now; one whose directory still has
    // a path works elsewhere.
    let elsewhere = proc::cwd(pid).is_some_and(|cwd| !cwd.starts_with(mountpoint) && cwd.is_dir());
    (serves && !elsewhere).then_some(pid)
}

/// Takes a mount away, also one that is in use.
pub fn detach(mountpoint: &Path) -> Result<()> {
    if Uid::effective().is_root() {
        return umount2(mountpoint, MntFlags::MNT_DETACH).at("unmount", mountpoint);
    }
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).output();
    let output = output.map_err(|e| no_fusermount().cause(e.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Failed, format!("cannot unmount {}", mountpoint.display()))
            .cause(String::from_utf8_lossy(&output.stderr).trim().to_string())),
    }
}

/// Whether this machine and user can mount at all.
pub fn check_fuse() -> Result<()> {
    let device = Path::new("/dev/fuse");
    let absent = |what: &str| {
        Error::new(Kind::Environment, what)
            .cause("the kernel's FUSE module is not loaded, or this container has no access to it")
            .hint("modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN")
    };
    let Ok(meta) = fs::metadata(device) else {
        return Err(absent("there is no /dev/fuse"));
    };
    // Containers hide devices by putting /dev/null in their place, which opens
    // and then cannot be mounted with.
    if !meta.file_type().is_char_device() || meta.rdev() != libc::makedev(10, 229) {
        return Err(absent("/dev/fuse is not the FUSE device"));
    }
    // fusermount3 opens it as its caller, too.
    if let Err(e) = fs::File::options().read(true).write(true).open(device) {
        return Err(Error::io("cannot open /dev/fuse", &e).hint(
            "everybody may read and write it as distributions set it up (chmod 666 /dev/fuse); \
             in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        ));
    }
    if Uid::effective().is_root() {
        return Ok(());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file()) {
        true => Ok(()),
        false => Err(no_fusermount()),
    }
}

fn no_fusermount() -> Error {
    Error::new(Kind::Environment, "there is no fusermount3 in PATH")
        .cause("an ordinary user needs it to mount")
        .hint("install it (on Debian and Ubuntu: apt install fuse3), or run this as root")
}

/// Makes sure that `mountpoint` is an empty directory with nothing on it.
pub fn prepare(mountpoint: &Path) -> Result<()> {
    if let Some(mount) = mounted(mountpoint)? {
        return Err(occupied(mountpoint, &mount));
    }
    match fs::create_dir(mountpoint) {
        Ok(()) => {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(mountpoint, fs::Permissions::from_mode(passage_mode()))
                .at("set the mode of", mountpoint)?;
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => {
            return Err(Error::io(format!("cannot make the mount point {}", mountpoint.display()), &e)
                .hint("its parent must exist and be writable; --mountpoint chooses another place"));
        }
    }
    let mut entries = fs::read_dir(mountpoint).at("use as mount point", mountpoint)?;
    match entries.next() {
        None => Ok(()),
        Some(_) => {
            Err(Error::new(Kind::State, format!("the mount point {} is not empty", mountpoint.display()))
                .cause("what is in it would be hidden")
                .hint("empty it, or choose another one with `pgcowfs mount --mountpoint DIR`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /s/mnt rw,nosuid - fuse pgcowfs rw,user_id=0
31 22 0:41 / /a\\040b rw - fuse.sshfs host:/x rw
32 31 0:42 / /a\\040b rw - tmpfs tmpfs rw
";

    #[test]
    fn finds_the_topmost_mount() {
        let ours = find_mount(MOUNTINFO, Path::new("/s/mnt")).unwrap();
        assert!(ours.is_ours());
        assert!(!find_mount(MOUNTINFO, Path::new("/")).unwrap().is_ours());
        assert_eq!(find_mount(MOUNTINFO, Path::new("/a b")).unwrap().kind, "tmpfs");
        assert_eq!(find_mount(MOUNTINFO, Path::new("/s")), None);
        assert_eq!(unescape("\\134x\\04"), Path::new("\\x\\04"));
        assert!(mounted(Path::new("/")).unwrap().is_some());
    }

    #[test]
    fn only_an_empty_directory_is_mounted_on() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        prepare(&point).unwrap();
        prepare(&point).unwrap();
        fs::write(point.join("x"), "").unwrap();
        let error = prepare(&point).unwrap_err();
        assert!(error.kind == Kind::State && error.message.contains("not empty"));
        assert!(prepare(Path::new("/")).unwrap_err().message.contains("mounted already"));
        assert_eq!(prepare(&dir.path().join("a/b")).unwrap_err().kind, Kind::NotFound);
        assert!(!clean_up(&point, &[]).unwrap());
        assert_eq!(health(&point), Health::Alive);
    }
}
