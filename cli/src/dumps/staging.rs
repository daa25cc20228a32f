//! Where a dump is written until it is complete: a directory beside its place, with
//! a name that tells what it is. It is locked by the one who writes, so whoever finds
//! it without a lock knows that nobody does any more, and removes it.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::{getegid, geteuid};

use super::manifest::{self, FileEntry};
use crate::error::{Context, Error, Kind, Result};

/// The end of such a directory's name.
const SUFFIX: &str = ".pgcowfs-partial";

/// What is written, in that directory.
const CONTENT: &str = "dump";

/// Each file is read with a buffer of this size.
const BUFFER: usize = 256 << 10;

/// A place for what is not complete. It is removed with this.
pub struct Staging {
    dir: PathBuf,
    target: PathBuf,
    _lock: Flock<File>,
}

impl Staging {
    /// Makes the place for a dump that is to become `target`; what a killed one has
    /// left there goes first.
    pub fn begin(target: &Path) -> Result<Staging> {
        let dir = partial(target)?;
        loop {
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(e).at("make the directory", &dir).map_err(|error| {
                        error.hint("a dump is written beside its place, and moved there when it is complete")
                    });
                }
                _ => {}
            }
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY);
            let file = match options.open(&dir) {
                // The one who had it is through.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other.at("open", &dir)?,
            };
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::new(
                        Kind::State,
                        format!("another dump to {} is under way", target.display()),
                    )
                    .cause(format!("it is being written in {}", dir.display()))
                    .hint("wait for it, or choose another place"));
                }
                Err((_, e)) => return Err(e).at("lock", &dir),
            };
            // It may have been removed between the two.
            let here = lock.metadata().at("look at", &dir)?;
            match fs::symlink_metadata(&dir) {
                Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => {
                    let staging = Staging { dir, target: target.to_path_buf(), _lock: lock };
                    staging.clear()?;
                    return Ok(staging);
                }
                _ => continue,
            }
        }
    }

    /// Removes what a killed one has left.
    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).at("list", &self.dir)? {
            let path = entry.at("list", &self.dir)?.path();
            remove(&path).at("remove", &path)?;
        }
        Ok(())
    }

    /// Where to write: nothing is there yet.
    pub fn content(&self) -> PathBuf {
        self.dir.join(CONTENT)
    }

    /// Makes what was written durable and the caller's own; what there is.
    pub fn settle(&self) -> Result<Vec<FileEntry>> {
        let mut files = Vec::new();
        settle(&self.content(), Path::new(""), &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Puts what is complete and durable in its place; with `replace`, of a dump that
    /// is there.
    pub fn publish(self, replace: bool) -> Result<()> {
        let (content, target) = (self.content(), &self.target);
        if fs::symlink_metadata(target).is_ok() {
            if !replace {
                return Err(exists(target));
            }
            refuse_other(target)?;
            // At every moment there is one of the two. The old one goes with this.
            renameat2(AT_FDCWD, &content, AT_FDCWD, target, RenameFlags::RENAME_EXCHANGE).map_err(|e| {
                Error::io(format!("cannot replace {}", target.display()), &e.into())
                    .hint("remove the old dump first, and try again")
            })?;
        } else {
            fs::rename(&content, target).at("make", target)?;
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).at("make durable", parent)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(e) = remove(&self.dir) {
            // The next one to the same place does it.
            log::warn!("cannot remove {}: {e}", self.dir.display());
        }
    }
}

/// Where what is to become `target` is written.
pub fn partial(target: &Path) -> Result<PathBuf> {
    let (parent, name) = parts(target)?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(SUFFIX);
    Ok(parent.join(partial))
}

/// Removes from a directory what killed ones have left in it.
pub fn sweep(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.at("list", dir)?,
    };
    for entry in entries {
        let name = entry.at("list", dir)?.file_name();
        let target = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(SUFFIX));
        let Some(target) = target else { continue };
        match Staging::begin(&dir.join(target)) {
            // One that is under way is no leaving.
            Err(error) if error.kind == Kind::State => {}
            other => drop(other?),
        }
    }
    Ok(())
}

fn parts(target: &Path) -> Result<(&Path, &std::ffi::OsStr)> {
    let Some(name) = target.file_name() else {
        return Err(Error::new(Kind::Usage, format!("{:?} is no name for a dump", target.display()))
            .hint("name a directory, or a file, that is not there yet"));
    };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((parent.unwrap_or(Path::new(".")), name))
}

/// Refuses a place for a dump that cannot be used, before anything is done.
pub fn check_target(target: &Path, replace: bool) -> Result<()> {
    let (parent, _) = parts(target)?;
    if !fs::metadata(parent).at("look at", parent)?.is_dir() {
        return Err(Error::new(Kind::NotFound, format!("{} is no directory", parent.display()))
            .hint("a dump is made in a directory that is there"));
    }
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).at("look at", target),
        Ok(_) if !replace => Err(exists(target)),
        Ok(_) => refuse_other(target),
    }
}

fn exists(target: &Path) -> Error {
    Error::new(Kind::Exists, format!("{} is there already", target.display()))
        .hint("choose another place, or replace that dump with --force")
}

/// What is replaced must be a dump: anything else was not meant.
fn refuse_other(target: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(target).at("look at", target)?;
    let is_dump = match meta.file_type() {
        kind if kind.is_dir() => target.join(manifest::NAME).is_file(),
        kind if kind.is_file() => {
            let mut magic = [0; 5];
            let read = File::open(target).and_then(|mut file| file.read_exact(&mut magic));
            meta.len() == 0 || (read.is_ok() && &magic == b"PGDMP")
        }
        _ => false,
    };
    match is_dump {
        true => Ok(()),
        false => Err(Error::new(Kind::BadInput, format!("{} is no dump", target.display()))
            .cause("only a dump is replaced with --force")
            .hint("choose another place")),
    }
}

/// Removes a file, or a directory with all in it; nothing there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Syncs a file or a directory with all in it. The fork's user has written some of
/// them, so nothing that is a link is followed.
fn settle(path: &Path, inside: &Path, files: &mut Vec<FileEntry>) -> Result<()> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut file = options.open(path).at("open", path)?;
    let meta = file.metadata().at("look at", path)?;
    if meta.uid() != geteuid().as_raw() {
        fchown(&file, Some(geteuid().as_raw()), Some(getegid().as_raw())).at("take over", path)?;
    }
    let mode = if meta.is_dir() { 0o700 } else { 0o600 };
    file.set_permissions(Permissions::from_mode(mode)).at("take over", path)?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).at("list", path)? {
            let name = entry.at("list", path)?.file_name();
            settle(&path.join(&name), &inside.join(&name), files)?;
        }
    } else if meta.is_file() {
        let (size, crc32c) = checksum(&mut file).at("read", path)?;
        files.push(FileEntry { path: inside.to_string_lossy().into_owned(), size, crc32c });
    } else {
        return Err(Error::new(Kind::Failed, format!("{} is neither file nor directory", path.display())));
    }
    file.sync_all().at("make durable", path)
}

/// Size and CRC-32C of what there is to read.
pub fn checksum(file: &mut File) -> io::Result<(u64, u32)> {
    let mut buffer = vec![0; BUFFER];
    let (mut size, mut crc) = (0, 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((size, crc)),
            Ok(n) => {
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
                size += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("nightly");
        check_target(&target, false).unwrap();
        let staging = Staging::begin(&target).unwrap();
        let busy = Staging::begin(&target).err().unwrap();
        assert_eq!(busy.kind, Kind::State);
        fs::create_dir(staging.content()).unwrap();
        fs::write(staging.content().join("a"), "123456789").unwrap();
        drop(staging);
        assert!(names(dir.path()).is_empty());

        // What a killed one has left goes.
        let left = dir.path().join(".nightly.pgcowfs-partial");
        fs::create_dir_all(left.join("dump/deep")).unwrap();
        sweep(dir.path()).unwrap();
        assert!(names(dir.path()).is_empty());
        fs::create_dir_all(left.join("dump/deep")).unwrap();
        let staging = Staging::begin(&target).unwrap();
        assert!(names(&left).is_empty());
        fs::create_dir(staging.content()).unwrap();
        fs::write(staging.content().join("a"), "123456789").unwrap();
        let files = staging.settle().unwrap();
        // The check value of CRC-32C.
        assert_eq!(files, [FileEntry { path: "a".into(), size: 9, crc32c: 0xe306_9283 }]);
        staging.publish(false).unwrap();
        assert_eq!(names(dir.path()), ["nightly"]);
        assert_eq!(fs::metadata(target.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_dump_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis"), "x").unwrap();
        assert_eq!(check_target(&target, false).unwrap_err().kind, Kind::Exists);
        assert_eq!(check_target(&target, true).unwrap_err().kind, Kind::BadInput);
        let staging = Staging::begin(&target).unwrap();
        fs::write(staging.content(), "PGDMP new").unwrap();
        assert_eq!(staging.publish(true).unwrap_err().kind, Kind::BadInput);
        assert_eq!(names(&target), ["thesis"]);

        let file = dir.path().join("shop.dump");
        fs::write(&file, "PGDMP old").unwrap();
        check_target(&file, true).unwrap();
        let staging = Staging::begin(&file).unwrap();
        fs::write(staging.content(), "PGDMP new").unwrap();
        staging.publish(true).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"PGDMP new");
        assert_eq!(names(dir.path()), ["precious", "shop.dump"]);
        assert_eq!(check_target(&dir.path().join("no/where"), false).unwrap_err().kind, Kind::NotFound);
        assert_eq!(check_target(Path::new("/"), false).unwrap_err().kind, Kind::Usage);
    }
}
