//! A device in memory that can lose power: the twin of the real one for tests.
//!
//! What was written but not flushed may be there after a crash, or not, sector
//! by sector; so may a file whose name was not flushed, and one whose removal
//! was not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use imbl::OrdMap;
use parking_lot::Mutex;

use super::power::{Point, Power};
use super::{Device, DeviceFile, DirectBuf};

/// Bytes of a sector, unless a test says otherwise.
const SECTOR: usize = 512;
/// Bytes that a file keeps together.
const PIECE: usize = 4096;

/// Files in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemDevice {
    inner: Arc<Mutex<Inner>>,
    power: Power,
}

#[derive(Clone, Default)]
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
    power: Power,
}

#[derive(Clone, Default)]
struct FileState {
    visible: Contents,
    durable: Contents,
    skip_flush: bool,
}

/// A file's bytes, as a value: a clone shares the pieces.
#[derive(Clone, Default)]
struct Contents {
    len: u64,
    /// By number; a missing one is zeros.
    pieces: OrdMap<u64, Arc<[u8; PIECE]>>,
}

static ZEROS: [u8; PIECE] = [0; PIECE];

impl Contents {
    fn piece(&self, number: u64) -> &[u8; PIECE] {
        self.pieces.get(&number).map_or(&ZEROS, |piece| piece)
    }

    fn read(&self, buf: &mut [u8], offset: u64) {
        for_pieces(offset, buf.len(), |number, within, range| {
            let start = within.start;
            buf[range].copy_from_slice(&self.piece(number)[start..within.end]);
        });
    }

    fn write(&mut self, buf: &[u8], offset: u64) {
        for_pieces(offset, buf.len(), |number, within, range| {
            let mut piece = *self.piece(number);
            piece[within].copy_from_slice(&buf[range]);
            self.pieces.insert(number, Arc::new(piece));
        });
        self.len = self.len.max(offset + buf.len() as u64);
    }

    /// Takes over what `coin` decides of the sectors that differ in `newer`.
    fn take_some(&mut self, newer: &Contents, sector: usize, coin: &mut dyn FnMut() -> bool) {
        let numbers: Vec<u64> = newer.pieces.keys().copied().collect();
        for number in numbers {
            let (new, old) = (newer.piece(number), self.piece(number));
            if std::ptr::eq(new, old) || new == old {
                continue;
            }
            let mut piece = *old;
            for (now, then) in piece.chunks_exact_mut(sector).zip(new.chunks_exact(sector)) {
                if now != then && coin() {
                    now.copy_from_slice(then);
                }
            }
            self.pieces.insert(number, Arc::new(piece));
        }
    }
}

/// Calls `visit` with each piece that `len` bytes from `offset` touch: its
/// number, the range within it, and the range within the bytes.
fn for_pieces(
    offset: u64,
    len: usize,
    mut visit: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let start = (at % PIECE as u64) as usize;
        let n = (PIECE - start).min(len - done);
        visit(at / PIECE as u64, start..start + n, done..done + n);
        done += n;
    }
}

impl MemDevice {
    /// An empty device.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty device that loses power with others.
    pub fn on(power: &Power) -> Self {
        MemDevice { power: power.clone(), ..MemDevice::default() }
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

    /// All of it as it is now, durable and not, apart from the device: a crash
    /// can be tried on it later. Costs what the number of files costs.
    pub fn frozen(&self) -> MemDevice {
        let copy = MemDevice::new();
        let inner = self.inner.lock();
        // One file may have two names here, or an old name and none.
        let mut copies: BTreeMap<*const MemFile, Arc<MemFile>> = BTreeMap::new();
        let mut copied = |files: &BTreeMap<String, Arc<MemFile>>| {
            files
                .iter()
                .map(|(name, file)| {
                    let state = file.state.lock().clone();
                    let file = copies.entry(Arc::as_ptr(file)).or_insert_with(|| copy.file(state));
                    (name.clone(), file.clone())
                })
                .collect()
        };
        let (files, durable) = (copied(&inner.files), copied(&inner.durable));
        *copy.inner.lock() = Inner { files, durable, free_bytes: inner.free_bytes };
        copy
    }

    /// What a loss of power at this moment leaves. `coin` decides about each
    /// thing that was not flushed.
    pub fn crash_image(&self, coin: &mut dyn FnMut() -> bool) -> MemDevice {
        self.crash_image_on(&Power::default(), SECTOR, coin)
    }

    /// The same, on a power supply of its own, and on a disk that writes
    /// `sector` bytes wholly or not at all: 512 or 4096.
    pub fn crash_image_on(&self, power: &Power, sector: usize, coin: &mut dyn FnMut() -> bool) -> MemDevice {
        let inner = self.inner.lock();
        let image = MemDevice::on(power);
        let mut names = inner.durable.clone();
        names.retain(|name, _| inner.files.contains_key(name) || !coin());
        for (name, file) in &inner.files {
            if !names.contains_key(name) && coin() {
                names.insert(name.clone(), file.clone());
            }
        }
        for (name, file) in names {
            let state = file.state.lock();
            let mut contents = state.durable.clone();
            if state.visible.len > contents.len && coin() {
                contents.len = state.visible.len;
            }
            contents.take_some(&state.visible, sector, coin);
            let file = image.file(FileState {
                visible: contents.clone(),
                durable: contents,
                ..FileState::default()
            });
            let mut inner = image.inner.lock();
            inner.files.insert(name.clone(), file.clone());
            inner.durable.insert(name, file);
        }
        image
    }

    fn file(&self, state: FileState) -> Arc<MemFile> {
        Arc::new(MemFile {
            state: Mutex::new(state),
            device: Arc::downgrade(&self.inner),
            power: self.power.clone(),
        })
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
        let file = self.file(FileState::default());
        inner.files.insert(name.to_string(), file.clone());
        Ok(file)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.power.change(Point::Remove, || {
            self.inner.lock().files.remove(name);
            Ok(())
        })
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.lock().files.keys().cloned().collect())
    }

    fn flush_names(&self) -> io::Result<()> {
        self.power.change(Point::FlushNames, || {
            let mut inner = self.inner.lock();
            inner.durable = inner.files.clone();
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.inner.lock().free_bytes.unwrap_or(1 << 40))
    }
}

impl DeviceFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock();
        let there = state.visible.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        state.visible.read(&mut buf[..there], offset);
        buf[there..].fill(0);
        Ok(())
    }

    fn read_direct(&self, buf: &mut DirectBuf, len: usize, offset: u64) -> io::Result<()> {
        self.read_at(buf.room(len), offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.power.change(Point::Write, || {
            self.state.lock().visible.write(buf, offset);
            Ok(())
        })
    }

    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.power.change(Point::Flush, || {
            let mut state = self.state.lock();
            if !state.skip_flush {
                state.durable = state.visible.clone();
            }
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.power.change(Point::Allocate, || {
            if let Some(device) = self.device.upgrade()
                && let Some(free) = &mut device.lock().free_bytes
            {
                *free = free.checked_sub(len).ok_or(io::Error::from_raw_os_error(libc::ENOSPC))?;
            }
            let mut state = self.state.lock();
            state.visible.len = state.visible.len.max(offset + len);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().visible.len)
    }
}
