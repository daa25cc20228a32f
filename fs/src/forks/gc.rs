//! Removing forks, and the background work: giving back what nothing refers to,
//! and writing dirty pages out before somebody waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::map::schema::{self, BaseSealRecord, BlockRecord, LayerRecord, QuotaRecord, tag};
use crate::map::{Batch, prefix_end};

use super::store::{Background, Store};

/// Block records that one step of a removal takes.
const STEP: usize = 4096;
/// Dirty pages are written out when there are this many bytes of them.
const WRITE_BACK_BYTES: u64 = 1 << 20;
/// How often that is looked at.
const WRITE_BACK_INTERVAL: Duration = Duration::from_millis(50);
/// After this many looks, fewer are written out too.
const WRITE_BACK_IDLE_LOOKS: u32 = 20;

impl Store {
    /// Removes a fork, running or not; open files in it get ESTALE. Others that
    /// were made from it keep all they have. Its space is given back in the
    /// background.
    pub fn remove(&self, name: &str) -> Result<()> {
        let id = self.names.read().get(name).copied();
        let id = id.ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
        // A fork whose state is damaged can be removed as well: only what is in
        // memory needs care.
        let fork = self.forks.read().get(&id).and_then(|k| k.fork.lock().clone());
        let commit = fork.as_ref().map(|f| f.commit.lock());
        let (key, head, delta) = {
            let forks = self.forks.read();
            let known = forks.get(&id).ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
            let record = match &fork {
                Some(fork) => fork.record.lock().clone(),
                None => known.record.lock().clone(),
            };
            (record.encode().0, record.head, record.delta)
        };
        let mut batch = Batch::default();
        batch.delete(key);
        batch.delete(QuotaRecord::key(id));
        self.core.map.commit(&batch)?;
        if let Some(fork) = &fork {
            let mut head = fork.head.lock();
            fork.removed.store(true, Ordering::SeqCst);
            let mut slots = head.take_uncommitted_slots();
            for (_, orphan) in head.orphans.drain() {
                slots.extend(orphan.owned_slots());
            }
            head.staged.clear();
            head.state = Default::default();
            head.below = Default::default();
            drop(head);
            self.core.release_after_readers(slots);
        }
        drop(commit);
        self.names.write().remove(name);
        self.forks.write().remove(&id);
        self.core.delta(delta).retired.store(true, Ordering::SeqCst);
        {
            let mut layers = self.core.layers.lock();
            if let Some(info) = layers.get_mut(&head) {
                info.head_of = None;
            }
        }
        self.queue_unreachable_from(head);
        self.tell(name, id);
        Ok(())
    }

    /// Queues a layer, and those below that only it needed.
    pub(super) fn queue_unreachable_from(&self, layer: LayerId) {
        let mut layers = self.core.layers.lock();
        let mut at = layer;
        let mut queue = Vec::new();
        while let Some(info) = layers.get(&at).copied() {
            if info.children > 0 || info.head_of.is_some() {
                break;
            }
            queue.push(at);
            layers.remove(&at);
            at = info.record.parent;
            if let Some(parent) = layers.get_mut(&at) {
                parent.children -= 1;
            }
        }
        drop(layers);
        let mut work = self.background.state.lock();
        work.drop.extend(queue);
        self.background.wake.notify_all();
    }

    /// Queues all layers that no fork reaches, when the store opens.
    pub(super) fn queue_unreachable(&self) {
        let leaves: Vec<LayerId> = {
            let layers = self.core.layers.lock();
            layers.values().filter(|l| l.children == 0 && l.head_of.is_none()).map(|l| l.record.id).collect()
        };
        for leaf in leaves {
            self.queue_unreachable_from(leaf);
        }
    }

    /// One round of the collecting thread.
    pub(super) fn collect(background: &Arc<Background>, store: &Store) {
        let layer = {
            let mut work = background.state.lock();
            if work.stop {
                return;
            }
            match work.drop.pop_front() {
                Some(layer) => {
                    work.busy = true;
                    layer
                }
                None => {
                    background.wake.wait_for(&mut work, Duration::from_millis(500));
                    return;
                }
            }
        };
        let dropped = store.drop_layer(layer);
        let mut work = background.state.lock();
        work.busy = false;
        match dropped {
            Ok(true) => {
                background.wake.notify_all();
            }
            Ok(false) => work.drop.push_front(layer),
            Err(e) => {
                log::warn!("layer {layer} is not removed yet: {e}");
                work.drop.push_back(layer);
                background.wake.wait_for(&mut work, Duration::from_secs(1));
            }
        }
    }

    /// Removes the records of a layer that nothing refers to, in steps, the
    /// layer's own last: after a crash the rest is found and removed. Returns
    /// false if the store is being closed.
    fn drop_layer(&self, layer: LayerId) -> Result<bool> {
        let core = &self.core;
        self.forget_state(layer);
        let blocks = schema::layer_prefix(tag::BLOCK, layer);
        loop {
            if self.background.state.lock().stop {
                return Ok(false);
            }
            let mut released: HashMap<u32, Vec<u32>> = HashMap::new();
            let mut slots = Vec::new();
            let mut last = Vec::new();
            core.map.scan(&blocks, &prefix_end(&blocks), &mut |k, v| {
                let (_, _, record) = BlockRecord::decode(k, v)?;
                released.entry(record.slot.delta()).or_default().push(record.slot.index());
                slots.push(record.slot);
                last = k.to_vec();
                Ok(slots.len() < STEP)
            })?;
            if slots.is_empty() {
                break;
            }
            last.push(0);
            let mut batch = Batch::default();
            batch.delete_range(blocks.clone(), last);
            core.commit_slots(&HashMap::new(), &released, batch)?;
            core.release_after_readers(slots);
        }
        let mut batch = Batch::default();
        // The seals of a base go with it: nobody above this layer is left.
        let bases = schema::layer_prefix(tag::BASE_FILE, layer);
        core.map.scan(&bases, &prefix_end(&bases), &mut |k, _| {
            let seals = BaseSealRecord::prefix(schema::file_of_key(k)?);
            batch.delete_range(seals.clone(), prefix_end(&seals));
            Ok(true)
        })?;
        for tag in [tag::CLEARED, tag::NAME, tag::INODE, tag::EXTENTS, tag::BASE_FILE] {
            let start = schema::layer_prefix(tag, layer);
            batch.delete_range(start.clone(), prefix_end(&start));
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
    fn remove_empty_deltas(&self) {
        let mut deltas = self.core.deltas.write();
        deltas.retain(|_, delta| {
            let empty = delta.retired.load(Ordering::SeqCst) && delta.space().durable_slots() == 0;
            if empty && let Err(e) = delta.remove() {
                // It only takes space; the next start removes it.
                log::warn!("{e}");
            }
            !empty
        });
    }

    /// Waits until the background work that is queued now is done.
    pub fn wait_for_collection(&self) {
        let mut work = self.background.state.lock();
        while !work.stop && (work.busy || !work.drop.is_empty()) {
            self.background.wake.wait_for(&mut work, Duration::from_millis(20));
        }
    }

    /// One round of the writing thread.
    pub(super) fn write_back(background: &Arc<Background>, store: &Store) {
        for look in 0..WRITE_BACK_IDLE_LOOKS {
            {
                let mut work = background.state.lock();
                if !work.stop {
                    background.wake.wait_for(&mut work, WRITE_BACK_INTERVAL);
                }
                if work.stop {
                    return;
                }
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
