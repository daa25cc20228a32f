//! Every key and value of the block map. docs/FORMAT.md has the byte tables.
//!
//! A key is a tag byte and big-endian numbers, so that keys sort by layer, then
//! by file, then by block: all of a layer, and all of a file within it, is one
//! range. A value is a version byte, the fields (little-endian), and a CRC-32
//! over the key, the version and the fields; a value that is damaged, or that
//! belongs to another key, is found on reading.
//!
//! A record of a layer says what differs from the layers below. A block or name
//! that a layer does not mention is looked up in its parent. What may show
//! through is bounded by a `Cleared` record (blocks) and by a `Whiteout`
//! (names); within one layer, a `Block` record wins over a `Cleared` one.

mod files;
mod store;

use crate::block::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};

pub use files::{
    BaseFileRecord, BlockRecord, ClearedRecord, ExtentsRecord, InodeRecord, NameRecord, RunRecord, TopRecord,
};
pub use store::{
    BASE_SEAL_BLOCKS, BaseSealRecord, Counters, ForkRecord, HostSealRecord, LayerRecord, Life, QuotaRecord,
    SharedRecord, SlotsRecord, SnapshotRecord,
};

/// Version of the store's format as a whole, kept in the `STORE` file. docs/FORMAT.md
/// tells what each version brought.
pub const STORE_VERSION: u32 = 3;
/// Version of every value.
const VALUE_VERSION: u8 = 1;

// Decoding refuses what no writer makes, so that a store made by somebody with
// bad intentions is as harmless as a damaged one.

/// No layer and no host file has this number or a higher one.
const LAYER_END: u64 = 1 << 56;
/// No slot has this many references.
const REFERENCES_END: u32 = 1 << 31;
/// No layer has this many pages.
const PAGES_END: u64 = 1 << 48;

/// Tags: the first byte of each key.
pub mod tag {
    /// Counters of the store.
    pub const COUNTERS: u8 = b'M';
    /// Forks.
    pub const FORK: u8 = b'F';
    /// Layers.
    pub const LAYER: u8 = b'L';
    /// Snapshots: frozen layers that forks keep.
    pub const SNAPSHOT: u8 = b'N';
    /// Inodes of a layer.
    pub const INODE: u8 = b'I';
    /// Names of a layer.
    pub const NAME: u8 = b'D';
    /// Blocks of a layer.
    pub const BLOCK: u8 = b'B';
    /// Ranges through which nothing below shows.
    pub const CLEARED: u8 = b'R';
    /// Host files of an in-place file.
    pub const EXTENTS: u8 = b'W';
    /// Files of a base.
    pub const BASE_FILE: u8 = b'Y';
    /// Allocation bitmap of a delta file.
    pub const SLOTS: u8 = b'S';
    /// Slots with more than one reference.
    pub const SHARED: u8 = b'C';
    /// Forks' quotas.
    pub const QUOTA: u8 = b'Q';
    /// CRCs of a host file that nobody writes to.
    pub const HOST_SEAL: u8 = b'H';
    /// CRCs of a base file.
    pub const BASE_SEAL: u8 = b'Z';
}

/// A key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Address of a page: a delta file and the number of the 8 KiB slot within it.
/// It does not depend on the layer or fork that refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u64);

impl Slot {
    /// In a page table: zeros that hide a base. Delta files count from 1, so no
    /// page has this address.
    pub const HOLE: Slot = Slot(1);

    /// The slot number `index` of delta file `delta` (1 or more).
    pub fn new(delta: u32, index: u32) -> Slot {
        Slot((u64::from(delta) << 32) | u64::from(index))
    }

    /// The delta file.
    pub fn delta(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number within the delta file.
    pub fn index(self) -> u32 {
        self.0 as u32
    }

    /// Whether a page may be there: in a delta file, and not at the end of all
    /// numbers, so that there is always a next one.
    fn can_be(self) -> bool {
        self.delta() != 0 && self.index() != u32::MAX
    }

    /// Byte offset within the delta file.
    pub fn offset(self) -> u64 {
        u64::from(self.index()) * BLOCK_BYTES
    }
}

/// A time stamp: seconds and nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// Slots of one allocation bitmap record: 8 MiB of a delta file.
pub const SLOTS_PER_RECORD: u32 = 1024;
/// Bytes of its bitmap.
pub const SLOT_MAP_BYTES: usize = SLOTS_PER_RECORD as usize / 8;

// ---- writing and reading of fields --------------------------------------

struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Writer(vec![VALUE_VERSION])
    }
    fn u8(mut self, v: u8) -> Self {
        self.0.push(v);
        self
    }
    fn u16(mut self, v: u16) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }
    fn time(self, t: Time) -> Self {
        self.u64(t.secs as u64).u32(t.nanos)
    }
    fn bytes(mut self, v: &[u8]) -> Self {
        self = self.u32(v.len() as u32);
        self.0.extend_from_slice(v);
        self
    }
    fn crcs(self, crcs: &[u32]) -> Self {
        crcs.iter().fold(self.u32(crcs.len() as u32), |w, &crc| w.u32(crc))
    }
    fn raw(mut self, v: &[u8]) -> Self {
        self.0.extend_from_slice(v);
        self
    }
    /// Seals the value with its CRC.
    fn seal(mut self, key: Vec<u8>) -> Record {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&key);
        crc.update(&self.0);
        self.0.extend(crc.finalize().to_le_bytes());
        (key, self.0)
    }
}

struct Reader<'a> {
    key: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn open(key: &'a [u8], value: &'a [u8]) -> Result<Self> {
        let damaged = |what: &str| Err(Error::Damaged(format!("block map record {}: {what}", hex(key))));
        let Some((body, stored)) = value.split_last_chunk::<4>() else {
            return damaged("it is too short");
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(key);
        crc.update(body);
        if crc.finalize() != u32::from_le_bytes(*stored) {
            return damaged("its CRC does not match");
        }
        match body.split_first() {
            Some((&VALUE_VERSION, rest)) => Ok(Reader { key, rest }),
            Some((version, _)) => damaged(&format!(
                "version {version} is not known to this program, which knows {VALUE_VERSION}"
            )),
            None => damaged("it is empty"),
        }
    }

    fn fail<T>(&self, what: &str) -> Result<T> {
        Err(Error::Damaged(format!("block map record {}: {what}", hex(self.key))))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => self.fail("a field is missing"),
        }
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(self.take::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    fn time(&mut self) -> Result<Time> {
        let time = Time { secs: self.u64()? as i64, nanos: self.u32()? };
        if time.nanos < 1_000_000_000 { Ok(time) } else { self.fail("a time has too many nanoseconds") }
    }
    fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > self.rest.len() {
            return self.fail("a field is longer than the record");
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }
    fn text(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => self.fail("a text is not UTF-8"),
        }
    }
    fn crcs(mut self) -> Result<Vec<u32>> {
        let count = self.u32()? as usize;
        if self.rest.len() != 4 * count {
            return self.fail("it has not as many CRCs as it says");
        }
        let crcs = self.rest.as_chunks::<4>().0;
        Ok(crcs.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }
    fn end(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { self.fail("it is longer than its fields") }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Reads the numbers of a key back.
struct KeyReader<'a>(&'a [u8]);

impl<'a> KeyReader<'a> {
    fn new(key: &'a [u8]) -> Self {
        KeyReader(&key[1.min(key.len())..])
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(*head)
            }
            None => Err(Error::Damaged("a block map key is too short".into())),
        }
    }
    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }
    fn layer(&mut self) -> Result<LayerId> {
        match self.u64()? {
            0 => Err(Error::Damaged("a block map key names layer 0".into())),
            id => Ok(LayerId(id)),
        }
    }
    fn file(&mut self) -> Result<FileId> {
        match self.u64()? {
            id @ 1..FileId::END => Ok(FileId(id)),
            id => Err(Error::Damaged(format!("a block map key names file {id}, which cannot be"))),
        }
    }
    fn fork(&mut self) -> Result<ForkId> {
        match self.u32()? {
            id @ 1..ForkId::END => Ok(ForkId(id)),
            id => Err(Error::Damaged(format!("a block map key names fork {id}, which cannot be"))),
        }
    }
    fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Damaged("a block map key is too long".into())) }
    }
}

/// The layer and the file of a key that has nothing else.
fn read_file_key(k: &[u8]) -> Result<(LayerId, FileId)> {
    let mut r = KeyReader::new(k);
    let place = (r.layer()?, r.file()?);
    r.end()?;
    Ok(place)
}

/// The fork of a key that has nothing else.
fn read_fork_key(k: &[u8]) -> Result<ForkId> {
    let mut r = KeyReader::new(k);
    let id = r.fork()?;
    r.end()?;
    Ok(id)
}

fn key(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|p| p.len()).sum::<usize>());
    key.push(tag);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

/// First key of all records of `tag` in `layer`.
pub fn layer_prefix(tag: u8, layer: LayerId) -> Vec<u8> {
    key(tag, &[&layer.0.to_be_bytes()])
}

/// First key of all records of `tag` for `file` in `layer`.
pub fn file_prefix(tag: u8, layer: LayerId, file: FileId) -> Vec<u8> {
    key(tag, &[&layer.0.to_be_bytes(), &file.0.to_be_bytes()])
}

/// The layer of a key made with [`layer_prefix`] or [`file_prefix`].
pub fn layer_of_key(k: &[u8]) -> Result<LayerId> {
    Ok(LayerId(KeyReader::new(k).u64()?))
}

/// The file of a key made with [`file_prefix`].
pub fn file_of_key(k: &[u8]) -> Result<FileId> {
    let mut r = KeyReader::new(k);
    r.layer()?;
    r.file()
}
