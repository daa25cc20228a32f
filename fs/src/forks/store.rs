//! A store: the folder that holds the block map, the delta files and the
//! in-place files, and the list of forks.
//!
//! ```text
//! STORE      format version and id of the store
//! LOCK       held by the process that has the store open; its pid
//! map/       the block map (RocksDB)
//! delta/     pages, a file for each fork
//! inplace/   WAL segments and scratch
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::base;
use crate::block::{BLOCK_BYTES, BlockNo};
use crate::class::Class;
use crate::delta::account::{Need, Room};
use crate::delta::grace::Grace;
use crate::delta::{self, Delta};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::inplace::{Extents, HostFiles, Source, resolve_after_crash};
use crate::layer::{Body, State, load};
use crate::map::schema::{
    Counters, ExtentsRecord, ForkRecord, LayerRecord, Life, QuotaRecord, SharedRecord, SlotsRecord,
    SnapshotRecord, tag,
};
use crate::map::{Batch, Map, prefix_end};
use crate::seal::Seals;
use crate::stats::Stats;

use super::Options;
use super::core::{Core, Ids, LayerInfo};
use super::fork::{Fork, Head};
use super::info::ForkEntry;
use super::merge::Pair;
use super::phases::Phases;
use super::sort::Cursor;
use super::tables::Tables;

/// What a store is made of; the tests put parts in memory in here.
pub struct Parts {
    /// The store's directory, if it has one.
    pub dir: PathBuf,
    /// Identity of the store.
    pub id: [u8; 16],
    /// The block map.
    pub map: Arc<dyn Map>,
    /// Delta files.
    pub delta: Arc<dyn Device>,
    /// In-place files.
    pub inplace: Arc<dyn Device>,
}

/// Called with the name and id of a fork that appears or vanishes.
pub type Hook = Box<dyn Fn(&str, ForkId) + Send + Sync>;

/// An open store.
pub struct Store {
    pub(super) core: Arc<Core>,
    pub(super) forks: RwLock<HashMap<ForkId, Arc<Known>>>,
    pub(super) names: RwLock<HashMap<String, ForkId>>,
    /// Names of forks that are being made.
    pub(super) reserved: Mutex<HashSet<String>>,
    /// Held by whoever changes what belongs to a fork: a reset, a rename, a promotion,
    /// the removal of a snapshot.
    pub(super) changes: Mutex<()>,
    /// Held for writing by a rename, and for reading while a fork is made: what it
    /// is made from keeps its name.
    pub(super) renames: RwLock<()>,
    pub(super) background: Arc<Background>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(super) hook: RwLock<Option<Hook>>,
    /// The forks that did not live longer than the store was open.
    ended: Mutex<Vec<ForkEntry>>,
    lock: Option<File>,
}

/// A fork in the list; loaded when it is first used.
pub(super) struct Known {
    pub record: Mutex<ForkRecord>,
    pub fork: Mutex<Option<Arc<Fork>>>,
}

/// Work for the background threads.
#[derive(Default)]
pub(super) struct Background {
    pub state: Mutex<Work>,
    pub wake: Condvar,
}

impl Background {
    /// Lets that time pass, whatever others are woken for; false if the store is
    /// being closed.
    pub fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut work = self.state.lock();
        while !work.stop && !self.wake.wait_until(&mut work, until).timed_out() {}
        !work.stop
    }
}

/// A step of background work.
pub(super) enum Task {
    /// Forget what a removed fork was.
    Forget(Box<Head>),
    /// Drop a layer.
    Drop(LayerId),
    /// Go on with these layers, or look for some.
    Merge(Option<Pair>),
}

impl Work {
    /// Takes the next step to do.
    pub fn next_task(&mut self) -> Option<Task> {
        let task = if let Some(head) = self.removed.pop() {
            Task::Forget(Box::new(head))
        } else if let Some(layer) = self.drop.pop_front() {
            Task::Drop(layer)
        } else if self.look {
            self.look = false;
            Task::Merge(self.pair.take())
        } else {
            return None;
        };
        self.busy = true;
        Some(task)
    }

    /// Whether there is no such step.
    pub fn is_done(&self) -> bool {
        !self.busy && !self.look && self.removed.is_empty() && self.drop.is_empty()
    }
}

#[derive(Default)]
pub(super) struct Work {
    /// What removed forks were.
    pub removed: Vec<Head>,
    /// Layers that nothing refers to any more.
    pub drop: std::collections::VecDeque<LayerId>,
    /// Layers that are being merged.
    pub pair: Option<Pair>,
    /// The layer of them that becomes empty.
    pub merging: Option<LayerId>,
    /// There may be layers to merge.
    pub look: bool,
    /// Lower layers whose merging has failed in a way that lasts.
    pub stuck: HashSet<LayerId>,
    /// Commits there had been when it was last asked whether the store is idle.
    pub commits_seen: u64,
    /// Where the sorting of files goes on.
    pub sort: Cursor,
    /// When it was last asked which head layers should be frozen.
    pub heads_looked_at: Option<Instant>,
    /// Somebody waits for the end of the work: it makes way for nobody.
    pub hurry: u32,
    /// A step of it is under way.
    pub busy: bool,
    /// All host space that is free goes back.
    pub give_back: bool,
    /// When forks were asked last what space they do not use.
    pub asked: Option<Instant>,
    pub stop: bool,
}

impl Store {
    /// Opens a store made of these parts.
    pub fn open_parts(parts: Parts, options: Options, lock: Option<File>) -> Result<Arc<Store>> {
        Self::open_in_phases(parts, options, lock, Phases::begin())
    }

    pub(super) fn open_in_phases(
        parts: Parts,
        options: Options,
        lock: Option<File>,
        mut phases: Phases,
    ) -> Result<Arc<Store>> {
        let map = parts.map;
        let counters = match map.get(&Counters::key())? {
            Some(value) => Counters::decode(&Counters::key(), &value)?,
            None => Counters { file: FileId::ROOT.0, ..Counters::default() },
        };
        let ids = Arc::new(Ids::new(map.clone(), counters));
        let next = {
            let ids = ids.clone();
            Arc::new(move || ids.next_host()) as Arc<dyn Fn() -> Result<u64> + Send + Sync>
        };
        let keep = options.keep_free_bytes;
        let seals = Arc::new(Seals::new(map.clone()));
        let core = Arc::new(Core {
            dir: parts.dir,
            options,
            map,
            delta_room: Room::new(parts.delta, keep),
            hosts: HostFiles::new(Room::new(parts.inplace, keep), parts.id, next, seals),
            grace: Grace::new(),
            deltas: RwLock::default(),
            layers: Mutex::default(),
            kept: Mutex::default(),
            states: Mutex::default(),
            ahead: Default::default(),
            tables: Tables::default(),
            moves: RwLock::default(),
            stats: Stats::default(),
            extents: Mutex::default(),
            ids,
        });
        let store = Arc::new(Store {
            core,
            forks: RwLock::default(),
            names: RwLock::default(),
            reserved: Mutex::default(),
            changes: Mutex::default(),
            renames: RwLock::default(),
            background: Arc::default(),
            threads: Mutex::default(),
            hook: RwLock::default(),
            ended: Mutex::default(),
            lock,
        });
        store.recover(&mut phases)?;
        store.start_threads();
        phases.log();
        Ok(store)
    }

    /// Reads the tables that are always in memory, and undoes what was left
    /// half done.
    fn recover(&self, phases: &mut Phases) -> Result<()> {
        let core = &self.core;
        let mut forks = Vec::new();
        scan(&*core.map, tag::FORK, &mut |k, v| {
            forks.push(ForkRecord::decode(k, v)?);
            Ok(true)
        })?;
        let mut snapshots = Vec::new();
        scan(&*core.map, tag::SNAPSHOT, &mut |k, v| {
            snapshots.push(SnapshotRecord::decode(k, v)?);
            Ok(true)
        })?;
        {
            let mut layers = core.layers.lock();
            scan(&*core.map, tag::LAYER, &mut |k, v| {
                let record = LayerRecord::decode(k, v)?;
                layers.insert(record.id, LayerInfo::new(record, None));
                Ok(true)
            })?;
            let tops = forks.iter().map(|fork| fork.head).chain(snapshots.iter().map(|(.., s)| s.layer));
            cut_off_removed(&mut layers, tops);
            check_tree_of_layers(&layers)?;
            let records: Vec<LayerRecord> = layers.values().map(|l| l.record).collect();
            for LayerRecord { id, parent, .. } in records.into_iter().filter(|l| l.parent.0 != 0) {
                match layers.get_mut(&parent) {
                    Some(info) => {
                        info.children.insert(id);
                    }
                    None => {
                        return Err(Error::Damaged(format!("layer {parent} is missing from the block map")));
                    }
                }
            }
        }
        phases.end("forks and layers");
        scan(&*core.map, tag::SLOTS, &mut |k, v| {
            let (delta, chunk, bits) = SlotsRecord::decode(k, v)?;
            core.delta(delta).space().load_bits(chunk, &bits);
            Ok(true)
        })?;
        scan(&*core.map, tag::SHARED, &mut |k, v| {
            let (slot, count) = SharedRecord::decode(k, v)?;
            core.delta(slot.delta()).space().load_shared(slot.index(), count);
            Ok(true)
        })?;
        phases.end("slots");
        scan(&*core.map, tag::EXTENTS, &mut |k, v| {
            let (layer, file, record) = ExtentsRecord::decode(k, v)?;
            let hosts = record.hosts();
            core.hosts.count_durable(&hosts, &[]);
            core.extents.lock().insert((layer, file), hosts);
            Ok(true)
        })?;
        core.hosts.remove_unrecorded()?;
        phases.end("in-place files");
        let mut quotas = HashMap::new();
        scan(&*core.map, tag::QUOTA, &mut |k, v| {
            let (fork, bytes) = QuotaRecord::decode(k, v)?;
            quotas.insert(fork, bytes);
            Ok(true)
        })?;
        // Two commits that let go of a host file at the same time have left its
        // seal behind.
        let sealed = core.hosts.seals.load_hosts()?;
        let left: Vec<u64> = sealed.into_iter().filter(|&id| !core.hosts.is_known(id)).collect();
        let mut batch = Batch::default();
        let going = core.hosts.seals.begin_removal(&left, &mut batch);
        if !going.is_empty() {
            core.map.commit(&batch)?;
            core.hosts.seals.end_removal(&going, true);
        }
        phases.end("quotas and seals");

        self.check_unused_ids(&forks)?;
        let mut over = Vec::new();
        for record in forks {
            {
                let mut layers = core.layers.lock();
                let Some(info) = layers.get_mut(&record.head) else {
                    return Err(Error::Damaged(format!(
                        "fork {:?} has no layer {}",
                        record.name, record.head
                    )));
                };
                if info.head_of.is_some() || !info.children.is_empty() {
                    return Err(Error::Damaged(format!(
                        "fork {:?} does not have layer {} for itself",
                        record.name, record.head
                    )));
                }
                info.head_of = Some(record.id);
                info.settled = false;
            }
            core.delta(record.delta).account.set_quota(quotas.get(&record.id).copied());
            if record.life != Life::Lasting {
                over.push(record.clone());
            }
            self.add_known(record, None);
        }
        self.recover_snapshots(snapshots)?;
        let in_use: HashSet<u32> = self.forks.read().values().map(|k| k.record.lock().delta).collect();
        for (id, delta) in core.deltas.read().iter() {
            delta.retired.store(!in_use.contains(id), Ordering::SeqCst);
        }
        self.remove_unused_deltas(&in_use)?;
        phases.end("delta files");
        self.queue_unreachable();
        self.background.state.lock().look = core.options.merge;
        for record in over {
            let name = &record.name;
            match record.life {
                Life::Ephemeral => log::info!("removing fork {name:?}, which was ephemeral"),
                _ => log::info!("removing fork {name:?}, which was never completed"),
            }
            self.remove(name)?;
            let incomplete = record.is_incomplete();
            let ended = ForkEntry { id: record.id, name: record.name, incomplete, meta: record.meta };
            self.ended.lock().push(ended);
        }
        Ok(())
    }

    fn recover_snapshots(&self, found: Vec<(ForkId, String, SnapshotRecord)>) -> Result<()> {
        let core = &self.core;
        for (fork, label, record) in found {
            let frozen = core.layers.lock().get(&record.layer).is_some_and(|info| info.settled);
            if !frozen || !self.forks.read().contains_key(&fork) {
                let layer = record.layer;
                return Err(Error::Damaged(format!(
                    "snapshot {label:?} of fork {fork} is layer {layer}, which cannot be"
                )));
            }
            core.keep(fork, &label, record);
        }
        Ok(())
    }

    /// The counters are above all that is in use, and no two forks share what
    /// each has for itself.
    fn check_unused_ids(&self, forks: &[ForkRecord]) -> Result<()> {
        let core = &self.core;
        let (mut ids, mut names, mut deltas) = (HashSet::new(), HashSet::new(), HashSet::new());
        for fork in forks {
            if !(ids.insert(fork.id) && names.insert(&fork.name) && deltas.insert(fork.delta)) {
                return Err(Error::Damaged(format!("fork {:?} is there twice", fork.name)));
            }
        }
        core.ids.seen(Counters {
            file: 0,
            layer: core.layers.lock().keys().map(|l| l.0).max().unwrap_or(0),
            fork: ids.iter().map(|f| f.0).max().unwrap_or(0),
            delta: deltas.into_iter().chain(core.deltas.read().keys().copied()).max().unwrap_or(0),
            host: core.extents.lock().values().flatten().copied().max().unwrap_or(0),
        });
        Ok(())
    }

    fn remove_unused_deltas(&self, in_use: &HashSet<u32>) -> Result<()> {
        let device = &self.core.delta_room.device;
        let recorded: HashSet<u32> = self.core.deltas.read().keys().copied().collect();
        for name in device.list().map_err(|e| Error::io("delta directory", e))? {
            let known = name.parse().is_ok_and(|id: u32| {
                delta::file_name(id) == name && (in_use.contains(&id) || recorded.contains(&id))
            });
            if !known {
                device.remove(&name).map_err(|e| Error::io(format!("removing delta file {name}"), e))?;
            }
        }
        Ok(())
    }

    pub(super) fn add_known(&self, record: ForkRecord, fork: Option<Arc<Fork>>) {
        let (id, name) = (record.id, record.name.clone());
        if let Some(fork) = &fork {
            self.core.tables.enter(fork);
        }
        let known = Arc::new(Known { record: Mutex::new(record), fork: Mutex::new(fork) });
        self.forks.write().insert(id, known);
        self.names.write().insert(name, id);
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// The forks that were there when the store was closed, or crashed, and were
    /// removed when it was opened: ephemeral ones, and those never completed.
    pub fn ended(&self) -> Vec<ForkEntry> {
        self.ended.lock().clone()
    }

    /// The fork of that name.
    pub fn by_name(&self, name: &str) -> Result<Arc<Fork>> {
        let id = self.names.read().get(name).copied();
        self.by_id(id.ok_or_else(|| Error::NoSuchFork(name.to_string()))?)
    }

    /// The fork of that id; loaded from the block map if it was not used yet.
    pub fn by_id(&self, id: ForkId) -> Result<Arc<Fork>> {
        let known = self.forks.read().get(&id).cloned().ok_or(Error::Stale)?;
        let mut fork = known.fork.lock();
        if let Some(fork) = &*fork {
            return Ok(fork.clone());
        }
        let loaded = self.load(known.record.lock().clone())?;
        self.core.tables.enter(&loaded);
        *fork = Some(loaded.clone());
        Ok(loaded)
    }

    /// All forks that are in memory.
    pub(super) fn loaded(&self) -> Vec<Arc<Fork>> {
        // Not in one go: a fork that is being removed is locked, and needs the list.
        let known: Vec<Arc<Known>> = self.forks.read().values().cloned().collect();
        known.iter().filter_map(|known| known.fork.lock().clone()).collect()
    }

    /// A fork if it is in memory.
    pub(super) fn loaded_fork(&self, id: ForkId) -> Option<Arc<Fork>> {
        // Two steps: the list must be free while a fork is locked.
        let known = self.forks.read().get(&id).cloned();
        known.and_then(|known| known.fork.lock().clone())
    }

    fn load(&self, record: ForkRecord) -> Result<Arc<Fork>> {
        let core = &self.core;
        let _still = core.moves.read();
        let info = self.layer(record.head)?;
        let roots = match record.base.as_str() {
            "" => Vec::new(),
            base => base::roots(Path::new(base)),
        };
        let below = self.state_of(info.record.parent, &roots)?;
        let mut state = below.clone();
        core.ids.seen_file(load::layer(
            &mut state,
            record.head,
            &info.origin,
            false,
            &*core.map,
            &core.hosts,
            &roots,
        )?);
        load::check_tree(&state)?;
        let mut head = Head::new(record.head, info.record.parent, state, below, info.record.pages);
        let delta = core.delta(record.delta);
        self.resolve_in_place(&mut head, &delta)?;
        Ok(Fork::new(core.clone(), record, head))
    }

    /// What a layer stands on now.
    pub(super) fn layer_parent(&self, id: LayerId) -> Option<LayerId> {
        self.core.layers.lock().get(&id).map(|info| info.record.parent)
    }

    fn layer(&self, id: LayerId) -> Result<LayerInfo> {
        let layers = self.core.layers.lock();
        layers
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::Damaged(format!("layer {id} is missing from the block map")))
    }

    /// The state of a frozen layer, built from the nearest one that is known. The
    /// caller holds `moves`.
    pub(super) fn state_of(&self, layer: LayerId, roots: &[PathBuf]) -> Result<State> {
        let mut chain = Vec::new();
        let mut at = layer;
        let mut state = loop {
            if at.0 == 0 {
                break State::default();
            }
            if let Some(state) = self.core.states.lock().get(&at) {
                break state.clone();
            }
            let info = self.layer(at)?;
            chain.push((at, info.origin, info.children.len()));
            at = info.record.parent;
        };
        for (layer, origin, children) in chain.into_iter().rev() {
            let (map, hosts) = (&*self.core.map, &self.core.hosts);
            let highest = load::layer(&mut state, layer, &origin, true, map, hosts, roots)?;
            self.core.ids.seen_file(highest);
            if children > 1 {
                self.core.states.lock().insert(layer, state.clone());
            }
        }
        Ok(state)
    }

    /// A merged layer's state is known by another number.
    pub(super) fn rename_state(&self, old: LayerId, new: LayerId) {
        let mut states = self.core.states.lock();
        if let Some(state) = states.remove(&old) {
            states.insert(new, state);
        }
    }

    pub(super) fn forget_state(&self, layer: LayerId) {
        self.core.states.lock().remove(&layer);
    }

    /// Finds what was written in place since the last commit before a crash,
    /// and counts the files for the fork that writes to `delta`.
    fn resolve_in_place(&self, head: &mut Head, delta: &Delta) -> Result<()> {
        let files: Vec<FileId> = {
            let extents = self.core.extents.lock();
            extents.keys().filter(|(layer, _)| *layer == head.layer).map(|(_, file)| *file).collect()
        };
        for file in files {
            let Ok(inode) = head.inode_mut(file) else { continue };
            let Body::InPlace(_, base) = &inode.body else { continue };
            let (base, size) = (base.clone(), inode.size);
            let below = |extents: &Extents, block: BlockNo, page: &mut [u8]| match extents.find(block) {
                Some((Source::Host(host), offset, _)) => match host.read(page, offset)? {
                    None => Ok(()),
                    Some(_) => Err(Error::Damaged(format!(
                        "file {file}, block {block}: in-place file {} does not match its CRC",
                        host.name()
                    ))),
                },
                Some((Source::Base, offset, _)) => match &base {
                    Some(base) => base.read((offset / BLOCK_BYTES) as u32, page),
                    None => Ok(()),
                },
                None => Ok(()),
            };
            let class = inode.class;
            let Body::InPlace(extents, _) = &mut inode.body else { continue };
            for host in extents.written_hosts() {
                host.count_for(delta, Need::Acknowledged)?;
            }
            let found = resolve_after_crash(Arc::make_mut(extents), size, &self.core.hosts, &below)?;
            let hosts = extents.written_hosts();
            if found {
                head.changed(file);
            }
            // The next commit flushes them all: what was completed here, before
            // a record names it, and what an earlier daemon wrote and did not
            // live to flush. It reads as written, so a sync has to mean it.
            if class == Class::Wal {
                head.pending.hosts.extend(hosts.into_iter().map(|host| (host.id, host)));
            }
        }
        Ok(())
    }

    /// Calls `hook` from now on for each fork that appears or vanishes.
    pub fn on_change(&self, hook: Hook) {
        *self.hook.write() = Some(hook);
    }

    pub(super) fn tell(&self, name: &str, id: ForkId) {
        if let Some(hook) = &*self.hook.read() {
            hook(name, id);
        }
    }

    fn start_threads(self: &Arc<Self>) {
        let mut threads = self.threads.lock();
        for (name, run) in [
            ("pgcowfs-write", Store::write_back as fn(&Arc<Background>, &Store)),
            ("pgcowfs-gc", Store::collect),
            ("pgcowfs-seal", Store::seal_in_background),
            ("pgcowfs-ahead", Store::read_ahead),
        ] {
            let (background, store) = (self.background.clone(), Arc::downgrade(self));
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
                loop {
                    if background.state.lock().stop {
                        return;
                    }
                    let Some(store) = store.upgrade() else { return };
                    run(&background, &store);
                }
            });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(e) => log::error!("no background thread {name}: {e}"),
            }
        }
    }

    fn stop_threads(&self) {
        self.background.state.lock().stop = true;
        self.background.wake.notify_all();
        self.core.ahead.end();
    }

    /// Commits all forks and closes the map. Nothing may be called afterwards.
    pub fn close(&self) -> Result<()> {
        self.stop_threads();
        for thread in self.threads.lock().drain(..) {
            // The last reference to the store may be dropped by its own thread.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        let mut first = Ok(());
        for fork in self.loaded() {
            if fork.fault().is_some() || fork.is_ephemeral() {
                continue;
            }
            if let Err(e) = fork.sync_at_end() {
                log::error!("fork {:?}: {e}", fork.name());
                first = first.and(Err(e));
            }
        }
        self.core.hosts.close();
        let mut batch = Batch::default();
        batch.put(self.core.ids.used().encode());
        first = first.and(self.core.map.commit(&batch));
        first.and(self.core.map.close())
    }
}

/// Layers whose removal had begun when the store was closed, or crashed: merging did not
/// know them any more, and may have taken their parents away. Nothing is below them then;
/// they go like all that no fork and no snapshot (`tops`) stands on.
fn cut_off_removed(layers: &mut HashMap<LayerId, LayerInfo>, tops: impl Iterator<Item = LayerId>) {
    let mut needed = HashSet::new();
    for top in tops {
        let mut at = top;
        while let Some(info) = layers.get(&at).filter(|_| needed.insert(at)) {
            at = info.record.parent;
        }
    }
    let there: HashSet<LayerId> = layers.keys().copied().collect();
    for (layer, info) in layers {
        if !needed.contains(layer) && !there.contains(&info.record.parent) {
            info.record.parent = LayerId(0);
        }
    }
}

/// Each layer comes down to a bottom one: no walk from parent to parent is
/// without an end.
fn check_tree_of_layers(layers: &HashMap<LayerId, LayerInfo>) -> Result<()> {
    let mut children: HashMap<LayerId, Vec<LayerId>> = HashMap::new();
    for info in layers.values() {
        children.entry(info.record.parent).or_default().push(info.record.id);
    }
    let mut reached = 0;
    let mut left = vec![LayerId(0)];
    while let Some(layer) = left.pop() {
        let above = children.remove(&layer).unwrap_or_default();
        reached += above.len();
        left.extend(above);
    }
    match layers.values().find(|info| children.contains_key(&info.record.parent)) {
        Some(info) if reached < layers.len() => Err(Error::Damaged(format!(
            "layer {} does not come down to a bottom layer: its parent {} is missing from the block map, or lies above it",
            info.record.id, info.record.parent
        ))),
        _ => Ok(()),
    }
}

fn scan(map: &dyn Map, tag: u8, visit: &mut crate::map::Visit<'_>) -> Result<()> {
    map.scan(&[tag], &prefix_end(&[tag]), visit)
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop_threads();
        // The lock goes with its file.
        self.lock.take();
    }
}
