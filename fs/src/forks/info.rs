//! What the store can tell about its forks and itself.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::block::BLOCK_BYTES;
use crate::delta::account::Need;
use crate::device;
use crate::error::{Error, Result};
use crate::ids::{ForkId, LayerId};
use crate::inplace::WAL_CHUNK_BLOCKS;
use crate::layer::tree;
use crate::map::schema::ForkRecord;

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
    /// Host bytes that the store takes.
    pub store_bytes: u64,
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

impl Store {
    /// All forks, by name.
    pub fn forks(&self) -> Vec<ForkInfo> {
        let wal = self.wal_users();
        let mut all: Vec<ForkInfo> = self.records().iter().map(|r| self.describe(r, &wal)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// One fork.
    pub fn info(&self, name: &str) -> Result<ForkInfo> {
        let record = self.records().into_iter().find(|r| r.name == name);
        let record = record.ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
        Ok(self.describe(&record, &self.wal_users()))
    }

    fn records(&self) -> Vec<ForkRecord> {
        self.forks.read().values().map(|k| k.record.lock().clone()).collect()
    }

    /// The layers that refer to each WAL host file.
    fn wal_users(&self) -> HashMap<u64, Vec<LayerId>> {
        let mut users: HashMap<u64, Vec<LayerId>> = HashMap::new();
        for ((layer, _), hosts) in self.core.extents.lock().iter() {
            for &host in hosts {
                users.entry(host).or_default().push(*layer);
            }
        }
        users
    }

    fn describe(&self, record: &ForkRecord, wal: &HashMap<u64, Vec<LayerId>>) -> ForkInfo {
        let fork = self.loaded_fork(record.id);
        let live = fork.as_ref().map(|f| {
            let head = f.head.lock();
            (head.pages, head.state.logical_bytes)
        });
        let layers = self.core.layers.lock();
        let head = layers.get(&record.head);
        let (mut pages, logical_bytes) =
            live.or(head.map(|h| (h.record.pages, h.record.logical_bytes))).unwrap_or_default();
        let mut own = vec![record.head];
        let mut depth = 1;
        let mut exclusive = true;
        let mut at = head.map_or(LayerId(0), |h| h.record.parent);
        while let Some(info) = layers.get(&at) {
            depth += 1;
            exclusive &= info.children.len() == 1;
            if exclusive {
                pages = pages.saturating_add(info.record.pages);
                own.push(at);
            }
            at = info.record.parent;
        }
        drop(layers);
        let own_hosts = wal.values().filter(|users| users.iter().all(|l| own.contains(l))).count() as u64;
        let wal_bytes = own_hosts * u64::from(WAL_CHUNK_BLOCKS) * BLOCK_BYTES;
        let delta = self.core.delta(record.delta);
        ForkInfo {
            id: record.id,
            name: record.name.clone(),
            parent: (!record.parent.is_empty()).then(|| record.parent.clone()),
            created_at: record.created.to_system(),
            incomplete: record.incomplete,
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

    /// Number of layers.
    pub fn layers(&self) -> u64 {
        self.core.layers.lock().len() as u64
    }

    /// What the store holds.
    pub fn status(&self) -> Result<Status> {
        let memory = tree::memory();
        let mut store_bytes = 0;
        for part in ["map", "delta", "inplace"] {
            store_bytes += host_bytes(&self.core.dir.join(part))
                .map_err(|e| Error::io(format!("measuring {part}"), e))?;
        }
        Ok(Status {
            forks: self.forks.read().len() as u64,
            layers: self.layers(),
            map_entries: memory.entries,
            map_memory_bytes: memory.bytes,
            store_bytes,
        })
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
