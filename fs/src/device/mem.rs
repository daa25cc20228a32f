//! A device in memory that can lose power: the twin of the real one for tests.
//!
//! What was written but not flushed may be there after a crash, or not, sector
//! by sector; so may a file whose name was not flushed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Device, DeviceFile};

const SECTOR: usize = 512;

/// Files in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemDevice {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Arc<MemFile>>,
    /// The names that a crash leaves.
    durable: BTreeMap<String, Arc<MemFile>>,
    free_bytes: Option<u64>,
}

/// One file in memory.
#[derive(Default)]
pub struct MemFile {
    state: Mutex<FileState>,
    device: std::sync::Weak<Mutex<Inner>>,
}

#[derive(Clone, Default)]
struct FileState {
    visible: Vec<u8>,
    durable: Vec<u8>,
    flushes: u64,
    skip_flush: bool,
}

impl MemDevice {
    /// An empty device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits how many bytes can still be allocated.
    pub fn set_free_bytes(&self, bytes: Option<u64>) {
        self.inner.lock().free_bytes = bytes;
    }

    /// Makes every flush a lie, to prove that a test would see it.
    pub fn break_flushes(&self) {
        for file in self.inner.lock().files.values() {
            file.state.lock().skip_flush = true;
        }
    }

    /// What a loss of power at this moment leaves. `coin` decides about each
    /// thing that was not flushed.
    pub fn crash_image(&self, coin: &mut dyn FnMut() -> bool) -> MemDevice {
        let inner = self.inner.lock();
        let image = MemDevice::new();
        let mut names = inner.durable.clone();
        for (name, file) in &inner.files {
            if !names.contains_key(name) && coin() {
                names.insert(name.clone(), file.clone());
            }
        }
        for (name, file) in names {
            let state = file.state.lock();
            let mut bytes = state.durable.clone();
            if state.visible.len() > bytes.len() && coin() {
                bytes.resize(state.visible.len(), 0);
            }
            let len = bytes.len().min(state.visible.len());
            for at in (0..len).step_by(SECTOR) {
                let end = (at + SECTOR).min(len);
                if bytes[at..end] != state.visible[at..end] && coin() {
                    bytes[at..end].copy_from_slice(&state.visible[at..end]);
                }
            }
            let state = FileState { visible: bytes.clone(), durable: bytes, ..FileState::default() };
            let file = Arc::new(MemFile { state: Mutex::new(state), device: Arc::downgrade(&image.inner) });
            let mut inner = image.inner.lock();
            inner.files.insert(name.clone(), file.clone());
            inner.durable.insert(name, file);
        }
        image
    }
}

impl Device for MemDevice {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>> {
        let mut inner = self.inner.lock();
        if let Some(file) = inner.files.get(name) {
            return Ok(file.clone());
        }
        if !create {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = Arc::new(MemFile { device: Arc::downgrade(&self.inner), ..MemFile::default() });
        inner.files.insert(name.to_string(), file.clone());
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.lock().files.remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.lock().files.keys().cloned().collect())
    }

    fn flush_names(&self) -> io::Result<()> {
        let mut inner = self.inner.lock();
        inner.durable = inner.files.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.inner.lock().free_bytes.unwrap_or(1 << 40))
    }
}

impl DeviceFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        let start = (offset as usize).min(state.visible.len());
        let end = (start + buf.len()).min(state.visible.len());
        buf[..end - start].copy_from_slice(&state.visible[start..end]);
        buf[end - start..].fill(0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let end = offset as usize + buf.len();
        if state.visible.len() < end {
            state.visible.resize(end, 0);
        }
        state.visible[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }

    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.skip_flush {
            state.durable = state.visible.clone();
        }
        state.flushes += 1;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        if let Some(device) = self.device.upgrade()
            && let Some(free) = &mut device.lock().free_bytes
        {
            *free = free.checked_sub(len).ok_or(io::Error::from_raw_os_error(libc::ENOSPC))?;
        }
        let mut state = self.state.lock();
        let end = (offset + len) as usize;
        if state.visible.len() < end {
            state.visible.resize(end, 0);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().visible.len() as u64)
    }
}
