//! The real device: files in a directory of the host.
//!
//! A store with many forks has more host files than a process may have open.
//! So a file is opened when it is used, and of the open ones the one that was
//! used longest ago is closed for it. Before that its data is flushed: the
//! kernel reports a failed write to those who have the file open, and nobody
//! else might ever hear of it.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use nix::fcntl::FallocateFlags;
use parking_lot::Mutex;

use super::{Device, DeviceFile, DirectBuf, FileBudget, batch, host_space, read_to_end_of, read_uncached};

/// The open files of all devices of this process.
static OPEN: LazyLock<OpenFiles> = LazyLock::new(OpenFiles::default);

/// Who has files open, and in which order they were used.
#[derive(Default)]
struct OpenFiles {
    clock: AtomicU64,
    files: Mutex<HashMap<u64, Weak<HostFile>>>,
}

/// Files in a directory of the host.
#[derive(Debug)]
pub struct HostDevice {
    dir: PathBuf,
    most: usize,
}

impl HostDevice {
    /// The device for the files in `dir`, which must exist.
    pub fn new(dir: &Path) -> Self {
        HostDevice { dir: dir.to_path_buf(), most: FileBudget::of_process().host_files }
    }
}

impl Device for HostDevice {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>> {
        let file = Arc::new_cyclic(|own| HostFile {
            path: self.dir.join(name),
            most: self.most,
            number: OPEN.clock.fetch_add(1, Ordering::Relaxed),
            own: own.clone(),
            used: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            state: Mutex::default(),
        });
        // Now, for the error and for the name.
        file.descriptors(create)?;
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<u64> {
        let path = self.dir.join(name);
        // Not what a link leads to.
        let removed = path.symlink_metadata().and_then(|meta| {
            std::fs::remove_file(&path)?;
            Ok(allocated(&meta))
        });
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
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

/// One file, open or not.
struct HostFile {
    path: PathBuf,
    most: usize,
    number: u64,
    own: Weak<HostFile>,
    /// When it was last used, by the clock of all files.
    used: AtomicU64,
    /// Written to since the last flush.
    unflushed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Arc<Descriptors>>,
    /// The flush before it was closed failed, as nobody has been told yet.
    failed: Option<i32>,
}

struct Descriptors {
    buffered: File,
    direct: Option<File>,
}

impl Descriptors {
    fn open(path: &Path, create: bool) -> io::Result<Descriptors> {
        // Whoever made the store: nothing outside of it is opened, and nothing
        // that an open would wait for.
        let careful = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).mode(0o600).custom_flags(careful);
        let buffered = options.open(path)?;
        if !buffered.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        options.create(false).custom_flags(careful | libc::O_DIRECT);
        let direct = match options.open(path) {
            Err(e) if no_more_files(&e) => return Err(e),
            // Not every host file system has direct I/O (tmpfs before 6.6 has
            // not); without it writes go through the page cache, to the same
            // effect.
            other => other.ok(),
        };
        Ok(Descriptors { buffered, direct })
    }
}

fn allocated(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

fn fallocate(file: &File, how: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(start), Ok(size)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    nix::fcntl::fallocate(file, how, start, size).map_err(io::Error::from)
}

fn no_more_files(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl OpenFiles {
    /// Makes place for one more, and for others' if they have used up the
    /// process's files; whether it could.
    fn make_place(&self, most: usize) -> bool {
        let mut files: Vec<Arc<HostFile>> = {
            let mut files = self.files.lock();
            files.retain(|_, file| file.strong_count() > 0);
            if files.len() < most {
                return false;
            }
            files.values().filter_map(Weak::upgrade).collect()
        };
        files.sort_by_key(|file| file.used.load(Ordering::Relaxed));
        files.iter().any(|file| file.close())
    }
}

impl HostFile {
    fn descriptors(&self, create: bool) -> io::Result<Arc<Descriptors>> {
        self.used.store(OPEN.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(open) = &state.open {
            return Ok(open.clone());
        }
        OPEN.make_place(self.most);
        let open = loop {
            match Descriptors::open(&self.path, create) {
                Ok(open) => break Arc::new(open),
                // Each turn closes one.
                Err(e) if no_more_files(&e) && OPEN.make_place(1) => {}
                Err(e) => return Err(e),
            }
        };
        state.open = Some(open.clone());
        OPEN.files.lock().insert(self.number, self.own.clone());
        Ok(open)
    }

    /// Closes it unless it is in use; whether it did.
    fn close(&self) -> bool {
        // Its own opener comes here too, and finds it locked.
        let Some(mut state) = self.state.try_lock() else { return false };
        let Some(open) = state.open.take_if(|open| Arc::strong_count(open) == 1) else { return false };
        if self.unflushed.swap(false, Ordering::SeqCst)
            && let Err(e) = open.buffered.sync_data()
        {
            state.failed = Some(e.raw_os_error().unwrap_or(libc::EIO));
        }
        OPEN.files.lock().remove(&self.number);
        true
    }
}

impl Drop for HostFile {
    fn drop(&mut self) {
        OPEN.files.lock().remove(&self.number);
    }
}

impl DeviceFile for HostFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        read_to_end_of(&self.descriptors(false)?.buffered, buf, offset)
    }

    fn read_direct(&self, buf: &mut DirectBuf, len: usize, offset: u64) -> io::Result<()> {
        let open = self.descriptors(false)?;
        match &open.direct {
            Some(file) => read_to_end_of(file, buf.room(len), offset),
            None => read_uncached(&open.buffered, buf.room(len), offset),
        }
    }

    fn read_ahead(&self, offset: u64, len: u64) -> io::Result<()> {
        let (Ok(start), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        Ok(nix::fcntl::posix_fadvise(&self.descriptors(false)?.buffered, start, len, advice)?)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let open = self.descriptors(false)?;
        self.unflushed.store(true, Ordering::SeqCst);
        open.buffered.write_all_at(buf, offset)
    }

    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let open = self.descriptors(false)?;
        self.unflushed.store(true, Ordering::SeqCst);
        open.direct.as_ref().unwrap_or(&open.buffered).write_all_at(buf, offset)
    }

    fn write_direct_parts(&self, buf: &[u8], parts: &[(u64, Range<usize>)]) -> io::Result<()> {
        let open = self.descriptors(false)?;
        self.unflushed.store(true, Ordering::SeqCst);
        batch::write_all(open.direct.as_ref().unwrap_or(&open.buffered), buf, parts)
    }

    fn flush(&self) -> io::Result<()> {
        let open = self.descriptors(false)?;
        if let Some(errno) = self.state.lock().failed.take() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.unflushed.store(false, Ordering::SeqCst);
        open.buffered.sync_data()
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let open = self.descriptors(false)?;
        self.unflushed.store(true, Ordering::SeqCst);
        fallocate(&open.buffered, FallocateFlags::empty(), offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.descriptors(false)?.buffered, how, offset, len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.descriptors(false)?.buffered.set_len(len)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(allocated(&self.descriptors(false)?.buffered.metadata()?))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.descriptors(false)?.buffered.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_may_be_open() {
        let dir = tempfile::tempdir().unwrap();
        let device = HostDevice { dir: dir.path().to_path_buf(), most: 8 };
        let files: Vec<_> = (0..50).map(|i| device.open(&format!("{i}"), true).unwrap()).collect();
        for round in 0..3u8 {
            for (i, file) in files.iter().enumerate() {
                file.write_at(&[round, i as u8], 0).unwrap();
            }
            for (i, file) in files.iter().enumerate() {
                let mut read = [0; 3];
                file.read_at(&mut read, 0).unwrap();
                assert_eq!(read, [round, i as u8, 0]);
                file.flush().unwrap();
            }
        }
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let open =
            open.filter_map(|fd| fd.path().read_link().ok()).filter(|to| to.starts_with(dir.path())).count();
        assert!(open <= 2 * 8, "{open} descriptors");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("0"), &link).unwrap();
        assert!(device.open("link", true).is_err(), "a link leads out of the store");
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(device.open("pipe", false).is_err());
    }

    #[test]
    fn space_is_given_back() {
        const K: u64 = 1024;
        let dir = tempfile::tempdir().unwrap();
        let device = HostDevice::new(dir.path());
        let file = device.open("a", true).unwrap();
        file.allocate(0, 1024 * K).unwrap();
        file.write_at(&[7; 1024 * K as usize], 0).unwrap();
        file.flush().unwrap();
        let before = file.allocated().unwrap();
        assert!(before >= 1024 * K, "{before}");
        match file.punch(256 * K, 512 * K) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return println!("SKIPPED: the file system of {} punches no holes", dir.path().display());
            }
            other => other.unwrap(),
        }
        assert!(file.allocated().unwrap() <= before - 512 * K);
        assert_eq!(file.len().unwrap(), 1024 * K);
        let mut read = [1; 3];
        file.read_at(&mut read, 256 * K - 1).unwrap();
        assert_eq!(read, [7, 0, 0]);
        file.truncate(256 * K).unwrap();
        assert_eq!(file.len().unwrap(), 256 * K);
        let left = file.allocated().unwrap();
        assert!(left <= before - 768 * K);
        assert_eq!(device.remove("a").unwrap(), left);
        assert_eq!(device.remove("a").unwrap(), 0, "there is none");
    }

    #[test]
    fn a_failure_at_closing_is_told_at_the_flush() {
        let dir = tempfile::tempdir().unwrap();
        let device = HostDevice { dir: dir.path().to_path_buf(), most: 8 };
        device.open("a", true).unwrap();
        let file = Arc::new_cyclic(|own| HostFile {
            path: dir.path().join("a"),
            most: 8,
            number: u64::MAX,
            own: own.clone(),
            used: AtomicU64::new(0),
            unflushed: AtomicBool::new(false),
            state: Mutex::new(State { open: None, failed: Some(libc::ENOSPC) }),
        });
        assert_eq!(file.flush().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        file.flush().unwrap();
    }
}
