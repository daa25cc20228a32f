//! A store made by somebody with bad intentions: an honest one, changed as the
//! input says. It may be refused at any point, but nothing panics or hangs.

use std::sync::{Arc, Mutex};

use pgcowfs::check::{self, Stored, repair, scrub};
use pgcowfs::device::Device;
use pgcowfs::map::{Batch, Map};
use tempfile::TempDir;

use super::super::target::Bytes;

#[path = "../common/hostile.rs"]
mod hostile;
#[path = "../common/mem.rs"]
mod mem;

use hostile::{Chance, honest, make_base, mutate, records, use_store};
use mem::Parts3;

/// More changes than that are no more interesting.
const CHANGES_MAX: usize = 16;

impl Chance for Bytes<'_> {
    fn next(&mut self) -> u64 {
        self.u64()
    }
    fn below(&mut self, n: usize) -> usize {
        let chosen: usize = if n <= 256 { self.u8().into() } else { self.u16().into() };
        chosen % n.max(1)
    }
}

/// The honest store, made once, and the directory that it stands on.
static HONEST: Mutex<Option<(TempDir, Arc<Parts3>)>> = Mutex::new(None);

fn copy_of_honest() -> Parts3 {
    let mut honest_one = HONEST.lock().expect("no target panics while it is made");
    let (_, parts) = honest_one.get_or_insert_with(|| {
        let dir = tempfile::tempdir().expect("a directory for the base");
        let parts = Arc::new(honest(&make_base(dir.path())));
        (dir, parts)
    });
    parts.copy()
}

/// Removes what the targets have made.
#[allow(dead_code)] // The fuzzer never comes to an end.
pub fn forget_stores() {
    HONEST.lock().expect("no target panics while it is made").take();
}

pub fn run(input: &[u8]) {
    let parts = copy_of_honest();
    let mut input = Bytes(input);
    for _ in 0..CHANGES_MAX {
        if input.0.is_empty() {
            break;
        }
        if input.below(8) == 0 {
            change_host_file(&parts, &mut input);
        } else {
            let mut batch = Batch::default();
            mutate(&mut input, &records(&parts), &mut batch);
            parts.map.commit(&batch).expect("the map is in memory");
        }
    }
    inspect(&parts);
    // As in the daemon, errors are for the user.
    let _ = use_store(&parts);
}

/// Check, scrub and repair need no store that opens.
fn inspect(parts: &Parts3) {
    let copy = parts.copy();
    let stored = Stored { map: &copy.map, delta: &copy.delta, inplace: &copy.inplace, in_use: &|_| false };
    let _ = check::check(&stored, &mut || true);
    let options = scrub::Options { postgres: true, ..scrub::Options::default() };
    let _ = scrub::scrub(&stored, &options, &mut |_| true);
    if repair::repair(&copy.map).is_ok()
        && let Ok(report) = check::check(&stored, &mut || true)
    {
        let left: Vec<_> = report.findings.iter().filter(|f| f.repairable).collect();
        assert!(left.is_empty(), "repair has left {left:#?}");
    }
}

/// Something else in a delta or in-place file, or one that is gone.
fn change_host_file(parts: &Parts3, input: &mut Bytes<'_>) {
    let device = if input.below(2) == 0 { &parts.delta } else { &parts.inplace };
    let names = device.list().expect("it is in memory");
    if names.is_empty() {
        return;
    }
    let name = &names[input.below(names.len())];
    let what = input.u8();
    if what == 0 {
        device.remove(name).expect("it is in memory");
        return;
    }
    let offset = 512 * u64::from(input.u16());
    // The store's id, repeated, is what marks a sector that was never written.
    let bytes = if what.is_multiple_of(2) { [7; 512].to_vec() } else { input.take(16).to_vec() };
    let file = device.open(name, false).expect("it is there");
    file.write_at(&bytes, offset).expect("it is in memory");
}

pub fn seeds() -> Vec<Vec<u8>> {
    // A change takes some ten bytes: which record, what about it, a number.
    let mut seeds = vec![Vec::new()];
    for tag in 0..14 {
        for what in [0, 3, 4, 5, 7, 8] {
            seeds.push(vec![1, tag, tag, what, 1, 1, 2, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    seeds.push(vec![0, 0, 0, 1, 2, 0]);
    seeds.push(vec![0, 1, 0, 2, 0, 0]);
    seeds
}
