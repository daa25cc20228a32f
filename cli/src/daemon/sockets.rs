//! Directories for the servers' sockets.
//!
//! A socket of a fresh cluster asks nobody who they are: that only the fork's
//! user gets into its directory is what protects it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use crate::config::{StorePaths, passage_mode};
use crate::error::{Context, Error, Kind, Result};

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH_MAX: usize = 107;

/// The longest name of PostgreSQL's socket, with the slash before it.
const SOCKET_NAME: &str = "/.s.PGSQL.65535";

/// The socket directory of a fork: in the store, or where that is too deep
/// down for a socket, below /tmp. (Not in /run/user: that goes away when its
/// user logs out, and the server stays.)
pub fn choose(paths: &StorePaths, fork: &str) -> PathBuf {
    let fits = |dir: &Path| dir.as_os_str().len() + SOCKET_NAME.len() <= SOCKET_PATH_MAX;
    let own = paths.run().join(fork);
    if fits(&own) {
        return own;
    }
    let short = short_run(paths).join(fork);
    if fits(&short) {
        return short;
    }
    short_run(paths).join(format!("{:016x}", hash(fork.as_bytes())))
}

fn short_run(paths: &StorePaths) -> PathBuf {
    let store = hash(paths.dir.as_os_str().as_bytes()) as u32;
    PathBuf::from(format!("/tmp/pgcowfs-{}-{store:08x}", Uid::effective()))
}

/// FNV-1a: the same in every build, as directories are found again by it.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Makes a fork's directory, for `uid` only. What the store says that it is
/// must be what it would be: it is handed over to `uid`, and removed with the
/// fork.
pub fn ensure(paths: &StorePaths, fork: &str, dir: &Path, uid: u32, gid: u32) -> Result<()> {
    if dir != choose(paths, fork) {
        return Err(Error::new(
            Kind::BadInput,
            format!("{} is not where fork {fork:?} has its sockets", dir.display()),
        )
        .cause("the store names a directory that is not its own")
        .hint("end the daemon (pgcowfs umount): the next command gives the fork its directory anew"));
    }
    let parent = dir.parent().unwrap_or(Path::new("/"));
    make(parent, passage_mode())?;
    check_own(parent, Uid::effective().as_raw())?;
    make(dir, 0o700)?;
    if Uid::effective().is_root() {
        // The parent is root's, so nobody can have put a link there.
        chown(dir, Some(uid), Some(gid)).at("hand over", dir)?;
    }
    check_own(dir, uid)?;
    Ok(())
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(dir) {
        // The daemon's umask may have taken bits away.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(mode)).at("set the mode of", dir),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e).at("make", dir),
    }
}

/// In /tmp anybody can make a directory first, and would own the sockets in it.
fn check_own(dir: &Path, uid: u32) -> Result<()> {
    let meta = fs::symlink_metadata(dir).at("look at", dir)?;
    if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::Environment, format!("{} is not safe for sockets", dir.display()))
        .cause("it must be a directory that only its owner can write to")
        .hint("remove it, or find out who made it"))
}

/// Removes a fork's socket directory.
pub fn remove(paths: &StorePaths, fork: &str) {
    let dir = choose(paths, fork);
    if let Err(e) = fs::remove_dir_all(&dir)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("cannot remove {}: {e}", dir.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &str) -> StorePaths {
        StorePaths { dir: dir.into() }
    }

    #[test]
    fn always_short_enough_for_a_socket() {
        assert_eq!(choose(&paths("/s"), "main"), Path::new("/s/run/main"));
        let deep = format!("/{}", "d".repeat(90));
        for (store, fork) in
            [("/s", "n".repeat(63)), (deep.as_str(), "main".into()), (deep.as_str(), "n".repeat(63))]
        {
            let dir = choose(&paths(store), &fork);
            let length = dir.as_os_str().len() + SOCKET_NAME.len();
            assert!(length <= SOCKET_PATH_MAX, "{dir:?} makes {length}");
        }
        assert!(choose(&paths(&deep), "main").starts_with("/tmp"));
        assert_ne!(choose(&paths(&deep), "main"), choose(&paths(&format!("{deep}x")), "main"));
        assert_ne!(choose(&paths(&deep), &"n".repeat(63)), choose(&paths(&deep), &"m".repeat(63)));
    }

    #[test]
    fn a_prepared_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path().to_str().unwrap());
        let (uid, gid) = (Uid::effective().as_raw(), nix::unistd::Gid::effective().as_raw());
        let sockets = choose(&paths, "main");
        let ensure = |dir: &Path| ensure(&paths, "main", dir, uid, gid);
        ensure(&sockets).unwrap();
        ensure(&sockets).unwrap();
        assert_eq!(ensure(dir.path()).unwrap_err().kind, Kind::BadInput, "not any directory");
        assert_eq!(fs::metadata(&sockets).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(ensure(&sockets).unwrap_err().kind, Kind::Environment);
        remove(&paths, "main");
        std::os::unix::fs::symlink("/tmp", &sockets).unwrap();
        assert_eq!(check_own(&sockets, uid).unwrap_err().kind, Kind::Environment);
    }
}
