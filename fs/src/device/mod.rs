//! The device under the store: host files that hold pages and WAL segments.
//!
//! Everything the store keeps outside the block map goes through these two
//! traits. [`host::HostDevice`] is the real one; the tests have one in memory that
//! loses, tears and reorders what was not flushed.

pub mod batch;
pub mod foreign;
pub mod host;
pub mod mem;
pub mod power;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

pub use host::HostDevice;

/// Alignment of direct I/O, in memory and on the disk. 4096 serves every disk
/// in use; those with 512-byte sectors take it too.
pub const DIRECT_ALIGN: usize = 4096;

/// A set of named files.
pub trait Device: Send + Sync {
    /// Opens `name`, or makes it (empty) when `create` is set and it is not
    /// there. The name itself is durable after [`Device::flush_names`].
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>>;
    /// Removes `name`; no error if there is none. Returns the bytes of host space
    /// that it had.
    fn remove(&self, name: &str) -> io::Result<u64>;
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes new names and removals durable.
    fn flush_names(&self) -> io::Result<()>;
    /// Bytes that this process may still allocate.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One file of a device.
pub trait DeviceFile: Send + Sync {
    /// Fills `buf` from `offset`; zeros beyond the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Fills `buf` with `len` bytes from `offset`, from the disk itself where the
    /// host allows it; zeros beyond the end. Offset and length are multiples of
    /// [`DIRECT_ALIGN`].
    fn read_direct(&self, buf: &mut DirectBuf, len: usize, offset: u64) -> io::Result<()>;
    /// Says that this will soon be read by [`DeviceFile::read_at`].
    fn read_ahead(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Writes through the host's page cache.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes past the host's page cache where the host allows it. `buf`,
    /// `offset` and the length are multiples of [`DIRECT_ALIGN`].
    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// The same for several parts of `buf`, each with its offset in the file, in any
    /// order. After an error any of them may have been written.
    fn write_direct_parts(&self, buf: &[u8], parts: &[(u64, Range<usize>)]) -> io::Result<()> {
        parts.iter().try_for_each(|(offset, part)| self.write_direct(&buf[part.clone()], *offset))
    }
    /// Makes everything written durable (`fdatasync`).
    fn flush(&self) -> io::Result<()>;
    /// Reserves space, so that writing there cannot fail with ENOSPC; extends
    /// the file.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the host space of a range back: it reads as zeros from then on, and
    /// the length stays. Like a write, it may be undone by a crash, wholly or in
    /// part, until the next flush. EOPNOTSUPP where the host cannot do that.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Cuts the file to `len` bytes, which it has. A crash may undo it, too.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Bytes of host space that the file has.
    fn allocated(&self) -> io::Result<u64>;
    /// Length in bytes, allocated space included.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Fills `buf` from `offset`; zeros beyond the end.
fn read_to_end_of(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => {
                buf[done..].fill(0);
                return Ok(());
            }
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The same, after the host's cache has let go of what it has of that range.
pub fn read_uncached(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    let (Ok(start), Ok(len)) = (i64::try_from(offset), i64::try_from(buf.len())) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    nix::fcntl::posix_fadvise(file, start, len, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    read_to_end_of(file, buf, offset)
}

/// A buffer that direct I/O can take.
pub struct DirectBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl DirectBuf {
    /// Room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let bytes = vec![0; capacity + DIRECT_ALIGN];
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGN);
        DirectBuf { bytes, start, len: 0 }
    }

    /// Empties the buffer.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends bytes; the caller keeps within the capacity.
    pub fn push(&mut self, bytes: &[u8]) {
        let at = self.start + self.len;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// The first `len` bytes, to be filled; the caller keeps within the capacity.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        &mut self.bytes[self.start..self.start + len]
    }

    /// What was appended, aligned.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// The host's free space below `dir`.
pub fn host_space(dir: &Path) -> io::Result<nix::sys::statvfs::Statvfs> {
    nix::sys::statvfs::statvfs(dir).map_err(io::Error::from)
}

/// How many files a process may have open, shared out: each user of many has a
/// bound of its own, so that no number of forks meets the process's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileBudget {
    /// Delta and in-place files, of two descriptors each.
    pub host_files: usize,
    /// Files of the block map.
    pub map_files: usize,
    /// Files of bases.
    pub base_files: usize,
    /// Clients of a daemon, of two descriptors each.
    pub clients: usize,
}

/// Below this many open files nothing can be served.
pub const FILES_MIN: u64 = 128;

impl FileBudget {
    /// This process's.
    pub fn of_process() -> FileBudget {
        match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            Ok((limit, _)) => FileBudget::of(limit),
            Err(_) => FileBudget::of(1024),
        }
    }

    /// Half of the files are for delta and in-place files, three eighths for the
    /// other three, and an eighth for everything else.
    fn of(limit: u64) -> FileBudget {
        let eighth = usize::try_from(limit / 8).unwrap_or(usize::MAX).max(16);
        FileBudget {
            host_files: (2 * eighth).min(4096),
            map_files: eighth.min(256),
            base_files: eighth.min(512),
            clients: (eighth / 2).min(128),
        }
    }
}

/// Takes the exclusive lock on an open file, without waiting.
pub fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: flock only takes the descriptor, which `file` keeps open.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
