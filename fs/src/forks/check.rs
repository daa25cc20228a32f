//! Check and scrub of a store that is open.

use std::sync::Arc;

use crate::base::BaseFile;
use crate::block::{BLOCK_SIZE, BlockNo};
use crate::check::scrub::{Options, Progress, Tell, scrub};
use crate::check::{self, Finding, HostName, Locator, Report, Stored};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::layer::{Body, Pages};
use crate::seal;

use super::store::Store;

/// Blocks of a base that are read at a time.
const BASE_READ_BLOCKS: u32 = 128;

impl Store {
    fn with_stored<T>(&self, work: impl FnOnce(&Stored<'_>) -> T) -> T {
        let in_use = |name: HostName| match name {
            HostName::Delta(id) => {
                self.core.deltas.read().contains_key(&id)
                    || self.forks.read().values().any(|k| k.record.lock().delta == id)
            }
            HostName::InPlace(id) => self.core.hosts.is_known(id),
        };
        work(&Stored {
            map: &*self.core.map,
            delta: &*self.core.delta_room.device,
            inplace: self.core.hosts.device(),
            in_use: &in_use,
        })
    }

    /// Checks all records while the store is used. [`check::check`]
    pub fn check_records(&self, alive: &mut dyn FnMut() -> bool) -> Result<Report> {
        self.with_stored(|stored| check::check(stored, alive))
    }

    /// Reads everything that has a CRC while the store is used.
    /// [`check::scrub::scrub`]
    pub fn scrub(&self, options: &Options, tell: &mut Tell<'_>) -> Result<(Vec<Finding>, Progress)> {
        // It reads the records in pieces: one that moves could be missed.
        let _still = self.core.moves.read();
        self.with_stored(|stored| {
            let mut tell = |progress: &Progress| tell(progress);
            scrub(stored, options, &mut tell)
        })
    }

    /// All that [`Store::check_records`] and, with `pages`, [`Store::scrub`] find,
    /// in words. What is pending is committed first.
    pub fn check(&self, pages: bool) -> Result<Vec<String>> {
        for info in self.entries() {
            self.by_name(&info.name)?.sync_all()?;
        }
        self.wait_for_collection();
        let mut findings = self.check_records(&mut || true)?.findings;
        if pages {
            findings.extend(self.scrub(&Options::default(), &mut |_| true)?.0);
        }
        Ok(findings.into_iter().map(|f| f.message).collect())
    }

    /// Gives all base files of a fork their CRCs; `tell` as for a scrub. Files
    /// that have them are left as they are. Returns the bytes read.
    pub fn seal_base(&self, name: &str, tell: &mut Tell<'_>) -> Result<u64> {
        let fork = self.by_name(name)?;
        let state = fork.head()?.state.clone();
        let files: Vec<(FileId, Arc<BaseFile>)> = state
            .inodes
            .iter()
            .filter_map(|(file, inode)| match &inode.body {
                Body::Pages(Pages { base: Some(base), .. }) | Body::InPlace(_, Some(base)) => {
                    Some((*file, base.clone()))
                }
                _ => None,
            })
            .collect();
        let total = files.iter().map(|(_, base)| base.len()).sum();
        let mut progress = Progress { total, ..Progress::default() };
        for (file, base) in files {
            if self.core.hosts.seals.has_base(file)? {
                continue;
            }
            let mut crcs = Vec::new();
            let mut block: BlockNo = 0;
            while block < base.blocks() {
                let n = BASE_READ_BLOCKS.min(base.blocks() - block);
                let mut bytes = vec![0; n as usize * BLOCK_SIZE];
                base.read_uncached(block, &mut bytes)?;
                crcs.extend(seal::crcs_of(&bytes));
                block += n;
                progress.base_blocks += u64::from(n);
                progress.bytes += bytes.len() as u64;
                progress.total = progress.total.max(progress.bytes);
                if !tell(&progress) {
                    return Ok(progress.bytes);
                }
            }
            self.core.hosts.seals.seal_base(file, &crcs)?;
        }
        Ok(progress.bytes)
    }

    /// Puts the last whole version of a damaged page in its place, for one fork.
    /// What was written to the page since then is lost. Returns what was done,
    /// in words.
    pub fn restore_page(&self, name: &str, path: &str, block: BlockNo) -> Result<String> {
        let fork = self.by_name(name)?;
        let file = fork.resolve(path)?.file;
        fork.sync_all()?;
        let mut out = Vec::new();
        let offset = u64::from(block) * crate::block::BLOCK_BYTES;
        match fork.read(file, offset, BLOCK_SIZE, &mut out) {
            Err(Error::Damaged(_)) => {}
            Err(e) => return Err(e),
            Ok(()) => return Err(Error::Invalid("the page is whole: there is nothing to restore")),
        }
        let still = self.core.moves.read();
        let (page, what) = self.with_stored(|stored| -> Result<_> {
            let locator = Locator::new(*stored)?;
            let chain = locator.chain(name).ok_or_else(|| Error::NoSuchFork(name.to_string()))?;
            let layer = check::page_of(stored.map, chain, file, block)?.map(|(layer, _)| layer);
            let older = match layer {
                Some(layer) => locator.older(layer, file, block)?,
                None => None,
            };
            match older.as_ref().and_then(|o| o.page().map(|page| (Box::new(*page), o.describe()))) {
                Some(found) => Ok(found),
                None => {
                    Err(Error::Damaged(format!("{path}, block {block}: no earlier version of it is whole")))
                }
            }
        })?;
        drop(still);
        fork.write(file, offset, &page[..])?;
        fork.sync_all()?;
        log::warn!("fork {name:?}, {path}, block {block}: restored; {what}");
        Ok(what)
    }
}
