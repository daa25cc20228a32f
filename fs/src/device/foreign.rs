//! Files that somebody else made: a base, a cluster to copy, configuration that
//! a cluster names.
//!
//! In a file's place there may be anything: a pipe that nobody writes to, a
//! device whose mere opening does something, a file without an end. So nothing
//! is opened before it was looked at, what was looked at is what is opened, and
//! nothing is read whole without a bound.

use std::ffi::OsStr;
use std::fs::{File, FileType, Metadata, ReadDir};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Something at a path, found and not opened. It stays the same whatever takes
/// its place.
#[derive(Debug)]
pub struct Place {
    handle: File,
    meta: Metadata,
}

impl Place {
    /// What the path leads to.
    pub fn at(path: &Path) -> io::Result<Place> {
        Place::find(path, 0)
    }

    /// The same, but a symbolic link at the path's end is itself what is found.
    pub fn itself(path: &Path) -> io::Result<Place> {
        Place::find(path, libc::O_NOFOLLOW)
    }

    fn find(path: &Path, flags: i32) -> io::Result<Place> {
        // O_PATH opens nothing: no device notices, no pipe waits.
        let handle = File::options().read(true).custom_flags(libc::O_PATH | flags).open(path)?;
        let meta = handle.metadata()?;
        Ok(Place { handle, meta })
    }

    /// Its attributes when it was found.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// Whether nobody has written to it, or made and moved names in it, since it
    /// was found.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(same(&self.handle.metadata()?, &self.meta))
    }

    fn link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }

    /// Where it is now, without symbolic links.
    pub fn path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.link())
    }

    /// Opens it for reading if it is a regular file, and refuses all else.
    pub fn open(&self) -> io::Result<File> {
        if !self.meta.is_file() {
            let what = format!("it is {}, not a file", kind_name(self.meta.file_type()));
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        // Without O_NONBLOCK somebody's lease on the file would be waited for.
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.link())
    }

    /// The entries, if it is a directory.
    pub fn list(&self) -> io::Result<ReadDir> {
        std::fs::read_dir(self.link())
    }

    /// A path that leads to an entry of this very directory.
    pub fn entry(&self, name: &OsStr) -> PathBuf {
        self.link().join(name)
    }
}

/// Whether it is the same thing, and nobody has written to it.
pub fn same(now: &Metadata, before: &Metadata) -> bool {
    let of = |m: &Metadata| {
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        (m.dev(), m.ino(), m.len(), times)
    };
    of(now) == of(before)
}

/// What kind of thing it is, with its article.
pub fn kind_name(kind: FileType) -> &'static str {
    match () {
        () if kind.is_file() => "a file",
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// The contents of a regular file, unless it has more than `most` bytes.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Place::at(path)?.open()?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let what = format!("it has more than {most} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_small_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"12345").unwrap();
        symlink("f", dir.path().join("link")).unwrap();
        symlink("circle", dir.path().join("circle")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_small(&file, 5).unwrap(), b"12345");
        assert_eq!(read_small(&dir.path().join("link"), 5).unwrap(), b"12345");
        assert_eq!(read_small(&file, 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
        for (path, what) in [(dir.path().join("pipe"), "a pipe"), (dir.path().into(), "a directory")] {
            let error = read_small(&path, 5).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(what), "{error}");
        }
        for device in ["/dev/zero", "/dev/tty", "/dev/null"] {
            assert!(read_small(Path::new(device), 5).is_err(), "{device}");
        }
        assert_eq!(read_small(&dir.path().join("circle"), 5).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(read_small(&dir.path().join("none"), 5).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_was_found_stays_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (old, sub) = (top.join("f"), top.join("d"));
        std::fs::write(&old, b"old").unwrap();
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("x"), b"").unwrap();
        let (file, directory) = (Place::itself(&old).unwrap(), Place::itself(&sub).unwrap());
        std::fs::rename(&old, top.join("away")).unwrap();
        std::fs::rename(&sub, top.join("moved")).unwrap();
        symlink("/etc/hostname", &old).unwrap();
        symlink("/etc", &sub).unwrap();
        let mut text = String::new();
        file.open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), file.path().unwrap()), ("old", top.join("away")));
        let names: Vec<_> = directory.list().unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!((names, directory.path().unwrap()), (vec!["x".into()], top.join("moved")));
        assert!(Place::itself(&directory.entry("x".as_ref())).unwrap().meta().is_file());
        assert!(Place::itself(&old).unwrap().open().unwrap_err().to_string().contains("link"));
        let again = Place::itself(&top.join("moved")).unwrap();
        assert!(again.is_unchanged().unwrap());
        std::fs::remove_file(top.join("moved/x")).unwrap();
        assert!(!again.is_unchanged().unwrap());
    }
}
