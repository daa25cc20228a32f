//! The invariants of a store, as a function: what holds between the records of
//! the block map, and between them and the delta files.

use std::collections::HashMap;

use crate::attr::Kind;
use crate::block::{BLOCK_SIZE, ZERO_PAGE};
use crate::error::Result;
use crate::ids::{FileId, LayerId};
use crate::map::prefix_end;
use crate::map::schema::{BlockRecord, Slot, tag};

use super::store::Store;

impl Store {
    /// Checks all invariants and returns what is broken, in words. Everything
    /// pending is committed first; the caller keeps writers away meanwhile.
    /// With `pages`, every page is read and compared with its CRC.
    pub fn check(&self, pages: bool) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        for info in self.forks() {
            let fork = self.by_name(&info.name)?;
            fork.sync_all()?;
        }
        self.wait_for_collection();
        self.check_blocks(pages, &mut broken)?;
        for info in self.forks() {
            self.check_names(&info.name, &mut broken)?;
        }
        Ok(broken)
    }

    /// Every page is counted once for each record that refers to it.
    fn check_blocks(&self, pages: bool, broken: &mut Vec<String>) -> Result<()> {
        let mut references: HashMap<Slot, u32> = HashMap::new();
        let mut per_layer: HashMap<LayerId, u64> = HashMap::new();
        let mut page = ZERO_PAGE;
        self.core.map.scan(&[tag::BLOCK], &prefix_end(&[tag::BLOCK]), &mut |k, v| {
            let (file, block, record) = match BlockRecord::decode(k, v) {
                Ok(decoded) => decoded,
                Err(e) => {
                    broken.push(e.to_string());
                    return Ok(true);
                }
            };
            let layer = k.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes).unwrap_or(0);
            *references.entry(record.slot).or_insert(0) += 1;
            *per_layer.entry(LayerId(layer)).or_insert(0) += 1;
            if pages {
                self.core.delta(record.slot.delta()).read(record.slot, &mut page[..BLOCK_SIZE])?;
                if crc32fast::hash(&page) != record.crc {
                    broken.push(format!(
                        "layer {layer}, file {file}, block {block}: the page does not match its CRC"
                    ));
                }
            }
            Ok(true)
        })?;
        for (slot, &count) in &references {
            let stored = self.core.delta(slot.delta()).space().durable_references(slot.index());
            if stored != count {
                broken.push(format!(
                    "slot {} of delta file {} has {count} references, and {stored} are counted",
                    slot.index(),
                    slot.delta()
                ));
            }
        }
        for delta in self.core.deltas.read().values() {
            let used = references.keys().filter(|s| s.delta() == delta.id).count() as u64;
            let counted = delta.space().durable_slots();
            if used != counted {
                broken.push(format!(
                    "delta file {} has {used} pages in use, and {counted} are counted",
                    delta.id
                ));
            }
        }
        let layers = self.core.layers.lock();
        for (id, info) in layers.iter() {
            let found = per_layer.remove(id).unwrap_or(0);
            if found != info.record.pages {
                broken.push(format!("layer {id} has {found} pages, and {} are counted", info.record.pages));
            }
        }
        for (id, found) in per_layer {
            broken.push(format!("{found} block records belong to layer {id}, which does not exist"));
        }
        Ok(())
    }

    /// Every name leads to a file, and every file has as many names as it says.
    fn check_names(&self, name: &str, broken: &mut Vec<String>) -> Result<()> {
        let fork = self.by_name(name)?;
        let state = fork.head()?.state.clone();
        let mut links: HashMap<FileId, u32> = HashMap::new();
        links.insert(FileId::ROOT, 2);
        for ((dir, entry), (file, kind)) in state.names.iter() {
            let entry = String::from_utf8_lossy(entry);
            match state.inodes.get(file) {
                None => broken.push(format!("fork {name:?}: {entry} in directory {dir} leads to no file")),
                Some(inode) if inode.kind != *kind => {
                    broken.push(format!(
                        "fork {name:?}: {entry} in directory {dir} has another kind than its file"
                    ));
                }
                Some(_) => {}
            }
            if *kind == Kind::Directory {
                *links.entry(*file).or_insert(0) += 2;
                *links.entry(*dir).or_insert(0) += 1;
            } else {
                *links.entry(*file).or_insert(0) += 1;
            }
        }
        let mut logical_bytes = 0;
        for (file, inode) in state.inodes.iter() {
            let counted = links.get(file).copied().unwrap_or(0);
            if counted != inode.nlink {
                broken.push(format!(
                    "fork {name:?}: file {file} has {counted} links, and says {}",
                    inode.nlink
                ));
            }
            if inode.kind == Kind::File {
                logical_bytes += inode.size;
            }
        }
        if logical_bytes != state.logical_bytes {
            broken.push(format!(
                "fork {name:?}: its files have {logical_bytes} bytes, and {} are counted",
                state.logical_bytes
            ));
        }
        Ok(())
    }
}
