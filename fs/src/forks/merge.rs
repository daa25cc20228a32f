//! Merging: a frozen layer that only one other layer stands on is nobody's view
//! any more, so the two become one, and the pages that the upper one hides are
//! given back.
//!
//! The records of the smaller of the two move into the larger, whose place in
//! the tree is then the pair's: after a fork was made and removed again, the few
//! records that its parent has written since move down into the huge old layer.
//! What a merge costs follows from the smaller layer alone.
//!
//! Records move in steps, each of them one batch. After every step the upper
//! layer shows what it showed before, for it makes no difference in which of the
//! two a record is: nothing needs to be undone or remembered after a crash, the
//! next start finds the pair and goes on. Only the last step changes the tree.
//!
//! A snapshot is a name of a frozen layer: that one can take in what is below it,
//! and nothing that is above it.
//!
//! Nobody writes to either layer. Whoever relies on which layer has a record
//! holds `Core::moves`; whoever has a page table still to load knows its layers
//! by [`Origin`].

use std::collections::HashMap;

use crate::attr::Kind;
use crate::block::BlockNo;
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::layer::Origin;
use crate::map::schema::{
    self, BaseFileRecord, BaseSealRecord, BlockRecord, ClearedRecord, ExtentsRecord, InodeRecord,
    LayerRecord, NameRecord, Slot, SnapshotRecord, tag,
};
use crate::map::{Batch, Map, after, delete_prefix, prefix_end};

use super::core::{Core, LayerInfo};
use super::store::Store;

/// Records that are counted at first to find the smaller of two layers.
const COUNT_MIN: usize = 1024;

/// Two layers on their way to becoming one.
#[derive(Debug)]
pub(super) struct Pair {
    lower: LayerId,
    upper: LayerId,
    /// Records move to the lower layer, else to the upper one.
    down: bool,
    next: Next,
}

/// What is moved next: the records before this key have been.
#[derive(Debug)]
enum Next {
    Inode(Vec<u8>),
    Name(Vec<u8>),
    Tree,
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is more to move.
    More,
    /// The two are one.
    Done,
    /// The pair is none any more.
    Gone,
    /// Somebody relies on the records: not now.
    Busy,
}

impl Pair {
    /// The layers, the lower first.
    pub fn layers(&self) -> [LayerId; 2] {
        [self.lower, self.upper]
    }

    /// The one that becomes empty.
    pub fn from(&self) -> LayerId {
        if self.down { self.upper } else { self.lower }
    }
}

impl Core {
    /// The next two layers that can be merged, the lowest first.
    pub(super) fn find_pair(&self, skip: &dyn Fn(LayerId) -> bool) -> Result<Option<Pair>> {
        let found = {
            let layers = self.layers.lock();
            let pairs = layers.iter().filter_map(|(&lower, info)| Some((lower, mergeable(&layers, info)?)));
            pairs.filter(|(lower, _)| !skip(*lower)).min()
        };
        let Some((lower, upper)) = found else { return Ok(None) };
        let down = self.is_smaller(upper, lower)?;
        let from = if down { upper } else { lower };
        let next = Next::Inode(schema::layer_prefix(tag::INODE, from));
        Ok(Some(Pair { lower, upper, down, next }))
    }

    /// How many layers can be merged with the one above.
    pub(super) fn count_pairs(&self) -> u64 {
        let layers = self.layers.lock();
        layers.values().filter(|info| mergeable(&layers, info).is_some()).count() as u64
    }

    /// Whether layer `a` has fewer records than layer `b`, at the cost of the
    /// smaller one.
    fn is_smaller(&self, a: LayerId, b: LayerId) -> Result<bool> {
        let mut limit = COUNT_MIN;
        loop {
            let (records_a, records_b) = (self.count_records(a, limit)?, self.count_records(b, limit)?);
            if records_a < limit || records_b < limit {
                return Ok(records_a < records_b);
            }
            limit *= 4;
        }
    }

    fn count_records(&self, layer: LayerId, limit: usize) -> Result<usize> {
        let mut count = 0;
        for tag in [tag::INODE, tag::NAME, tag::BLOCK] {
            let start = schema::layer_prefix(tag, layer);
            self.map.scan(&start, &prefix_end(&start), &mut |_, _| {
                count += 1;
                Ok(count < limit)
            })?;
        }
        Ok(count.min(limit))
    }
}

/// The one layer on `info`, if the two can be merged.
fn mergeable(layers: &HashMap<LayerId, LayerInfo>, info: &LayerInfo) -> Option<LayerId> {
    let mut children = info.children.iter();
    let (Some(&upper), None, 0) = (children.next(), children.next(), info.names) else { return None };
    let frozen = info.settled && layers.get(&upper).is_some_and(|info| info.settled);
    frozen.then_some(upper)
}

impl Store {
    /// Moves one batch of records.
    pub(super) fn merge_step(&self, pair: &mut Pair) -> Result<Outcome> {
        let core = &*self.core;
        let Some(_alone) = core.moves.try_write() else { return Ok(Outcome::Busy) };
        let Some(mut step) = Step::begin(core, pair) else { return Ok(Outcome::Gone) };
        self.forget_state(pair.lower);
        while step.left() > 0 {
            match &pair.next {
                Next::Inode(start) => pair.next = step.inodes(pair, start.clone())?,
                Next::Name(start) => pair.next = step.names(pair, start.clone())?,
                Next::Tree => {
                    step.tree(pair)?;
                    step.commit()?;
                    self.merged(pair);
                    return Ok(Outcome::Done);
                }
            }
        }
        step.records();
        step.commit()?;
        Ok(Outcome::More)
    }

    /// The tree of layers in memory follows the one in the map.
    fn merged(&self, pair: &Pair) {
        let mut layers = self.core.layers.lock();
        let (Some(lower), Some(upper)) = (layers.remove(&pair.lower), layers.remove(&pair.upper)) else {
            return;
        };
        let below = lower.record.parent;
        let mut one = if pair.down { lower.clone() } else { upper.clone() };
        one.record.parent = below;
        one.children = upper.children;
        one.origin = Origin::join(&lower.origin, &upper.origin);
        one.origin.settle(one.record.id);
        one.names = upper.names;
        let id = one.record.id;
        for kept in self.core.kept.lock().values_mut().filter(|kept| kept.layer == pair.upper) {
            kept.layer = id;
        }
        for child in &one.children {
            if let Some(info) = layers.get_mut(child) {
                info.record.parent = id;
            }
        }
        if let Some(parent) = layers.get_mut(&below) {
            parent.children.remove(&pair.lower);
            parent.children.insert(id);
        }
        layers.insert(id, one);
        drop(layers);
        self.rename_state(pair.upper, id);
    }
}

/// What the data records of a file are.
#[derive(PartialEq, Eq)]
enum Data {
    Pages,
    InPlace,
    None,
}

fn data_of(inode: &InodeRecord) -> Data {
    match inode.kind {
        Kind::File if inode.class.is_in_place() => Data::InPlace,
        Kind::File => Data::Pages,
        _ => Data::None,
    }
}

fn size_of(inode: Option<&InodeRecord>) -> u64 {
    inode.filter(|inode| inode.kind == Kind::File).map_or(0, |inode| inode.size)
}

/// One batch under way.
struct Step<'a> {
    core: &'a Core,
    lower: LayerRecord,
    upper: LayerRecord,
    /// The layers below the two, the nearest first.
    below: Vec<LayerId>,
    batch: Batch,
    released: HashMap<u32, Vec<u32>>,
    slots: Vec<Slot>,
    /// The host files that the extents of a file name now.
    extents: Vec<((LayerId, FileId), Vec<u64>)>,
    work: usize,
}

impl<'a> Step<'a> {
    /// `None` if the two are no pair any more.
    fn begin(core: &'a Core, pair: &Pair) -> Option<Self> {
        let mut layers = core.layers.lock();
        let info = layers.get(&pair.lower)?;
        if mergeable(&layers, info) != Some(pair.upper) {
            return None;
        }
        let (lower, upper) = (info.record, layers.get(&pair.upper)?.record);
        let mut below = Vec::new();
        let mut at = lower.parent;
        while let Some(info) = layers.get(&at) {
            below.push(at);
            at = info.record.parent;
        }
        let joined = Origin::join(&info.origin, &layers.get(&pair.upper)?.origin);
        layers.get_mut(&pair.lower)?.origin = joined;
        let (batch, released) = (Batch::default(), HashMap::new());
        let (slots, extents) = (Vec::new(), Vec::new());
        Some(Step { core, lower, upper, below, batch, released, slots, extents, work: 0 })
    }

    /// How many records the step may still move or remove, about.
    fn left(&self) -> usize {
        self.core.options.merge_step_records.saturating_sub(self.work)
    }

    fn map(&self) -> &'a dyn Map {
        &*self.core.map
    }

    fn commit(self) -> Result<()> {
        let core = self.core;
        let mut batch = self.batch;
        let (mut more, mut fewer) = (Vec::new(), Vec::new());
        {
            let extents = core.extents.lock();
            for (key, hosts) in &self.extents {
                more.extend_from_slice(hosts);
                fewer.extend(extents.get(key).into_iter().flatten().copied());
            }
        }
        let going = core.hosts.seals.begin_removal(&core.hosts.unreferenced_after(&more, &fewer), &mut batch);
        let committed = core.commit_slots(&HashMap::new(), &self.released, batch);
        core.hosts.seals.end_removal(&going, committed.is_ok());
        committed?;
        let mut extents = core.extents.lock();
        for (key, hosts) in self.extents {
            match hosts.is_empty() {
                true => extents.remove(&key),
                false => extents.insert(key, hosts),
            };
        }
        drop(extents);
        core.hosts.count_durable(&more, &fewer);
        let mut layers = core.layers.lock();
        for record in [self.lower, self.upper] {
            if let Some(info) = layers.get_mut(&record.id) {
                info.record = record;
            }
        }
        drop(layers);
        core.release_after_readers(self.slots);
        Ok(())
    }

    fn records(&mut self) {
        self.batch.put(self.lower.encode());
        self.batch.put(self.upper.encode());
    }

    /// The last records: the tree without the layer that is empty now.
    fn tree(&mut self, pair: &Pair) -> Result<()> {
        let emptied = if pair.down { self.upper } else { self.lower };
        if emptied.pages != 0 {
            let LayerRecord { id, pages, .. } = emptied;
            return Err(Error::Damaged(format!("layer {id} is empty, and {pages} pages are counted")));
        }
        self.batch.delete(LayerRecord::key(emptied.id));
        if pair.down {
            self.batch.put(self.lower.encode());
            let layers = self.core.layers.lock();
            let above = layers.get(&self.upper.id).map(|info| info.children.clone()).unwrap_or_default();
            for info in above.iter().filter_map(|child| layers.get(child)) {
                self.batch.put(LayerRecord { parent: self.lower.id, ..info.record }.encode());
            }
            for ((fork, label), kept) in self.core.kept.lock().iter() {
                if kept.layer == self.upper.id {
                    let moved = SnapshotRecord { layer: self.lower.id, ..kept.clone() };
                    self.batch.put(moved.encode(*fork, label));
                }
            }
        } else {
            self.batch.put(LayerRecord { parent: self.lower.parent, ..self.upper }.encode());
        }
        Ok(())
    }

    /// Moves files, with all that belongs to them.
    fn inodes(&mut self, pair: &Pair, start: Vec<u8>) -> Result<Next> {
        let from = pair.from();
        let end = prefix_end(&schema::layer_prefix(tag::INODE, from));
        let room = self.left();
        let mut some = Vec::new();
        self.map().scan(&start, &end, &mut |k, v| {
            some.push((k.to_vec(), schema::file_of_key(k)?, InodeRecord::decode(k, v)?));
            Ok(some.len() < room)
        })?;
        let mut done = Vec::new();
        for (key, file, inode) in some {
            let finished = if pair.down { self.file_down(file, inode)? } else { self.file_up(file, inode)? };
            if finished {
                done.push(key.clone());
            }
            if !finished {
                // What is freed or put here is seen by the next step only.
                self.work = usize::MAX;
                self.batch.delete_all(&done);
                return Ok(Next::Inode(key));
            }
            if self.left() == 0 {
                break;
            }
        }
        self.batch.delete_all(&done);
        Ok(match done.pop() {
            Some(last) => Next::Inode(after(last)),
            None => Next::Name(schema::layer_prefix(tag::NAME, from)),
        })
    }

    /// A file of the upper layer goes down. Returns whether nothing of it is left
    /// there but its inode.
    fn file_down(&mut self, file: FileId, inode: Option<InodeRecord>) -> Result<bool> {
        self.work = self.work.saturating_add(1);
        let (lower, upper) = (self.lower.id, self.upper.id);
        let old = self.inode(lower, file)?;
        let Some(inode) = inode else {
            if !self.free_blocks(lower, file, &[(0, u32::MAX)])? {
                return Ok(false);
            }
            self.drop_data(lower, file)?;
            let below = self.below(file)?;
            self.set_size(&old, &below, 0);
            match below {
                Some(_) => self.batch.put(InodeRecord::encode_removed(lower, file)),
                None => self.batch.delete(InodeRecord::key(lower, file)),
            }
            return Ok(true);
        };
        let other = matches!(&old, Some(Some(old)) if data_of(old) != data_of(&inode));
        if other && !self.free_blocks(lower, file, &[(0, u32::MAX)])? {
            return Ok(false);
        }
        if other {
            self.drop_data(lower, file)?;
        }
        // Before any block: a block without its file would be lost.
        if !matches!(&old, Some(Some(old)) if *old == inode) {
            let below = self.below(file)?;
            self.set_size(&old, &below, size_of(Some(&inode)));
            self.batch.put(inode.encode(lower, file));
        }
        if other {
            return Ok(false);
        }
        let ranges = self.ranges(upper, file)?;
        if !ranges.is_empty() {
            if !self.free_blocks(lower, file, &union(&ranges))? {
                return Ok(false);
            }
            self.move_ranges(upper, lower, file, &ranges)?;
            return Ok(false);
        }
        let (blocks, all) = self.some_blocks(upper, file)?;
        for (block, record) in &blocks {
            let key = BlockRecord::key(lower, file, *block);
            match self.map().get(&key)? {
                Some(value) => self.free(BlockRecord::decode(&key, &value)?.2.slot),
                None => self.lower.pages += 1,
            }
            self.batch.put(record.encode(lower, file, *block));
        }
        self.upper.pages = self.upper.pages.saturating_sub(blocks.len() as u64);
        self.delete_blocks(upper, file, &blocks);
        if all {
            self.move_places(upper, lower, file, true)?;
        }
        Ok(all)
    }

    /// A file of the lower layer goes up, as far as it can be seen there.
    fn file_up(&mut self, file: FileId, inode: Option<InodeRecord>) -> Result<bool> {
        self.work = self.work.saturating_add(1);
        let (lower, upper) = (self.lower.id, self.upper.id);
        let new = self.inode(upper, file)?;
        let below = self.below(file)?;
        let below_size = size_of(below.as_ref());
        let seen = match (&inode, &new) {
            (Some(inode), Some(Some(new))) => data_of(inode) == data_of(new),
            (Some(inode), None) => {
                self.batch.put(inode.encode(upper, file));
                true
            }
            (None, None) => {
                if below.is_some() {
                    self.batch.put(InodeRecord::encode_removed(upper, file));
                }
                false
            }
            (_, Some(_)) => false,
        };
        if seen {
            let hidden = union(&self.ranges(upper, file)?);
            let (blocks, all) = self.some_blocks(lower, file)?;
            for (block, record) in &blocks {
                let key = BlockRecord::key(upper, file, *block);
                let covered = hidden.iter().any(|(start, end)| (start..end).contains(&block));
                if covered || self.map().get(&key)?.is_some() {
                    self.free(record.slot);
                } else {
                    self.batch.put(record.encode(upper, file, *block));
                    self.upper.pages += 1;
                }
            }
            self.lower.pages = self.lower.pages.saturating_sub(blocks.len() as u64);
            self.delete_blocks(lower, file, &blocks);
            if !all {
                return Ok(false);
            }
            // After the blocks: they come over the ranges in the same layer only.
            let ranges = self.ranges(lower, file)?;
            self.move_ranges(lower, upper, file, &ranges)?;
            self.move_places(lower, upper, file, false)?;
        } else {
            if !self.free_blocks(lower, file, &[(0, u32::MAX)])? {
                return Ok(false);
            }
            self.drop_data(lower, file)?;
        }
        if matches!(new, Some(None)) && below.is_none() {
            self.batch.delete(InodeRecord::key(upper, file));
        }
        self.set_size(&Some(inode), &below, below_size);
        Ok(true)
    }

    fn names(&mut self, pair: &Pair, start: Vec<u8>) -> Result<Next> {
        let (from, to) =
            if pair.down { (self.upper.id, self.lower.id) } else { (self.lower.id, self.upper.id) };
        let end = prefix_end(&schema::layer_prefix(tag::NAME, from));
        let room = self.left();
        let mut some = Vec::new();
        self.map().scan(&start, &end, &mut |k, v| {
            some.push((k.to_vec(), NameRecord::decode(k, v)?));
            Ok(some.len() < room)
        })?;
        self.work += some.len();
        let mut done = Vec::with_capacity(some.len());
        for (key, (dir, name, record)) in some {
            done.push(key);
            let there = NameRecord::key(to, dir, &name);
            let upper = if pair.down {
                Some(record)
            } else {
                match self.map().get(&there)? {
                    Some(value) => Some(NameRecord::decode(&there, &value)?.2),
                    None => None,
                }
            };
            match (upper.is_some(), upper.unwrap_or(record)) {
                (_, NameRecord::Whiteout) if !self.has_name_below(dir, &name)? => self.batch.delete(there),
                // What the upper layer says is there already.
                (true, _) if !pair.down => {}
                (_, shown) => self.batch.put(shown.encode(to, dir, &name)),
            }
        }
        self.batch.delete_all(&done);
        Ok(match done.pop() {
            Some(last) => Next::Name(after(last)),
            None => Next::Tree,
        })
    }

    fn inode(&self, layer: LayerId, file: FileId) -> Result<Option<Option<InodeRecord>>> {
        let key = InodeRecord::key(layer, file);
        self.map().get(&key)?.map(|value| InodeRecord::decode(&key, &value)).transpose()
    }

    /// The file as the layers below the two have it.
    fn below(&self, file: FileId) -> Result<Option<InodeRecord>> {
        for &layer in &self.below {
            if let Some(inode) = self.inode(layer, file)? {
                return Ok(inode);
            }
        }
        Ok(None)
    }

    fn has_name_below(&self, dir: FileId, name: &[u8]) -> Result<bool> {
        for &layer in &self.below {
            let key = NameRecord::key(layer, dir, name);
            if let Some(value) = self.map().get(&key)? {
                return Ok(NameRecord::decode(&key, &value)?.2 != NameRecord::Whiteout);
            }
        }
        Ok(false)
    }

    /// Keeps the sum of all sizes as the lower layer shows them: a file that it
    /// has as `old`, or as it is below, has `new` bytes now.
    fn set_size(&mut self, old: &Option<Option<InodeRecord>>, below: &Option<InodeRecord>, new: u64) {
        let was = size_of(old.as_ref().unwrap_or(below).as_ref());
        let sum = self.lower.logical_bytes.saturating_sub(was);
        self.lower.logical_bytes = sum.saturating_add(new);
    }

    fn free(&mut self, slot: Slot) {
        self.released.entry(slot.delta()).or_default().push(slot.index());
        self.slots.push(slot);
    }

    fn record_of(&mut self, layer: LayerId) -> &mut LayerRecord {
        if layer == self.lower.id { &mut self.lower } else { &mut self.upper }
    }

    /// Gives the pages of `ranges` back; whether that was all of them.
    fn free_blocks(&mut self, layer: LayerId, file: FileId, ranges: &[(BlockNo, BlockNo)]) -> Result<bool> {
        for &(start, end) in ranges {
            let (blocks, all) = self.blocks_in(layer, file, start, end)?;
            for (_, record) in &blocks {
                self.free(record.slot);
            }
            let record = self.record_of(layer);
            record.pages = record.pages.saturating_sub(blocks.len() as u64);
            self.delete_blocks(layer, file, &blocks);
            if !all {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn some_blocks(&mut self, layer: LayerId, file: FileId) -> Result<(Vec<(BlockNo, BlockRecord)>, bool)> {
        self.blocks_in(layer, file, 0, u32::MAX)
    }

    /// As many of a file's blocks as this step takes, and whether that is all.
    fn blocks_in(
        &mut self,
        layer: LayerId,
        file: FileId,
        start: BlockNo,
        end: BlockNo,
    ) -> Result<(Vec<(BlockNo, BlockRecord)>, bool)> {
        let room = self.left().max(1);
        let first = BlockRecord::key(layer, file, start);
        let last = match end {
            u32::MAX => prefix_end(&schema::file_prefix(tag::BLOCK, layer, file)),
            end => BlockRecord::key(layer, file, end),
        };
        let mut blocks = Vec::new();
        let mut all = true;
        self.map().scan(&first, &last, &mut |k, v| {
            all = blocks.len() < room;
            if all {
                let (_, block, record) = BlockRecord::decode(k, v)?;
                blocks.push((block, record));
            }
            Ok(all)
        })?;
        self.work += blocks.len();
        Ok((blocks, all))
    }

    fn ranges(&self, layer: LayerId, file: FileId) -> Result<Vec<(BlockNo, BlockNo)>> {
        let mut ranges = Vec::new();
        let start = schema::file_prefix(tag::CLEARED, layer, file);
        self.map().scan(&start, &prefix_end(&start), &mut |k, v| {
            ranges.push(ClearedRecord::decode(k, v)?);
            Ok(true)
        })?;
        Ok(ranges)
    }

    fn move_ranges(
        &mut self,
        from: LayerId,
        to: LayerId,
        file: FileId,
        ranges: &[(BlockNo, BlockNo)],
    ) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        self.work += ranges.len();
        if self.below(file)?.is_some() {
            for &(start, end) in ranges {
                self.batch.put(ClearedRecord::encode(to, file, start, end));
            }
        }
        self.delete_ranges(from, file)
    }

    /// Moves the records of host files and of a base file; those of the upper
    /// layer count.
    fn move_places(&mut self, from: LayerId, to: LayerId, file: FileId, down: bool) -> Result<()> {
        let key = ExtentsRecord::key(from, file);
        if let Some(value) = self.map().get(&key)? {
            if down || self.map().get(&ExtentsRecord::key(to, file))?.is_none() {
                let mut record = ExtentsRecord::decode(&key, &value)?.2;
                // Nobody writes to a frozen layer's host files.
                record.tops.clear();
                self.batch.put(record.encode(to, file));
                self.extents.push(((to, file), record.hosts()));
            }
            self.batch.delete(key);
            self.extents.push(((from, file), Vec::new()));
        }
        let key = BaseFileRecord::key(from, file);
        if let Some(value) = self.map().get(&key)? {
            let there = self.map().get(&BaseFileRecord::key(to, file))?;
            if down || there.is_none() {
                self.batch.put(BaseFileRecord::decode(&key, &value)?.1.encode(to, file));
            }
            self.batch.delete(key);
        }
        Ok(())
    }

    /// Removes all of a file's data but its blocks.
    fn drop_data(&mut self, layer: LayerId, file: FileId) -> Result<()> {
        self.delete_ranges(layer, file)?;
        let extents = ExtentsRecord::key(layer, file);
        if self.map().get(&extents)?.is_some() {
            self.batch.delete(extents);
            self.extents.push(((layer, file), Vec::new()));
        }
        let base = BaseFileRecord::key(layer, file);
        if self.map().get(&base)?.is_some() {
            self.batch.delete(base);
            delete_prefix(self.map(), BaseSealRecord::prefix(file), &mut self.batch)?;
        }
        Ok(())
    }

    fn delete_ranges(&mut self, layer: LayerId, file: FileId) -> Result<()> {
        delete_prefix(self.map(), schema::file_prefix(tag::CLEARED, layer, file), &mut self.batch)
    }

    fn delete_blocks(&mut self, layer: LayerId, file: FileId, blocks: &[(BlockNo, BlockRecord)]) {
        let keys: Vec<_> = blocks.iter().map(|(block, _)| BlockRecord::key(layer, file, *block)).collect();
        self.batch.delete_all(&keys);
    }
}

/// The same blocks in ranges that have none in common.
fn union(ranges: &[(BlockNo, BlockNo)]) -> Vec<(BlockNo, BlockNo)> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut union: Vec<(BlockNo, BlockNo)> = Vec::new();
    for (start, end) in sorted {
        match union.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => union.push((start, end)),
        }
    }
    union
}
