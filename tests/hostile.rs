//! A store made by somebody with bad intentions: records whose CRCs match and
//! whose contents no writer makes. Using it may be refused at any point, but
//! nothing panics, hangs, takes memory without bound, or leaves the store.

#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/mem.rs"]
mod mem;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use hostile::{Chance, honest, make_base, mutate, records, use_store};
use pgcowfs::check::{self, Stored, scrub};
use pgcowfs::forks::{check_closed, repair_closed};
use pgcowfs::map::schema::{BaseFileRecord, ExtentsRecord, layer_of_key, tag};
use pgcowfs::map::{Batch, Map};
use pgcowfs::{Error, Options, Store};

/// The stores tried; `PGCOWFS_TEST_ROUNDS` times as many in a long run.
const STORES: u64 = 150;

/// A watchdog, not a requirement on speed.
const HUNG: Duration = Duration::from_secs(60);

/// Panics of any thread, in words.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Random(u64);

impl Chance for Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 20) as usize % n.max(1)
    }
}

#[test]
fn any_record_may_say_anything() {
    let dir = tempfile::tempdir().unwrap();
    let honest = honest(&make_base(dir.path()));
    let all = records(&honest);
    assert_eq!(
        all.iter().map(|(k, _)| k[0]).collect::<std::collections::BTreeSet<_>>().len(),
        15,
        "all kinds of records"
    );
    use_store(&honest.copy()).expect("an honest store is usable");

    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| PANICS.lock().unwrap().push(panic.to_string())));
    let rounds: u64 = std::env::var("PGCOWFS_TEST_ROUNDS").map_or(1, |n| n.parse().unwrap());
    let first: u64 = std::env::var("PGCOWFS_TEST_SEED").map_or(1, |n| n.parse().unwrap());
    let (mut opened, mut refused) = (0, 0);
    for seed in first..first + STORES * rounds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let parts = honest.copy();
        let mut batch = Batch::default();
        for _ in 0..1 + random.below(3) {
            mutate(&mut random, &all, &mut batch);
        }
        parts.map.commit(&batch).unwrap();
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| use_store(&parts)));
            let _ = done.send(result.is_ok_and(|used| used.is_ok()));
        });
        let usable = wait.recv_timeout(HUNG);
        let panics = std::mem::take(&mut *PANICS.lock().unwrap());
        if !panics.is_empty() || usable.is_err() {
            std::panic::set_hook(before);
            let changes: Vec<String> = batch.changes.iter().map(|c| format!("{c:02x?}")).collect();
            panic!(
                "seed {seed}: {} {panics:#?}\n{}",
                if usable.is_err() { "hangs" } else { "" },
                changes.join("\n")
            );
        }
        match usable {
            Ok(true) => opened += 1,
            _ => refused += 1,
        }
    }
    std::panic::set_hook(before);
    assert!(opened > 20 && refused > 20, "{opened} stores were used and {refused} were refused");
}

/// What cannot be read cannot be counted: a finding that says so is not one that
/// a repair puts right.
#[test]
fn a_layer_that_cannot_be_read_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let parts = honest(&make_base(dir.path()));
    let stored = Stored { map: &parts.map, delta: &parts.delta, inplace: &parts.inplace, in_use: &|_| false };
    assert!(check::check(&stored, &mut || true).unwrap().findings.is_empty());
    let mut batch = Batch::default();
    for (key, value) in records(&parts).iter().filter(|(k, _)| k[0] == tag::BASE_FILE) {
        let (file, mut record) = BaseFileRecord::decode(key, value).unwrap();
        record.path = "/etc/passwd".into();
        batch.put(record.encode(layer_of_key(key).unwrap(), file));
    }
    parts.map.commit(&batch).unwrap();
    let findings = check::check(&stored, &mut || true).unwrap().findings;
    assert!(findings.iter().any(|f| f.message.contains("/etc/passwd")), "{findings:#?}");
    assert!(findings.iter().all(|f| !f.repairable), "{findings:#?}");
}

/// Each host file holds one chunk of a file. A run may say that it has all of the
/// numbers there are, and a scrub is not to go through them.
#[test]
fn a_run_longer_than_its_host_file_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let parts = honest(&make_base(dir.path()));
    let mut batch = Batch::default();
    for (key, value) in records(&parts).iter().filter(|(k, _)| k[0] == tag::EXTENTS) {
        let (layer, file, mut record) = ExtentsRecord::decode(key, value).unwrap();
        record.runs.truncate(1);
        for run in &mut record.runs {
            (run.start, run.len) = (0, u32::MAX);
        }
        batch.put(record.encode(layer, file));
    }
    assert!(batch.changes.len() > 1);
    parts.map.commit(&batch).unwrap();
    let stored = Stored { map: &parts.map, delta: &parts.delta, inplace: &parts.inplace, in_use: &|_| false };
    let (_, progress) = scrub::scrub(&stored, &scrub::Options::default(), &mut |_| true).unwrap();
    assert!(progress.wal_blocks + progress.unsealed_blocks > 0);
}

/// Everything in a directory and below it: what it is, and its contents.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.push((entry.path(), Vec::new()));
            found.extend(snapshot(&entry.path()));
        } else {
            found.push((entry.path(), std::fs::read(entry.path()).unwrap()));
        }
    }
    found.sort();
    found
}

/// A link or a pipe in the place of a part of the store: it is refused, at once,
/// and nothing is written or removed where the link leads.
#[test]
fn parts_of_a_store_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    Store::init(&made).unwrap();
    let others = dir.path().join("others");
    std::fs::create_dir(&others).unwrap();
    // These look like files of a store that nothing needs.
    for name in ["00000009", "000000000009", "LOCK", "CURRENT"] {
        std::fs::write(others.join(name), b"precious").unwrap();
    }
    let before = snapshot(&others);
    let parts =
        ["STORE", "LOCK", "map", "delta", "inplace", "map/CURRENT", "map/COMMITTED", "map/COMMITTED.tmp"];
    for part in parts {
        for pipe in [false, true] {
            let store = dir.path().join("store");
            assert!(Command::new("cp").arg("-a").args([&made, &store]).status().unwrap().success());
            let path = store.join(part);
            let upgraded = part == "STORE.tmp";
            if upgraded {
                // Of the first format: opening it writes STORE anew.
                let mut bytes = std::fs::read(store.join("STORE")).unwrap();
                bytes[8] = 1;
                let crc = crc32fast::hash(&bytes[..28]);
                bytes[28..].copy_from_slice(&crc.to_le_bytes());
                std::fs::write(store.join("STORE"), bytes).unwrap();
            }
            let _ = std::fs::remove_dir_all(&path);
            let _ = std::fs::remove_file(&path);
            let is_dir = ["map", "delta", "inplace"].contains(&part);
            if pipe {
                nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            } else {
                let target = if is_dir { others.clone() } else { others.join("LOCK") };
                std::os::unix::fs::symlink(target, &path).unwrap();
            }
            let refused = |error: Error| assert!(error.to_string().contains(part), "{part}: {error}");
            refused(Store::open(&store, Options::default()).map(|_| ()).unwrap_err());
            if !upgraded {
                refused(repair_closed(&store).map(|_| ()).unwrap_err());
                // A check goes on without STORE, and says so.
                match check_closed(&store, None, &mut |_| true) {
                    Ok((report, _)) => assert!(report.findings.iter().any(|f| f.message.contains(part))),
                    Err(error) => refused(error),
                }
            }
            assert_eq!(snapshot(&others), before, "{part}");
            std::fs::remove_dir_all(&store).unwrap();
        }
    }
}
