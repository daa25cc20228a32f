//! Removing forks, and the background work: giving back what nothing refers to,
//! and writing dirty pages out before somebody waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::delta::Delta;
use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::map::schema::{
    self, BaseSealRecord, BlockRecord, ForkRecord, LayerRecord, QuotaRecord, SnapshotRecord, tag,
};
use crate::map::{Batch, after, delete_prefix, prefix_end};

use super::fork::Fork;
use super::merge::{Outcome, Pair};
use super::store::{Background, Store, Task};

/// After a failure the work rests for that long; no rest is longer.
const RETRY: Duration = Duration::from_secs(1);
/// Merging waits that long for somebody who relies on the records.
const MAKE_WAY: Duration = Duration::from_millis(5);
/// After each step merging rests for so many times as long as the step took:
/// while nobody else commits, and while somebody does.
const REST_IDLE: u32 = 1;
const REST_BUSY: u32 = 9;
/// How often heads are looked at.
const HEADS_INTERVAL: Duration = Duration::from_secs(5);
/// A head is frozen to be merged when it hides this many pages (8 MiB), and this
/// part of the layer below it: so a page is moved but a few times in its life, and
/// superseded pages take at most a sixteenth of the space.
const HIDDEN_MIN: u64 = 1024;
const HIDDEN_SHARE: u64 = 16;
/// Block records that one step of a removal takes.
const STEP: usize = 4096;
/// Dirty pages are written out when there are this many bytes of them.
const WRITE_BACK_BYTES: u64 = 1 << 20;
/// How often that is looked at.
const WRITE_BACK_INTERVAL: Duration = Duration::from_millis(50);
/// After this many looks, fewer are written out too.
const WRITE_BACK_IDLE_LOOKS: u32 = 20;

impl Store {
    /// Removes a fork, running or not, with its snapshots; open files in it get
    /// ESTALE. Others that were made from it keep all they have. Its space is given
    /// back in the background.
    pub fn remove(&self, name: &str) -> Result<()> {
        let id = self.names.read().get(name).copied();
        let id = id.ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
        let missing = || Error::NoSuchFork(name.to_string());
        let known = self.forks.read().get(&id).cloned().ok_or_else(missing)?;
        // A fork whose state is damaged can be removed as well: only what is in
        // memory needs care. Nobody loads it, or commits anything of it, meanwhile.
        let fork = known.fork.lock();
        let commit = fork.as_ref().map(|f| f.commit.lock());
        if !self.forks.read().contains_key(&id) {
            return Err(missing());
        }
        // Until its snapshots are forgotten in memory, too: what is merged meanwhile
        // would write their records anew.
        let still = self.core.moves.read();
        let mut batch = Batch::default();
        batch.delete(ForkRecord::key(id));
        batch.delete(QuotaRecord::key(id));
        for (label, _) in self.core.snapshots(id) {
            batch.delete(SnapshotRecord::key(id, &label));
        }
        self.core.map.commit(&batch)?;
        self.names.write().remove(name);
        self.retire(id, fork.as_ref());
        drop(still);
        drop(commit);
        drop(fork);
        self.tell(name, id);
        Ok(())
    }

    /// Lets go of a fork that is not in the map any more.
    pub(super) fn retire(&self, id: ForkId, fork: Option<&Arc<Fork>>) {
        // Whoever removes a fork does not wait until its memory is free.
        let head = fork.map(|fork| fork.end());
        self.background.state.lock().removed.extend(head);
        let Some(known) = self.forks.write().remove(&id) else { return };
        let (head, delta) = {
            let record = known.record.lock();
            (record.head, record.delta)
        };
        self.core.delta(delta).retired.store(true, Ordering::SeqCst);
        if let Some(info) = self.core.layers.lock().get_mut(&head) {
            info.head_of = None;
        }
        for (label, _) in self.core.snapshots(id) {
            if let Some(layer) = self.core.unkeep(id, &label) {
                self.queue_unreachable_from(layer);
            }
        }
        self.queue_unreachable_from(head);
    }

    /// Queues a layer, and those below that only it needed.
    pub(super) fn queue_unreachable_from(&self, layer: LayerId) {
        let mut layers = self.core.layers.lock();
        let mut at = layer;
        let mut queue = Vec::new();
        while layers.get(&at).is_some_and(|info| info.is_unreachable()) {
            queue.push(at);
            let below = layers.remove(&at).map_or(LayerId(0), |info| info.record.parent);
            if let Some(parent) = layers.get_mut(&below) {
                parent.children.remove(&at);
            }
            at = below;
        }
        drop(layers);
        let mut work = self.background.state.lock();
        work.drop.extend(queue);
        work.look |= self.core.options.merge;
        self.background.wake.notify_all();
    }

    /// Queues all layers that no fork reaches, when the store opens.
    pub(super) fn queue_unreachable(&self) {
        let leaves: Vec<LayerId> = {
            let layers = self.core.layers.lock();
            layers.values().filter(|l| l.is_unreachable()).map(|l| l.record.id).collect()
        };
        for leaf in leaves {
            self.queue_unreachable_from(leaf);
        }
    }

    /// One round of the collecting thread.
    pub(super) fn collect(background: &Arc<Background>, store: &Store) {
        let task = {
            let mut work = background.state.lock();
            if work.stop {
                return;
            }
            work.next_task()
        };
        let pause = match task {
            None => {
                store.give_back_in_background(background);
                return store.idle_round();
            }
            Some(Task::Forget(head)) => {
                store.core.forget(*head);
                Duration::ZERO
            }
            Some(Task::Drop(layer)) => store.drop_task(layer),
            Some(Task::Merge(pair)) => store.merge_task(pair),
        };
        let mut work = background.state.lock();
        work.busy = false;
        background.wake.notify_all();
        let until = Instant::now() + pause;
        while !pause.is_zero() && !work.stop && work.hurry == 0 {
            if background.wake.wait_until(&mut work, until).timed_out() {
                break;
            }
        }
    }

    /// Drops a layer; returns how long to rest then.
    fn drop_task(&self, layer: LayerId) -> Duration {
        let dropped = self.drop_layer(layer);
        let mut work = self.background.state.lock();
        match dropped {
            Ok(true) => {}
            Ok(false) => work.drop.push_front(layer),
            Err(e) => {
                log::warn!("layer {layer} is not removed yet: {e}");
                work.drop.push_back(layer);
                return RETRY;
            }
        }
        Duration::ZERO
    }

    /// Does a step of merging, and returns how long to rest then: as long as the
    /// step took, and much longer while forks commit.
    fn merge_task(&self, pair: Option<Pair>) -> Duration {
        let start = Instant::now();
        let commits = self.core.stats.amounts.map_commits.load(Ordering::Relaxed);
        let mut pair = match pair {
            Some(pair) => pair,
            None => {
                let stuck = self.background.state.lock().stuck.clone();
                match self.core.find_pair(&|layer| stuck.contains(&layer)) {
                    Ok(Some(pair)) => pair,
                    Ok(None) => return Duration::ZERO,
                    Err(e) => {
                        log::warn!("no layers are merged: {e}");
                        return RETRY;
                    }
                }
            }
        };
        self.background.state.lock().merging = Some(pair.from());
        let outcome = self.merge_step(&mut pair);
        let mut work = self.background.state.lock();
        work.look = true;
        if !matches!(outcome, Ok(Outcome::More | Outcome::Busy)) {
            work.merging = None;
        }
        match outcome {
            Ok(Outcome::More) => work.pair = Some(pair),
            Ok(Outcome::Done | Outcome::Gone) => {}
            Ok(Outcome::Busy) => {
                work.pair = Some(pair);
                drop(work);
                std::thread::sleep(MAKE_WAY);
            }
            Err(e) => {
                let [lower, upper] = pair.layers();
                log::warn!("layers {lower} and {upper} are not merged: {e}");
                if e.is_full() {
                    // There may be room later; the next fork or removal asks again.
                    work.look = false;
                } else {
                    work.stuck.insert(lower);
                }
            }
        }
        let others = self.core.stats.amounts.map_commits.load(Ordering::Relaxed) != commits;
        (start.elapsed() * if others { REST_BUSY } else { REST_IDLE }).min(RETRY)
    }

    /// How many layers wait to be merged, and how many pages are left to be moved if
    /// a merge is under way.
    pub(super) fn merging(&self) -> (u64, Option<u64>) {
        let merging = self.background.state.lock().merging;
        let pages = |layer| self.core.layers.lock().get(&layer).map(|info| info.record.pages);
        (self.core.count_pairs(), merging.and_then(pages))
    }

    /// Looks for layers to merge, in the background.
    pub(super) fn look_for_pairs(&self) {
        let mut work = self.background.state.lock();
        work.look |= self.core.options.merge;
        self.background.wake.notify_all();
    }

    /// What there is to do when nothing is queued.
    fn idle_round(&self) {
        self.freeze_heads_in_time();
        let commits = self.core.stats.amounts.map_commits.load(Ordering::Relaxed);
        let mut cursor = {
            let mut work = self.background.state.lock();
            let quiet =
                work.commits_seen == commits && self.core.delta_room.dirty_bytes.load(Ordering::Relaxed) == 0;
            work.commits_seen = commits;
            if work.stop || work.look || !quiet || !self.core.options.merge {
                return;
            }
            work.sort
        };
        self.sort_in_background(&mut cursor);
        self.background.state.lock().sort = cursor;
    }

    /// Freezes the head layers that hide enough of a layer which only they stand
    /// on, so that the two can be merged.
    fn freeze_heads_in_time(&self) {
        let mut work = self.background.state.lock();
        let due = work.heads_looked_at.is_none_or(|at| at.elapsed() >= HEADS_INTERVAL);
        if work.stop || !due || !self.core.options.merge {
            return;
        }
        work.heads_looked_at = Some(Instant::now());
        // A frozen layer may have become durable since.
        work.look = true;
        drop(work);
        let worth = |hidden: u64, below: u64| hidden >= (below / HIDDEN_SHARE).max(HIDDEN_MIN);
        if let Err(e) = self.freeze_heads(&worth) {
            log::warn!("no head layer is frozen: {e}");
        }
    }

    /// Freezes each fork's head layer of which `worth` says so, given how many
    /// pages it hides and how many the layer has that only it stands on.
    fn freeze_heads(&self, worth: &dyn Fn(u64, u64) -> bool) -> Result<()> {
        let heads: Vec<(ForkId, u64, u64)> = {
            let layers = self.core.layers.lock();
            let alone =
                layers.values().filter(|info| info.settled && info.children.len() == 1 && info.names == 0);
            alone
                .filter_map(|info| {
                    let head = layers.get(info.children.first()?)?;
                    Some((head.head_of?, head.record.pages, info.record.pages))
                })
                .collect()
        };
        for (fork, pages, below) in heads {
            // One that nobody has used yet hides no more than it has.
            let hidden = self.loaded_fork(fork).map_or(pages, |fork| fork.head.lock().hidden);
            if below > 0 && worth(hidden, below) {
                match self.by_id(fork).and_then(|fork| self.freeze_head(&fork)) {
                    Ok(()) | Err(Error::Stale) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// Brings all that is done about space in the background to its end: drops
    /// what is removed, merges all layers that can be merged, heads included, and
    /// gives what is free back to the host. `tell` hears now and then how many
    /// bytes went back so far, and ends it. Whether it came to its end.
    pub fn collect_all(&self, tell: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
        let before = self.given_back();
        let mut tell = || tell(self.given_back() - before);
        self.background.state.lock().hurry += 1;
        let merged = self.merge_all(&mut tell);
        self.background.state.lock().hurry -= 1;
        if !merged? {
            return Ok(false);
        }
        // The last slots are free when their readers have left.
        self.core.grace.wait();
        self.remove_empty_deltas();
        self.reclaim_all(&mut |_| tell())
    }

    fn merge_all(&self, tell: &mut dyn FnMut() -> bool) -> Result<bool> {
        let merge = |tell: &mut dyn FnMut() -> bool| {
            let mut work = self.background.state.lock();
            work.look = true;
            self.background.wake.notify_all();
            while !work.is_done() {
                self.background.wake.wait_for(&mut work, Duration::from_millis(20));
                if work.stop || !MutexGuard::unlocked(&mut work, &mut *tell) {
                    return false;
                }
            }
            true
        };
        if !merge(tell) {
            return Ok(false);
        }
        // Only now it shows what the heads stand on.
        self.freeze_heads(&|hidden, _| hidden > 0)?;
        Ok(merge(tell))
    }

    /// Removes the records of a layer that nothing refers to, in steps, the
    /// layer's own last: after a crash the rest is found and removed. Returns
    /// false if the store is being closed.
    fn drop_layer(&self, layer: LayerId) -> Result<bool> {
        let core = &self.core;
        self.forget_state(layer);
        let mut start = schema::layer_prefix(tag::BLOCK, layer);
        let end = prefix_end(&start);
        loop {
            if self.background.state.lock().stop {
                return Ok(false);
            }
            let mut released: HashMap<u32, Vec<u32>> = HashMap::new();
            let (mut slots, mut keys) = (Vec::new(), Vec::new());
            core.map.scan(&start, &end, &mut |k, v| {
                let (_, _, record) = BlockRecord::decode(k, v)?;
                released.entry(record.slot.delta()).or_default().push(record.slot.index());
                slots.push(record.slot);
                keys.push(k.to_vec());
                Ok(slots.len() < STEP)
            })?;
            let mut batch = Batch::default();
            batch.delete_all(&keys);
            let Some(last) = keys.pop() else { break };
            start = after(last);
            core.commit_slots(&HashMap::new(), &released, batch)?;
            core.release_after_readers(slots);
        }
        let mut batch = Batch::default();
        // The seals of a base go with it: nobody above this layer is left.
        let bases = schema::layer_prefix(tag::BASE_FILE, layer);
        core.map.scan(&bases, &prefix_end(&bases), &mut |k, _| {
            delete_prefix(&*core.map, BaseSealRecord::prefix(schema::file_of_key(k)?), &mut batch)?;
            Ok(true)
        })?;
        for tag in [tag::CLEARED, tag::NAME, tag::INODE, tag::EXTENTS, tag::BASE_FILE] {
            delete_prefix(&*core.map, schema::layer_prefix(tag, layer), &mut batch)?;
        }
        batch.delete(LayerRecord::key(layer));
        let files: Vec<(FileId, Vec<u64>)> = {
            let extents = core.extents.lock();
            extents
                .iter()
                .filter(|((l, _), _)| *l == layer)
                .map(|((_, f), hosts)| (*f, hosts.clone()))
                .collect()
        };
        let hosts: Vec<u64> = files.iter().flat_map(|(_, hosts)| hosts).copied().collect();
        let going = core.hosts.seals.begin_removal(&core.hosts.unreferenced_after(&[], &hosts), &mut batch);
        let committed = core.map.commit(&batch);
        core.hosts.seals.end_removal(&going, committed.is_ok());
        committed?;
        let mut extents = core.extents.lock();
        for (file, _) in files {
            extents.remove(&(layer, file));
        }
        drop(extents);
        core.hosts.count_durable(&[], &hosts);
        self.remove_empty_deltas();
        Ok(true)
    }

    /// Removes the delta files of removed forks that hold nothing any more.
    pub(super) fn remove_empty_deltas(&self) {
        let is_empty =
            |delta: &Arc<Delta>| delta.retired.load(Ordering::SeqCst) && delta.space().durable_slots() == 0;
        let empty: Vec<Arc<Delta>> =
            self.core.deltas.read().values().filter(|d| is_empty(d)).cloned().collect();
        // The host takes its time with a big file.
        for delta in &empty {
            if let Err(e) = delta.remove() {
                // It only takes space; the next start removes it.
                log::warn!("{e}");
            }
        }
        if !empty.is_empty() {
            self.core.deltas.write().retain(|_, delta| !empty.iter().any(|gone| Arc::ptr_eq(gone, delta)));
        }
    }

    /// Waits until the background work that is queued now is done.
    pub fn wait_for_collection(&self) {
        let mut work = self.background.state.lock();
        while !work.stop && !work.is_done() {
            self.background.wake.wait_for(&mut work, Duration::from_millis(20));
        }
    }

    /// One round of the writing thread.
    pub(super) fn write_back(background: &Arc<Background>, store: &Store) {
        // Writes make page tables grow as well.
        store.core.drop_idle_tables();
        for fork in store.loaded() {
            fork.commit_if_ephemeral();
        }
        for look in 0..WRITE_BACK_IDLE_LOOKS {
            if !background.rest(WRITE_BACK_INTERVAL) {
                return;
            }
            let enough = if look == 0 { 1 } else { WRITE_BACK_BYTES };
            for fork in store.loaded() {
                if fork.delta().dirty_bytes() >= enough && fork.fault().is_none() {
                    fork.write_back();
                }
            }
        }
    }
}
