//! Host files at rest get their CRCs: those that a fork has frozen, and WAL
//! segments that PostgreSQL has left. The frozen ones are trimmed before: most of them
//! have a few blocks that were written between two forks, and the space of a segment.
//!
//! Which files those are is a matter of cost only: whoever writes to a sealed
//! file removes the seal first. One thing is a matter of truth: after a crash,
//! blocks of a file that lies over others are found by their pattern, what lies
//! beyond the durable size is cleared, and a sealed file is left out of that. So
//! a file that may still be written is sealed only when the durable records have
//! all its blocks and its size.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::class::Class;
use crate::error::Result;
use crate::ids::{FileId, LayerId};
use crate::inplace::HostFile;
use crate::layer::Body;
use crate::map::schema::InodeRecord;

use super::fork::Fork;
use super::store::{Background, Store};

/// How often the background thread looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A host file that a fork may still write to.
struct TopOf {
    host: Arc<HostFile>,
    fork: Arc<Fork>,
    file: FileId,
}

impl Store {
    /// One round of the sealing thread.
    pub(super) fn seal_in_background(background: &Arc<Background>, store: &Store) {
        if !background.rest(LOOK_INTERVAL) {
            return;
        }
        if let Err(e) = store.seal_at_rest(store.core.options.seal_after) {
            // They stay without CRCs until the next round.
            log::warn!("WAL segments are not sealed: {e}");
        }
    }

    /// Seals the WAL host files that no fork writes to, and those that nobody
    /// has written to for `idle` except the one of each fork that was written
    /// last. Returns how many.
    pub fn seal_at_rest(&self, idle: Duration) -> Result<u64> {
        let core = &self.core;
        let recorded: HashMap<(LayerId, FileId), Vec<u64>> = core.extents.lock().clone();
        let known: Vec<_> = self.forks.read().values().cloned().collect();
        let mut not_frozen: HashSet<u64> = HashSet::new();
        let mut tops: Vec<TopOf> = Vec::new();
        let hosts_of = |layer: LayerId| {
            recorded.iter().filter(move |((l, _), _)| *l == layer).flat_map(|(_, hosts)| hosts).copied()
        };
        for known in known {
            let Some(fork) = known.fork.lock().clone() else {
                // Nobody has looked yet what was written before a crash.
                let head = known.record.lock().head;
                not_frozen.extend(hosts_of(head));
                continue;
            };
            // Memory and map of a stopped fork differ, nobody knows how.
            if fork.fault().is_some() {
                return Ok(0);
            }
            let backlog = fork.commit.lock();
            for unit in &backlog.units {
                not_frozen.extend(hosts_of(unit.layer.id));
            }
            let head = fork.head.lock();
            let layer = head.layer;
            for ((_, file), hosts) in recorded.iter().filter(|((l, _), _)| *l == layer) {
                if head.pending.files.contains_key(file) {
                    // The record may have tops that the file has no more, and a
                    // crash would bring them back.
                    not_frozen.extend(hosts);
                }
                let inode = head.state.inodes.get(file);
                let Some(Body::InPlace(extents, _)) = inode.map(|i| &i.body) else {
                    not_frozen.extend(hosts);
                    continue;
                };
                let lasts = !fork.is_ephemeral();
                for host in extents.tops_of(layer) {
                    not_frozen.insert(host.id);
                    if !lasts {
                        // A seal is a commit.
                        continue;
                    }
                    tops.push(TopOf { host, fork: fork.clone(), file: *file });
                }
            }
        }
        let mut sealed = 0;
        let mut frozen: HashSet<u64> = HashSet::new();
        for ((layer, file), hosts) in &recorded {
            for &host in hosts {
                let candidate = !not_frozen.contains(&host) && !core.hosts.seals.has_host(host);
                if candidate && frozen.insert(host) && self.is_wal(*layer, *file)? {
                    sealed += u64::from(self.seal(&core.hosts.get(host), true)?);
                }
            }
        }
        let mut newest: HashMap<crate::ids::ForkId, u64> = HashMap::new();
        for top in &tops {
            let last = newest.entry(top.fork.id()).or_default();
            *last = top.host.last_write().max(*last);
        }
        for top in tops {
            let last = top.host.last_write();
            let is_newest = last > 0 && newest.get(&top.fork.id()) == Some(&last);
            let resting = top.host.is_at_rest(idle) && !core.hosts.seals.has_host(top.host.id);
            if resting && !is_newest && top.fork.is_wal(top.file) {
                top.fork.record_places(top.file)?;
                sealed += u64::from(self.seal(&top.host, false)?);
            }
        }
        Ok(sealed)
    }

    /// A frozen file is nobody's to write any more.
    fn seal(&self, host: &HostFile, frozen: bool) -> Result<bool> {
        if self.background.state.lock().stop {
            return Ok(false);
        }
        // A record refers to it: there is no use in a seal without a file.
        let is_recorded = || self.core.hosts.is_recorded(host.id);
        // The seal is of what is left.
        let trimmed = if frozen { host.trim() } else { Ok(()) };
        match trimmed.and_then(|()| host.seal(&is_recorded)) {
            // It went with the last record since the look.
            Err(_) if !is_recorded() => Ok(false),
            sealed => sealed,
        }
    }

    /// Whether the record is of a WAL segment, not of scratch.
    fn is_wal(&self, layer: LayerId, file: FileId) -> Result<bool> {
        let key = InodeRecord::key(layer, file);
        let Some(value) = self.core.map.get(&key)? else { return Ok(false) };
        Ok(InodeRecord::decode(&key, &value)?.is_some_and(|inode| inode.class == Class::Wal))
    }
}

impl Fork {
    fn is_wal(&self, file: FileId) -> bool {
        self.head.lock().state.inodes.get(&file).is_some_and(|inode| inode.class == Class::Wal)
    }

    /// Makes durable where the blocks of an in-place file lie, and its size.
    fn record_places(&self, file: FileId) -> Result<()> {
        {
            let mut head = self.head_mut()?;
            if head.state.inodes.contains_key(&file) {
                head.changed(file);
            }
        }
        self.sync_all()
    }
}
