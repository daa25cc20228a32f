//! What all forks of a store share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLock};

use crate::delta::Delta;
use crate::delta::account::Room;
use crate::delta::grace::Grace;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::inplace::HostFiles;
use crate::layer::pending::{HostChange, Unit};
use crate::layer::{Origin, State};
use crate::map::schema::{Counters, LayerRecord, Slot, SnapshotRecord};
use crate::map::{Batch, Map};
use crate::stats::Stats;

use super::Options;
use super::ahead::Ahead;
use super::tables::Tables;

/// Identifiers are made durable in steps of this many, so that a new one is
/// rarely a write.
const ID_STEP: u64 = 4096;

/// The shared parts of a store.
pub struct Core {
    /// The store's directory; empty for a store in memory.
    pub dir: PathBuf,
    /// How the store was opened.
    pub options: Options,
    /// The block map.
    pub map: Arc<dyn Map>,
    /// Where delta files live.
    pub delta_room: Arc<Room>,
    /// In-place files.
    pub hosts: Arc<HostFiles>,
    /// When superseded slots may be used again.
    pub grace: Grace,
    /// Open delta files.
    pub deltas: RwLock<HashMap<u32, Arc<Delta>>>,
    /// All layers.
    pub layers: Mutex<HashMap<LayerId, LayerInfo>>,
    /// The frozen layers that forks keep, by fork and label.
    pub kept: Mutex<BTreeMap<(ForkId, String), SnapshotRecord>>,
    /// What frozen layers that several layers begin with show.
    pub states: Mutex<HashMap<LayerId, State>>,
    /// What is to be read ahead.
    pub ahead: Ahead,
    /// Which page tables may be dropped from memory.
    pub tables: Tables,
    /// Held for reading by whoever relies on which layer has which record: a
    /// commit, a load, a scrub. Merging moves records while nobody does, and
    /// never waits for that in line ([`RwLock::try_write`]).
    pub moves: RwLock<()>,
    /// What is counted of all forks together, those that are gone included.
    pub stats: Stats,
    /// The host files that each durable extents record names.
    pub extents: Mutex<HashMap<(LayerId, FileId), Vec<u64>>>,
    /// Identifiers.
    pub ids: Arc<Ids>,
}

/// One layer in the tree of layers.
#[derive(Clone)]
pub struct LayerInfo {
    /// Its record.
    pub record: LayerRecord,
    /// Layers directly above it.
    pub children: BTreeSet<LayerId>,
    /// The fork that writes to it; `None` for a frozen layer.
    pub head_of: Option<ForkId>,
    /// All that it will ever have is in the block map.
    pub settled: bool,
    /// How many snapshots it is.
    pub names: u32,
    /// Where its records are, for page tables that are not loaded yet.
    pub origin: Arc<Origin>,
}

impl LayerInfo {
    /// Whether no fork, no layer and no snapshot needs it.
    pub fn is_unreachable(&self) -> bool {
        self.children.is_empty() && self.head_of.is_none() && self.names == 0
    }

    /// One without layers above it, as the map has it.
    pub fn new(record: LayerRecord, head_of: Option<ForkId>) -> Self {
        let settled = head_of.is_none();
        let origin = Origin::new(record.id);
        LayerInfo { record, children: BTreeSet::new(), head_of, settled, names: 0, origin }
    }
}

/// Gives out identifiers that were never used.
pub struct Ids {
    map: Arc<dyn Map>,
    state: Mutex<(Counters, Counters)>,
}

macro_rules! next {
    ($(#[$doc:meta])* $name:ident, $field:ident, $type:ty, $end:expr) => {
        $(#[$doc])*
        pub fn $name(&self) -> Result<$type> {
            let mut state = self.state.lock();
            let (used, stored) = &mut *state;
            if used.$field >= stored.$field {
                let mut more = *stored;
                more.$field = match used.$field.checked_add(ID_STEP as $type) {
                    Some(end) if end < $end => end,
                    _ => return Err(Error::Damaged(concat!("there are no unused numbers left: ", stringify!($field)).into())),
                };
                let mut batch = Batch::default();
                batch.put(more.encode());
                self.map.commit(&batch)?;
                *stored = more;
            }
            used.$field += 1;
            Ok(used.$field)
        }
    };
}

impl Ids {
    /// Goes on above the stored counters.
    pub fn new(map: Arc<dyn Map>, stored: Counters) -> Self {
        Ids { map, state: Mutex::new((stored, stored)) }
    }

    next!(
        /// A new file's id.
        next_file, file, u64, FileId::END
    );
    next!(
        /// A new layer's id.
        next_layer, layer, u64, 1 << 56
    );
    next!(
        /// A new fork's id.
        next_fork, fork, u32, ForkId::END
    );
    next!(
        /// A new delta file's number.
        next_delta, delta, u32, u32::MAX
    );
    next!(
        /// A new host file's number.
        next_host, host, u64, 1 << 56
    );

    /// Goes on above what is found in use. The counters are always above that,
    /// unless somebody has set them back; then no number is given out twice.
    pub fn seen(&self, found: Counters) {
        let mut state = self.state.lock();
        let (used, stored) = &mut *state;
        for counters in [used, stored] {
            counters.file = counters.file.max(found.file);
            counters.layer = counters.layer.max(found.layer);
            counters.fork = counters.fork.max(found.fork);
            counters.delta = counters.delta.max(found.delta);
            counters.host = counters.host.max(found.host);
        }
    }

    /// The same for files.
    pub fn seen_file(&self, file: FileId) {
        self.seen(Counters { file: file.0, ..Counters::default() });
    }

    /// The counters as they are, for a clean end.
    pub fn used(&self) -> Counters {
        self.state.lock().0
    }
}

impl Core {
    /// The delta file of that number.
    pub fn delta(&self, id: u32) -> Arc<Delta> {
        if let Some(delta) = self.deltas.read().get(&id) {
            return delta.clone();
        }
        let mut deltas = self.deltas.write();
        deltas.entry(id).or_insert_with(|| Delta::new(self.delta_room.clone(), id)).clone()
    }

    /// The delta file with most pages that are not written yet.
    pub fn dirtiest(&self) -> Option<Arc<Delta>> {
        self.deltas.read().values().max_by_key(|delta| delta.dirty_bytes()).cloned()
    }

    /// Notes a snapshot that is in the map.
    pub fn keep(&self, fork: ForkId, label: &str, record: SnapshotRecord) {
        if let Some(info) = self.layers.lock().get_mut(&record.layer) {
            info.names += 1;
        }
        self.kept.lock().insert((fork, label.to_string()), record);
    }

    /// Forgets a snapshot that is not in the map any more.
    pub fn unkeep(&self, fork: ForkId, label: &str) -> Option<LayerId> {
        let record = self.kept.lock().remove(&(fork, label.to_string()))?;
        if let Some(info) = self.layers.lock().get_mut(&record.layer) {
            info.names = info.names.saturating_sub(1);
        }
        Some(record.layer)
    }

    /// The layer of a snapshot; the empty label is what the fork was made from.
    pub fn snapshot(&self, fork: ForkId, label: &str) -> Option<SnapshotRecord> {
        self.kept.lock().get(&(fork, label.to_string())).cloned()
    }

    /// The snapshots of one fork, what it was made from included.
    pub fn snapshots(&self, fork: ForkId) -> Vec<(String, SnapshotRecord)> {
        let kept = self.kept.lock();
        let of_fork = kept.range((fork, String::new())..).take_while(|((of, _), _)| *of == fork);
        of_fork.map(|((_, label), record)| (label.clone(), record.clone())).collect()
    }

    /// Makes units durable, all or none, with the changes in `extra`: their
    /// data must have been flushed already. Returns the bytes of the batch.
    pub fn commit_units(&self, units: &[&Unit], extra: Batch) -> Result<u64> {
        let _still = self.moves.read();
        self.stats.amounts.map_commits.fetch_add(1, Ordering::Relaxed);
        let mut batch = extra;
        let mut host_changes: Vec<(LayerId, HostChange)> = Vec::new();
        let mut records: Vec<LayerRecord> = Vec::new();
        for unit in units {
            let layer = unit.layer.id;
            let has_extents = |file| self.extents.lock().contains_key(&(layer, file));
            host_changes.push((layer, unit.encode(&mut batch, &*self.map, &has_extents)?));
            // What is below may have been merged since the unit was taken.
            let parent = self.layers.lock().get(&layer).map(|info| info.record.parent);
            let record = LayerRecord { parent: parent.unwrap_or(unit.layer.parent), ..unit.layer };
            batch.put(record.encode());
            records.push(record);
        }
        if host_changes.iter().any(|(_, change)| !change.files.is_empty()) {
            self.hosts.flush_names()?;
        }
        let mut unseal: Vec<u64> = units.iter().flat_map(|u| &u.pending.unseal).copied().collect();
        {
            let extents = self.extents.lock();
            let (mut more, mut fewer) = (Vec::new(), Vec::new());
            for (layer, change) in &host_changes {
                for (file, hosts) in &change.files {
                    more.extend_from_slice(hosts);
                    fewer.extend(extents.get(&(*layer, *file)).into_iter().flatten());
                }
            }
            unseal.extend(self.hosts.unreferenced_after(&more, &fewer));
        }
        let going = self.hosts.seals.begin_removal(&unseal, &mut batch);
        let mut added: HashMap<u32, Vec<u32>> = HashMap::new();
        let mut released: HashMap<u32, Vec<u32>> = HashMap::new();
        for unit in units {
            for (slot, &count) in &unit.pending.added {
                let list = added.entry(slot.delta()).or_default();
                list.extend(std::iter::repeat_n(slot.index(), count as usize));
            }
            for slot in &unit.pending.released {
                released.entry(slot.delta()).or_default().push(slot.index());
            }
        }
        let committed = self.commit_slots(&added, &released, batch);
        self.hosts.seals.end_removal(&going, committed.is_ok());
        let bytes = committed?;
        let mut extents = self.extents.lock();
        let (mut more, mut fewer) = (Vec::new(), Vec::new());
        for (layer, change) in host_changes {
            for (file, hosts) in change.files {
                more.extend_from_slice(&hosts);
                let old = match hosts.is_empty() {
                    true => extents.remove(&(layer, file)),
                    false => extents.insert((layer, file), hosts),
                };
                fewer.extend(old.unwrap_or_default());
            }
        }
        drop(extents);
        self.hosts.count_durable(&more, &fewer);
        let mut layers = self.layers.lock();
        for record in records {
            if let Some(info) = layers.get_mut(&record.id) {
                info.record = record;
                info.settled = info.head_of.is_none();
            }
        }
        drop(layers);
        let gone: Vec<Slot> =
            units.iter().flat_map(|u| u.pending.released.iter().chain(&u.pending.unused)).copied().collect();
        self.release_after_readers(gone);
        Ok(bytes)
    }

    /// Commits a batch together with changes of durable slot references.
    pub fn commit_slots(
        &self,
        added: &HashMap<u32, Vec<u32>>,
        released: &HashMap<u32, Vec<u32>>,
        mut batch: Batch,
    ) -> Result<u64> {
        let mut ids: Vec<u32> = added.keys().chain(released.keys()).copied().collect();
        // In order of number, as every commit does: no two wait for each other.
        ids.sort_unstable();
        ids.dedup();
        let deltas: Vec<Arc<Delta>> = ids.iter().map(|&id| self.delta(id)).collect();
        let _locks: Vec<_> = deltas.iter().map(|d| d.lock_commit()).collect();
        let none = Vec::new();
        let plans: Vec<_> = deltas
            .iter()
            .map(|d| {
                let added = added.get(&d.id).unwrap_or(&none);
                let released = released.get(&d.id).unwrap_or(&none);
                d.space().plan(d.id, added, released, &mut batch)
            })
            .collect();
        let bytes = batch.bytes();
        self.map.commit(&batch)?;
        for (delta, plan) in deltas.iter().zip(plans) {
            delta.space().apply(plan);
        }
        Ok(bytes)
    }

    /// Gives slots back when all who may be reading them have left.
    pub fn release_after_readers(&self, slots: Vec<Slot>) {
        if slots.is_empty() {
            return;
        }
        let deltas: HashMap<u32, Arc<Delta>> =
            slots.iter().map(|s| s.delta()).map(|id| (id, self.delta(id))).collect();
        self.grace.after_readers(move || {
            for slot in slots {
                if let Some(delta) = deltas.get(&slot.delta()) {
                    delta.release(slot.index());
                }
            }
        });
    }
}
