//! Pages are counted once for each record that refers to them, every host file
//! that a record names is there, and every identifier is below its counter.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::BLOCK_BYTES;
use crate::delta;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::prefix_end;
use crate::map::schema::{self, Counters, ExtentsRecord, SLOT_MAP_BYTES, Slot, SlotsRecord, tag};

use super::view::View;
use super::{Finding, HostName, Kind, Leftover, Reached, Report, Stored};

pub fn check(stored: &Stored<'_>, view: &View, reached: &Reached, report: &mut Report) -> Result<()> {
    report.pages = view.pages.values().sum();
    counts(view, reached, report);
    counters(view, report);
    delta_files(stored, view, report)?;
    in_place_files(stored, view, report)?;
    for file in view.base_seals.difference(&view.base_files) {
        report
            .leftovers
            .push(Leftover { what: format!("the seal of base file {file}, which no layer has"), bytes: 0 });
    }
    Ok(())
}

fn counts(view: &View, reached: &Reached, report: &mut Report) {
    let mut found = |text: String| report.findings.push(Finding::new(Kind::Count, text));
    for id in reached {
        let Some(record) = view.layers.get(id) else { continue };
        let pages = view.pages.get(id).copied().unwrap_or(0);
        if pages != record.pages {
            found(format!("layer {id} has {pages} pages, and {} are counted", record.pages));
        }
    }
    let empty = [0; SLOT_MAP_BYTES];
    let mut chunks: BTreeSet<(u32, u32)> = view.slots.keys().copied().collect();
    for (&delta, references) in &view.references {
        chunks.extend((0..references.chunks()).map(|chunk| (delta, chunk)));
    }
    for (delta, chunk) in chunks {
        let have = view.slots.get(&(delta, chunk)).unwrap_or(&empty);
        let want = view.references.get(&delta).map_or(empty, |r| r.bitmap(chunk));
        let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| (a & !b).count_ones()).sum::<u32>();
        let (lost, free) = (differ(have, &want), differ(&want, have));
        let first = chunk * schema::SLOTS_PER_RECORD;
        let place = format!("delta file {delta}, slots from {first} on");
        if lost > 0 {
            found(format!("{place}: {lost} are taken, and no record refers to them"));
        }
        if free > 0 {
            found(format!("{place}: {free} are free, and records refer to them"));
        }
    }
    let wanted = view
        .references
        .iter()
        .flat_map(|(&delta, r)| r.shared().iter().map(move |(&i, &n)| (Slot::new(delta, i), n)));
    let wanted: BTreeMap<Slot, u32> = wanted.collect();
    for slot in wanted.keys().chain(view.shared.keys()).collect::<BTreeSet<_>>() {
        let (want, have) = (wanted.get(slot).copied(), view.shared.get(slot).copied());
        if want != have {
            found(format!(
                "slot {} of delta file {} has {} references, and {} are counted",
                slot.index(),
                slot.delta(),
                want.unwrap_or(1),
                have.unwrap_or(1)
            ));
        }
    }
}

/// The counters that the records need at least.
pub fn counters_needed(view: &View) -> Counters {
    let mut need = Counters { file: FileId::ROOT.0, ..Counters::default() };
    for record in view.layers.values() {
        need.layer = need.layer.max(record.id.0);
    }
    for fork in &view.forks {
        need.fork = need.fork.max(fork.id.0);
        need.delta = need.delta.max(fork.delta);
    }
    need.delta = view.references.keys().copied().fold(need.delta, u32::max);
    for key in view.small.keys().filter(|k| k.first() == Some(&tag::INODE)) {
        need.file = need.file.max(schema::file_of_key(key).map_or(0, |f| f.0));
    }
    for (_, _, record) in &view.extents {
        need.host = record.hosts().into_iter().fold(need.host, u64::max);
    }
    need
}

fn counters(view: &View, report: &mut Report) {
    let need = counters_needed(view);
    let have = view.counters.unwrap_or_default();
    for (what, need, have) in [
        ("file", need.file, have.file),
        ("layer", need.layer, have.layer),
        ("fork", need.fork.into(), have.fork.into()),
        ("delta file", need.delta.into(), have.delta.into()),
        ("in-place file", need.host, have.host),
    ] {
        // A store without any has no counters yet.
        if need > have && !(view.counters.is_none() && view.layers.is_empty()) {
            report.findings.push(Finding::new(
                Kind::Count,
                format!("{what} {need} is in use, and numbers only up to {have} have been given out"),
            ));
        }
    }
}

/// Length of a host file; `None` if it is not there.
fn length(device: &dyn Device, name: &str) -> Result<Option<u64>> {
    match device.open(name, false).and_then(|f| f.len()) {
        Ok(len) => Ok(Some(len)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("measuring host file {name}"), e)),
    }
}

fn delta_files(stored: &Stored<'_>, view: &View, report: &mut Report) -> Result<()> {
    for (&id, references) in &view.references {
        let Some(last) = references.last else { continue };
        let name = delta::file_name(id);
        let need = |last: u32| (u64::from(last) + 1) * BLOCK_BYTES;
        let len = length(stored.delta, &name)?;
        if len.is_some_and(|len| len >= need(last)) {
            continue;
        }
        // Since the view was taken pages may have gone, and space with them: what
        // counts is what was referred to then and is still.
        let mut still = None;
        let prefix = SlotsRecord::key(id, 0)[..5].to_vec();
        stored.map.scan(&prefix, &prefix_end(&prefix), &mut |k, v| {
            // A record that cannot be read is a finding of its own.
            let Ok((_, chunk, bits)) = SlotsRecord::decode(k, v) else { return Ok(true) };
            let before = references.bitmap(chunk);
            let both = (0..schema::SLOTS_PER_RECORD)
                .rfind(|&i| bits[i as usize / 8] & before[i as usize / 8] & (1 << (i % 8)) != 0);
            still = both.map(|i| chunk * schema::SLOTS_PER_RECORD + i).or(still);
            Ok(true)
        })?;
        let Some(last) = still else { continue };
        let message = match len {
            Some(len) if len >= need(last) => continue,
            Some(len) => format!("delta file {name} has {len} bytes, and pages up to {}", need(last)),
            None => format!("delta file {name} is missing"),
        };
        report.findings.push(Finding::new(Kind::HostFile, message));
    }
    let recorded: BTreeSet<u32> =
        view.forks.iter().map(|f| f.delta).chain(view.references.keys().copied()).collect();
    for name in stored.delta.list().map_err(|e| Error::io("delta directory", e))? {
        let id = name.parse().ok().filter(|&id| delta::file_name(id) == name);
        if id.is_none_or(|id| !recorded.contains(&id) && !(stored.in_use)(HostName::Delta(id))) {
            let bytes = length(stored.delta, &name)?.unwrap_or(0);
            report.leftovers.push(Leftover { what: format!("delta/{name}, which no fork uses"), bytes });
        }
    }
    Ok(())
}

fn in_place_files(stored: &Stored<'_>, view: &View, report: &mut Report) -> Result<()> {
    let mut recorded: BTreeSet<u64> = BTreeSet::new();
    for (layer, file, record) in &view.extents {
        for host in record.hosts() {
            if !recorded.insert(host) {
                continue;
            }
            let name = format!("{host:012}");
            let patterned =
                record.tops.iter().filter(|t| t.host == host).map(|t| u64::from(t.patterned)).max();
            let need = view.host_seals.get(&host).copied().max(patterned).unwrap_or(0).saturating_sub(1)
                * BLOCK_BYTES;
            let message = match length(stored.inplace, &name)? {
                Some(len) if len >= need => continue,
                Some(len) => format!("in-place file {name} has {len} bytes, and needs more than {need}"),
                None => format!("in-place file {name} is missing"),
            };
            let key = ExtentsRecord::key(*layer, *file);
            let still = match stored.map.get(&key)? {
                Some(value) => ExtentsRecord::decode(&key, &value)?.2.hosts().contains(&host),
                None => false,
            };
            if still {
                report.findings.push(Finding::new(Kind::HostFile, message));
            }
        }
    }
    for host in view.host_seals.keys().filter(|h| !recorded.contains(h)) {
        report
            .leftovers
            .push(Leftover { what: format!("the seal of in-place file {host}, which is gone"), bytes: 0 });
    }
    for name in stored.inplace.list().map_err(|e| Error::io("in-place directory", e))? {
        let id = name.parse().ok().filter(|id| format!("{id:012}") == name);
        if id.is_none_or(|id| !recorded.contains(&id) && !(stored.in_use)(HostName::InPlace(id))) {
            let bytes = length(stored.inplace, &name)?.unwrap_or(0);
            report.leftovers.push(Leftover { what: format!("inplace/{name}, which no file uses"), bytes });
        }
    }
    Ok(())
}
