//! Reads everything that has a CRC, from the disk itself, and compares.
//!
//! Writers go on meanwhile. A page that does not match is looked up again: if
//! the map does not refer to it any more, it was replaced, and is no damage.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::BaseFile;
use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo};
use crate::class::Class;
use crate::delta;
use crate::device::{DeviceFile, DirectBuf};
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::inplace::WAL_CHUNK_BLOCKS;
use crate::map::prefix_end;
use crate::map::schema::{
    self, BASE_SEAL_BLOCKS, BaseFileRecord, BaseSealRecord, BlockRecord, ExtentsRecord, HostSealRecord,
    InodeRecord, LayerRecord, Slot, tag,
};
use crate::seal;

use super::pg::Relations;
use super::{Finding, Kind, Locator, Stored};

/// Block records read at a time; they are sorted by place then.
const RECORDS: usize = 16_384;
/// The largest single read, in blocks: 1 MiB.
const READ_BLOCKS: usize = 128;

/// What to scrub, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only what this fork sees, and what lies below it.
    pub fork: Option<String>,
    /// At most that many bytes a second.
    pub bytes_per_second: Option<u64>,
    /// Look at PostgreSQL's page headers and checksums too.
    pub postgres: bool,
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes there are to read.
    pub total: u64,
    /// Pages compared.
    pub pages: u64,
    /// Blocks of WAL segments compared.
    pub wal_blocks: u64,
    /// Blocks of base files compared.
    pub base_blocks: u64,
    /// Blocks that have no CRC yet: bases without a seal, WAL being written.
    pub unsealed_blocks: u64,
}

/// Told how far it is; returns false to end the scrub.
pub type Tell<'a> = dyn FnMut(&Progress) -> bool + 'a;

struct Scrub<'a, 'b> {
    stored: Stored<'a>,
    locator: Locator<'a>,
    scope: HashSet<LayerId>,
    options: &'b Options,
    started: Instant,
    progress: Progress,
    tell: &'b mut Tell<'b>,
    stopped: bool,
    buf: DirectBuf,
    deltas: HashMap<u32, Arc<dyn DeviceFile>>,
    /// If PostgreSQL's view is asked for.
    relations: Option<Relations<'a>>,
    findings: Vec<Finding>,
}

/// Scrubs; returns what is damaged, and how much was read.
pub fn scrub<'b>(
    stored: &'b Stored<'b>,
    options: &'b Options,
    tell: &'b mut Tell<'b>,
) -> Result<(Vec<Finding>, Progress)> {
    let locator = Locator::new(*stored)?;
    let scope: HashSet<LayerId> = match &options.fork {
        Some(fork) => {
            locator.chain(fork).ok_or_else(|| Error::NoSuchFork(fork.clone()))?.iter().copied().collect()
        }
        None => locator.reached().collect(),
    };
    let mut scrub = Scrub {
        stored: *stored,
        locator,
        scope,
        options,
        started: Instant::now(),
        progress: Progress::default(),
        tell,
        stopped: false,
        buf: DirectBuf::with_capacity(READ_BLOCKS * BLOCK_SIZE),
        deltas: HashMap::new(),
        relations: options.postgres.then(|| Relations::new(*stored)).transpose()?,
        findings: Vec::new(),
    };
    scrub.measure()?;
    scrub.pages()?;
    scrub.wal()?;
    scrub.bases()?;
    Ok((scrub.findings, scrub.progress))
}

/// A block record, and whose it is.
#[derive(Clone, Copy)]
struct PageOf {
    record: BlockRecord,
    layer: LayerId,
    file: FileId,
    block: BlockNo,
}

impl Scrub<'_, '_> {
    fn measure(&mut self) -> Result<()> {
        let mut blocks = 0;
        for &layer in &self.scope {
            let key = LayerRecord::key(layer);
            if let Some(Ok(record)) = self.stored.map.get(&key)?.map(|v| LayerRecord::decode(&key, &v)) {
                blocks += record.pages;
            }
        }
        for tag in [tag::HOST_SEAL, tag::BASE_SEAL] {
            self.stored.map.scan(&[tag], &prefix_end(&[tag]), &mut |_, v| {
                blocks += (v.len() as u64 / 4).saturating_sub(2);
                Ok(true)
            })?;
        }
        self.progress.total = blocks * BLOCK_BYTES;
        Ok(())
    }

    /// That many bytes were read: tells, and keeps to the rate.
    fn step(&mut self, bytes: u64) {
        self.progress.bytes += bytes;
        self.progress.total = self.progress.total.max(self.progress.bytes);
        self.stopped = self.stopped || !(self.tell)(&self.progress);
        if let Some(rate) = self.options.bytes_per_second {
            let due = Duration::from_secs_f64(self.progress.bytes as f64 / rate.max(1) as f64);
            while !self.stopped && self.started.elapsed() < due {
                std::thread::sleep((due - self.started.elapsed().min(due)).min(Duration::from_millis(100)));
                self.stopped = !(self.tell)(&self.progress);
            }
        }
    }

    fn found(
        &mut self,
        kind: Kind,
        forks: Vec<String>,
        file: FileId,
        block: BlockNo,
        what: String,
        next_step: String,
    ) {
        let path = forks.first().map(|fork| self.locator.path(fork, file));
        let place = match (&path, forks.as_slice()) {
            (Some(path), forks) => format!("{} of fork {}", path, forks.join(", ")),
            (None, _) => format!("file {file}, which no fork sees at this block"),
        };
        log::error!("scrub: {place}, block {block}: {what}");
        let message = format!("{place}, block {block}: {what}");
        self.findings.push(Finding {
            kind,
            message,
            forks,
            path,
            block: Some(block),
            next_step,
            repairable: false,
        });
    }

    // ---- pages ---------------------------------------------------------

    fn pages(&mut self) -> Result<()> {
        let (mut from, end) = (vec![tag::BLOCK], prefix_end(&[tag::BLOCK]));
        while !self.stopped {
            let mut batch: Vec<PageOf> = Vec::new();
            let mut last = None;
            let mut visited = 0;
            // A piece at a time: a long scan would keep the map from tidying up.
            self.stored.map.scan(&from, &end, &mut |k, v| {
                let layer = schema::layer_of_key(k)?;
                visited += 1;
                last = Some(k.to_vec());
                // A record that cannot be read is a finding of the check.
                if self.scope.contains(&layer)
                    && let Ok((file, block, record)) = BlockRecord::decode(k, v)
                {
                    batch.push(PageOf { record, layer, file, block });
                }
                Ok(visited < RECORDS)
            })?;
            let Some(mut next) = last else { break };
            next.push(0);
            from = next;
            batch.sort_unstable_by_key(|p| p.record.slot);
            let mut rest = batch.as_slice();
            while let Some(first) = rest.first().map(|p| p.record.slot.0)
                && !self.stopped
            {
                let near = rest.iter().take_while(|p| p.record.slot.0 - first < READ_BLOCKS as u64);
                let mut together = 0;
                let mut next = first;
                for page in near {
                    // Gaps are not read; the same slot may come twice.
                    if page.record.slot.0 > next {
                        break;
                    }
                    next = page.record.slot.0 + 1;
                    together += 1;
                }
                let (run, others) = rest.split_at(together);
                self.run(Slot(first), (next - first) as usize, run)?;
                rest = others;
            }
        }
        Ok(())
    }

    fn delta(&mut self, id: u32) -> std::io::Result<Arc<dyn DeviceFile>> {
        if let Some(file) = self.deltas.get(&id) {
            return Ok(file.clone());
        }
        let file = self.stored.delta.open(&delta::file_name(id), false)?;
        self.deltas.insert(id, file.clone());
        Ok(file)
    }

    fn run(&mut self, first: Slot, slots: usize, pages: &[PageOf]) -> Result<()> {
        let mut buf = std::mem::replace(&mut self.buf, DirectBuf::with_capacity(0));
        let read = self
            .delta(first.delta())
            .and_then(|f| f.read_direct(&mut buf, slots * BLOCK_SIZE, first.offset()));
        if let Err(e) = &read {
            log::info!("scrub: delta file {}: {e}; page by page", first.delta());
        }
        for page in pages {
            let at = (page.record.slot.0 - first.0) as usize * BLOCK_SIZE;
            let bytes = &buf.as_slice().get(at..at + BLOCK_SIZE).unwrap_or_default();
            if read.is_ok() && crc32fast::hash(bytes) == page.record.crc {
                self.postgres(page, bytes)?;
            } else {
                self.look_again(page)?;
            }
            self.progress.pages += 1;
        }
        self.buf = buf;
        self.step((slots * BLOCK_SIZE) as u64);
        Ok(())
    }

    /// Whether the map still says that.
    fn still(&self, page: &PageOf) -> Result<bool> {
        let key = BlockRecord::key(page.layer, page.file, page.block);
        let now = self.stored.map.get(&key)?.map(|v| BlockRecord::decode(&key, &v)).transpose()?;
        Ok(now.is_some_and(|(_, _, record)| record == page.record))
    }

    fn look_again(&mut self, page: &PageOf) -> Result<()> {
        if !self.still(page)? {
            return Ok(());
        }
        let slot = page.record.slot;
        let mut buf = DirectBuf::with_capacity(BLOCK_SIZE);
        let read = self.delta(slot.delta()).and_then(|f| f.read_direct(&mut buf, BLOCK_SIZE, slot.offset()));
        let what = match read {
            Ok(()) if crc32fast::hash(buf.as_slice()) == page.record.crc => return Ok(()),
            Ok(()) => "does not match its CRC".to_string(),
            Err(e) => format!("cannot be read ({e})"),
        };
        if !self.still(page)? {
            return Ok(());
        }
        let forks = self.locator.forks_that_see(page.layer, page.file, page.block)?;
        let older = self.locator.older(page.layer, page.file, page.block)?;
        let path = forks.first().map(|fork| self.locator.path(fork, page.file)).unwrap_or_default();
        let next_step = match (&older, forks.first()) {
            (Some(older), Some(fork)) if older.page().is_some() => format!(
                "{}; what was written since is lost, and to bring it back is: pgcowfs scrub {fork} --restore {path}:{}",
                older.describe(),
                page.block
            ),
            (Some(older), _) => older.describe(),
            (None, _) => {
                "there is no earlier version; rewrite the table or index from another copy (REINDEX, pg_dump \
                          with zero_damaged_pages)"
                    .to_string()
            }
        };
        let what = format!("the page in slot {} of delta file {} {what}", slot.index(), slot.delta());
        self.found(Kind::Page, forks, page.file, page.block, what, next_step);
        Ok(())
    }

    fn postgres(&mut self, page: &PageOf, bytes: &[u8]) -> Result<()> {
        let Some(relations) = &mut self.relations else { return Ok(()) };
        let found = relations.wrong(&self.locator, page.layer, page.file, page.block, bytes)?;
        let Some(what) = found else { return Ok(()) };
        let forks = self.locator.forks_that_see(page.layer, page.file, page.block)?;
        if forks.is_empty() {
            return Ok(());
        }
        let next_step =
            "pgcowfs has it as it was written: look into PostgreSQL (amcheck, pg_checksums)".to_string();
        self.found(Kind::Postgres, forks, page.file, page.block, what, next_step);
        Ok(())
    }

    // ---- WAL -----------------------------------------------------------

    /// Each sealed host file once, with the blocks that some record refers to.
    fn wal(&mut self) -> Result<()> {
        let mut hosts: BTreeMap<u64, Vec<(LayerId, FileId, BlockNo, BlockNo)>> = BTreeMap::new();
        self.stored.map.scan(&[tag::EXTENTS], &prefix_end(&[tag::EXTENTS]), &mut |k, v| {
            let Ok((layer, file, record)) = ExtentsRecord::decode(k, v) else { return Ok(true) };
            if self.scope.contains(&layer) && self.is_wal(layer, file)? {
                for run in record.runs.iter().filter(|r| r.host != 0) {
                    hosts.entry(run.host).or_default().push((
                        layer,
                        file,
                        run.start,
                        run.start.saturating_add(run.len),
                    ));
                }
            }
            Ok(true)
        })?;
        for (host, runs) in hosts {
            if self.stopped {
                return Ok(());
            }
            self.host(host, &runs)?;
        }
        Ok(())
    }

    /// Whether the file is a WAL segment; scratch has no CRCs.
    fn is_wal(&self, layer: LayerId, file: FileId) -> Result<bool> {
        let key = InodeRecord::key(layer, file);
        let inode = self.stored.map.get(&key)?.and_then(|v| InodeRecord::decode(&key, &v).ok()).flatten();
        Ok(inode.is_some_and(|inode| inode.class == Class::Wal))
    }

    fn host(&mut self, host: u64, runs: &[(LayerId, FileId, BlockNo, BlockNo)]) -> Result<()> {
        let chunk = WAL_CHUNK_BLOCKS;
        // Which block of which file each block of the host file is.
        let mut whose: BTreeMap<BlockNo, (LayerId, FileId, BlockNo)> = BTreeMap::new();
        for &(layer, file, start, end) in runs {
            // A record may say that a run is longer than its host file.
            for block in start..end.min(start.saturating_add(chunk)) {
                whose.entry(block % chunk).or_insert((layer, file, block));
            }
        }
        let key = HostSealRecord::key(host);
        let Some(value) = self.stored.map.get(&key)? else {
            self.progress.unsealed_blocks += whose.len() as u64;
            return Ok(());
        };
        // A seal that cannot be read is a finding of the check.
        let Ok((_, crcs)) = HostSealRecord::decode(&key, &value) else { return Ok(()) };
        let name = format!("{host:012}");
        let opened = self.stored.inplace.open(&name, false);
        let mut first = 0;
        while first < chunk && !self.stopped {
            let n = (READ_BLOCKS as u32).min(chunk - first);
            if whose.range(first..first + n).next().is_some() {
                let mut buf = std::mem::replace(&mut self.buf, DirectBuf::with_capacity(0));
                let offset = u64::from(first) * BLOCK_BYTES;
                let read = opened.as_ref().map_err(|e| e.to_string()).and_then(|f| {
                    f.read_direct(&mut buf, n as usize * BLOCK_SIZE, offset).map_err(|e| e.to_string())
                });
                for (&block, &(layer, file, of)) in whose.range(first..first + n) {
                    let at = (block - first) as usize * BLOCK_SIZE;
                    let bytes = buf.as_slice().get(at..at + BLOCK_SIZE).unwrap_or_default();
                    let wrong = read.is_err() || seal::mismatch(&crcs, block as usize, bytes).is_some();
                    self.progress.wal_blocks += 1;
                    // Who writes removes the seal first.
                    if wrong && self.stored.map.get(&key)?.as_ref() == Some(&value) {
                        let forks = self.locator.forks_with_extents(layer, file)?;
                        let why = read
                            .as_ref()
                            .err()
                            .map_or("does not match its CRC".into(), |e| format!("cannot be read ({e})"));
                        let next_step =
                            "it is WAL: a server that ran on needs it only for replication, archiving and \
                             recovery; take a CHECKPOINT, and a new base backup"
                                .to_string();
                        self.found(
                            Kind::Wal,
                            forks,
                            file,
                            of,
                            format!("block {block} of in-place file {name} {why}"),
                            next_step,
                        );
                    }
                }
                self.buf = buf;
                self.step(u64::from(n) * BLOCK_BYTES);
            }
            first += n;
        }
        Ok(())
    }

    // ---- bases ---------------------------------------------------------

    fn bases(&mut self) -> Result<()> {
        let mut files: Vec<(LayerId, FileId, BaseFileRecord)> = Vec::new();
        self.stored.map.scan(&[tag::BASE_FILE], &prefix_end(&[tag::BASE_FILE]), &mut |k, v| {
            let layer = schema::layer_of_key(k)?;
            if let (true, Ok((file, record))) = (self.scope.contains(&layer), BaseFileRecord::decode(k, v)) {
                files.push((layer, file, record));
            }
            Ok(true)
        })?;
        for (layer, file, record) in files {
            let base = BaseFile::new(record);
            let mut block = 0;
            while block < base.blocks() && !self.stopped {
                let number = block / BASE_SEAL_BLOCKS;
                let key = BaseSealRecord::key(file, number);
                let end = ((number + 1) * BASE_SEAL_BLOCKS).min(base.blocks());
                let Some(Ok((_, _, crcs))) =
                    self.stored.map.get(&key)?.map(|v| BaseSealRecord::decode(&key, &v))
                else {
                    self.progress.unsealed_blocks += u64::from(end - block);
                    block = end;
                    continue;
                };
                while block < end && !self.stopped {
                    let n = (READ_BLOCKS as u32).min(end - block);
                    let mut bytes = vec![0; n as usize * BLOCK_SIZE];
                    let read = base.read_uncached(block, &mut bytes);
                    if let Err(e) = read {
                        let forks = self.locator.forks_that_see(layer, file, block)?;
                        let next_step =
                            "bring the base back as it was, or remove its forks and make them anew".into();
                        self.found(Kind::Base, forks, file, block, e.to_string(), next_step);
                        block = base.blocks();
                        break;
                    }
                    for (i, page) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
                        let within = (block % BASE_SEAL_BLOCKS) as usize + i;
                        if seal::mismatch(&crcs, within, page).is_some() {
                            let at = block + i as u32;
                            let forks = self.locator.forks_that_see(layer, file, at)?;
                            let next_step = format!(
                                "bring that block of {} back from a copy of the base",
                                base.path().display()
                            );
                            let what = format!(
                                "block {at} of base file {} does not match its CRC",
                                base.path().display()
                            );
                            self.found(Kind::Base, forks, file, at, what, next_step);
                        }
                    }
                    self.progress.base_blocks += u64::from(n);
                    block += n;
                    self.step(bytes.len() as u64);
                }
            }
        }
        Ok(())
    }
}
