//! What the store can tell about its forks and itself.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::block::BLOCK_BYTES;
use crate::delta::account::Need;
use crate::device;
use crate::error::{Error, Result};
use crate::ids::{ForkId, LayerId};
use crate::inplace::WAL_CHUNK_BLOCKS;
use crate::layer::tree;
use crate::map::schema::{ForkRecord, Life};
use crate::stats::Stats;

use super::core::LayerInfo;
use super::fork::Fork;
use super::store::Store;

/// One fork as the store knows it.
#[derive(Clone, Debug)]
pub struct ForkInfo {
    /// Its id.
    pub id: ForkId,
    /// Its name.
    pub name: String,
    /// The name of the fork it was made from, even if that is gone; `None` for
    /// a root.
    pub parent: Option<String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// Not published yet.
    pub incomplete: bool,
    /// It ends with the store's closing.
    pub ephemeral: bool,
    /// What the caller keeps with the fork.
    pub meta: Vec<u8>,
    /// Number of layers from the head to the bottom, both included.
    pub depth: u32,
    /// Bytes that only this fork holds: pages and WAL.
    pub delta_bytes: u64,
    /// Those of them that are WAL segments in host files of their own.
    pub wal_bytes: u64,
    /// How much its own writes may take of the disk.
    pub quota_bytes: Option<u64>,
    /// What they take: what counts against a quota.
    pub used_bytes: u64,
    /// Sum of the sizes of its files.
    pub logical_bytes: u64,
    /// The base directory at the bottom.
    pub base: Option<PathBuf>,
    /// Why the fork accepts nothing any more, if so.
    pub fault: Option<String>,
    /// Whether the fault is that its base has changed.
    pub base_changed: bool,
}

/// What the store holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// Forks.
    pub forks: u64,
    /// Layers.
    pub layers: u64,
    /// Entries of the page tables in memory.
    pub map_entries: u64,
    /// Bytes of the page tables in memory.
    pub map_memory_bytes: u64,
    /// Host bytes that the store takes: pages, WAL and scratch, block map.
    pub store_bytes: u64,
    /// Bytes of the pages that forks and snapshots refer to, each counted once, and
    /// of the files of WAL segments and scratch.
    pub used_bytes: u64,
    /// Bytes of the pages of layers that more than one fork or snapshot stands on.
    pub shared_bytes: u64,
    /// Frozen layers that wait to be merged with the one above, the one that is
    /// being merged included.
    pub layers_to_merge: u64,
    /// Pages that are still to be moved of those two, if a merge is under way.
    pub merging_pages: Option<u64>,
    /// Bytes that the background will give back, or that forks keep for pages to
    /// come: free slots that have host space, and pages of layers that nobody
    /// needs.
    pub reclaimable_bytes: u64,
    /// Bytes given back to the host since the store was opened.
    pub reclaimed_bytes: u64,
}

/// Host space, in bytes and files.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Size of the host file system, or the quota if that is less.
    pub total: u64,
    /// Bytes that can still be written.
    pub available: u64,
    /// Files at most.
    pub files: u64,
    /// Files that can still be made.
    pub files_free: u64,
}

/// A fork without anything that has to be worked out.
#[derive(Clone, Debug)]
pub struct ForkEntry {
    /// Its id.
    pub id: ForkId,
    /// Its name.
    pub name: String,
    /// Not published yet.
    pub incomplete: bool,
    /// What the caller keeps with it.
    pub meta: Vec<u8>,
}

/// What the descriptions of several forks have in common, worked out once.
#[derive(Default)]
struct Shared {
    /// The layers that refer to each WAL host file, and the other way round.
    users: HashMap<u64, Vec<LayerId>>,
    hosts: HashMap<LayerId, Vec<u64>>,
    /// Number of layers from each to the bottom, as far as asked for.
    depths: HashMap<LayerId, u32>,
}

impl Store {
    /// All forks, by name.
    pub fn forks(&self) -> Vec<ForkInfo> {
        let mut shared = self.shared();
        let mut all: Vec<ForkInfo> = self.records().iter().map(|r| self.describe(r, &mut shared)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// All forks, by name, at the least cost.
    pub fn entries(&self) -> Vec<ForkEntry> {
        let entry = |record: ForkRecord| ForkEntry {
            id: record.id,
            incomplete: record.is_incomplete(),
            name: record.name,
            meta: record.meta,
        };
        let mut all: Vec<ForkEntry> = self.records().into_iter().map(entry).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One fork.
    pub fn info(&self, name: &str) -> Result<ForkInfo> {
        let id = self.names.read().get(name).copied();
        let known = id.and_then(|id| self.forks.read().get(&id).cloned());
        let known = known.ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
        let record = known.record.lock().clone();
        Ok(self.describe(&record, &mut self.shared()))
    }

    pub(super) fn records(&self) -> Vec<ForkRecord> {
        self.forks.read().values().map(|k| k.record.lock().clone()).collect()
    }

    fn shared(&self) -> Shared {
        let mut shared = Shared::default();
        for ((layer, _), hosts) in self.core.extents.lock().iter() {
            for &host in hosts {
                shared.users.entry(host).or_default().push(*layer);
                shared.hosts.entry(*layer).or_default().push(host);
            }
        }
        shared
    }

    fn describe(&self, record: &ForkRecord, shared: &mut Shared) -> ForkInfo {
        let fork = self.loaded_fork(record.id);
        let live = fork.as_ref().map(|f| {
            let head = f.head.lock();
            (head.pages, head.state.logical_bytes)
        });
        let layers = self.core.layers.lock();
        let head = layers.get(&record.head);
        let (mut pages, logical_bytes) =
            live.or(head.map(|h| (h.record.pages, h.record.logical_bytes))).unwrap_or_default();
        let mut own = HashSet::from([record.head]);
        let mut at = head.map_or(LayerId(0), |h| h.record.parent);
        while let Some(info) = layers.get(&at).filter(|info| info.children.len() == 1) {
            pages = pages.saturating_add(info.record.pages);
            own.insert(at);
            at = info.record.parent;
        }
        let depth = shared.depth(record.head, &layers);
        drop(layers);
        let is_own = |host: &u64| shared.users.get(host).is_some_and(|u| u.iter().all(|l| own.contains(l)));
        let hosts: HashSet<u64> = own.iter().filter_map(|l| shared.hosts.get(l)).flatten().copied().collect();
        let own_hosts = hosts.iter().filter(|host| is_own(host)).count() as u64;
        let wal_bytes = own_hosts * u64::from(WAL_CHUNK_BLOCKS) * BLOCK_BYTES;
        let delta = self.core.delta(record.delta);
        ForkInfo {
            id: record.id,
            name: record.name.clone(),
            parent: (!record.parent.is_empty()).then(|| record.parent.clone()),
            created_at: record.created.to_system(),
            incomplete: record.is_incomplete(),
            ephemeral: record.life == Life::Ephemeral,
            meta: record.meta.clone(),
            depth,
            delta_bytes: pages.saturating_mul(BLOCK_BYTES).saturating_add(wal_bytes),
            wal_bytes,
            quota_bytes: delta.account.quota(),
            used_bytes: delta.used_bytes(),
            logical_bytes,
            base: (!record.base.is_empty()).then(|| PathBuf::from(&record.base)),
            base_changed: fork.as_ref().is_some_and(|f| f.base_changed.load(Ordering::SeqCst)),
            fault: fork.and_then(|f| f.fault()),
        }
    }

    /// What is counted of all forks together since the store was opened.
    pub fn stats(&self) -> &Stats {
        &self.core.stats
    }

    /// The forks of which something may have been counted: those that are loaded, by
    /// name.
    pub fn counted(&self) -> Vec<Arc<Fork>> {
        let mut forks = self.loaded();
        forks.sort_by_cached_key(|fork| fork.name());
        forks
    }

    /// Number of layers.
    pub fn layers(&self) -> u64 {
        self.core.layers.lock().len() as u64
    }

    /// What the store holds.
    pub fn status(&self) -> Result<Status> {
        let memory = tree::memory();
        let measure = |part: &str| {
            host_bytes(&self.core.dir.join(part)).map_err(|e| Error::io(format!("measuring {part}"), e))
        };
        let (delta_bytes, in_place_bytes) = (measure("delta")?, measure("inplace")?);
        let pages = self.pages();
        let (layers_to_merge, merging_pages) = self.merging();
        Ok(Status {
            forks: self.forks.read().len() as u64,
            layers: self.layers(),
            map_entries: memory.entries,
            map_memory_bytes: memory.bytes,
            store_bytes: measure("map")? + delta_bytes + in_place_bytes,
            used_bytes: pages.reached * BLOCK_BYTES + in_place_bytes,
            shared_bytes: pages.shared * BLOCK_BYTES,
            layers_to_merge,
            merging_pages,
            reclaimable_bytes: delta_bytes.saturating_sub(pages.live * BLOCK_BYTES)
                + pages.unreached * BLOCK_BYTES,
            reclaimed_bytes: self.given_back(),
        })
    }

    /// Counts pages, from what is in memory of layers and slots.
    fn pages(&self) -> PageCounts {
        let mut tops: Vec<LayerId> = self.records().iter().map(|record| record.head).collect();
        // Those without a label only keep what a fork stands on anyway.
        let kept = self.core.kept.lock();
        tops.extend(kept.iter().filter(|((_, label), _)| !label.is_empty()).map(|(_, kept)| kept.layer));
        drop(kept);
        let (mut references, mut slots, mut live) = (0, 0, 0);
        for delta in self.core.deltas.read().values() {
            let space = delta.space();
            references += space.durable_sum();
            slots += space.durable_slots();
            live += space.live_bytes() / BLOCK_BYTES;
        }
        let layers = self.core.layers.lock();
        // How many forks and snapshots stand on each layer: one, or more.
        let mut seen: HashMap<LayerId, bool> = HashMap::new();
        for mut at in tops {
            while let Some(info) = layers.get(&at) {
                match seen.entry(at) {
                    Entry::Vacant(entry) => drop(entry.insert(false)),
                    // So it is with all below.
                    Entry::Occupied(entry) if *entry.get() => break,
                    Entry::Occupied(mut entry) => drop(entry.insert(true)),
                }
                at = info.record.parent;
            }
        }
        // Those that nobody needs are not among them any more.
        let of_layers = layers.values().map(|info| info.record.pages).sum();
        let shared =
            seen.iter().filter(|(_, many)| **many).map(|(layer, _)| layers[layer].record.pages).sum();
        let unreached = references.saturating_sub(of_layers);
        PageCounts { reached: slots.saturating_sub(unreached), shared, unreached, live }
    }

    /// Bytes of pages, of all forks together, that are acknowledged and only in
    /// memory.
    pub fn unwritten_bytes(&self) -> u64 {
        self.core.delta_room.dirty_bytes.load(Ordering::Relaxed)
    }

    /// The host's space below the store, as far as a writer can have it: in
    /// that fork, or where no fork is named, in one without a quota.
    pub fn space(&self, fork: Option<&Fork>) -> Result<Space> {
        let s = device::host_space(&self.core.dir).map_err(|e| Error::io("free space of the store", e))?;
        let unit = s.fragment_size();
        let mut space = Space {
            total: s.blocks() * unit,
            available: self.core.delta_room.bytes(Need::New)?,
            files: s.files(),
            files_free: s.files_free(),
        };
        if let Some(fork) = fork {
            let delta = fork.delta();
            space.available = delta.left_bytes()?;
            if let Some(quota) = delta.account.quota() {
                space.total = space.total.min(quota);
            }
        }
        Ok(space)
    }
}

impl Shared {
    /// Number of layers from `layer` to the bottom, both included.
    fn depth(&mut self, layer: LayerId, layers: &HashMap<LayerId, LayerInfo>) -> u32 {
        let mut way = Vec::new();
        let mut at = layer;
        let mut depth = loop {
            match (self.depths.get(&at), layers.get(&at)) {
                (Some(&depth), _) => break depth,
                (None, Some(info)) => {
                    way.push(at);
                    at = info.record.parent;
                }
                (None, None) => break 0,
            }
        };
        for layer in way.into_iter().rev() {
            depth += 1;
            self.depths.insert(layer, depth);
        }
        depth
    }
}

/// Pages of a store.
struct PageCounts {
    /// That forks and snapshots refer to.
    reached: u64,
    /// Of layers that more than one fork or snapshot stands on.
    shared: u64,
    /// Of layers that nobody needs.
    unreached: u64,
    /// In memory or on the disk, with a slot of their own.
    live: u64,
}

/// Host bytes of all files below `dir`.
fn host_bytes(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        // RocksDB removes files at any time.
        let Ok(meta) = entry?.metadata() else { continue };
        sum += meta.blocks() * 512;
    }
    Ok(sum)
}
