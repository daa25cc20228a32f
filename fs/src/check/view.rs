//! One view of the block map: all of it as it was at one instant, the records of
//! pages counted, the others kept.
//!
//! The memory that it takes is a bit for each page and some bytes for each file
//! and name of each layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::error::{Error, Result};
use crate::ids::{FileId, ForkId, LayerId};
use crate::map::schema::{
    self, BaseFileRecord, BaseSealRecord, BlockRecord, ClearedRecord, Counters, ExtentsRecord, ForkRecord,
    HostSealRecord, InodeRecord, LayerRecord, NameRecord, QuotaRecord, SLOT_MAP_BYTES, SharedRecord, Slot,
    SlotsRecord, SnapshotRecord, tag,
};
use crate::map::{Batch, Map, Visit};

use super::{Finding, Kind, Leftover, Reached, Report};

/// Slots beyond this are beyond any delta file; a record that names one is
/// wrong, and must not make the bitmap huge.
const SLOTS_MAX: u32 = 1 << 31;

/// How often each slot of a delta file is referred to.
#[derive(Default)]
pub struct References {
    bits: Vec<u64>,
    more: HashMap<u32, u32>,
    /// The greatest slot.
    pub last: Option<u32>,
}

impl References {
    fn add(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            *self.more.entry(index).or_insert(1) += 1;
        }
        self.bits[word] |= bit;
        self.last = self.last.max(Some(index));
    }

    /// As a record's bitmap.
    pub fn bitmap(&self, chunk: u32) -> [u8; SLOT_MAP_BYTES] {
        let mut bits = [0; SLOT_MAP_BYTES];
        let first = chunk as usize * (SLOT_MAP_BYTES / 8);
        for (i, bytes) in bits.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.bits.get(first + i).copied().unwrap_or(0).to_le_bytes());
        }
        bits
    }

    /// Number of bitmap records.
    pub fn chunks(&self) -> u32 {
        self.bits.len().div_ceil(SLOT_MAP_BYTES / 8) as u32
    }

    /// The slots with several references.
    pub fn shared(&self) -> &HashMap<u32, u32> {
        &self.more
    }
}

/// Block or range records of one file in one layer.
pub struct Group {
    pub layer: LayerId,
    pub file: FileId,
    pub blocks: u64,
}

/// See above.
#[derive(Default)]
pub struct View {
    pub counters: Option<Counters>,
    pub forks: Vec<ForkRecord>,
    /// By fork and label.
    pub snapshots: BTreeMap<(ForkId, String), LayerId>,
    pub layers: BTreeMap<LayerId, LayerRecord>,
    /// Records of inodes, names, in-place and base files.
    pub small: BTreeMap<Vec<u8>, Vec<u8>>,
    pub groups: Vec<Group>,
    pub pages: BTreeMap<LayerId, u64>,
    pub references: BTreeMap<u32, References>,
    pub slots: BTreeMap<(u32, u32), [u8; SLOT_MAP_BYTES]>,
    pub shared: BTreeMap<Slot, u32>,
    pub extents: Vec<(LayerId, FileId, ExtentsRecord)>,
    /// Sealed host files and their blocks.
    pub host_seals: BTreeMap<u64, u64>,
    pub base_files: BTreeSet<FileId>,
    pub base_seals: BTreeSet<FileId>,
    /// Keys of derivable records that cannot be read.
    pub unreadable: Vec<Vec<u8>>,
}

impl View {
    /// Reads the whole map.
    pub fn collect(map: &dyn Map, report: &mut Report) -> Result<View> {
        let mut view = View::default();
        let (records, findings) = (&mut report.records, &mut report.findings);
        let scanned = map.scan(&[], &[u8::MAX], &mut |k, v| {
            *records += 1;
            match view.take(k, v) {
                Ok(()) => {}
                Err(Error::Damaged(text)) => {
                    let derivable = matches!(k.first(), Some(&(tag::SLOTS | tag::SHARED | tag::HOST_SEAL)));
                    let mut finding = Finding::new(Kind::Record, text);
                    if derivable {
                        view.unreadable.push(k.to_vec());
                        finding.repairable = true;
                        finding.next_step = "pgcowfs check --repair makes it anew".into();
                    }
                    findings.push(finding);
                }
                Err(e) => return Err(e),
            }
            Ok(true)
        });
        match scanned {
            Ok(()) => Ok(view),
            // RocksDB found its own damage; `verify` has named the file.
            Err(Error::Map(text)) => {
                report.findings.push(Finding::new(
                    Kind::Map,
                    format!("the block map cannot be read to its end: {text}"),
                ));
                Ok(view)
            }
            Err(e) => Err(e),
        }
    }

    fn take(&mut self, k: &[u8], v: &[u8]) -> Result<()> {
        let small = match k.first().copied() {
            Some(tag::COUNTERS) => {
                self.counters = Some(Counters::decode(k, v)?);
                false
            }
            Some(tag::FORK) => {
                self.forks.push(ForkRecord::decode(k, v)?);
                false
            }
            Some(tag::LAYER) => {
                let record = LayerRecord::decode(k, v)?;
                self.layers.insert(record.id, record);
                false
            }
            Some(tag::BLOCK) => {
                let (file, _, record) = BlockRecord::decode(k, v)?;
                self.block(schema::layer_of_key(k)?, file, record.slot)?;
                false
            }
            Some(tag::CLEARED) => {
                let (start, end) = ClearedRecord::decode(k, v)?;
                if start >= end {
                    return Err(Error::Damaged(format!("a cleared range {start}..{end} is empty")));
                }
                self.group(schema::layer_of_key(k)?, schema::file_of_key(k)?).blocks += 0;
                false
            }
            Some(tag::SLOTS) => {
                let (delta, chunk, bits) = SlotsRecord::decode(k, v)?;
                self.slots.insert((delta, chunk), bits);
                false
            }
            Some(tag::SHARED) => {
                let (slot, count) = SharedRecord::decode(k, v)?;
                self.shared.insert(slot, count);
                false
            }
            Some(tag::HOST_SEAL) => {
                let (host, crcs) = HostSealRecord::decode(k, v)?;
                self.host_seals.insert(host, crcs.len() as u64);
                false
            }
            Some(tag::BASE_SEAL) => {
                self.base_seals.insert(BaseSealRecord::decode(k, v)?.0);
                false
            }
            Some(tag::EXTENTS) => {
                self.extents.push(ExtentsRecord::decode(k, v)?);
                true
            }
            Some(tag::BASE_FILE) => {
                self.base_files.insert(BaseFileRecord::decode(k, v)?.0);
                true
            }
            Some(tag::QUOTA) => {
                // Forks come before quotas.
                let (fork, _) = QuotaRecord::decode(k, v)?;
                if !self.forks.iter().any(|f| f.id == fork) {
                    return Err(Error::Damaged(format!(
                        "a quota is that of fork {fork}, which is not there"
                    )));
                }
                false
            }
            Some(tag::SNAPSHOT) => {
                let (fork, label, record) = SnapshotRecord::decode(k, v)?;
                self.snapshots.insert((fork, label), record.layer);
                false
            }
            Some(tag::INODE) => InodeRecord::decode(k, v).map(|_| true)?,
            Some(tag::NAME) => NameRecord::decode(k, v).map(|_| true)?,
            _ => {
                return Err(Error::Damaged(format!("block map record {k:02x?} is of no known kind")));
            }
        };
        if small {
            self.small.insert(k.to_vec(), v.to_vec());
        }
        Ok(())
    }

    fn group(&mut self, layer: LayerId, file: FileId) -> &mut Group {
        let same = self.groups.last().is_some_and(|g| g.layer == layer && g.file == file);
        if !same {
            self.groups.push(Group { layer, file, blocks: 0 });
        }
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    fn block(&mut self, layer: LayerId, file: FileId, slot: Slot) -> Result<()> {
        if slot.delta() == 0 || slot.index() >= SLOTS_MAX {
            return Err(Error::Damaged(format!("layer {layer}, file {file}: {slot:?} is no slot")));
        }
        self.group(layer, file).blocks += 1;
        *self.pages.entry(layer).or_default() += 1;
        self.references.entry(slot.delta()).or_default().add(slot.index());
        Ok(())
    }

    /// The layers that are seen as a whole, and by which name: forks, what they were
    /// made from, and their snapshots.
    pub fn views(&self) -> Vec<(String, LayerId)> {
        let mut views: Vec<_> = self.forks.iter().map(|fork| (fork.name.clone(), fork.head)).collect();
        for ((fork, label), layer) in &self.snapshots {
            let name = self.forks.iter().find(|f| f.id == *fork).map_or("", |f| &f.name);
            views.push((format!("{name}@{label}"), *layer));
        }
        views
    }

    /// The layers that forks and snapshots reach; what is wrong with the tree of layers goes
    /// into the report.
    pub fn reached(&self, report: &mut Report) -> Reached {
        let mut reached = Reached::new();
        let mut heads: HashMap<LayerId, &str> = HashMap::new();
        let mut names: HashMap<&str, LayerId> = HashMap::new();
        let mut found = |message: String| report.findings.push(Finding::new(Kind::Layer, message));
        for fork in &self.forks {
            if let Some(other) = heads.insert(fork.head, &fork.name) {
                found(format!("forks {other:?} and {:?} have the same head layer {}", fork.name, fork.head));
            }
            if names.insert(&fork.name, fork.head).is_some() {
                found(format!("two forks are named {:?}", fork.name));
            }
            if let Err(e) = crate::ids::check_fork_name(&fork.name) {
                found(e.to_string());
            }
        }
        for (who, head) in self.views() {
            let mut at = head;
            while at.0 != 0 && reached.insert(at) {
                match self.layers.get(&at) {
                    // Ids grow, so a parent is always smaller: no circle.
                    Some(record) if record.parent < at => at = record.parent,
                    Some(record) => {
                        found(format!("layer {at} has the later layer {} as its parent", record.parent));
                        break;
                    }
                    None => {
                        reached.remove(&at);
                        found(format!("fork {who:?}: layer {at} is missing"));
                        break;
                    }
                }
            }
        }
        for ((fork, label), layer) in &self.snapshots {
            if !self.forks.iter().any(|f| f.id == *fork) {
                found(format!("snapshot {label:?} is that of fork {fork}, which is not there"));
            }
            if let Some(head) = heads.get(layer) {
                found(format!(
                    "snapshot {label:?} of fork {fork} is layer {layer}, to which fork {head:?} writes"
                ));
            }
        }
        for record in self.layers.values().filter(|l| reached.contains(&l.id)) {
            if let Some(fork) = heads.get(&record.parent) {
                found(format!(
                    "fork {fork:?} writes to layer {}, and layer {} stands on it",
                    record.parent, record.id
                ));
            }
        }
        for id in self.layers.keys().filter(|id| !reached.contains(id)) {
            let bytes = self.pages.get(id).copied().unwrap_or(0) * crate::block::BLOCK_BYTES;
            report.leftovers.push(Leftover { what: format!("layer {id}, which no fork reaches"), bytes });
        }
        reached
    }
}

/// What loading a layer reads.
impl Map for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.small.get(key).cloned())
    }

    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        for (k, v) in self.small.range(start.to_vec()..end.to_vec()) {
            if !visit(k, v)? {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, _: &Batch) -> Result<()> {
        Err(Error::Unsupported)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }

    fn verify(&self, _: &mut dyn FnMut() -> bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
