//! Seals: CRCs of what the page tables have none for. A host file of a WAL
//! segment gets them when nobody writes to it (any more, or for the time being);
//! a base file when `scrub --seal` asks for it. From then on every block that is
//! read from it is compared.
//!
//! Invariant: a seal is never older than what it seals. Whoever is about to
//! write to a sealed host file first removes the seal, durably
//! ([`crate::inplace::HostFile::write`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use crate::block::{BLOCK_SIZE, BlockNo, ZERO_PAGE};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::schema::{BASE_SEAL_BLOCKS, BaseSealRecord, HostSealRecord, tag};
use crate::map::{Batch, Map, prefix_end};

/// Loaded records that are kept, of each kind: 8 KiB and 4 KiB each.
const KEPT: usize = 64;

/// CRC-32 of a block of zeros, which is what lies beyond a file's end.
static ZERO_CRC: LazyLock<u32> = LazyLock::new(|| crc32fast::hash(&ZERO_PAGE));

/// The CRCs of one record.
pub type Crcs = Arc<Vec<u32>>;

/// Records loaded last, newest first.
struct Kept<K>(VecDeque<(K, Crcs)>);

impl<K: PartialEq + Copy> Kept<K> {
    fn get(&mut self, key: K) -> Option<Crcs> {
        let at = self.0.iter().position(|(k, _)| *k == key)?;
        let found = self.0.remove(at)?;
        let crcs = found.1.clone();
        self.0.push_front(found);
        Some(crcs)
    }

    fn put(&mut self, key: K, crcs: Crcs) {
        self.0.push_front((key, crcs));
        self.0.truncate(KEPT);
    }

    fn forget(&mut self, which: impl Fn(&K) -> bool) {
        self.0.retain(|(key, _)| !which(key));
    }
}

/// The seal of a host file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seal {
    Whole,
    /// A commit under way removes it; its record may be gone.
    Going,
}

/// All seals of a store.
pub struct Seals {
    map: Arc<dyn Map>,
    hosts: Mutex<HashMap<u64, Seal>>,
    /// Counts removals: a record loaded before one must not be kept after it.
    removals: AtomicU64,
    host_crcs: Mutex<Kept<u64>>,
    /// Whether a base file has any; those not asked about yet are missing.
    bases: Mutex<HashMap<FileId, bool>>,
    base_crcs: Mutex<Kept<(FileId, u32)>>,
}

/// The CRC of each whole block of `bytes`.
pub fn crcs_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(BLOCK_SIZE).map(crc32fast::hash)
}

/// The first block of `bytes` that does not match `crcs`, which begin with the
/// block at `first`; blocks beyond them are zeros.
pub fn mismatch(crcs: &[u32], first: usize, bytes: &[u8]) -> Option<u32> {
    let expected = |i: usize| crcs.get(first + i).copied().unwrap_or(*ZERO_CRC);
    crcs_of(bytes).enumerate().position(|(i, crc)| crc != expected(i)).map(|i| i as u32)
}

impl Seals {
    /// No seals known yet.
    pub fn new(map: Arc<dyn Map>) -> Self {
        Seals {
            map,
            hosts: Mutex::default(),
            removals: AtomicU64::new(0),
            host_crcs: Mutex::new(Kept(VecDeque::new())),
            bases: Mutex::default(),
            base_crcs: Mutex::new(Kept(VecDeque::new())),
        }
    }

    /// Learns which host files are sealed, when a store opens; returns them. The
    /// CRCs themselves are read when they are needed.
    pub fn load_hosts(&self) -> Result<Vec<u64>> {
        let mut hosts = self.hosts.lock();
        self.map.scan(&[tag::HOST_SEAL], &prefix_end(&[tag::HOST_SEAL]), &mut |k, _| {
            if let Some(id) = k.get(1..9).and_then(|b| b.try_into().ok()) {
                hosts.insert(u64::from_be_bytes(id), Seal::Whole);
            }
            Ok(true)
        })?;
        Ok(hosts.keys().copied().collect())
    }

    /// Whether a host file is sealed; still true while a commit removes the seal.
    pub fn has_host(&self, host: u64) -> bool {
        self.hosts.lock().contains_key(&host)
    }

    /// Whether a host file has a seal that nobody is about to remove.
    pub fn is_whole(&self, host: u64) -> bool {
        self.hosts.lock().get(&host) == Some(&Seal::Whole)
    }

    /// Counts removed seals: a comparison that began at another number may have
    /// been made with a seal that is no more.
    pub fn removals(&self) -> u64 {
        self.removals.load(Ordering::SeqCst)
    }

    /// The CRCs of a host file; `None` if it is not sealed, or not for long.
    pub fn host(&self, host: u64) -> Result<Option<Crcs>> {
        let removals = self.removals();
        if !self.is_whole(host) {
            return Ok(None);
        }
        if let Some(crcs) = self.host_crcs.lock().get(host) {
            return Ok(Some(crcs));
        }
        let key = HostSealRecord::key(host);
        let Some(value) = self.map.get(&key)? else {
            return match self.removals() == removals && self.is_whole(host) {
                true => Err(Error::Damaged(format!("the seal of host file {host} is missing"))),
                false => Ok(None),
            };
        };
        let crcs = Arc::new(HostSealRecord::decode(&key, &value)?.1);
        let mut kept = self.host_crcs.lock();
        if self.removals() == removals {
            kept.put(host, crcs.clone());
        }
        Ok(Some(crcs))
    }

    /// Seals a host file; its contents are durable and nobody writes to it
    /// meanwhile.
    pub fn seal_host(&self, host: u64, crcs: &[u32]) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(HostSealRecord::encode(host, crcs));
        self.map.commit(&batch)?;
        self.hosts.lock().insert(host, Seal::Whole);
        Ok(())
    }

    /// Removes a host file's seal, durably, before it is written to.
    pub fn unseal_host(&self, host: u64) -> Result<()> {
        let mut batch = Batch::default();
        let going = self.begin_removal(&[host], &mut batch);
        let removed = self.map.commit(&batch);
        self.end_removal(&going, removed.is_ok());
        removed
    }

    /// Adds the removal of the seals that these host files have to a batch;
    /// [`Seals::end_removal`] is told of what is returned.
    pub fn begin_removal(&self, hosts: &[u64], batch: &mut Batch) -> Vec<u64> {
        let mut sealed = self.hosts.lock();
        let mut going = Vec::new();
        for host in hosts {
            if let Some(seal) = sealed.get_mut(host) {
                *seal = Seal::Going;
                batch.delete(HostSealRecord::key(*host));
                going.push(*host);
            }
        }
        going
    }

    /// The batch has been committed, or could not be.
    pub fn end_removal(&self, going: &[u64], committed: bool) {
        if going.is_empty() {
            return;
        }
        let mut sealed = self.hosts.lock();
        for host in going {
            if committed {
                sealed.remove(host);
            } else if let Some(seal) = sealed.get_mut(host) {
                *seal = Seal::Whole;
            }
        }
        drop(sealed);
        if committed {
            let mut kept = self.host_crcs.lock();
            self.removals.fetch_add(1, Ordering::SeqCst);
            kept.forget(|host| going.contains(host));
        }
    }

    /// The first block of `bytes`, which are the blocks of a base file from
    /// `block` on, that does not match its seal. Blocks without one match.
    pub fn base_mismatch(&self, file: FileId, block: BlockNo, bytes: &[u8]) -> Result<Option<u32>> {
        if !self.has_base(file)? {
            return Ok(None);
        }
        let blocks = (bytes.len() / BLOCK_SIZE) as u32;
        let mut done = 0;
        while done < blocks {
            let at = block + done;
            let within = at % BASE_SEAL_BLOCKS;
            let n = (BASE_SEAL_BLOCKS - within).min(blocks - done);
            if let Some(crcs) = self.base(file, at / BASE_SEAL_BLOCKS)? {
                let part = &bytes[done as usize * BLOCK_SIZE..(done + n) as usize * BLOCK_SIZE];
                if let Some(i) = mismatch(&crcs, within as usize, part) {
                    return Ok(Some(done + i));
                }
            }
            done += n;
        }
        Ok(None)
    }

    /// Whether a base file has a seal.
    pub fn has_base(&self, file: FileId) -> Result<bool> {
        if let Some(&has) = self.bases.lock().get(&file) {
            return Ok(has);
        }
        // It is sealed from its beginning to its end, in one go.
        let has = self.map.get(&BaseSealRecord::key(file, 0))?.is_some();
        Ok(*self.bases.lock().entry(file).or_insert(has))
    }

    fn base(&self, file: FileId, number: u32) -> Result<Option<Crcs>> {
        if let Some(crcs) = self.base_crcs.lock().get((file, number)) {
            return Ok(Some(crcs));
        }
        let key = BaseSealRecord::key(file, number);
        let Some(value) = self.map.get(&key)? else { return Ok(None) };
        let crcs = Arc::new(BaseSealRecord::decode(&key, &value)?.2);
        self.base_crcs.lock().put((file, number), crcs.clone());
        Ok(Some(crcs))
    }

    /// Seals a base file: all its blocks, in records of 1024.
    pub fn seal_base(&self, file: FileId, crcs: &[u32]) -> Result<()> {
        let mut batch = Batch::default();
        for (number, part) in crcs.chunks(BASE_SEAL_BLOCKS as usize).enumerate() {
            batch.put(BaseSealRecord::encode(file, number as u32, part));
        }
        self.map.commit(&batch)?;
        self.base_crcs.lock().forget(|(f, _)| *f == file);
        self.bases.lock().insert(file, !crcs.is_empty());
        Ok(())
    }
}
