//! Mounting and unmounting: the checks before, the errors made clear, and the
//! ways that differ between root and an ordinary user.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use fuser::{Config, MountOption, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;

use super::MountOptions;
use crate::error::{Error, Result};

const DEVICE: &str = "/dev/fuse";

/// Checks that `dir` can be mounted on. Nothing is changed.
pub fn check(dir: &Path) -> Result<()> {
    let fail =
        |reason: &str, source| Err(Error::io(format!("mount point {}: {reason}", dir.display()), source));
    let os = |errno| io::Error::from_raw_os_error(errno);
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            return fail("a mount whose daemon is gone is still there", e);
        }
        Err(e) => return fail("cannot be used", e),
    };
    if !meta.is_dir() {
        return fail("it must be a directory", os(libc::ENOTDIR));
    }
    if fs::metadata(dir.join("..")).is_ok_and(|parent| parent.dev() != meta.dev()) {
        return fail("something is mounted there already", os(libc::EBUSY));
    }
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return fail("it must be empty", os(libc::ENOTEMPTY)),
        Err(e) => return fail("cannot be read", e),
    }
    if let Err(e) = fs::metadata(DEVICE) {
        return Err(Error::io(format!("{DEVICE} (is the fuse kernel module loaded?)"), e));
    }
    if !geteuid().is_root() && fusermount().is_none() {
        return Err(Error::io(
            "fusermount3, with which users other than root mount (package fuse3)",
            os(libc::ENOENT),
        ));
    }
    Ok(())
}

/// What fuser is to do.
pub fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.fs_name.clone()),
        MountOption::DefaultPermissions,
        // Reading changes no time stamps here; say so.
        MountOption::NoAtime,
    ];
    if let Some(subtype) = &options.subtype {
        // Not `Subtype`, which fuser drops when it mounts without fusermount3.
        config.mount_options.push(MountOption::CUSTOM(format!("subtype={subtype}")));
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config
}

/// Explains why the mount failed.
pub fn mount_failed(dir: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied if fs::metadata(DEVICE).is_ok() && !geteuid().is_root() => {
            " (may this user open /dev/fuse, and does /etc/fuse.conf allow what was asked for?)"
        }
        _ => "",
    };
    Error::io(format!("mounting on {}{hint}", dir.display()), error)
}

/// Unmounts `dir`. EBUSY, as the error's source, says that it is in use;
/// `lazy` takes the mount out of sight nevertheless. `connection` is the
/// number of the FUSE connection. The result says whether the connection has
/// been aborted on the way.
pub fn unmount(dir: &Path, lazy: bool, connection: u64) -> Result<bool> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
        if !control(connection).is_some_and(|file| file.exists()) {
            // Nothing will be left by which to abort it later.
            flags |= MntFlags::MNT_FORCE;
        }
    }
    let result = match umount2(dir, flags) {
        Err(Errno::EPERM) => fusermount_u(dir, lazy).map(|()| false),
        result => result.map_err(io::Error::from).map(|()| flags.contains(MntFlags::MNT_FORCE)),
    };
    result.map_err(|e| Error::io(format!("unmounting {}", dir.display()), e))
}

fn fusermount_u(dir: &Path, lazy: bool) -> io::Result<()> {
    let program = fusermount().ok_or(io::Error::from_raw_os_error(libc::ENOENT))?;
    let output = Command::new(program).arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
    // It speaks English only.
    Err(if message.contains("busy") {
        io::Error::from_raw_os_error(libc::EBUSY)
    } else {
        io::Error::other(message)
    })
}

/// The number of the FUSE connection behind a mount point.
pub fn connection(dir: &Path) -> Result<u64> {
    let meta =
        fs::metadata(dir).map_err(|e| Error::io(format!("looking at the mount on {}", dir.display()), e))?;
    Ok(libc::minor(meta.dev()).into())
}

/// Ends a FUSE connection: whatever still waits on it gets an error.
pub fn abort(connection: u64) -> io::Result<()> {
    match control(connection) {
        Some(file) => fs::write(file, "1"),
        None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

fn control(connection: u64) -> Option<std::path::PathBuf> {
    // 0 is no connection's number.
    (connection != 0).then(|| format!("/sys/fs/fuse/connections/{connection}/abort").into())
}

/// The program that mounts and unmounts for ordinary users.
fn fusermount() -> Option<&'static str> {
    ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3", "/sbin/fusermount3"]
        .into_iter()
        .find(|program| Command::new(program).arg("-V").output().is_ok_and(|o| o.status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(dir: &Path) -> (String, Option<i32>) {
        match check(dir) {
            Err(Error::Io { context, source }) => (context, source.raw_os_error()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unfit_mount_points() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(refused(&dir.path().join("missing")).1, Some(libc::ENOENT));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(refused(&file).1, Some(libc::ENOTDIR));
        let (context, errno) = refused(dir.path());
        assert!(context.contains("must be empty"), "{context}");
        assert_eq!(errno, Some(libc::ENOTEMPTY));
        assert_eq!(refused(Path::new("/proc")).1, Some(libc::EBUSY));
    }
}
