//! A device in memory that can lose power: the twin of the real one for tests.
//!
//! What was written but not flushed may be there after a crash, or not, sector
//! by sector; so may a file whose name was not flushed, and one whose removal
//! was not. A range that was punched or cut off without a flush may be there
//! again, in the same manner.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, LazyLock};

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
    /// Offsets and lengths that were said to be read soon.
    read_ahead: Mutex<Vec<(u64, u64)>>,
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
    /// Those that have space, by number; a missing one is zeros.
    pieces: OrdMap<u64, Arc<[u8; PIECE]>>,
}

static ZEROS: LazyLock<Arc<[u8; PIECE]>> = LazyLock::new(|| Arc::new([0; PIECE]));

impl Contents {
    fn piece(&self, number: u64) -> &[u8; PIECE] {
        self.pieces.get(&number).unwrap_or(&ZEROS)
    }

    /// Bytes of space that are missing for the range.
    fn missing(&self, offset: u64, len: u64) -> u64 {
        let missing = pieces_of(offset, len).filter(|number| !self.pieces.contains_key(number));
        (missing.count() * PIECE) as u64
    }

    /// Gives all that the range touches space.
    fn allocate(&mut self, offset: u64, len: u64) {
        for number in pieces_of(offset, len) {
            self.pieces.entry(number).or_insert_with(|| ZEROS.clone());
        }
    }

    fn allocated(&self) -> u64 {
        (self.pieces.len() * PIECE) as u64
    }

    /// Takes the space of whole pieces of the range; the rest of it is zeroed.
    fn punch(&mut self, offset: u64, len: u64) {
        for_pieces(offset, len as usize, |number, within, _| match self.pieces.get_mut(&number) {
            Some(_) if within.len() == PIECE => drop(self.pieces.remove(&number)),
            Some(piece) => Arc::make_mut(piece)[within].fill(0),
            None => {}
        });
    }

    fn truncate(&mut self, len: u64) {
        let end = self.pieces.get_max().map_or(0, |(last, _)| (last + 1) * PIECE as u64);
        self.punch(len, end.saturating_sub(len));
        self.len = len;
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

    /// Takes over what `coin` decides of the sectors that differ in `newer`, and
    /// of the space.
    fn take_some(&mut self, newer: &Contents, sector: usize, coin: &mut dyn FnMut() -> bool) {
        let numbers: BTreeSet<u64> = self.pieces.keys().chain(newer.pieces.keys()).copied().collect();
        for number in numbers {
            let (new, old) = (newer.pieces.get(&number), self.pieces.get(&number));
            if new.zip(old).is_some_and(|(new, old)| Arc::ptr_eq(new, old)) {
                continue;
            }
            let (new_bytes, mut piece) = (newer.piece(number), *self.piece(number));
            for (now, then) in piece.chunks_exact_mut(sector).zip(new_bytes.chunks_exact(sector)) {
                if now != then && coin() {
                    now.copy_from_slice(then);
                }
            }
            let has_space = match (new, old) {
                (Some(_), Some(_)) => true,
                _ => piece != **ZEROS || coin() == new.is_some(),
            };
            if has_space {
                self.pieces.insert(number, Arc::new(piece));
            } else {
                self.pieces.remove(&number);
            }
        }
    }
}

/// The pieces that `len` bytes from `offset` touch.
fn pieces_of(offset: u64, len: u64) -> std::ops::Range<u64> {
    offset / PIECE as u64..(offset + len).div_ceil(PIECE as u64)
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

    /// What of its files was said to be read soon, and has not been asked for here
    /// yet: offsets and lengths.
    pub fn take_read_ahead(&self) -> Vec<(u64, u64)> {
        self.inner.lock().files.values().flat_map(|file| file.read_ahead.lock().split_off(0)).collect()
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
            contents.take_some(&state.visible, sector, coin);
            if state.visible.len != contents.len && coin() {
                match state.visible.len < contents.len {
                    true => contents.truncate(state.visible.len),
                    false => contents.len = state.visible.len,
                }
            }
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
            read_ahead: Mutex::default(),
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

    fn remove(&self, name: &str) -> io::Result<u64> {
        self.power.change(Point::Remove, || {
            let mut inner = self.inner.lock();
            let bytes = inner.files.remove(name).map_or(0, |file| file.state.lock().visible.allocated());
            inner.free_bytes = inner.free_bytes.map(|free| free + bytes);
            Ok(bytes)
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

impl MemFile {
    /// Gives all that `len` bytes from `offset` touch space, or refuses that, and
    /// makes a change.
    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&mut Contents)) -> io::Result<()> {
        let device = self.device.upgrade();
        let mut device = device.as_ref().map(|device| device.lock());
        let mut state = self.state.lock();
        let before = state.visible.allocated();
        if let Some(free) = device.as_ref().and_then(|inner| inner.free_bytes)
            && free < state.visible.missing(offset, len)
        {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        state.visible.allocate(offset, len);
        change(&mut state.visible);
        if let Some(free) = device.as_mut().and_then(|inner| inner.free_bytes.as_mut()) {
            *free = *free + before - state.visible.allocated();
        }
        Ok(())
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

    fn read_ahead(&self, offset: u64, len: u64) -> io::Result<()> {
        self.read_ahead.lock().push((offset, len));
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.power.change(Point::Write, || {
            self.change(offset, buf.len() as u64, |contents| contents.write(buf, offset))
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
            self.change(offset, len, |contents| contents.len = contents.len.max(offset + len))
        })
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.power.change(Point::Punch, || self.change(0, 0, |contents| contents.punch(offset, len)))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.power.change(Point::Truncate, || self.change(0, 0, |contents| contents.truncate(len)))
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.state.lock().visible.allocated())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().visible.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = PIECE as u64;

    #[test]
    fn space_is_counted() {
        let device = MemDevice::new();
        device.set_free_bytes(Some(10 * P));
        let file = device.open("a", true).unwrap();
        let left = |device: &MemDevice| device.free_bytes().unwrap() / P;
        file.allocate(0, 6 * P).unwrap();
        file.allocate(0, 6 * P).unwrap();
        file.write_at(&[1; PIECE], 2 * P).unwrap();
        assert_eq!(left(&device), 4, "what has space needs none");
        file.write_at(&[2; 10], 8 * P - 5).unwrap();
        assert_eq!((left(&device), file.len().unwrap()), (2, 8 * P + 5));
        file.punch(0, 3 * P + 100).unwrap();
        assert_eq!((left(&device), file.allocated().unwrap()), (5, 5 * P), "whole pieces only");
        assert!(file.allocate(0, 10 * P + 1).is_err());
        assert_eq!(left(&device), 5, "a refusal takes nothing");
        let mut read = [9; 2];
        file.read_at(&mut read, 3 * P - 1).unwrap();
        assert_eq!(read, [0, 0]);
        file.truncate(5 * P).unwrap();
        assert_eq!((left(&device), file.len().unwrap()), (8, 5 * P));
        assert_eq!(device.remove("a").unwrap(), 2 * P);
        assert_eq!(left(&device), 10);
    }

    #[test]
    fn a_punch_is_durable_after_a_flush() {
        let device = MemDevice::new();
        let file = device.open("a", true).unwrap();
        file.write_at(&[7; 4 * PIECE], 0).unwrap();
        file.flush().unwrap();
        device.flush_names().unwrap();
        file.punch(0, P).unwrap();
        file.truncate(3 * P).unwrap();
        let after = |coin: &mut dyn FnMut() -> bool| {
            let file = device.crash_image(coin).open("a", false).unwrap();
            let mut first = [9];
            file.read_at(&mut first, 0).unwrap();
            (first[0], file.len().unwrap(), file.allocated().unwrap())
        };
        assert_eq!(after(&mut || false), (7, 4 * P, 4 * P), "undone");
        assert_eq!(after(&mut || true), (0, 3 * P, 2 * P), "not undone");
        file.flush().unwrap();
        assert_eq!(after(&mut || false), (0, 3 * P, 2 * P), "durable");
    }
}
