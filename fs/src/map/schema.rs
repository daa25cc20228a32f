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

use crate::attr::Kind;
use crate::block::{BLOCK_BYTES, BlockNo, MAX_FILE_BYTES};
use crate::class::{Class, Role};
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId, check_file_name, check_fork_name};

/// Version of the store's format as a whole, kept in the `STORE` file.
pub const STORE_VERSION: u32 = 1;
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

    /// Byte offset within the delta file.
    pub fn offset(self) -> u64 {
        u64::from(self.index()) * BLOCK_BYTES
    }
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

// ---- records -------------------------------------------------------------

/// A time stamp: seconds and nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// The highest identifiers that may be in use; a restart goes on above them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Files.
    pub file: u64,
    /// Layers.
    pub layer: u64,
    /// Forks.
    pub fork: u32,
    /// Delta files.
    pub delta: u32,
    /// In-place host files.
    pub host: u64,
}

impl Counters {
    /// The one key.
    pub fn key() -> Vec<u8> {
        key(tag::COUNTERS, &[])
    }
    /// As stored.
    pub fn encode(&self) -> Record {
        Writer::new()
            .u64(self.file)
            .u64(self.layer)
            .u32(self.fork)
            .u32(self.delta)
            .u64(self.host)
            .seal(Self::key())
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<Self> {
        let mut r = Reader::open(k, v)?;
        let c = Counters { file: r.u64()?, layer: r.u64()?, fork: r.u32()?, delta: r.u32()?, host: r.u64()? };
        if !(c.file < FileId::END && c.layer < LAYER_END && c.fork < ForkId::END && c.host < LAYER_END) {
            return r.fail("a counter is past its end");
        }
        r.end()?;
        Ok(c)
    }
}

/// A fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkRecord {
    /// Its id.
    pub id: ForkId,
    /// Its name.
    pub name: String,
    /// The name of the fork it was made from; empty for a root fork.
    pub parent: String,
    /// The layer it writes to. Reaching layers only through their forks and
    /// children lets a layer take another's place.
    pub head: LayerId,
    /// The delta file it writes to; 0 before its first page.
    pub delta: u32,
    /// When it was made.
    pub created: Time,
    /// Not published yet: removed when the store is opened.
    pub incomplete: bool,
    /// What the caller keeps with the fork.
    pub meta: Vec<u8>,
    /// The base directory at the bottom; empty without one.
    pub base: String,
}

impl ForkRecord {
    /// The key of fork `id`.
    pub fn key(id: ForkId) -> Vec<u8> {
        key(tag::FORK, &[&id.0.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(&self) -> Record {
        Writer::new()
            .u64(self.head.0)
            .u32(self.delta)
            .time(self.created)
            .u8(self.incomplete.into())
            .bytes(self.name.as_bytes())
            .bytes(self.parent.as_bytes())
            .bytes(self.base.as_bytes())
            .bytes(&self.meta)
            .seal(Self::key(self.id))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<Self> {
        let id = KeyReader::new(k).fork()?;
        let mut r = Reader::open(k, v)?;
        let head = LayerId(r.u64()?);
        let delta = r.u32()?;
        let created = r.time()?;
        let incomplete = r.u8()? != 0;
        let (name, parent, base) = (r.text()?, r.text()?, r.text()?);
        let meta = r.bytes()?.to_vec();
        if check_fork_name(&name).is_err() || delta == 0 {
            return r.fail("a fork's name or delta file cannot be");
        }
        r.end()?;
        Ok(ForkRecord { id, name, parent, head, delta, created, incomplete, meta, base })
    }
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// Its id.
    pub id: LayerId,
    /// The layer below; 0 for the bottom.
    pub parent: LayerId,
    /// Pages that its block records refer to.
    pub pages: u64,
    /// Sum of the sizes of all files as seen from this layer, in bytes.
    pub logical_bytes: u64,
}

impl LayerRecord {
    /// The key of layer `id`.
    pub fn key(id: LayerId) -> Vec<u8> {
        layer_prefix(tag::LAYER, id)
    }
    /// As stored.
    pub fn encode(&self) -> Record {
        Writer::new().u64(self.parent.0).u64(self.pages).u64(self.logical_bytes).seal(Self::key(self.id))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<Self> {
        let id = KeyReader::new(k).layer()?;
        let mut r = Reader::open(k, v)?;
        let rec = LayerRecord { id, parent: LayerId(r.u64()?), pages: r.u64()?, logical_bytes: r.u64()? };
        if id.0 >= LAYER_END || rec.pages >= PAGES_END {
            return r.fail("a number is past its end");
        }
        r.end()?;
        Ok(rec)
    }
}

/// What an inode is, its contents apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRecord {
    /// The file's kind.
    pub kind: Kind,
    /// A directory's role.
    pub role: Role,
    /// A regular file's class.
    pub class: Class,
    /// Permission bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Device number.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Access time.
    pub atime: Time,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// A directory's parent directory.
    pub parent: FileId,
    /// A symbolic link's target.
    pub target: Vec<u8>,
}

fn kind_to_u8(kind: Kind) -> u8 {
    match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::Symlink => 3,
        Kind::Fifo => 4,
        Kind::Socket => 5,
        Kind::CharDevice => 6,
        Kind::BlockDevice => 7,
    }
}

fn kind_from_u8(byte: u8) -> Option<Kind> {
    Some(match byte {
        1 => Kind::File,
        2 => Kind::Directory,
        3 => Kind::Symlink,
        4 => Kind::Fifo,
        5 => Kind::Socket,
        6 => Kind::CharDevice,
        7 => Kind::BlockDevice,
        _ => return None,
    })
}

impl InodeRecord {
    /// The key of `file` in `layer`.
    pub fn key(layer: LayerId, file: FileId) -> Vec<u8> {
        file_prefix(tag::INODE, layer, file)
    }
    /// As stored.
    pub fn encode(&self, layer: LayerId, file: FileId) -> Record {
        Writer::new()
            .u8(kind_to_u8(self.kind))
            .u8(self.role as u8)
            .u8(self.class as u8)
            .u16(self.perm)
            .u32(self.uid)
            .u32(self.gid)
            .u32(self.nlink)
            .u32(self.rdev)
            .u64(self.size)
            .time(self.atime)
            .time(self.mtime)
            .time(self.ctime)
            .u64(self.parent.0)
            .bytes(&self.target)
            .seal(Self::key(layer, file))
    }
    /// The record of a file that this layer has removed.
    pub fn encode_removed(layer: LayerId, file: FileId) -> Record {
        Writer::new().u8(0).seal(Self::key(layer, file))
    }
    /// From a stored record; `None` if the layer has removed the file.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<Option<Self>> {
        let mut r = Reader::open(k, v)?;
        let kind = match r.u8()? {
            0 => {
                r.end()?;
                return Ok(None);
            }
            byte => kind_from_u8(byte),
        };
        let (role, class) = (Role::from_u8(r.u8()?), Class::from_u8(r.u8()?));
        let (Some(kind), Some(role), Some(class)) = (kind, role, class) else {
            return r.fail("an unknown kind, role or class");
        };
        let rec = InodeRecord {
            kind,
            role,
            class,
            perm: r.u16()?,
            uid: r.u32()?,
            gid: r.u32()?,
            nlink: r.u32()?,
            rdev: r.u32()?,
            size: r.u64()?,
            atime: r.time()?,
            mtime: r.time()?,
            ctime: r.time()?,
            parent: FileId(r.u64()?),
            target: r.bytes()?.to_vec(),
        };
        if rec.size > MAX_FILE_BYTES || rec.perm & !0o7777 != 0 || rec.target.contains(&0) {
            return r.fail("a size, mode or link target cannot be");
        }
        r.end()?;
        Ok(Some(rec))
    }
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRecord {
    /// A file.
    Entry(FileId, Kind),
    /// Nothing: the layer has removed the name.
    Whiteout,
}

impl NameRecord {
    /// The key of `name` in directory `dir` of `layer`.
    pub fn key(layer: LayerId, dir: FileId, name: &[u8]) -> Vec<u8> {
        key(tag::NAME, &[&layer.0.to_be_bytes(), &dir.0.to_be_bytes(), name])
    }
    /// As stored.
    pub fn encode(&self, layer: LayerId, dir: FileId, name: &[u8]) -> Record {
        let writer = match self {
            NameRecord::Entry(file, kind) => Writer::new().u8(kind_to_u8(*kind)).u64(file.0),
            NameRecord::Whiteout => Writer::new().u8(0),
        };
        writer.seal(Self::key(layer, dir, name))
    }
    /// From a stored record: the directory, the name, and where it leads.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(FileId, Box<[u8]>, Self)> {
        let mut kr = KeyReader::new(k);
        kr.layer()?;
        let dir = kr.file()?;
        let name: Box<[u8]> = kr.0.into();
        let mut r = Reader::open(k, v)?;
        if check_file_name(&name).is_err() {
            return r.fail("the name cannot be a file's");
        }
        let rec = match r.u8()? {
            0 => NameRecord::Whiteout,
            byte => match kind_from_u8(byte) {
                Some(kind) => NameRecord::Entry(FileId(r.u64()?), kind),
                None => return r.fail("an unknown kind"),
            },
        };
        r.end()?;
        Ok((dir, name, rec))
    }
}

/// Where a block's page is, and its CRC-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// The page.
    pub slot: Slot,
    /// CRC-32 (IEEE) of the 8192 bytes.
    pub crc: u32,
}

impl BlockRecord {
    /// The key of a block.
    pub fn key(layer: LayerId, file: FileId, block: BlockNo) -> Vec<u8> {
        key(tag::BLOCK, &[&layer.0.to_be_bytes(), &file.0.to_be_bytes(), &block.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(&self, layer: LayerId, file: FileId, block: BlockNo) -> Record {
        Writer::new().u64(self.slot.0).u32(self.crc).seal(Self::key(layer, file, block))
    }
    /// From a stored record: the file, the block, and its page.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(FileId, BlockNo, Self)> {
        let mut kr = KeyReader::new(k);
        kr.layer()?;
        let (file, block) = (kr.file()?, kr.u32()?);
        kr.end()?;
        let mut r = Reader::open(k, v)?;
        let rec = BlockRecord { slot: Slot(r.u64()?), crc: r.u32()? };
        if rec.slot.delta() == 0 || block == BlockNo::MAX {
            return r.fail("the block or its slot cannot be");
        }
        r.end()?;
        Ok((file, block, rec))
    }
}

/// A range of blocks, `start..end`, through which nothing below shows.
pub struct ClearedRecord;

impl ClearedRecord {
    /// As stored. Both ends are in the key: overlapping ranges stand side by
    /// side, and none can hide another.
    pub fn encode(layer: LayerId, file: FileId, start: BlockNo, end: BlockNo) -> Record {
        Writer::new().seal(key(
            tag::CLEARED,
            &[&layer.0.to_be_bytes(), &file.0.to_be_bytes(), &start.to_be_bytes(), &end.to_be_bytes()],
        ))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(BlockNo, BlockNo)> {
        let mut kr = KeyReader::new(k);
        kr.layer()?;
        kr.file()?;
        let range = (kr.u32()?, kr.u32()?);
        kr.end()?;
        Reader::open(k, v)?.end()?;
        Ok(range)
    }
}

/// One run of blocks of an in-place file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// First block of the file.
    pub start: BlockNo,
    /// Number of blocks.
    pub len: u32,
    /// The host file; 0 for the base file.
    pub host: u64,
}

/// One host file that the layer's fork writes to in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopRecord {
    /// The chunk of the file that it holds.
    pub chunk: u32,
    /// The host file.
    pub host: u64,
    /// Blocks from the chunk's start that were filled with the pattern that
    /// marks sectors not written yet; 0 if it lies over nothing.
    pub patterned: u32,
}

/// All host files of an in-place file, from this layer and from those below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentsRecord {
    /// The runs, by block, without overlap.
    pub runs: Vec<RunRecord>,
    /// The host files written to.
    pub tops: Vec<TopRecord>,
}

impl ExtentsRecord {
    /// The key of `file` in `layer`.
    pub fn key(layer: LayerId, file: FileId) -> Vec<u8> {
        file_prefix(tag::EXTENTS, layer, file)
    }
    /// As stored.
    pub fn encode(&self, layer: LayerId, file: FileId) -> Record {
        let mut w = Writer::new().u32(self.runs.len() as u32).u32(self.tops.len() as u32);
        for run in &self.runs {
            w = w.u32(run.start).u32(run.len).u64(run.host);
        }
        for top in &self.tops {
            w = w.u32(top.chunk).u64(top.host).u32(top.patterned);
        }
        w.seal(Self::key(layer, file))
    }
    /// From a stored record: the layer, the file, and its host files.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(LayerId, FileId, Self)> {
        let mut kr = KeyReader::new(k);
        let (layer, file) = (kr.layer()?, kr.file()?);
        kr.end()?;
        let mut r = Reader::open(k, v)?;
        let (runs, tops) = (r.u32()?, r.u32()?);
        let mut rec = ExtentsRecord::default();
        for _ in 0..runs {
            rec.runs.push(RunRecord { start: r.u32()?, len: r.u32()?, host: r.u64()? });
        }
        for _ in 0..tops {
            rec.tops.push(TopRecord { chunk: r.u32()?, host: r.u64()?, patterned: r.u32()? });
        }
        let mut free = 0;
        for run in &rec.runs {
            match run.start.checked_add(run.len) {
                Some(end) if run.start >= free && run.len > 0 => free = end,
                _ => return r.fail("its runs overlap or end past the largest file"),
            }
        }
        let hosts = rec.runs.iter().map(|run| run.host).chain(rec.tops.iter().map(|top| top.host));
        if hosts.into_iter().any(|host| host >= LAYER_END) || rec.tops.iter().any(|top| top.host == 0) {
            return r.fail("it names a host file that cannot be");
        }
        r.end()?;
        Ok((layer, file, rec))
    }
    /// The host files that it refers to, each once.
    pub fn hosts(&self) -> Vec<u64> {
        let mut hosts: Vec<u64> =
            self.runs.iter().map(|r| r.host).chain(self.tops.iter().map(|t| t.host)).collect();
        hosts.retain(|&h| h != 0);
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }
}

/// One file of a base, and what it was when it was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFileRecord {
    /// Its absolute path.
    pub path: String,
    /// Host device number.
    pub dev: u64,
    /// Host inode number.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
}

impl BaseFileRecord {
    /// The key of `file` in `layer`.
    pub fn key(layer: LayerId, file: FileId) -> Vec<u8> {
        file_prefix(tag::BASE_FILE, layer, file)
    }
    /// As stored.
    pub fn encode(&self, layer: LayerId, file: FileId) -> Record {
        Writer::new()
            .u64(self.dev)
            .u64(self.ino)
            .u64(self.size)
            .time(self.mtime)
            .time(self.ctime)
            .bytes(self.path.as_bytes())
            .seal(Self::key(layer, file))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(FileId, Self)> {
        let file = file_of_key(k)?;
        let mut r = Reader::open(k, v)?;
        let rec = BaseFileRecord {
            dev: r.u64()?,
            ino: r.u64()?,
            size: r.u64()?,
            mtime: r.time()?,
            ctime: r.time()?,
            path: r.text()?,
        };
        if rec.size > MAX_FILE_BYTES || !rec.path.starts_with('/') {
            return r.fail("the base file cannot be");
        }
        r.end()?;
        Ok((file, rec))
    }
}

/// The allocation bitmap of 1024 slots.
pub struct SlotsRecord;

impl SlotsRecord {
    /// As stored: bit `i` of byte `i / 8` is slot `chunk * 1024 + i`.
    pub fn encode(delta: u32, chunk: u32, bits: &[u8; SLOT_MAP_BYTES]) -> Record {
        Writer::new().raw(bits).seal(Self::key(delta, chunk))
    }
    /// The key of record number `chunk` of a delta file.
    pub fn key(delta: u32, chunk: u32) -> Vec<u8> {
        key(tag::SLOTS, &[&delta.to_be_bytes(), &chunk.to_be_bytes()])
    }
    /// From a stored record: the delta file, the record's number, and its bits.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(u32, u32, [u8; SLOT_MAP_BYTES])> {
        let mut kr = KeyReader::new(k);
        let (delta, chunk) = (kr.u32()?, kr.u32()?);
        kr.end()?;
        let mut r = Reader::open(k, v)?;
        if delta == 0 || chunk > u32::MAX / SLOTS_PER_RECORD {
            return r.fail("the slots cannot be");
        }
        let bits = r.take()?;
        r.end()?;
        Ok((delta, chunk, bits))
    }
}

/// The number of references to a slot that has more than one.
pub struct SharedRecord;

impl SharedRecord {
    /// The key of a slot.
    pub fn key(slot: Slot) -> Vec<u8> {
        key(tag::SHARED, &[&slot.0.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(slot: Slot, count: u32) -> Record {
        Writer::new().u32(count).seal(Self::key(slot))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(Slot, u32)> {
        let slot = Slot(KeyReader::new(k).u64()?);
        let mut r = Reader::open(k, v)?;
        let count = r.u32()?;
        if slot.delta() == 0 || !(2..REFERENCES_END).contains(&count) {
            return r.fail("the slot or its count cannot be");
        }
        r.end()?;
        Ok((slot, count))
    }
}

/// How much a fork's own writes may take of the host's disk; a fork without
/// this record has no such bound.
pub struct QuotaRecord;

impl QuotaRecord {
    /// The key of fork `id`'s quota.
    pub fn key(id: ForkId) -> Vec<u8> {
        key(tag::QUOTA, &[&id.0.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(id: ForkId, bytes: u64) -> Record {
        Writer::new().u64(bytes).seal(Self::key(id))
    }
    /// From a stored record: the fork and its quota in bytes.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(ForkId, u64)> {
        let id = KeyReader::new(k).fork()?;
        let mut r = Reader::open(k, v)?;
        let bytes = r.u64()?;
        r.end()?;
        Ok((id, bytes))
    }
}

/// The CRC-32 of each 8 KiB block of a host file of in-place data. It belongs to
/// the host file, whichever layers and forks refer to that.
pub struct HostSealRecord;

impl HostSealRecord {
    /// The key of a host file.
    pub fn key(host: u64) -> Vec<u8> {
        key(tag::HOST_SEAL, &[&host.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(host: u64, crcs: &[u32]) -> Record {
        Writer::new().crcs(crcs).seal(Self::key(host))
    }
    /// From a stored record: the host file and its CRCs.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(u64, Vec<u32>)> {
        let host = KeyReader::new(k).u64()?;
        Ok((host, Reader::open(k, v)?.crcs()?))
    }
}

/// Blocks of one [`BaseSealRecord`].
pub const BASE_SEAL_BLOCKS: u32 = 1024;

/// The CRC-32 of each of up to 1024 blocks of a base file. A file has the same
/// id in all layers and forks, so all that stand on the base share them.
pub struct BaseSealRecord;

impl BaseSealRecord {
    /// The key of the blocks from `number * 1024` on.
    pub fn key(file: FileId, number: u32) -> Vec<u8> {
        key(tag::BASE_SEAL, &[&file.0.to_be_bytes(), &number.to_be_bytes()])
    }
    /// First key of all records of `file`.
    pub fn prefix(file: FileId) -> Vec<u8> {
        key(tag::BASE_SEAL, &[&file.0.to_be_bytes()])
    }
    /// As stored.
    pub fn encode(file: FileId, number: u32, crcs: &[u32]) -> Record {
        Writer::new().crcs(crcs).seal(Self::key(file, number))
    }
    /// From a stored record: the file, the record's number, and its CRCs.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(FileId, u32, Vec<u32>)> {
        let mut kr = KeyReader::new(k);
        let (file, number) = (FileId(kr.u64()?), kr.u32()?);
        Ok((file, number, Reader::open(k, v)?.crcs()?))
    }
}
