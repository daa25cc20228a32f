//! Whose a damaged block is, and what is left of it elsewhere.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::base::{self, BaseFile};
use crate::block::{BLOCK_SIZE, BlockNo, Page};
use crate::delta;
use crate::device::DirectBuf;
use crate::error::Result;
use crate::ids::{FileId, LayerId};
use crate::layer::{Origin, State, load};
use crate::map::schema::{
    self, BaseFileRecord, BlockRecord, ClearedRecord, ForkRecord, InodeRecord, LayerRecord, SnapshotRecord,
    tag,
};
use crate::map::{Map, prefix_end};

use super::Stored;
use super::names::no_host_files;

/// An earlier version of a page.
pub enum Older {
    /// Of a lower layer, whole.
    Page(LayerId, Box<Page>),
    /// Of a lower layer, damaged as well.
    Damaged(LayerId),
    /// The base file's; not compared with anything.
    Base(String, Box<Page>),
}

impl Older {
    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Older::Page(layer, _) => format!("an earlier version of it, in layer {layer}, is whole"),
            Older::Damaged(layer) => format!("its earlier version, in layer {layer}, is damaged as well"),
            Older::Base(path, _) => format!("its first version is in base file {path}"),
        }
    }

    /// The page, if it is whole.
    pub fn page(&self) -> Option<&Page> {
        match self {
            Older::Page(_, page) | Older::Base(_, page) => Some(page),
            Older::Damaged(_) => None,
        }
    }
}

/// Answers questions about blocks from the map. A snapshot is a fork to it, named
/// `FORK@LABEL`, with an empty label for what the fork was made from. What it has loaded of a fork it
/// keeps, so it is made for one scrub.
pub struct Locator<'a> {
    stored: Stored<'a>,
    forks: Vec<(ForkRecord, Vec<LayerId>)>,
    /// Where files of bases may be.
    roots: Vec<PathBuf>,
    states: HashMap<String, Option<State>>,
}

impl<'a> Locator<'a> {
    /// With the forks of this moment.
    pub fn new(stored: Stored<'a>) -> Result<Self> {
        let mut forks = Vec::new();
        stored.map.scan(&[tag::FORK], &prefix_end(&[tag::FORK]), &mut |k, v| {
            // One that cannot be read is a finding of the check.
            if let Ok(record) = ForkRecord::decode(k, v) {
                forks.push(record);
            }
            Ok(true)
        })?;
        let roots = base::roots_of(&forks);
        let mut snapshots = Vec::new();
        stored.map.scan(&[tag::SNAPSHOT], &prefix_end(&[tag::SNAPSHOT]), &mut |k, v| {
            if let Ok((id, label, record)) = SnapshotRecord::decode(k, v)
                && let Some(fork) = forks.iter().find(|fork| fork.id == id)
            {
                let name = format!("{}@{label}", fork.name);
                snapshots.push(ForkRecord { name, head: record.layer, ..fork.clone() });
            }
            Ok(true)
        })?;
        forks.extend(snapshots);
        let forks = forks
            .into_iter()
            .map(|fork| {
                let mut chain = Vec::new();
                let mut at = fork.head;
                while at.0 != 0 {
                    chain.push(at);
                    let key = LayerRecord::key(at);
                    let record = stored.map.get(&key)?.and_then(|v| LayerRecord::decode(&key, &v).ok());
                    match record {
                        Some(record) if record.parent < at => at = record.parent,
                        _ => break,
                    }
                }
                Ok((fork, chain))
            })
            .collect::<Result<_>>()?;
        Ok(Locator { stored, forks, roots, states: HashMap::new() })
    }

    /// The layers of one fork, newest first.
    pub fn chain(&self, fork: &str) -> Option<&[LayerId]> {
        self.forks.iter().find(|(record, _)| record.name == fork).map(|(_, chain)| chain.as_slice())
    }

    /// A layer and those below it, newest first.
    pub fn chain_from(&self, layer: LayerId) -> Option<&[LayerId]> {
        self.forks.iter().find_map(|(_, chain)| {
            let at = chain.iter().position(|&l| l == layer)?;
            chain.get(at..)
        })
    }

    /// All layers that forks reach.
    pub fn reached(&self) -> impl Iterator<Item = LayerId> + '_ {
        self.forks.iter().flat_map(|(_, chain)| chain.iter().copied())
    }

    /// The forks that see what `layer` says about a block.
    pub fn forks_that_see(&self, layer: LayerId, file: FileId, block: BlockNo) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (fork, chain) in &self.forks {
            let Some(at) = chain.iter().position(|&l| l == layer) else { continue };
            let mut hidden = false;
            for &upper in &chain[..at] {
                hidden = hidden || self.hides(upper, file, block)?;
            }
            if !hidden {
                names.push(fork.name.clone());
            }
        }
        Ok(without_origins(names))
    }

    /// The forks whose file `file` is described by the extents of `layer`.
    pub fn forks_with_extents(&self, layer: LayerId, file: FileId) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (fork, chain) in &self.forks {
            let Some(at) = chain.iter().position(|&l| l == layer) else { continue };
            let mut hidden = false;
            for &upper in &chain[..at] {
                let newer = self.stored.map.get(&schema::ExtentsRecord::key(upper, file))?.is_some();
                hidden = hidden || newer || self.removes(upper, file)?;
            }
            if !hidden {
                names.push(fork.name.clone());
            }
        }
        Ok(without_origins(names))
    }

    fn removes(&self, layer: LayerId, file: FileId) -> Result<bool> {
        let key = InodeRecord::key(layer, file);
        Ok(self.stored.map.get(&key)?.is_some_and(|v| matches!(InodeRecord::decode(&key, &v), Ok(None))))
    }

    fn clears(&self, layer: LayerId, file: FileId, block: BlockNo) -> Result<bool> {
        let mut cleared = false;
        let ranges = schema::file_prefix(tag::CLEARED, layer, file);
        self.stored.map.scan(&ranges, &prefix_end(&ranges), &mut |k, v| {
            let (start, end) = ClearedRecord::decode(k, v)?;
            cleared = start <= block && (block < end || end == u32::MAX);
            Ok(!cleared)
        })?;
        Ok(cleared)
    }

    fn hides(&self, layer: LayerId, file: FileId, block: BlockNo) -> Result<bool> {
        Ok(self.stored.map.get(&BlockRecord::key(layer, file, block))?.is_some()
            || self.clears(layer, file, block)?
            || self.removes(layer, file)?)
    }

    /// What lies below the version of a page that `layer` has, if anything
    /// would show through.
    pub fn older(&self, layer: LayerId, file: FileId, block: BlockNo) -> Result<Option<Older>> {
        let chain = self.forks.iter().map(|(_, chain)| chain).find(|chain| chain.contains(&layer));
        let Some(chain) = chain else { return Ok(None) };
        let mut below = chain.iter().skip_while(|&&l| l != layer);
        if below.next().is_none() || self.clears(layer, file, block)? {
            return Ok(None);
        }
        for &lower in below {
            let key = BlockRecord::key(lower, file, block);
            if let Some(value) = self.stored.map.get(&key)? {
                let (_, _, record) = BlockRecord::decode(&key, &value)?;
                let mut buf = DirectBuf::with_capacity(BLOCK_SIZE);
                let name = delta::file_name(record.slot.delta());
                let read = self.stored.delta.open(&name, false);
                let read = read.and_then(|f| f.read_direct(&mut buf, BLOCK_SIZE, record.slot.offset()));
                let whole = read.is_ok() && crc32fast::hash(buf.as_slice()) == record.crc;
                return Ok(Some(match <Page>::try_from(buf.as_slice()) {
                    Ok(page) if whole => Older::Page(lower, Box::new(page)),
                    _ => Older::Damaged(lower),
                }));
            }
            let key = BaseFileRecord::key(lower, file);
            if let Some(value) = self.stored.map.get(&key)? {
                let base = BaseFile::new(BaseFileRecord::decode(&key, &value)?.1);
                let mut page = Box::new([0; BLOCK_SIZE]);
                if block < base.blocks() && base.read(block, &mut page[..]).is_ok() {
                    return Ok(Some(Older::Base(base.path().display().to_string(), page)));
                }
            }
            if self.clears(lower, file, block)? {
                break;
            }
        }
        Ok(None)
    }

    /// A path of the file in a fork, for messages.
    pub fn path(&mut self, fork: &str, file: FileId) -> String {
        if !self.states.contains_key(fork) {
            let state = self.state(fork).and_then(Result::ok);
            self.states.insert(fork.to_string(), state);
        }
        let state = self.states.get(fork).and_then(Option::as_ref);
        let path = state.and_then(|state| state.path_of(file));
        path.unwrap_or_else(|| format!("file {file}"))
    }

    /// The state of a fork, if it can be loaded.
    pub fn state(&self, fork: &str) -> Option<Result<State>> {
        let files = no_host_files();
        let mut state = State::default();
        for &layer in self.chain(fork)?.iter().rev() {
            if let Err(e) = load::layer(
                &mut state,
                layer,
                &Origin::new(layer),
                false,
                self.stored.map,
                &files,
                &self.roots,
            ) {
                return Some(Err(e));
            }
        }
        Some(Ok(state))
    }
}

/// What forks were made from says something only where no fork and no snapshot sees
/// the same.
fn without_origins(mut names: Vec<String>) -> Vec<String> {
    if names.iter().any(|name| !name.ends_with('@')) {
        names.retain(|name| !name.ends_with('@'));
    }
    names
}

/// The number of the layer that gives a block to a fork, and its page.
pub fn page_of(
    map: &dyn Map,
    chain: &[LayerId],
    file: FileId,
    block: BlockNo,
) -> Result<Option<(LayerId, BlockRecord)>> {
    for &layer in chain {
        let key = BlockRecord::key(layer, file, block);
        if let Some(value) = map.get(&key)? {
            return Ok(Some((layer, BlockRecord::decode(&key, &value)?.2)));
        }
    }
    Ok(None)
}
