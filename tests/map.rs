//! What the core relies on in a block map: one suite for RocksDB and for the
//! map in memory that the crash tests use.

use pgcowfs::map::mem::MemMap;
use pgcowfs::map::rocks::RocksMap;
use pgcowfs::map::{Batch, Map, prefix_end};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn collect(map: &dyn Map, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    map.scan(start, end, &mut |k, v| {
        found.push((k.to_vec(), v.to_vec()));
        Ok(true)
    })
    .unwrap();
    found
}

fn put(batch: &mut Batch, key: &[u8], value: &[u8]) {
    batch.put((key.to_vec(), value.to_vec()));
}

fn conforms(map: &dyn Map) {
    assert_eq!(map.get(b"a").unwrap(), None);
    let mut batch = Batch::default();
    put(&mut batch, b"a", b"1");
    put(&mut batch, b"b", b"2");
    put(&mut batch, b"ba", b"3");
    put(&mut batch, b"c", b"");
    map.commit(&batch).unwrap();
    assert_eq!(map.get(b"c").unwrap().as_deref(), Some(b"".as_slice()));
    // The end is excluded, and a prefix's end excludes what comes after it.
    assert_eq!(collect(map, b"a", b"c").len(), 3);
    assert_eq!(collect(map, b"b", &prefix_end(b"b")).len(), 2);
    assert_eq!(collect(map, b"c", b"a").len(), 0);
    let mut seen = 0;
    map.scan(b"a", b"z", &mut |_, _| {
        seen += 1;
        Ok(seen < 2)
    })
    .unwrap();
    assert_eq!(seen, 2, "a scan stops when told to");

    // Within a batch the order counts, also between ranges and single keys.
    let mut batch = Batch::default();
    put(&mut batch, b"b", b"lost");
    batch.delete_range(b"b".to_vec(), b"c".to_vec());
    put(&mut batch, b"ba", b"kept");
    batch.delete(b"a".to_vec());
    put(&mut batch, b"a", b"again");
    map.commit(&batch).unwrap();
    let want: Vec<(Vec<u8>, Vec<u8>)> = [("a", "again"), ("ba", "kept"), ("c", "")]
        .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
        .into();
    assert_eq!(collect(map, b"", b"\xff"), want);
    map.commit(&Batch::default()).unwrap();
}

#[test]
fn the_map_in_memory_conforms() {
    conforms(&MemMap::new());
}

#[test]
fn rocksdb_conforms_and_keeps_its_records() {
    let dir = tempfile::tempdir().unwrap();
    let map = RocksMap::open(dir.path(), true).unwrap();
    conforms(&map);
    map.close().unwrap();
    assert!(map.get(b"a").is_err(), "closed is closed");
    let map = RocksMap::open(dir.path(), false).unwrap();
    assert_eq!(collect(&map, b"", b"\xff").len(), 3);
}

#[test]
fn rocksdb_is_not_made_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RocksMap::open(&dir.path().join("none"), false).is_err());
}

#[test]
fn a_committed_batch_survives_without_a_clean_end() {
    let dir = tempfile::tempdir().unwrap();
    let map = RocksMap::open(&dir.path().join("map"), true).unwrap();
    for i in 0..100u8 {
        let mut batch = Batch::default();
        put(&mut batch, &[i], &[i; 100]);
        map.commit(&batch).unwrap();
    }
    // A copy of the files of a database that is still open is what a crash of
    // the process leaves.
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(dir.path().join("map")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let copy = RocksMap::open(&copy, false).unwrap();
    assert_eq!(collect(&copy, b"", b"\xff").len(), 100);
}

/// Found by `scripts/powercut`: of a batch that was being written when the power went, the host can have the length and
/// some pages or sectors, and zeros or old bytes for the rest. That is no damage: the batch never was.
#[test]
fn a_torn_end_of_rocksdbs_log_is_a_batch_that_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let map = RocksMap::open(&live, true).unwrap();
    let commit = |n: u8| {
        let mut batch = Batch::default();
        put(&mut batch, &[n], &[n; 900]);
        map.commit(&batch).unwrap();
    };
    (0..10).for_each(commit);
    let before = dir.path().join("before");
    copy(&live, &before);
    commit(10);
    let log_in = |dir: &std::path::Path| {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        logs.sort();
        logs.pop().unwrap()
    };
    let (old, new) = (std::fs::read(log_in(&before)).unwrap(), std::fs::read(log_in(&live)).unwrap());
    let torn = old.len()..new.len();
    assert!(torn.len() > 900);
    for (n, at) in torn.clone().step_by(37).chain([torn.end - 1]).enumerate() {
        let mut cases = vec![new[..at].to_vec(), new.clone(), new.clone()];
        cases[1][at..].fill(0);
        cases[2][torn.start..at].fill(0);
        // The last byte alone may be all that is missing, or all that came.
        for (m, log) in cases.into_iter().enumerate() {
            let cut = dir.path().join(format!("cut{n}-{m}"));
            copy(&before, &cut);
            std::fs::write(log_in(&cut), log).unwrap();
            let map = RocksMap::open(&cut, false).unwrap_or_else(|e| panic!("byte {at}, case {m}: {e}"));
            let found = collect(&map, b"", b"\xff").len();
            let whole = m == 2 && at == torn.start;
            assert_eq!(found, if whole { 11 } else { 10 }, "byte {at}, case {m}");
            let mut batch = Batch::default();
            put(&mut batch, b"next", b"");
            map.commit(&batch).unwrap();
            drop(map);
            let map = RocksMap::open(&cut, false).unwrap();
            assert_eq!(
                collect(&map, b"", b"\xff").len(),
                found + 1,
                "byte {at}, case {m}: after the next batch"
            );
        }
    }
}

/// A database as a crash of the process leaves it: a hundred batches, in the log.
fn crashed(dir: &std::path::Path) -> std::path::PathBuf {
    let map = RocksMap::open(&dir.join("map"), true).unwrap();
    for i in 0..100u8 {
        let mut batch = Batch::default();
        put(&mut batch, &[i], &[i; 100]);
        map.commit(&batch).unwrap();
    }
    copy(&dir.join("map"), &dir.join("crashed"))
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> std::path::PathBuf {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to.to_path_buf()
}

fn log_of(dir: &std::path::Path) -> std::path::PathBuf {
    let mut logs: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort_by_key(|p| std::fs::metadata(p).unwrap().len());
    logs.pop().expect("a log")
}

/// Any flipped bit of the log is found: records that were durable are all there,
/// or the map is refused. Refusing changes nothing, so the second try is refused
/// as well.
#[test]
fn damage_in_rocksdbs_log_never_drops_what_was_durable() {
    let dir = tempfile::tempdir().unwrap();
    let good = crashed(dir.path());
    let bytes = std::fs::read(log_of(&good)).unwrap();
    let mut refused = 0;
    // Every byte of the last three records with one of its bits, and samples of
    // the rest: lengths, types, checksums and contents.
    let near_end = bytes.len().saturating_sub(2 * 123)..bytes.len();
    // Byte 6 of a record is its type; with bit 2 of it flipped RocksDB itself
    // would read for ever.
    let samples =
        (0..near_end.start).step_by(97).chain(near_end).map(|at| (at, at % 8)).chain([(52 * 123 + 6, 2)]);
    for (at, bit) in samples {
        let bad = copy(&good, &dir.path().join("bad"));
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        std::fs::write(log_of(&bad), &flipped).unwrap();
        match RocksMap::open(&bad, false) {
            Ok(map) => assert_eq!(collect(&map, b"", b"\xff").len(), 100, "byte {at}"),
            Err(e) => {
                refused += 1;
                assert!(RocksMap::open(&bad, false).is_err(), "byte {at}: refused once only, with {e}");
            }
        }
    }
    assert!(refused > 350, "only {refused} flips were found");
}

/// The same without the number of the last change: records are lost and nobody
/// notices. That is what the number is for.
#[test]
fn without_the_last_number_damage_in_the_log_goes_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let bad = crashed(dir.path());
    let log = log_of(&bad);
    let mut bytes = std::fs::read(&log).unwrap();
    let last = bytes.len() - 60;
    bytes[last] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    std::fs::remove_file(bad.join("COMMITTED")).unwrap();
    let map = RocksMap::open(&bad, false).unwrap();
    assert_eq!(collect(&map, b"", b"\xff").len(), 99);
}

/// A batch that was being written when the power went is no damage.
#[test]
fn a_torn_end_of_the_log_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let good = crashed(dir.path());
    let bytes = std::fs::read(log_of(&good)).unwrap();
    let number = std::fs::read(good.join("COMMITTED")).unwrap();
    let map = RocksMap::open(&good, false).unwrap();
    let mut batch = Batch::default();
    put(&mut batch, b"z", &[1; 3000]);
    map.commit(&batch).unwrap();
    let after = copy(&good, &dir.path().join("after"));
    drop(map);
    let log = log_of(&after);
    let whole = std::fs::read(&log).unwrap();
    for lost in [1, 511, 2900] {
        for fill in [false, true] {
            let torn = copy(&after, &dir.path().join("torn"));
            // The number is written after the batch is durable.
            std::fs::write(torn.join("COMMITTED"), &number).unwrap();
            let mut cut = whole[..whole.len() - lost].to_vec();
            if fill {
                cut.resize(whole.len(), 0);
            }
            std::fs::write(log_of(&torn), cut).unwrap();
            let map = RocksMap::open(&torn, false).unwrap();
            assert_eq!(collect(&map, b"", b"\xff").len(), 100, "{lost} bytes lost");
        }
    }
    assert!(bytes.len() > 10_000);
}

/// Every flipped bit in a table of RocksDB's is found by `verify`, or is in a
/// byte that means nothing.
#[test]
fn verify_reads_all_of_rocksdb() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("map");
    let map = RocksMap::open(&place, true).unwrap();
    for part in 0..20u8 {
        let mut batch = Batch::default();
        for i in 0..100u8 {
            put(&mut batch, &[part, i], &[i ^ part; 200]);
        }
        map.commit(&batch).unwrap();
    }
    // What is deleted lies there too until it is compacted.
    let mut batch = Batch::default();
    batch.delete_range(vec![5], vec![9]);
    map.commit(&batch).unwrap();
    assert_eq!(map.verify(&mut || true).unwrap(), Vec::<String>::new());
    assert!(!dir.path().join("map.check").exists(), "it leaves nothing behind");
    map.close().unwrap();
    drop(map);
    let tables: Vec<_> = std::fs::read_dir(&place)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "sst"))
        .collect();
    assert!(!tables.is_empty());
    let mut found = 0;
    let mut tried = 0;
    for table in tables {
        let name = table.file_name().unwrap().to_owned();
        let bytes = std::fs::read(&table).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 30 + 1) {
            let bad = copy(&place, &dir.path().join("bad"));
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            std::fs::write(bad.join(&name), flipped).unwrap();
            tried += 1;
            let map = match RocksMap::open(&bad, false) {
                Ok(map) => map,
                Err(_) => {
                    found += 1;
                    continue;
                }
            };
            let damaged = map.verify(&mut || true).unwrap();
            // The same again on a map that is only looked at.
            drop(map);
            if damaged.is_empty() {
                let map = RocksMap::open_to_read(&bad).unwrap();
                assert_eq!(
                    collect(&map, b"", b"\xff").len(),
                    1600,
                    "byte {at} of {} goes unseen",
                    bytes.len()
                );
            } else {
                found += 1;
                assert!(damaged[0].contains(".sst"), "{damaged:?}");
            }
        }
    }
    assert!(found * 10 >= tried * 8, "{found} of {tried} flips were found");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_maps_agree(batches in prop::collection::vec(
        prop::collection::vec((0u8..3, 0u8..40, 0u8..40), 1..10), 1..12))
    {
        let dir = tempfile::tempdir().unwrap();
        let rocks = RocksMap::open(dir.path(), true).unwrap();
        let mem = MemMap::new();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for changes in batches {
            let mut batch = Batch::default();
            for (kind, a, b) in changes {
                match kind {
                    0 => {
                        put(&mut batch, &[a], &[b]);
                        model.insert(vec![a], vec![b]);
                    }
                    1 => {
                        batch.delete(vec![a]);
                        model.remove(&vec![a]);
                    }
                    _ => {
                        let (from, to) = (a.min(b), a.max(b));
                        batch.delete_range(vec![from], vec![to]);
                        model.retain(|k, _| k[0] < from || k[0] >= to);
                    }
                }
            }
            rocks.commit(&batch).unwrap();
            mem.commit(&batch).unwrap();
            let want: Vec<_> = model.clone().into_iter().collect();
            prop_assert_eq!(&collect(&rocks, b"", b"\xff"), &want);
            prop_assert_eq!(&collect(&mem, b"", b"\xff"), &want);
        }
    }
}
