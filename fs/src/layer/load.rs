//! Loading layers from the block map.

use std::collections::HashSet;
use std::path::{Component, PathBuf};
use std::sync::Arc;

use super::{Body, ColdFile, HIDDEN_MAX, Inode, Origin, PageTable, Pages, State, Table};
use crate::attr::Kind;
use crate::base::BaseFile;
use crate::class::Role;
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::inplace::{Extents, HostFiles};
use crate::layer::tree::Entry;
use crate::map::schema::{
    self, BaseFileRecord, BlockRecord, ClearedRecord, ExtentsRecord, InodeRecord, NameRecord, tag,
};
use crate::map::{Map, prefix_end};

/// Applies the records of `layer` to the state of the layer below it. `origin`
/// is where they will be found later; a `settled` layer's files are shared by all
/// who stand on it.
///
/// `roots` are the directories in which files of the base may be. Returns the
/// highest id of a file.
pub fn layer(
    state: &mut State,
    layer: LayerId,
    origin: &Arc<Origin>,
    settled: bool,
    map: &dyn Map,
    files: &Arc<HostFiles>,
    roots: &[PathBuf],
) -> Result<FileId> {
    let mut highest = FileId::ROOT;
    let mut bases = std::collections::HashMap::new();
    scan(map, tag::BASE_FILE, layer, &mut |k, v| {
        let (file, rec) = BaseFileRecord::decode(k, v)?;
        let base = BaseFile::new(rec);
        let path = base.path();
        let plain = path.components().all(|part| !matches!(part, Component::ParentDir | Component::CurDir));
        if !plain || !roots.iter().any(|root| path.starts_with(root)) {
            let path = path.display();
            return Err(Error::Damaged(format!("base file {path} is not in the base that the fork names")));
        }
        bases.insert(file, Arc::new(base));
        Ok(true)
    })?;
    let mut extents = std::collections::HashMap::new();
    scan(map, tag::EXTENTS, layer, &mut |k, v| {
        let (_, file, rec) = ExtentsRecord::decode(k, v)?;
        extents.insert(file, rec);
        Ok(true)
    })?;
    scan(map, tag::INODE, layer, &mut |k, v| {
        let file = schema::file_of_key(k)?;
        highest = highest.max(file);
        let was = state.inodes.get(&file).cloned();
        if let Some(was) = &was
            && was.kind == Kind::File
        {
            state.logical_bytes = state.logical_bytes.wrapping_sub(was.size);
        }
        let Some(rec) = InodeRecord::decode(k, v)? else {
            state.inodes.remove(&file);
            state.scratch_dirs.remove(&file);
            return Ok(true);
        };
        let base = bases.get(&file).cloned();
        let body = match rec.kind {
            Kind::File if rec.class.is_in_place() => {
                let old = was.as_deref().map(|i| &i.body);
                let (below, below_base) = match old {
                    Some(Body::InPlace(extents, base)) => (Some(extents.clone()), base.clone()),
                    _ => (None, None),
                };
                let extents = match (extents.get(&file), below) {
                    (Some(rec2), _) => Arc::new(Extents::from_record(rec2, rec.class, layer, files)?),
                    (None, Some(below)) => below,
                    (None, None) => Arc::new(Extents::new(rec.class, layer)),
                };
                Body::InPlace(extents, base.or(below_base))
            }
            Kind::File => {
                let below_base = match was.as_deref().map(|i| &i.body) {
                    Some(Body::Pages(Pages { base, .. })) => base.clone(),
                    _ => None,
                };
                let base = base.or(below_base);
                let base_blocks = base.as_ref().map_or(0, |b| b.blocks());
                let cold = match settled {
                    true => origin.share(file, base_blocks, &|_| true),
                    false => Arc::new(ColdFile::new(origin.clone(), file, base_blocks)),
                };
                Body::Pages(Pages { table: Table::Cold(cold), base })
            }
            Kind::Symlink => Body::Link(rec.target.clone().into()),
            _ => Body::Empty,
        };
        if rec.kind == Kind::File {
            state.logical_bytes = state.logical_bytes.wrapping_add(rec.size);
        }
        if rec.kind == Kind::Directory && rec.role == Role::Scratch {
            state.scratch_dirs.insert(file);
        } else {
            state.scratch_dirs.remove(&file);
        }
        state.inodes.insert(file, Arc::new(Inode::from_record(rec, body)));
        Ok(true)
    })?;
    scan(map, tag::NAME, layer, &mut |k, v| {
        let (dir, name, rec) = NameRecord::decode(k, v)?;
        match rec {
            NameRecord::Entry(file, kind) => state.names.insert((dir, name.into()), (file, kind)),
            NameRecord::Whiteout => state.names.remove(&(dir, name.into())),
        };
        Ok(true)
    })?;
    Ok(highest)
}

/// What every walk relies on: the directories are a tree with the top directory
/// at its root, and names lead to files.
pub fn check_tree(state: &State) -> Result<()> {
    let damaged = |what: String| Err(Error::Damaged(what));
    let is_dir = |dir| state.inodes.get(&dir).is_some_and(|inode| inode.kind == Kind::Directory);
    if !is_dir(FileId::ROOT) {
        return damaged("a fork has no top directory".into());
    }
    let mut named = HashSet::new();
    for ((dir, name), (file, kind)) in state.names.iter() {
        let name = String::from_utf8_lossy(name);
        let fits = state.inodes.get(file).is_some_and(|inode| {
            inode.kind == *kind && (*kind != Kind::Directory || inode.parent == *dir && named.insert(*file))
        });
        if !fits || !is_dir(*dir) || *file == FileId::ROOT {
            return damaged(format!(
                "the name {name:?} in directory {dir} leads to nothing that can be there"
            ));
        }
    }
    // Each has one parent, so whoever does not come to the top goes in a circle.
    let mut reach_top = HashSet::from([FileId::ROOT]);
    for &dir in &named {
        let mut way = Vec::new();
        let mut at = dir;
        while reach_top.insert(at) {
            way.push(at);
            at = match state.inodes.get(&at) {
                Some(inode) => inode.parent,
                None => break,
            };
        }
        if way.contains(&at) {
            return damaged(format!("directory {dir} lies within itself"));
        }
    }
    Ok(())
}

fn scan(map: &dyn Map, tag: u8, layer: LayerId, visit: &mut crate::map::Visit<'_>) -> Result<()> {
    let start = schema::layer_prefix(tag, layer);
    map.scan(&start, &prefix_end(&start), visit)
}

/// Builds the page table of a file from its layers, oldest first. `below` are the
/// layers that the file's own one stands on, the nearest first.
pub fn page_table(cold: &ColdFile, below: &[Arc<Origin>], map: &dyn Map) -> Result<PageTable> {
    let file = cold.file;
    let mut table = PageTable { base_blocks: cold.base_blocks, ..PageTable::default() };
    // Newest first; those that are merged with each other count as one.
    let mut origins = vec![cold.origin.root()];
    for origin in below {
        if let Some(loaded) = origin.loaded(file) {
            table = loaded;
            break;
        }
        for layer in origin.layers() {
            if map.get(&InodeRecord::key(layer, file))?.is_some() {
                origins.push(origin.clone());
                break;
            }
        }
    }
    for layer in origins.iter().rev().flat_map(|origin| origin.layers()) {
        let start = schema::file_prefix(tag::CLEARED, layer, file);
        map.scan(&start, &prefix_end(&start), &mut |k, v| {
            let (from, to) = ClearedRecord::decode(k, v)?;
            if table.hides(from, to) > HIDDEN_MAX {
                return Err(Error::Damaged(format!("file {file} hides more of its base than can be")));
            }
            table.clear(from, to, layer, &mut |_| {});
            Ok(true)
        })?;
        let start = schema::file_prefix(tag::BLOCK, layer, file);
        map.scan(&start, &prefix_end(&start), &mut |k, v| {
            let (_, block, rec) = BlockRecord::decode(k, v)?;
            table.tree.set(block, Entry { slot: rec.slot, crc: rec.crc }, layer);
            Ok(true)
        })?;
    }
    Ok(table)
}
