//! Files that are written in place: WAL segments and scratch.
//!
//! A WAL segment is overwritten block by block, and each commit waits for it;
//! out-of-place pages would cost a map commit each time. So its blocks lie in
//! host files, at fixed places, and a commit is one flush of one host file.
//! PostgreSQL guards the contents with its own record CRCs while it writes them;
//! a host file at rest is sealed ([`crate::seal`]).
//!
//! A fork shares the host files with its parent: from that moment neither may
//! write to them. The first write after it takes a new host file for the chunk,
//! which *lies over* what is there: a block of it counts once it was written.
//! Which blocks those are needs no map commit, because the new file was filled
//! beforehand with a pattern; after a crash, sectors that still hold the
//! pattern were never written ([`resolve_after_crash`]).
//!
//! Invariants:
//! - a host file of a WAL segment is written only by the fork whose head layer
//!   owns the extents that have it as a top, and only between two forks of it;
//!   scratch is not inherited by forks, so its host files stay its own;
//! - runs do not overlap; a block without a run is zeros;
//! - a host file is removed when no durable record and nobody alive refers to it;
//! - a sealed host file is what its seal says: the first write removes the seal,
//!   durably, before it changes a byte.

mod host;
mod recover;

use std::collections::HashSet;
use std::sync::Arc;

use crate::block::{BLOCK_BYTES, BlockNo};
use crate::class::Class;
use crate::error::{Error, Result};
use crate::ids::LayerId;
use crate::map::schema::{ExtentsRecord, RunRecord, TopRecord};

pub use host::{HostFile, HostFiles};
pub use recover::{ReadBelow, resolve_after_crash};

/// Blocks of a WAL file in one host file: 16 MiB, PostgreSQL's default segment.
pub const WAL_CHUNK_BLOCKS: u32 = 2048;
/// Blocks of a scratch file in one host file: 1 GiB.
const SCRATCH_CHUNK_BLOCKS: u32 = 131_072;
/// The unit in which the host's disk may tear a write.
const SECTOR: usize = 512;

/// Blocks of a file of that class in one host file.
pub fn chunk_blocks(class: Class) -> u32 {
    match class {
        Class::Wal => WAL_CHUNK_BLOCKS,
        _ => SCRATCH_CHUNK_BLOCKS,
    }
}

/// Where a run of blocks lies.
#[derive(Clone)]
pub enum Source {
    /// In a host file.
    Host(Arc<HostFile>),
    /// In the base file, at the same offset.
    Base,
}

impl Source {
    fn id(&self) -> u64 {
        match self {
            Source::Host(host) => host.id,
            Source::Base => 0,
        }
    }
}

/// A run of blocks in one place.
#[derive(Clone)]
pub struct Run {
    start: BlockNo,
    len: u32,
    source: Source,
}

impl Run {
    fn end(&self) -> BlockNo {
        self.start + self.len
    }
}

/// A host file that is written to.
#[derive(Clone)]
struct Top {
    chunk: u32,
    host: Arc<HostFile>,
    patterned: u32,
}

/// Where the blocks of an in-place file lie.
#[derive(Clone)]
pub struct Extents {
    /// The layer that may write to `tops`.
    owner: LayerId,
    class: Class,
    chunk_blocks: u32,
    runs: Vec<Run>,
    tops: Vec<Top>,
}

impl Extents {
    /// No blocks yet.
    pub fn new(class: Class, owner: LayerId) -> Self {
        Extents { owner, class, chunk_blocks: chunk_blocks(class), runs: Vec::new(), tops: Vec::new() }
    }

    /// All of a base file.
    pub fn over_base(class: Class, owner: LayerId, blocks: u32) -> Self {
        let mut extents = Extents::new(class, owner);
        if blocks > 0 {
            extents.runs.push(Run { start: 0, len: blocks, source: Source::Base });
        }
        extents
    }

    /// From a stored record of `layer`.
    pub fn from_record(
        rec: &ExtentsRecord,
        class: Class,
        layer: LayerId,
        files: &Arc<HostFiles>,
    ) -> Result<Self> {
        let blocks = chunk_blocks(class);
        let (mut chunks, mut hosts) = (HashSet::new(), HashSet::new());
        for top in &rec.tops {
            let fits = top.chunk < u32::MAX / blocks && top.patterned <= blocks;
            if !fits || !chunks.insert(top.chunk) || !hosts.insert(top.host) {
                return Err(Error::Damaged("the host files of an in-place file cannot be".into()));
            }
        }
        let source = |host| if host == 0 { Source::Base } else { Source::Host(files.get(host)) };
        Ok(Extents {
            owner: layer,
            class,
            chunk_blocks: blocks,
            runs: rec
                .runs
                .iter()
                .map(|r| Run { start: r.start, len: r.len, source: source(r.host) })
                .collect(),
            tops: rec
                .tops
                .iter()
                .map(|t| Top { chunk: t.chunk, host: files.get(t.host), patterned: t.patterned })
                .collect(),
        })
    }

    /// As stored. Only the owner's record has its tops.
    pub fn to_record(&self, layer: LayerId) -> ExtentsRecord {
        let tops = if self.belongs_to(layer) { self.tops.as_slice() } else { &[] };
        ExtentsRecord {
            runs: self
                .runs
                .iter()
                .map(|r| RunRecord { start: r.start, len: r.len, host: r.source.id() })
                .collect(),
            tops: tops
                .iter()
                .map(|t| TopRecord { chunk: t.chunk, host: t.host.id, patterned: t.patterned })
                .collect(),
        }
    }

    /// Offset of a block within the host file of its chunk.
    fn offset_in(&self, source: &Source, block: BlockNo) -> u64 {
        match source {
            Source::Host(_) => u64::from(block % self.chunk_blocks) * BLOCK_BYTES,
            Source::Base => u64::from(block) * BLOCK_BYTES,
        }
    }

    fn run_at(&self, block: BlockNo) -> Option<&Run> {
        let i = self.runs.partition_point(|r| r.end() <= block);
        self.runs.get(i).filter(|r| r.start <= block)
    }

    /// Where `block` lies: the place, the byte offset there, and how many
    /// blocks from it on lie there together.
    pub fn find(&self, block: BlockNo) -> Option<(Source, u64, u32)> {
        let run = self.run_at(block)?;
        let in_chunk = self.chunk_blocks - block % self.chunk_blocks;
        let together = (run.end() - block).min(in_chunk);
        Some((run.source.clone(), self.offset_in(&run.source, block), together))
    }

    /// Whether `block` is read from the host file of `top`.
    fn lies_in(&self, top: &Top, block: BlockNo) -> bool {
        let source = self.run_at(block).map(|run| &run.source);
        matches!(source, Some(Source::Host(host)) if host.id == top.host.id)
    }

    /// The first block at or after `block` that has a place, or has none.
    pub fn next(&self, block: BlockNo, placed: bool) -> Option<BlockNo> {
        let mut at = block;
        for run in &self.runs {
            if run.end() <= at {
                continue;
            }
            if placed {
                return Some(run.start.max(at));
            }
            if run.start > at {
                return Some(at);
            }
            at = run.end();
        }
        (!placed).then_some(at)
    }

    /// From now on `layer` may write to the tops, and nobody else.
    pub fn change_owner(&mut self, layer: LayerId) {
        self.owner = layer;
    }

    /// Whether `layer` may write to the tops.
    fn belongs_to(&self, layer: LayerId) -> bool {
        self.owner == layer || self.class == Class::Scratch
    }

    /// The host file that `layer` writes `block`'s chunk to, if it has one.
    fn top(&self, layer: LayerId, block: BlockNo) -> Option<&Top> {
        let chunk = block / self.chunk_blocks;
        self.belongs_to(layer).then(|| self.tops.iter().find(|t| t.chunk == chunk)).flatten()
    }

    /// The host file and offset if `layer` may overwrite `block` where it is.
    pub fn in_place(&self, layer: LayerId, block: BlockNo) -> Option<(Arc<HostFile>, u64)> {
        let top = self.top(layer, block)?;
        match &self.run_at(block)?.source {
            Source::Host(host) if host.id == top.host.id => {
                Some((top.host.clone(), u64::from(block % self.chunk_blocks) * BLOCK_BYTES))
            }
            _ => None,
        }
    }

    /// The host file and offset to which `layer` writes `block`, if the chunk
    /// has a host file of the layer's own.
    pub fn writable(&self, layer: LayerId, block: BlockNo) -> Option<(Arc<HostFile>, u64)> {
        let top = self.top(layer, block)?;
        Some((top.host.clone(), u64::from(block % self.chunk_blocks) * BLOCK_BYTES))
    }

    /// How many blocks of `block`'s chunk, from its start, have something that
    /// a new host file would lie over.
    pub fn covered(&self, block: BlockNo) -> u32 {
        let first = block / self.chunk_blocks * self.chunk_blocks;
        let end = first + self.chunk_blocks;
        self.runs
            .iter()
            .filter(|r| r.start < end && r.end() > first)
            .map(|r| r.end().min(end) - first)
            .max()
            .unwrap_or(0)
    }

    /// In how many host files the blocks of `block`'s chunk lie.
    pub fn scattered(&self, block: BlockNo) -> usize {
        let first = block / self.chunk_blocks * self.chunk_blocks;
        let end = first + self.chunk_blocks;
        let runs = self.runs.iter().filter(|r| r.start < end && r.end() > first);
        runs.map(|r| r.source.id()).collect::<HashSet<u64>>().len()
    }

    /// Gives `block`'s chunk a host file of `layer`'s own, whose first
    /// `patterned` blocks hold the pattern; the rest of the chunk lies in it at
    /// once.
    pub fn add_top(&mut self, layer: LayerId, block: BlockNo, host: Arc<HostFile>, patterned: u32) {
        if !self.belongs_to(layer) {
            self.tops.clear();
        }
        self.owner = layer;
        let chunk = block / self.chunk_blocks;
        let first = chunk * self.chunk_blocks;
        self.tops.retain(|t| t.chunk != chunk);
        self.tops.push(Top { chunk, host: host.clone(), patterned });
        self.place(first + patterned, self.chunk_blocks - patterned, Source::Host(host));
    }

    /// Notes that `block` has been written to its chunk's host file.
    pub fn written(&mut self, layer: LayerId, block: BlockNo) {
        if let Some(top) = self.top(layer, block) {
            let host = Source::Host(top.host.clone());
            self.place(block, 1, host);
        }
    }

    fn place(&mut self, start: BlockNo, len: u32, source: Source) {
        if len == 0 {
            return;
        }
        self.cut(start, start + len);
        let i = self.runs.partition_point(|r| r.start < start);
        self.runs.insert(i, Run { start, len, source });
        self.join(i);
        if i > 0 {
            self.join(i - 1);
        }
    }

    /// Joins run `i` with the next one if they lie together.
    fn join(&mut self, i: usize) {
        if let [a, b, ..] = &self.runs[i..]
            && a.end() == b.start
            && a.source.id() == b.source.id()
        {
            self.runs[i].len += self.runs[i + 1].len;
            self.runs.remove(i + 1);
        }
    }

    /// Takes the blocks `start..end` out of all runs.
    fn cut(&mut self, start: BlockNo, end: BlockNo) {
        let mut kept = Vec::with_capacity(self.runs.len() + 1);
        for run in self.runs.drain(..) {
            if run.end() <= start || run.start >= end {
                kept.push(run);
                continue;
            }
            if run.start < start {
                kept.push(Run { start: run.start, len: start - run.start, source: run.source.clone() });
            }
            if run.end() > end {
                kept.push(Run { start: end, len: run.end() - end, source: run.source });
            }
        }
        self.runs = kept;
    }

    /// Cuts the file down to its first `blocks` blocks. A WAL segment's old
    /// blocks must not be taken for newly written ones after a crash, so the
    /// host files of the chunks cut into are written no more; scratch has no
    /// such promise and goes on with its host files.
    pub fn truncate(&mut self, blocks: u32) {
        self.cut(blocks, u32::MAX);
        if self.class == Class::Wal {
            let last = blocks / self.chunk_blocks;
            self.tops.retain(|t| t.chunk < last);
        }
    }

    /// The host files that `layer` may write to.
    pub fn tops_of(&self, layer: LayerId) -> Vec<Arc<HostFile>> {
        let tops = if self.belongs_to(layer) { self.tops.as_slice() } else { &[] };
        tops.iter().map(|t| t.host.clone()).collect()
    }

    /// The host files that are written to.
    pub fn written_hosts(&self) -> Vec<Arc<HostFile>> {
        self.tops.iter().map(|t| t.host.clone()).collect()
    }

    /// Bytes in host files that this file alone writes to.
    pub fn top_blocks(&self) -> u32 {
        self.tops.len() as u32 * self.chunk_blocks
    }
}
