//! Records of the store as a whole: counters, forks, layers, slots, seals.

use super::{
    KeyReader, LAYER_END, PAGES_END, REFERENCES_END, Reader, Record, SLOT_MAP_BYTES, SLOTS_PER_RECORD, Slot,
    Time, Writer, hex, key, layer_prefix, read_fork_key, tag,
};
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId, check_fork_name, check_label};

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
        KeyReader::new(k).end()?;
        let mut r = Reader::open(k, v)?;
        let c = Counters { file: r.u64()?, layer: r.u64()?, fork: r.u32()?, delta: r.u32()?, host: r.u64()? };
        if !(c.file < FileId::END && c.layer < LAYER_END && c.fork < ForkId::END && c.host < LAYER_END) {
            return r.fail("a counter is past its end");
        }
        r.end()?;
        Ok(c)
    }
}

/// How long a fork lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until it is removed.
    Lasting,
    /// Not published yet: removed when the store is opened.
    Incomplete,
    /// No longer than the store is open: nobody relies on what is durable of it, and
    /// it is removed when the store is opened.
    Ephemeral,
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
    /// How long it lives.
    pub life: Life,
    /// What the caller keeps with the fork.
    pub meta: Vec<u8>,
    /// The base directory at the bottom; empty without one.
    pub base: String,
}

impl ForkRecord {
    /// Whether it is not published yet.
    pub fn is_incomplete(&self) -> bool {
        self.life == Life::Incomplete
    }

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
            .u8(match self.life {
                Life::Lasting => 0,
                Life::Incomplete => 1,
                Life::Ephemeral => 2,
            })
            .bytes(self.name.as_bytes())
            .bytes(self.parent.as_bytes())
            .bytes(self.base.as_bytes())
            .bytes(&self.meta)
            .seal(Self::key(self.id))
    }
    /// From a stored record.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<Self> {
        let id = read_fork_key(k)?;
        let mut r = Reader::open(k, v)?;
        let head = LayerId(r.u64()?);
        let delta = r.u32()?;
        let created = r.time()?;
        let life = match r.u8()? {
            0 => Life::Lasting,
            1 => Life::Incomplete,
            2 => Life::Ephemeral,
            _ => return r.fail("nobody knows how long it lives"),
        };
        let (name, parent, base) = (r.text()?, r.text()?, r.text()?);
        let meta = r.bytes()?.to_vec();
        if check_fork_name(&name).is_err() || delta == 0 {
            return r.fail("a fork's name or delta file cannot be");
        }
        r.end()?;
        Ok(ForkRecord { id, name, parent, head, delta, created, life, meta, base })
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
        let mut kr = KeyReader::new(k);
        let id = kr.layer()?;
        kr.end()?;
        let mut r = Reader::open(k, v)?;
        let rec = LayerRecord { id, parent: LayerId(r.u64()?), pages: r.u64()?, logical_bytes: r.u64()? };
        if id.0 >= LAYER_END || rec.pages >= PAGES_END {
            return r.fail("a number is past its end");
        }
        r.end()?;
        Ok(rec)
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
        let id = read_fork_key(k)?;
        let mut r = Reader::open(k, v)?;
        let bytes = r.u64()?;
        r.end()?;
        Ok((id, bytes))
    }
}

/// A frozen layer that a fork keeps, under a label; the empty label is what the
/// fork was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The layer.
    pub layer: LayerId,
    /// When it was made.
    pub created: Time,
}

impl SnapshotRecord {
    /// The key of one fork's label.
    pub fn key(fork: ForkId, label: &str) -> Vec<u8> {
        key(tag::SNAPSHOT, &[&fork.0.to_be_bytes(), label.as_bytes()])
    }
    /// As stored.
    pub fn encode(&self, fork: ForkId, label: &str) -> Record {
        Writer::new().u64(self.layer.0).time(self.created).seal(Self::key(fork, label))
    }
    /// From a stored record: the fork, the label, and the snapshot.
    pub fn decode(k: &[u8], v: &[u8]) -> Result<(ForkId, String, Self)> {
        let mut kr = KeyReader::new(k);
        let (fork, label) = (kr.fork()?, kr.0);
        let mut r = Reader::open(k, v)?;
        let label = match String::from_utf8(label.to_vec()) {
            Ok(label) if label.is_empty() || check_label(&label).is_ok() => label,
            _ => return r.fail("the label cannot be"),
        };
        let record = SnapshotRecord { layer: LayerId(r.u64()?), created: r.time()? };
        if !(1..LAYER_END).contains(&record.layer.0) {
            return r.fail("the layer cannot be");
        }
        r.end()?;
        Ok((fork, label, record))
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
        let mut kr = KeyReader::new(k);
        let slot = Slot(kr.u64()?);
        kr.end()?;
        let mut r = Reader::open(k, v)?;
        let count = r.u32()?;
        if !slot.can_be() || !(2..REFERENCES_END).contains(&count) {
            return r.fail("the slot or its count cannot be");
        }
        r.end()?;
        Ok((slot, count))
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
        let mut kr = KeyReader::new(k);
        let host = kr.u64()?;
        kr.end()?;
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
        let (file, number) = (kr.file()?, kr.u32()?);
        kr.end()?;
        let crcs = Reader::open(k, v)?.crcs()?;
        if crcs.len() > BASE_SEAL_BLOCKS as usize {
            return Err(Error::Damaged(format!("block map record {}: it has too many CRCs", hex(k))));
        }
        Ok((file, number, crcs))
    }
}
