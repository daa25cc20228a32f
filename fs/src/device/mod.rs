//! The device under the store: host files that hold pages and WAL segments.
//!
//! Everything the store keeps outside the block map goes through these two
//! traits. [`HostDevice`] is the real one; the tests have one in memory that
//! loses, tears and reorders what was not flushed.

pub mod mem;
pub mod power;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Alignment of direct I/O, in memory and on the disk. 4096 serves every disk
/// in use; those with 512-byte sectors take it too.
pub const DIRECT_ALIGN: usize = 4096;

/// A set of named files.
pub trait Device: Send + Sync {
    /// Opens `name`, or makes it (empty) when `create` is set and it is not
    /// there. The name itself is durable after [`Device::flush_names`].
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>>;
    /// Removes `name`; no error if there is none.
    fn remove(&self, name: &str) -> io::Result<()>;
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
    /// Writes through the host's page cache.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes past the host's page cache where the host allows it. `buf`,
    /// `offset` and the length are multiples of [`DIRECT_ALIGN`].
    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written durable (`fdatasync`).
    fn flush(&self) -> io::Result<()>;
    /// Reserves space, so that writing there cannot fail with ENOSPC; extends
    /// the file.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Length in bytes, allocated space included.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Files in a directory of the host.
#[derive(Debug)]
pub struct HostDevice {
    dir: PathBuf,
}

impl HostDevice {
    /// The device for the files in `dir`, which must exist.
    pub fn new(dir: &Path) -> Self {
        HostDevice { dir: dir.to_path_buf() }
    }
}

impl Device for HostDevice {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>> {
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600);
        let buffered = options.open(&path)?;
        // Not every host file system has direct I/O (tmpfs before 6.6 has not);
        // without it writes go through the page cache, to the same effect.
        let direct = options.create(false).custom_flags(libc::O_DIRECT).open(&path).ok();
        Ok(Arc::new(HostFile { buffered, direct }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn flush_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = host_space(&self.dir)?;
        Ok(space.blocks_available() as u64 * space.fragment_size() as u64)
    }
}

#[derive(Debug)]
struct HostFile {
    buffered: File,
    direct: Option<File>,
}

impl DeviceFile for HostFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.buffered.read_at(&mut buf[done..], offset + done as u64) {
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

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.buffered.write_all_at(buf, offset)
    }

    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.direct.as_ref().unwrap_or(&self.buffered).write_all_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.buffered.sync_data()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(start), Ok(size)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        nix::fcntl::fallocate(&self.buffered, nix::fcntl::FallocateFlags::empty(), start, size)
            .map_err(io::Error::from)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }
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

    /// What was appended, aligned.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

/// The host's free space below `dir`.
pub fn host_space(dir: &Path) -> io::Result<nix::sys::statvfs::Statvfs> {
    nix::sys::statvfs::statvfs(dir).map_err(io::Error::from)
}

/// Takes the exclusive lock on an open file, without waiting.
pub fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: flock only takes the descriptor, which `file` keeps open.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
