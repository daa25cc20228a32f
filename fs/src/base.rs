//! A base: an existing PGDATA directory used in place, read-only.
//!
//! Each of its files is recorded as it was when it was added, and compared
//! around every read. A base that changes underneath is found at the first read
//! of a changed file, which then fails instead of mixing two states.

mod scan;

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use crate::block::{BLOCK_BYTES, BlockNo, blocks_for};
use crate::device::foreign::Place;
use crate::device::{self, FileBudget};
use crate::error::{Error, Result};
use crate::map::schema::{BaseFileRecord, ForkRecord, Time};

pub use scan::{Found, Scanned, scan};

static OPEN: LazyLock<Mutex<HashMap<PathBuf, Arc<File>>>> = LazyLock::new(Mutex::default);

/// One file of a base.
#[derive(Debug)]
pub struct BaseFile {
    record: BaseFileRecord,
}

fn time(secs: i64, nanos: i64) -> Time {
    Time { secs, nanos: nanos as u32 }
}

fn record(path: &Path, meta: &Metadata) -> Result<BaseFileRecord> {
    let text = path.to_str().ok_or_else(|| Error::BadBase {
        path: path.to_path_buf(),
        reason: "its path is not valid UTF-8".into(),
    })?;
    Ok(BaseFileRecord {
        path: text.to_string(),
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
    })
}

impl BaseFile {
    /// From its record.
    pub fn new(record: BaseFileRecord) -> Self {
        BaseFile { record }
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        Path::new(&self.record.path)
    }

    /// Its length in blocks.
    pub fn blocks(&self) -> BlockNo {
        blocks_for(self.record.size)
    }

    /// Its length in bytes when it was added.
    pub fn len(&self) -> u64 {
        self.record.size
    }

    /// Whether it was empty then.
    pub fn is_empty(&self) -> bool {
        self.record.size == 0
    }

    /// [`BaseFile::read`] from the disk itself.
    pub fn read_uncached(&self, block: BlockNo, buf: &mut [u8]) -> Result<()> {
        let file = self.open()?;
        device::read_uncached(&file, buf, u64::from(block) * BLOCK_BYTES).map_err(|e| self.error(e))?;
        let meta = file.metadata().map_err(|e| self.error(e))?;
        self.compare(&meta)
    }

    /// Fills `buf` with the blocks from `block` on; zeros beyond the end.
    pub fn read(&self, block: BlockNo, buf: &mut [u8]) -> Result<()> {
        let file = self.open()?;
        let mut offset = u64::from(block) * BLOCK_BYTES;
        let mut rest = &mut *buf;
        while !rest.is_empty() {
            match file.read_at(rest, offset) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(n) => {
                    rest = &mut rest[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.error(e)),
            }
        }
        let meta = file.metadata().map_err(|e| self.error(e))?;
        self.compare(&meta)
    }

    fn error(&self, e: io::Error) -> Error {
        Error::io(format!("reading base file {}", self.record.path), e)
    }

    fn open(&self) -> Result<Arc<File>> {
        let path = PathBuf::from(&self.record.path);
        if let Some(file) = OPEN.lock().get(&path) {
            return Ok(file.clone());
        }
        // Compared before it is opened: anything may be in its place by now.
        let place = Place::itself(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::BaseChanged { path: path.clone(), what: "it is no longer there".into() }
            }
            _ => self.error(e),
        })?;
        self.compare(place.meta())?;
        let file = Arc::new(place.open().map_err(|e| self.error(e))?);
        let mut open = OPEN.lock();
        // More than these only cost an open each.
        if open.len() >= FileBudget::of_process().base_files
            && let Some(any) = open.keys().next().cloned()
        {
            open.remove(&any);
        }
        open.insert(path, file.clone());
        Ok(file)
    }

    fn compare(&self, meta: &Metadata) -> Result<()> {
        let now = record(Path::new(&self.record.path), meta)?;
        let was = &self.record;
        let what = if (now.dev, now.ino) != (was.dev, was.ino) {
            "another file has taken its place".to_string()
        } else if now.size != was.size {
            format!("it had {} bytes and has {}", was.size, now.size)
        } else if now.mtime != was.mtime || now.ctime != was.ctime {
            "it was written to or its attributes were changed".to_string()
        } else {
            return Ok(());
        };
        OPEN.lock().remove(Path::new(&was.path));
        Err(Error::BaseChanged { path: PathBuf::from(&was.path), what })
    }
}

/// The directories in which files of the base `dir` may be: itself, and where
/// the links lead that PostgreSQL makes.
pub fn roots(dir: &Path) -> Vec<PathBuf> {
    let mut links = vec![dir.join("pg_wal")];
    let tablespaces = std::fs::read_dir(dir.join("pg_tblspc"));
    links.extend(tablespaces.into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut roots = vec![dir.to_path_buf()];
    // What is no longer there has no files to read either.
    roots.extend(links.iter().filter_map(|link| link.canonicalize().ok()));
    roots
}

/// The same for the bases of several forks.
pub fn roots_of(forks: &[ForkRecord]) -> Vec<PathBuf> {
    let bases: BTreeSet<&str> = forks.iter().map(|f| f.base.as_str()).filter(|b| !b.is_empty()).collect();
    bases.into_iter().flat_map(|base| roots(Path::new(base))).collect()
}
