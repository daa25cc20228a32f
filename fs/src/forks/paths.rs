//! Files by path, for callers outside the kernel.

use crate::attr::{Attr, DirEntry, Kind, Make};
use crate::error::{Error, Result};
use crate::ids::FileId;

use super::fork::Fork;

/// The largest file that is read as a whole, if nothing else is said.
const READ_FILE_MAX: u64 = 64 << 20;

impl Fork {
    /// The file at a path relative to the fork's top directory; symbolic links
    /// are not followed.
    pub fn resolve(&self, path: &str) -> Result<Attr> {
        let mut attr = self.attr(FileId::ROOT)?;
        for name in path.split('/').filter(|n| !n.is_empty() && *n != ".") {
            attr = self.lookup(attr.file, name.as_bytes())?;
        }
        Ok(attr)
    }

    /// A file's contents.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.read_file_up_to(path, READ_FILE_MAX)
    }

    /// A file's contents, unless it has more than `most` bytes.
    pub fn read_file_up_to(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let attr = self.resolve(path)?;
        // Whoever owns the fork's files can make them of any size.
        if attr.size > most {
            return Err(Error::TooLarge);
        }
        let mut bytes = Vec::new();
        self.read(attr.file, 0, attr.size as usize, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces a file's contents, keeping owner and mode; a new file gets the
    /// owner of the top directory and mode 0600.
    pub fn write_file(&self, path: &str, contents: &[u8]) -> Result<()> {
        let attr = match self.resolve(path) {
            Ok(attr) if attr.kind == Kind::File => attr,
            Ok(_) => return Err(Error::Invalid("not a regular file")),
            Err(Error::NotFound) => {
                let (dir, name) = self.split(path)?;
                let top = self.attr(FileId::ROOT)?;
                self.make(dir, name.as_bytes(), Make::File, 0o600, top.uid, top.gid)?
            }
            Err(e) => return Err(e),
        };
        self.set_len(attr.file, 0)?;
        self.write(attr.file, 0, contents)
    }

    /// The entries of a directory.
    pub fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        self.read_dir(self.resolve(path)?.file)
    }

    /// Removes a file or a whole directory tree; nothing if there is none.
    pub fn remove_tree(&self, path: &str) -> Result<()> {
        let attr = match self.resolve(path) {
            Ok(attr) => attr,
            Err(Error::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        let (dir, name) = self.split(path)?;
        self.remove_entry(dir, name.as_bytes(), attr.kind)
    }

    fn split<'a>(&self, path: &'a str) -> Result<(FileId, &'a str)> {
        let path = path.trim_matches('/');
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.resolve(dir)?.file, name))
    }
}
