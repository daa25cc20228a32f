//! Every name leads to a file, every file has as many names as it says, every
//! block belongs to a file, and what a layer hides is there below.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::attr::Kind as FileKind;
use crate::base;
use crate::delta::account::Room;
use crate::device::mem::MemDevice;
use crate::error::Error;
use crate::ids::{FileId, LayerId};
use crate::inplace::HostFiles;
use crate::layer::{Body, Origin, State, load};
use crate::map::mem::MemMap;
use crate::map::schema::{self, InodeRecord, NameRecord, tag};
use crate::map::{Map, Visit, prefix_end};
use crate::seal::Seals;

use super::view::{Group, View};
use super::{Finding, Kind, Reached, Report};

/// Host files that stand for nothing: loading a layer must not touch real ones.
pub fn no_host_files() -> Arc<HostFiles> {
    let seals = Arc::new(Seals::new(Arc::new(MemMap::new())));
    HostFiles::new(
        Room::new(Arc::new(MemDevice::new()), 0),
        [0; 16],
        Arc::new(|| Err(Error::Unsupported)),
        seals,
    )
}

pub fn check(view: &View, reached: &Reached, report: &mut Report) {
    let files = no_host_files();
    let bases = base::roots_of(&view.forks);
    let heads: HashMap<LayerId, String> =
        view.views().into_iter().map(|(name, layer)| (layer, name)).collect();
    let mut children: BTreeMap<LayerId, Vec<LayerId>> = BTreeMap::new();
    for record in view.layers.values().filter(|l| reached.contains(&l.id)) {
        children.entry(record.parent).or_default().push(record.id);
    }
    let mut groups: HashMap<LayerId, Vec<&Group>> = HashMap::new();
    for group in &view.groups {
        groups.entry(group.layer).or_default().push(group);
    }
    belongs_to_layers(view, report);
    let roots = children.get(&LayerId(0)).cloned().unwrap_or_default();
    // With each layer what is below it, and whether that is all of it.
    let mut stack: Vec<(LayerId, State, bool)> =
        roots.into_iter().map(|id| (id, State::default(), true)).collect();
    while let Some((id, below, mut whole)) = stack.pop() {
        let mut found = Vec::new();
        hides_something(view, id, &below, &mut found);
        let mut state = below;
        if let Err(e) = load::layer(&mut state, id, &Origin::new(id), false, view, &files, &bases) {
            found.push(format!("layer {id}: {e}"));
            whole = false;
        }
        for group in groups.remove(&id).unwrap_or_default() {
            let paged = state.inodes.get(&group.file).is_some_and(|i| matches!(i.body, Body::Pages(_)));
            if !paged {
                let (blocks, file) = (group.blocks, group.file);
                found.push(format!("layer {id}: {blocks} blocks belong to file {file}, which has none"));
            }
        }
        report.findings.extend(found.into_iter().map(|text| Finding::new(Kind::Name, text)));
        // Half of a layer has nothing to count, and a repair leaves it as it is.
        if let Some(record) = view.layers.get(&id)
            && whole
            && record.logical_bytes != state.logical_bytes
        {
            report.findings.push(Finding::new(
                Kind::Count,
                format!(
                    "layer {id}: its files have {} bytes, and {} are counted",
                    state.logical_bytes, record.logical_bytes
                ),
            ));
        }
        if let Some(fork) = heads.get(&id) {
            if !fork.contains('@') {
                report.files += state.inodes.len() as u64;
            }
            let mut found = Vec::new();
            check_names(fork, &state, &mut found);
            let findings = found
                .into_iter()
                .map(|text| Finding { forks: vec![fork.to_string()], ..Finding::new(Kind::Name, text) });
            report.findings.extend(findings);
        }
        stack.extend(children.get(&id).into_iter().flatten().map(|child| (*child, state.clone(), whole)));
    }
}

/// Sum of all file sizes as seen from each layer that can be loaded.
pub fn logical_bytes(view: &View) -> BTreeMap<LayerId, u64> {
    let files = no_host_files();
    let bases = base::roots_of(&view.forks);
    let mut states: BTreeMap<LayerId, State> = BTreeMap::new();
    let mut bytes = BTreeMap::new();
    // Ids grow: each parent comes before its children.
    for record in view.layers.values() {
        let below = match record.parent {
            LayerId(0) => Some(State::default()),
            parent => states.get(&parent).cloned(),
        };
        let Some(mut state) = below else { continue };
        if load::layer(&mut state, record.id, &Origin::new(record.id), false, view, &files, &bases).is_ok() {
            bytes.insert(record.id, state.logical_bytes);
            states.insert(record.id, state);
        }
    }
    bytes
}

/// No record belongs to a layer that is not there.
fn belongs_to_layers(view: &View, report: &mut Report) {
    let mut strays: BTreeMap<LayerId, u64> = BTreeMap::new();
    let in_small = view.small.keys().filter_map(|k| schema::layer_of_key(k).ok()).map(|layer| (layer, 1));
    let in_groups = view.groups.iter().map(|g| (g.layer, g.blocks.max(1)));
    for (layer, count) in in_small.chain(in_groups) {
        if !view.layers.contains_key(&layer) {
            *strays.entry(layer).or_default() += count;
        }
    }
    let texts = strays
        .into_iter()
        .map(|(layer, n)| format!("{n} records belong to layer {layer}, which does not exist"));
    report.findings.extend(texts.map(|text| Finding::new(Kind::Record, text)));
}

/// What a layer has removed was there.
fn hides_something(view: &View, layer: LayerId, below: &State, found: &mut Vec<String>) {
    let scan = |tag, visit: &mut Visit<'_>| {
        let start = schema::layer_prefix(tag, layer);
        // The records have been decoded before.
        let _ = view.scan(&start, &prefix_end(&start), visit);
    };
    scan(tag::NAME, &mut |k, v| {
        let (dir, name, record) = NameRecord::decode(k, v)?;
        if record == NameRecord::Whiteout && !below.names.contains_key(&(dir, name.clone().into())) {
            let name = String::from_utf8_lossy(&name);
            found.push(format!("layer {layer} has removed {name} from directory {dir}, where it never was"));
        }
        Ok(true)
    });
    scan(tag::INODE, &mut |k, v| {
        let file = schema::file_of_key(k)?;
        if InodeRecord::decode(k, v)?.is_none() && !below.inodes.contains_key(&file) {
            found.push(format!("layer {layer} has removed file {file}, which never was"));
        }
        Ok(true)
    });
}

fn check_names(fork: &str, state: &State, found: &mut Vec<String>) {
    if let Err(e) = load::check_tree(state) {
        found.push(format!("fork {fork:?}: {e}"));
        return;
    }
    let mut links: HashMap<FileId, u32> = HashMap::new();
    links.insert(FileId::ROOT, 2);
    for ((dir, entry), (file, kind)) in state.names.iter() {
        let entry = String::from_utf8_lossy(entry);
        match state.inodes.get(file) {
            None => found.push(format!("fork {fork:?}: {entry} in directory {dir} leads to no file")),
            Some(inode) if inode.kind != *kind => {
                found.push(format!(
                    "fork {fork:?}: {entry} in directory {dir} has another kind than its file"
                ));
            }
            Some(_) => {}
        }
        if state.inodes.get(dir).is_none_or(|d| d.kind != FileKind::Directory) {
            found.push(format!("fork {fork:?}: {entry} is in {dir}, which is no directory"));
        }
        if *kind == FileKind::Directory {
            *links.entry(*file).or_insert(0) += 2;
            *links.entry(*dir).or_insert(0) += 1;
        } else {
            *links.entry(*file).or_insert(0) += 1;
        }
    }
    for (file, inode) in state.inodes.iter() {
        let counted = links.get(file).copied().unwrap_or(0);
        if counted != inode.nlink {
            found.push(format!("fork {fork:?}: file {file} has {counted} links, and says {}", inode.nlink));
        }
    }
}
