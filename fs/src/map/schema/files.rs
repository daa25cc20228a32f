//! Records of a layer: its files, their names, and where their contents lie.

use super::{KeyReader, LAYER_END, Reader, Record, Slot, Time, Writer, file_prefix, key, read_file_key, tag};
use crate::attr::Kind;
use crate::block::{BlockNo, MAX_FILE_BYTES};
use crate::class::{Class, Role};
use crate::error::Result;
use crate::ids::{FileId, LayerId, check_file_name};

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
        read_file_key(k)?;
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
        if !rec.slot.can_be() || block == BlockNo::MAX {
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
        let (layer, file) = read_file_key(k)?;
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
        let (_, file) = read_file_key(k)?;
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
