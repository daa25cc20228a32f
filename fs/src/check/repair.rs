//! Counts anew what can be counted: slot bitmaps, reference counts, pages and
//! bytes of layers, counters. All of it in one durable batch.
//!
//! Nobody may have the store open, for the counts are in its memory as well.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::map::schema::{Counters, LayerRecord, SLOT_MAP_BYTES, SharedRecord, Slot, SlotsRecord, tag};
use crate::map::{Batch, Map};

use super::view::View;
use super::{Report, names, space};

/// Repairs; returns the number of records that were changed.
pub fn repair(map: &dyn Map) -> Result<u64> {
    // With what cannot be read left out, a count would give slots free that
    // something refers to.
    let mut report = Report::default();
    let view = View::collect(map, &mut report)?;
    let lost = report.findings.iter().find(|f| !f.repairable);
    if let Some(finding) = lost {
        return Err(crate::error::Error::Damaged(format!(
            "nothing was repaired: what cannot be read cannot be counted ({})",
            finding.message
        )));
    }
    let mut batch = Batch::default();
    for key in &view.unreadable {
        batch.delete(key.clone());
        // A seal that cannot be read is given up; the file gets a new one.
        debug_assert!(matches!(key.first(), Some(&(tag::SLOTS | tag::SHARED | tag::HOST_SEAL))));
    }
    bitmaps(&view, &mut batch);
    shared(&view, &mut batch);
    let bytes = names::logical_bytes(&view);
    for record in view.layers.values() {
        let pages = view.pages.get(&record.id).copied().unwrap_or(0);
        let logical_bytes = bytes.get(&record.id).copied().unwrap_or(record.logical_bytes);
        let right = LayerRecord { pages, logical_bytes, ..*record };
        if right != *record {
            batch.put(right.encode());
        }
    }
    let (need, have) = (space::counters_needed(&view), view.counters.unwrap_or_default());
    let right = Counters {
        file: need.file.max(have.file),
        layer: need.layer.max(have.layer),
        fork: need.fork.max(have.fork),
        delta: need.delta.max(have.delta),
        host: need.host.max(have.host),
    };
    if right != have {
        batch.put(right.encode());
    }
    let changed = batch.changes.len() as u64;
    if changed > 0 {
        map.commit(&batch)?;
    }
    Ok(changed)
}

fn bitmaps(view: &View, batch: &mut Batch) {
    let mut want: BTreeMap<(u32, u32), [u8; SLOT_MAP_BYTES]> = BTreeMap::new();
    for (&delta, references) in &view.references {
        for chunk in 0..references.chunks() {
            let bits = references.bitmap(chunk);
            if bits.iter().any(|&b| b != 0) {
                want.insert((delta, chunk), bits);
            }
        }
    }
    for (&(delta, chunk), bits) in &want {
        if view.slots.get(&(delta, chunk)) != Some(bits) {
            batch.put(SlotsRecord::encode(delta, chunk, bits));
        }
    }
    for &(delta, chunk) in view.slots.keys().filter(|key| !want.contains_key(key)) {
        batch.delete(SlotsRecord::key(delta, chunk));
    }
}

fn shared(view: &View, batch: &mut Batch) {
    let mut want: BTreeMap<Slot, u32> = BTreeMap::new();
    for (&delta, references) in &view.references {
        want.extend(references.shared().iter().map(|(&i, &n)| (Slot::new(delta, i), n)));
    }
    for (slot, count) in &want {
        if view.shared.get(slot) != Some(count) {
            batch.put(SharedRecord::encode(*slot, *count));
        }
    }
    for slot in view.shared.keys().filter(|slot| !want.contains_key(slot)) {
        batch.delete(SharedRecord::key(*slot));
    }
}
