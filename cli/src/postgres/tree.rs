//! A data directory to look at and edit: a directory of the host, or a fork
//! that has no name yet and so is not in the mount. Paths are relative.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use pgcowfs::device::foreign::read_small;
use pgcowfs::{FileId, Fork, Kind as FileKind, Make};

use super::conf::BYTES_MAX;
use crate::error::{Context, Error, Result};

/// What the rules need to know of a data directory, and to do to it.
pub trait Tree {
    /// A file's contents; None if there is no such file.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>>;
    /// Replaces a file's contents; a new one is for its owner only.
    fn write(&self, path: &str, contents: &[u8]) -> Result<()>;
    /// The names in a directory; none if there is no such directory.
    fn list(&self, dir: &str) -> Result<Vec<String>>;
    /// Where a symbolic link points; None if it is not one.
    fn link_target(&self, path: &str) -> Result<Option<PathBuf>>;
    /// Removes a file, a link or a whole directory, if it is there.
    fn remove(&self, path: &str) -> Result<()>;
    /// Makes a directory.
    fn make_dir(&self, path: &str) -> Result<()>;
}

/// Configuration may be in any encoding. What is edited is ASCII; everything
/// else only has to survive, so text that is not UTF-8 is taken byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    bytewise: bool,
}

impl Text {
    /// From a file's bytes.
    pub fn decode(bytes: Vec<u8>) -> Text {
        match String::from_utf8(bytes) {
            Ok(text) => Text { text, bytewise: false },
            Err(e) => Text { text: e.as_bytes().iter().map(|&b| char::from(b)).collect(), bytewise: true },
        }
    }

    /// Another text in the same encoding.
    pub fn with(&self, text: String) -> Text {
        Text { text, bytewise: self.bytewise }
    }

    /// Back to bytes, after edits that inserted nothing but ASCII where the
    /// text is taken byte by byte (a path from elsewhere may, as UTF-8).
    pub fn encode(&self) -> Vec<u8> {
        if !self.bytewise {
            return self.text.clone().into_bytes();
        }
        let mut bytes = Vec::with_capacity(self.text.len());
        for c in self.text.chars() {
            match u8::try_from(u32::from(c)) {
                Ok(b) => bytes.push(b),
                Err(_) => bytes.extend(c.to_string().bytes()),
            }
        }
        bytes
    }
}

/// A directory of the host (or of the mount).
pub struct DirTree(pub PathBuf);

impl DirTree {
    /// The path of something in it, never of anything else.
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }
}

/// The result of looking for something that may be missing.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Tree for DirTree {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(path);
        optional(read_small(&path, BYTES_MAX)).at("read", &path)
    }

    fn write(&self, path: &str, contents: &[u8]) -> Result<()> {
        // Never through a link: it may lead out of the tree, to a file that is
        // not ours to change. Nor into a pipe.
        let there = self.path(path);
        let there = optional(fs::symlink_metadata(&there)).at("look at", &there)?;
        if there.is_some_and(|meta| !meta.is_file() && !meta.is_dir()) {
            self.remove(path)?;
        }
        let path = self.path(path);
        let write = || {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
            options.open(&path)?.write_all(contents)
        };
        write().at("write", &path)
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let path = self.path(dir);
        let names = || -> io::Result<Vec<String>> {
            let entries = optional(fs::read_dir(&path))?;
            let entries = entries.into_iter().flatten();
            entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect()
        };
        names().at("list", &path)
    }

    fn link_target(&self, path: &str) -> Result<Option<PathBuf>> {
        let path = self.path(path);
        match fs::read_link(&path) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            other => optional(other).at("read the link", &path),
        }
    }

    fn remove(&self, path: &str) -> Result<()> {
        let path = self.path(path);
        let remove = || match optional(fs::symlink_metadata(&path))? {
            None => Ok(()),
            Some(meta) if meta.is_dir() => fs::remove_dir_all(&path),
            Some(_) => fs::remove_file(&path),
        };
        remove().at("remove", &path)
    }

    fn make_dir(&self, path: &str) -> Result<()> {
        let path = self.path(path);
        fs::DirBuilder::new().mode(0o700).create(&path).at("make", &path)
    }
}

/// A fork of the store.
pub struct ForkTree<'a>(pub &'a Fork);

impl ForkTree<'_> {
    fn found<T>(&self, what: &str, path: &str, result: pgcowfs::Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(pgcowfs::Error::NotFound | pgcowfs::Error::NotDirectory) => Ok(None),
            Err(e) => Err(Error::from(e).within(format!("cannot {what} {path} in fork {:?}", self.0.name()))),
        }
    }
}

impl Tree for ForkTree<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        self.found("read", path, self.0.read_file_up_to(path, BYTES_MAX))
    }

    fn write(&self, path: &str, contents: &[u8]) -> Result<()> {
        let result = self.0.write_file(path, contents);
        result.map_err(|e| Error::from(e).within(format!("cannot write {path} in fork {:?}", self.0.name())))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let entries = self.found("list", dir, self.0.list(dir))?.unwrap_or_default();
        let name = |name: Box<[u8]>| OsString::from_vec(name.into_vec()).to_string_lossy().into_owned();
        Ok(entries.into_iter().map(|entry| name(entry.name)).collect())
    }

    fn link_target(&self, path: &str) -> Result<Option<PathBuf>> {
        match self.found("look at", path, self.0.resolve(path))? {
            Some(attr) if attr.kind == FileKind::Symlink => {
                let target = self.found("read the link", path, self.0.read_link(attr.file))?;
                Ok(target.map(|t| PathBuf::from(OsString::from_vec(t))))
            }
            _ => Ok(None),
        }
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.found("remove", path, self.0.remove_tree(path)).map(|_| ())
    }

    fn make_dir(&self, path: &str) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let make = || {
            let top = self.0.attr(FileId::ROOT)?;
            let dir = if dir.is_empty() { top } else { self.0.resolve(dir)? };
            self.0.make(dir.file, name.as_bytes(), Make::Directory, 0o700, top.uid, top.gid)
        };
        make()
            .map(|_| ())
            .map_err(|e| Error::from(e).within(format!("cannot make {path} in fork {:?}", self.0.name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().to_path_buf());
        assert_eq!(tree.read("a").unwrap(), None);
        assert!(tree.list("d").unwrap().is_empty());
        tree.make_dir("d").unwrap();
        tree.write("d/a", b"1").unwrap();
        assert_eq!(tree.read("d/a").unwrap().unwrap(), b"1");
        std::os::unix::fs::symlink("/x", dir.path().join("l")).unwrap();
        assert_eq!(tree.link_target("l").unwrap().unwrap(), PathBuf::from("/x"));
        std::os::unix::fs::symlink(dir.path().join("d/a"), dir.path().join("la")).unwrap();
        tree.write("la", b"2").unwrap();
        assert_eq!(tree.read("d/a").unwrap().unwrap(), b"1", "the link is replaced, not followed");
        assert_eq!((tree.link_target("d").unwrap(), tree.link_target("none").unwrap()), (None, None));
        nix::unistd::mkfifo(&dir.path().join("p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(tree.read("p").unwrap_err().to_string().contains("a pipe"));
        tree.write("p", b"3").unwrap();
        assert_eq!(tree.read("p").unwrap().unwrap(), b"3");
        assert!(tree.read("d").is_err() && tree.write("d", b"4").is_err());
        for path in ["d", "l", "la", "p", "none"] {
            tree.remove(path).unwrap();
        }
        assert!(tree.list("").unwrap().is_empty());
        // Nothing but what is in it, however it is called.
        assert_eq!(tree.read("/etc/hostname").unwrap(), None);
        tree.write("/a", b"5").unwrap();
        assert_eq!(tree.read("a").unwrap().unwrap(), b"5");
    }

    #[test]
    fn any_encoding_survives() {
        for bytes in [b"a = 'gr\xfc\xdfe' # \xe4\n".to_vec(), "grüße".as_bytes().to_vec()] {
            assert_eq!(Text::decode(bytes.clone()).encode(), bytes);
        }
    }
}
