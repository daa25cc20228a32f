//! What a fork has changed since its last commit, and the batch that makes it
//! durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Body, NameKey, State};
use crate::block::BlockNo;
use crate::error::Result;
use crate::ids::{FileId, LayerId};
use crate::inplace::HostFile;
use crate::layer::Place;
use crate::map::schema::{
    self, BlockRecord, ClearedRecord, ExtentsRecord, InodeRecord, LayerRecord, NameRecord, Slot, tag,
};
use crate::map::{Batch, Map, delete_prefix};

/// Changes not committed yet.
#[derive(Default)]
pub struct Pending {
    /// Files with changes.
    pub files: BTreeMap<FileId, FileChange>,
    /// Names made or removed.
    pub names: BTreeSet<NameKey>,
    /// References to slots that no durable record has yet.
    pub added: HashMap<Slot, u32>,
    /// Durable references that are no more.
    pub released: Vec<Slot>,
    /// Slots taken and superseded before any commit.
    pub unused: Vec<Slot>,
    /// WAL host files with unflushed writes.
    pub hosts: HashMap<u64, Arc<HostFile>>,
    /// Host files that will be written: the next commit takes their seals along.
    pub unseal: BTreeSet<u64>,
}

/// Changes of one file.
#[derive(Default)]
pub struct FileChange {
    /// Blocks with a new page.
    pub blocks: BTreeSet<BlockNo>,
    /// Blocks whose page this layer had made and has dropped.
    pub dropped: BTreeSet<BlockNo>,
    /// Ranges cleared (`u32::MAX`: to the end).
    pub cleared: Vec<(BlockNo, BlockNo)>,
}

impl Pending {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.names.is_empty()
            && self.added.is_empty()
            && self.released.is_empty()
            && self.unused.is_empty()
            && self.hosts.is_empty()
            && self.unseal.is_empty()
    }

    /// How many changes there are, about: what they take of memory goes with it.
    pub fn entries(&self) -> usize {
        let ranges: usize = self.files.values().map(|change| 1 + change.cleared.len()).sum();
        ranges + self.names.len() + self.added.len() + self.released.len() + self.unused.len()
    }

    /// The changes of one file.
    pub fn file(&mut self, file: FileId) -> &mut FileChange {
        self.files.entry(file).or_default()
    }

    /// Whether a slot is not durable yet and has this one reference.
    pub fn is_fresh(&self, slot: Slot) -> bool {
        self.added.get(&slot) == Some(&1)
    }

    /// One more reference to a slot.
    pub fn add(&mut self, slot: Slot) {
        *self.added.entry(slot).or_insert(0) += 1;
    }

    /// One reference of this layer less.
    pub fn release(&mut self, slot: Slot) {
        match self.added.get_mut(&slot) {
            Some(count) => {
                *count -= 1;
                if *count == 0 {
                    self.added.remove(&slot);
                }
                self.unused.push(slot);
            }
            None => self.released.push(slot),
        }
    }

    /// Takes changes back whose commit could not be made for want of space;
    /// `self` is newer.
    pub fn absorb(&mut self, older: Pending) {
        for (file, mut change) in older.files {
            let newer = self.files.entry(file).or_default();
            change.blocks.append(&mut newer.blocks);
            change.dropped.append(&mut newer.dropped);
            change.cleared.append(&mut newer.cleared);
            *newer = change;
        }
        self.names.extend(older.names);
        // A reference that was dropped meanwhile had never become durable.
        let mut added = older.added;
        self.released.retain(|slot| match added.get_mut(slot) {
            Some(count) => {
                *count -= 1;
                if *count == 0 {
                    added.remove(slot);
                }
                self.unused.push(*slot);
                false
            }
            None => true,
        });
        for (slot, count) in added {
            *self.added.entry(slot).or_insert(0) += count;
        }
        self.released.extend(older.released);
        self.unused.extend(older.unused);
        self.hosts.extend(older.hosts);
        self.unseal.extend(older.unseal);
    }
}

/// Everything that one commit makes durable: one instant of one layer.
pub struct Unit {
    /// The layer.
    pub layer: LayerRecord,
    /// Its commits are numbered; this one's number.
    pub seq: u64,
    /// The fork at that instant.
    pub state: State,
    /// The fork as it was when the layer began.
    pub below: State,
    /// What has changed since the last commit.
    pub pending: Pending,
}

/// References of a unit's in-place files to host files, before and after.
#[derive(Default)]
pub struct HostChange {
    /// Files whose record in this layer changes, with the hosts it names now.
    pub files: Vec<(FileId, Vec<u64>)>,
}

impl Unit {
    /// Adds the unit's records to `batch`, but for the layer's own. `map` has those
    /// that are durable; `has_extents` tells whether this layer has a durable
    /// extents record of a file.
    pub fn encode(
        &self,
        batch: &mut Batch,
        map: &dyn Map,
        has_extents: &dyn Fn(FileId) -> bool,
    ) -> Result<HostChange> {
        let layer = self.layer.id;
        let mut hosts = HostChange::default();
        for (&file, change) in &self.pending.files {
            match self.state.inodes.get(&file) {
                None => self.encode_removed(file, change, batch, map, has_extents, &mut hosts)?,
                Some(inode) => {
                    batch.put(inode.to_record().encode(layer, file));
                    match &inode.body {
                        Body::Pages(pages) => {
                            // Scratch that has become an ordinary file.
                            if has_extents(file) {
                                batch.delete(ExtentsRecord::key(layer, file));
                                hosts.files.push((file, Vec::new()));
                            }
                            self.encode_blocks(file, change, batch);
                            for &block in &change.blocks {
                                if let Place::Page(entry) = pages.in_memory()?.get(block) {
                                    let rec = BlockRecord { slot: entry.slot, crc: entry.crc };
                                    batch.put(rec.encode(layer, file, block));
                                }
                            }
                        }
                        Body::InPlace(extents, _) => {
                            let rec = extents.to_record(layer);
                            hosts.files.push((file, rec.hosts()));
                            batch.put(rec.encode(layer, file));
                        }
                        Body::Empty | Body::Link(_) => {}
                    }
                }
            }
        }
        for key in &self.pending.names {
            let (dir, name) = key;
            match self.state.names.get(key) {
                Some(&(file, kind)) => batch.put(NameRecord::Entry(file, kind).encode(layer, *dir, name)),
                None if self.below.names.contains_key(key) => {
                    batch.put(NameRecord::Whiteout.encode(layer, *dir, name));
                }
                None => batch.delete(NameRecord::key(layer, *dir, name)),
            }
        }
        Ok(hosts)
    }

    fn encode_removed(
        &self,
        file: FileId,
        change: &FileChange,
        batch: &mut Batch,
        map: &dyn Map,
        has_extents: &dyn Fn(FileId) -> bool,
        hosts: &mut HostChange,
    ) -> Result<()> {
        let layer = self.layer.id;
        if self.below.inodes.contains_key(&file) {
            batch.put(InodeRecord::encode_removed(layer, file));
            delete_prefix(map, schema::file_prefix(tag::CLEARED, layer, file), batch)?;
        } else {
            batch.delete(InodeRecord::key(layer, file));
        }
        if has_extents(file) {
            batch.delete(ExtentsRecord::key(layer, file));
            hosts.files.push((file, Vec::new()));
        }
        // No block of the file is left between them.
        batch.delete_all(&dropped_keys(layer, file, change));
        Ok(())
    }

    fn encode_blocks(&self, file: FileId, change: &FileChange, batch: &mut Batch) {
        let layer = self.layer.id;
        if change.dropped.len() + change.cleared.len() > 0 {
            dropped_keys(layer, file, change).into_iter().for_each(|key| batch.delete(key));
            // Only what is below can show through.
            if self.below.inodes.contains_key(&file) {
                for &(start, end) in &change.cleared {
                    batch.put(ClearedRecord::encode(layer, file, start, end));
                }
            }
        }
    }
}

fn dropped_keys(layer: LayerId, file: FileId, change: &FileChange) -> Vec<Vec<u8>> {
    change.dropped.iter().map(|&block| BlockRecord::key(layer, file, block)).collect()
}
