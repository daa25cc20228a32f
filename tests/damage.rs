//! Contract line 5 on a real directory: bits are flipped in every kind of file
//! of a store. Each time the store is refused with a reason, or every read gives
//! the right bytes or EIO; and what is wrong is found by `check` and `scrub`.

#[path = "common/mem.rs"]
mod mem;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pgcowfs::check::{Finding, Kind, Stored, pg, scrub};
use pgcowfs::forks::{check_closed, repair_closed};
use pgcowfs::map::mem::MemMap;
use pgcowfs::map::rocks::RocksMap;
use pgcowfs::map::schema::{BaseSealRecord, Counters, LayerRecord, SlotsRecord};
use pgcowfs::map::{Batch, Map, Visit};
use pgcowfs::{Error, FileId, Fork, Make, Options, Store};

const B: u64 = 8192;
/// Bits flipped in each file; `PGCOWFS_TEST_ROUNDS` times as many in a long run.
const FLIPS: usize = 5;

/// What every file of every fork holds.
type Contents = BTreeMap<(String, String), Vec<u8>>;

/// A page that no other is like.
fn page(n: u32) -> Vec<u8> {
    let mut state = n.wrapping_mul(2_654_435_761) | 1;
    let mut bytes = Vec::with_capacity(B as usize);
    while bytes.len() < B as usize {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

fn make(fork: &Fork, path: &str, what: Make) -> FileId {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = fork.resolve(dir).unwrap().file;
    fork.make(dir, name.as_bytes(), what, 0o700, 0, 0).unwrap().file
}

const FILES: [&str; 6] = [
    "base/5/16384",
    "base/5/16385",
    "base/5/copy",
    "small",
    "pg_wal/000000010000000000000001",
    "pg_wal/000000010000000000000002",
];

/// A store with forks of forks, shared slots, WAL at rest and a sealed base.
fn build(dir: &Path) -> (Arc<Store>, Contents) {
    let base = dir.join("base-dir");
    std::fs::create_dir_all(base.join("base/5")).unwrap();
    let pages: Vec<u8> = (900..940).flat_map(page).collect();
    std::fs::write(base.join("base/5/16384"), &pages).unwrap();
    let place = dir.join("store");
    Store::init(&place).unwrap();
    let store = Store::open(&place, Options::default()).unwrap();
    let based = store.create_on_base("based", pgcowfs::base::scan(&base, None).unwrap(), b"").unwrap();
    store.publish("based").unwrap();
    based.write(based.resolve("base/5/16384").unwrap().file, 3 * B, &page(800)).unwrap();
    store.seal_base("based", &mut |_| true).unwrap();

    let main = store.create("main", 0, 0, b"").unwrap();
    for path in ["base", "base/5", "pg_wal"] {
        make(&main, path, Make::Directory);
    }
    store.publish("main").unwrap();
    let files: HashMap<&str, FileId> =
        FILES.iter().map(|path| (*path, make(&main, path, Make::File))).collect();
    let (one, two, copy) = (files[FILES[0]], files[FILES[1]], files[FILES[2]]);
    for i in 0..30 {
        main.write(one, u64::from(i) * B, &page(i)).unwrap();
        main.write(two, u64::from(i) * B, &page(100 + i)).unwrap();
    }
    main.sync_all().unwrap();
    assert_eq!(main.copy_range(one, 0, copy, 0, 8 * B).unwrap(), 8 * B);
    main.write(files["small"], 0, b"a few bytes").unwrap();
    for i in 0..6 {
        main.write(files[FILES[4]], u64::from(i) * B, &page(200 + i)).unwrap();
    }
    main.write(files[FILES[5]], 0, &page(300)).unwrap();
    store.fork("main", "child", b"", &mut |_| Ok(())).unwrap();
    let child = store.by_name("child").unwrap();
    for i in 0..10 {
        child.write(one, u64::from(2 * i) * B, &page(400 + i)).unwrap();
    }
    child.fallocate(two, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4 * B, 3 * B).unwrap();
    store.fork("child", "grandchild", b"", &mut |_| Ok(())).unwrap();
    store.by_name("grandchild").unwrap().write(two, 0, &page(500)).unwrap();
    store.fork("main", "gone", b"", &mut |_| Ok(())).unwrap();
    store.by_name("gone").unwrap().write(two, 0, &page(600)).unwrap();
    store.remove("gone").unwrap();
    store.wait_for_collection();
    for fork in store.forks() {
        store.by_name(&fork.name).unwrap().sync_all().unwrap();
    }
    store.seal_at_rest(Duration::ZERO).unwrap();
    let (_, progress) = store.scrub(&scrub::Options::default(), &mut |_| true).unwrap();
    assert_eq!(
        (progress.wal_blocks, progress.base_blocks, progress.unsealed_blocks),
        (4096, 40, 0),
        "{progress:?}"
    );
    let mut contents = Contents::new();
    for fork in store.forks() {
        let paths = if fork.name == "based" { &FILES[..1] } else { &FILES[..] };
        for path in paths {
            let bytes = store.by_name(&fork.name).unwrap().read_file(path).unwrap();
            contents.insert((fork.name.clone(), path.to_string()), bytes);
        }
    }
    assert_eq!(contents.len(), 19);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    (store, contents)
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn flip(path: &Path, at: u64, bit: u32) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

/// What came of one flip.
#[derive(Debug, Default)]
struct Outcome {
    /// Why the store was refused.
    refused: Option<String>,
    /// Reads that failed.
    failed: usize,
    findings: Vec<Finding>,
}

impl Outcome {
    fn is_found(&self) -> bool {
        self.refused.is_some() || !self.findings.is_empty()
    }
}

/// Opens a store and reads everything; wrong data ends the test.
fn examine(place: &Path, contents: &Contents, what: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let store = match Store::open(place, Options::default()) {
        Ok(store) => store,
        Err(e) => {
            let (report, _) =
                check_closed(place, None, &mut |_| true).unwrap_or_else(|e| panic!("{what}: {e}"));
            outcome.refused = Some(e.to_string());
            outcome.findings = report.findings;
            assert!(!outcome.findings.is_empty(), "{what}: refused ({e}), and the check finds nothing");
            return outcome;
        }
    };
    let eio = |e: &Error| assert_eq!(e.errno(), libc::EIO, "{what}: {e}");
    for ((fork, path), want) in contents {
        let file = store.by_name(fork).and_then(|f| Ok((f.resolve(path)?.file, f)));
        let (file, fork) = match file {
            Ok(found) => found,
            Err(e) => {
                eio(&e);
                outcome.failed += 1;
                continue;
            }
        };
        for (i, want) in want.chunks(B as usize).enumerate() {
            let mut got = Vec::new();
            match fork.read(file, i as u64 * B, B as usize, &mut got) {
                Ok(()) => assert!(got == want, "{what}: WRONG DATA in {path}, block {i}"),
                Err(e) => {
                    eio(&e);
                    outcome.failed += 1;
                }
            }
        }
    }
    let alive: &mut dyn FnMut() -> bool = &mut || true;
    outcome.findings = match store.check_records(alive) {
        Ok(report) => report.findings,
        Err(e) => panic!("{what}: the check fails: {e}"),
    };
    match store.scrub(&scrub::Options::default(), &mut |_| true) {
        Ok((found, _)) => outcome.findings.extend(found),
        Err(e) => assert!(!outcome.findings.is_empty(), "{what}: the scrub fails: {e}"),
    }
    // What cannot be written any more is not the question here.
    let _ = store.close();
    outcome
}

/// The files of a store that hold something, by class.
fn files(place: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut found = vec![("store", place.join("STORE"))];
    for (part, class) in [("delta", "delta"), ("inplace", "inplace"), ("map", "map")] {
        for entry in std::fs::read_dir(place.join(part)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // RocksDB writes these for people, and reads none of them.
            let for_people = part == "map"
                && (name.starts_with("LOG") || name.starts_with("OPTIONS") || name == "IDENTITY");
            if !for_people && std::fs::metadata(&path).unwrap().len() > 0 {
                let class = match name {
                    _ if name.ends_with(".sst") => "table",
                    _ if name.ends_with(".log") => "log",
                    _ => class,
                };
                found.push((class, path.strip_prefix(place).unwrap().to_path_buf()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_flipped_bit_never_gives_wrong_data_and_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (store, contents) = build(dir.path());
    // Two states: after a kill, with something in the map's log, and after a
    // clean end.
    for n in 0..20u8 {
        store.set_meta("main", &[n; 300]).unwrap();
    }
    let crashed = dir.path().join("crashed");
    copy_tree(&dir.path().join("store"), &crashed);
    store.close().unwrap();
    drop(store);
    let closed = dir.path().join("closed");
    std::fs::rename(dir.path().join("store"), &closed).unwrap();
    let rounds: usize = std::env::var("PGCOWFS_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut pages: Vec<&[u8]> = contents.values().flat_map(|bytes| bytes.chunks(B as usize)).collect();
    // Holes are in no file; what is free may hold zeros.
    pages.retain(|page| page.iter().any(|&b| b != 0));
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % n
    };
    let mut tried: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for image in [&crashed, &closed] {
        let bad = dir.path().join("bad");
        copy_tree(image, &bad);
        let clean = examine(&bad, &contents, "the control");
        assert!(!clean.is_found() && clean.failed == 0, "{clean:?}");
        std::fs::remove_dir_all(&bad).unwrap();
        for (class, relative) in files(image) {
            let relative = relative.strip_prefix(image).unwrap_or(&relative).to_path_buf();
            let bytes = std::fs::read(image.join(&relative)).unwrap();
            // Blocks that some fork shows: damage there must be found.
            let live: Vec<u64> = match class {
                "delta" | "inplace" => {
                    let blocks = bytes.chunks_exact(B as usize).enumerate();
                    blocks.filter(|(_, b)| pages.contains(b)).map(|(i, _)| i as u64).collect()
                }
                _ => Vec::new(),
            };
            for n in 0..FLIPS * rounds {
                let in_live = n % 2 == 0 && !live.is_empty();
                let at = match in_live {
                    true => live[random(live.len() as u64) as usize] * B + random(B),
                    false => random(bytes.len() as u64),
                };
                let bit = random(8) as u32;
                copy_tree(image, &bad);
                flip(&bad.join(&relative), at, bit);
                let what = format!("{} {}, byte {at}, bit {bit}", image.display(), relative.display());
                let outcome = examine(&bad, &contents, &what);
                std::fs::remove_dir_all(&bad).unwrap();
                if outcome.failed > 0 {
                    assert!(outcome.is_found(), "{what}: reads fail, and nothing is found");
                }
                let current = class == "inplace" && !outcome.is_found() && in_live;
                if in_live && !current {
                    assert!(outcome.failed > 0 && outcome.is_found(), "{what}: {outcome:?}");
                    assert!(
                        outcome.findings.iter().all(|f| !f.forks.is_empty() && f.block.is_some()),
                        "{outcome:?}"
                    );
                }
                if class == "store" {
                    assert!(outcome.refused.is_some(), "{what}");
                }
                let count = tried.entry(class).or_default();
                count.0 += 1;
                count.1 += usize::from(outcome.is_found());
            }
        }
    }
    println!("flips tried and found: {tried:?}");
    for class in ["delta", "inplace", "log", "map", "store", "table"] {
        let (_, found) = tried.get(class).copied().unwrap_or_default();
        assert!(found > 0, "no flip of class {class} was found: {tried:?}");
    }
}

#[test]
fn findings_name_all_forks_and_what_is_left_and_one_page_can_be_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (store, contents) = build(dir.path());
    let place = dir.path().join("store");
    store.close().unwrap();
    drop(store);
    let find = |page: &[u8]| {
        for (_, relative) in files(&place).into_iter().filter(|(class, _)| *class == "delta") {
            let bytes = std::fs::read(place.join(&relative)).unwrap();
            if let Some(i) = bytes.chunks_exact(B as usize).position(|b| b == page) {
                return (place.join(relative), i as u64 * B);
            }
        }
        panic!("the page is in no delta file");
    };
    // One that all three see, and one that the child wrote over its parent's.
    let (path, at) = find(&page(1));
    flip(&path, at + 4000, 3);
    let (path, at) = find(&page(401));
    flip(&path, at, 0);
    let store = Store::open(&place, Options::default()).unwrap();
    assert_eq!(store.check_records(&mut || true).unwrap().findings, []);
    let (findings, progress) = store.scrub(&scrub::Options::default(), &mut |_| true).unwrap();
    assert!(progress.pages > 70 && progress.wal_blocks > 0 && progress.base_blocks == 40, "{progress:?}");
    let of = |path: &str, block| {
        findings.iter().find(|f| f.path.as_deref() == Some(path) && f.block == Some(block))
    };
    let shared = of(FILES[0], 1).expect("block 1 of 16384");
    let mut forks = shared.forks.clone();
    forks.sort();
    assert_eq!((forks, shared.kind), (vec!["child".into(), "grandchild".into(), "main".into()], Kind::Page));
    assert!(shared.next_step.contains("no earlier version"), "{}", shared.next_step);
    assert!(of("base/5/copy", 1).is_some(), "the same slot in another file");
    let own = of(FILES[0], 2).expect("block 2 of 16384");
    let mut forks = own.forks.clone();
    forks.sort();
    assert_eq!(forks, ["child", "grandchild"]);
    assert!(own.next_step.contains("--restore base/5/16384:2"), "{}", own.next_step);
    assert_eq!(findings.len(), 3, "{findings:#?}");
    let only = scrub::Options { fork: Some("based".into()), ..Default::default() };
    assert_eq!(store.scrub(&only, &mut |_| true).unwrap().0, []);

    // Explicitly, page by page, fork by fork.
    assert!(store.restore_page("child", FILES[0], 1).is_err(), "nothing to restore it from");
    assert!(matches!(store.restore_page("main", FILES[0], 2), Err(Error::Invalid(_))), "it is whole there");
    store.restore_page("child", FILES[0], 2).unwrap();
    let block = |fork: &str| {
        let fork = store.by_name(fork).unwrap();
        let mut out = Vec::new();
        fork.read(fork.resolve(FILES[0]).unwrap().file, 2 * B, B as usize, &mut out).map(|()| out)
    };
    assert_eq!(block("child").unwrap(), page(2), "the parent's version");
    assert!(block("grandchild").is_err(), "nobody asked for that one");
    assert_eq!(
        block("main").unwrap(),
        contents[&("main".into(), FILES[0].into())][2 * B as usize..3 * B as usize]
    );
    store.close().unwrap();
}

#[test]
fn a_sealed_base_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = build(dir.path());
    let file = store.by_name("based").unwrap().resolve(FILES[0]).unwrap().file;
    store.close().unwrap();
    drop(store);
    let place = dir.path().join("store");
    // A base cannot be changed behind the back of its time stamps, so its seal is.
    let map = RocksMap::open(&place.join("map"), false).unwrap();
    let key = BaseSealRecord::key(file, 0);
    let (_, _, mut crcs) = BaseSealRecord::decode(&key, &map.get(&key).unwrap().unwrap()).unwrap();
    assert_eq!(crcs.len(), 40);
    crcs[7] ^= 1;
    let mut batch = Batch::default();
    batch.put(BaseSealRecord::encode(file, 0, &crcs));
    map.commit(&batch).unwrap();
    map.close().unwrap();
    drop(map);
    let store = Store::open(&place, Options::default()).unwrap();
    let based = store.by_name("based").unwrap();
    let mut out = Vec::new();
    based.read(file, 0, 7 * B as usize, &mut out).unwrap();
    let e = based.read(file, 5 * B, 4 * B as usize, &mut out).unwrap_err();
    assert!(e.to_string().contains("block 7:") && e.to_string().contains("base-dir/base/5/16384"), "{e}");
    let (findings, _) = store.scrub(&scrub::Options::default(), &mut |_| true).unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!((findings[0].kind, findings[0].block), (Kind::Base, Some(7)));
    store.remove("based").unwrap();
    store.wait_for_collection();
    store.close().unwrap();
    drop(store);
    let map = RocksMap::open(&place.join("map"), false).unwrap();
    assert_eq!(map.get(&key).unwrap(), None, "the seal goes with its base");
}

#[test]
fn counts_that_are_wrong_are_found_and_made_right() {
    let dir = tempfile::tempdir().unwrap();
    let (store, contents) = build(dir.path());
    store.close().unwrap();
    drop(store);
    let place = dir.path().join("store");
    let map = RocksMap::open(&place.join("map"), false).unwrap();
    let mut batch = Batch::default();
    map.scan(b"S", b"T", &mut |k, v| {
        let (delta, chunk, mut bits) = SlotsRecord::decode(k, v)?;
        bits[0] ^= 3;
        batch.put(SlotsRecord::encode(delta, chunk, &bits));
        Ok(true)
    })
    .unwrap();
    batch.delete_range(b"C".to_vec(), b"D".to_vec());
    map.scan(b"L", b"M", &mut |k, v| {
        let record = LayerRecord::decode(k, v)?;
        batch.put(LayerRecord { pages: record.pages + 1, logical_bytes: 7, ..record }.encode());
        Ok(true)
    })
    .unwrap();
    batch.put(Counters::default().encode());
    // And one that cannot be read.
    batch.put((b"S\0\0\0\x63\0\0\0\0".to_vec(), b"nonsense".to_vec()));
    map.commit(&batch).unwrap();
    map.close().unwrap();
    drop(map);
    let (report, _) = check_closed(&place, None, &mut |_| true).unwrap();
    for part in [
        "are taken, and no record",
        "are free, and records",
        "references, and 1 are counted",
        "pages, and",
        "and 7 are counted",
        "have been given out",
        "block map record 53",
    ] {
        assert!(
            report.findings.iter().any(|f| f.message.contains(part)),
            "nothing about {part:?}: {:#?}",
            report.findings
        );
    }
    assert!(report.findings.iter().all(|f| f.repairable));
    assert!(repair_closed(&place).unwrap() > 10);
    assert_eq!(check_closed(&place, Some(&scrub::Options::default()), &mut |_| true).unwrap().0.findings, []);
    assert_eq!(repair_closed(&place).unwrap(), 0, "once is enough");
    let outcome = examine(&place, &contents, "repaired");
    assert!(!outcome.is_found() && outcome.failed == 0, "{outcome:?}");
}

#[test]
fn a_check_and_a_scrub_need_no_pause() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = build(dir.path());
    let main = store.by_name("main").unwrap();
    let file = main.resolve(FILES[0]).unwrap().file;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (main, store, stop) = (main.clone(), store.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                for i in 0..30 {
                    main.write(file, i * B, &page(n)).unwrap();
                }
                main.sync_all().unwrap();
                if n % 8 == 0 {
                    store.fork("main", "brief", b"", &mut |_| Ok(())).unwrap();
                    store.by_name("brief").unwrap().write(file, 0, &page(n)).unwrap();
                    store.remove("brief").unwrap();
                }
                store.seal_at_rest(Duration::ZERO).unwrap();
            }
            n
        })
    };
    for _ in 0..15 {
        assert_eq!(store.check_records(&mut || true).unwrap().findings, []);
        assert_eq!(store.scrub(&scrub::Options::default(), &mut |_| true).unwrap().0, []);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.join().unwrap() > 10);
    drop(main);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn a_damaged_page_header_of_postgresql_is_seen() {
    let mut heap = vec![0; B as usize];
    heap[12..20].copy_from_slice(&[28, 0, 0, 0x1f, 0, 0x20, 4, 0x20]);
    heap[24] = 9;
    let sum = pg::checksum(&heap, 5);
    heap[8..10].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(pg::wrong(&heap, 5, true), None);
    assert!(pg::wrong(&heap, 6, true).unwrap().contains("checksum"), "a page in the wrong place");
    assert_eq!(pg::wrong(&heap, 6, false), None);
    assert_eq!(pg::wrong(&vec![0; B as usize], 6, true), None, "not used yet");
    for at in [10usize, 13, 15, 16, 18, 4000] {
        let mut bad = heap.clone();
        bad[at] ^= 0x81;
        assert!(pg::wrong(&bad, 5, true).is_some(), "byte {at}");
    }
}

/// A map that counts what is asked of it.
struct Counted {
    map: MemMap,
    gets: AtomicU64,
}

impl Map for Counted {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.map.get(key)
    }
    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), Error> {
        self.map.scan(start, end, visit)
    }
    fn commit(&self, batch: &Batch) -> Result<(), Error> {
        self.map.commit(batch)
    }
    fn close(&self) -> Result<(), Error> {
        self.map.close()
    }
    fn verify(&self, alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>, Error> {
        self.map.verify(alive)
    }
}

/// What a file is to PostgreSQL is found out once, however many pages it has.
#[test]
fn looking_at_postgresqls_pages_costs_nothing_per_page() {
    let lookups = |blocks: u64| {
        let parts = mem::Parts3::new();
        let store = parts.open();
        let main = mem::cluster(&store, "main");
        let rel = mem::file(&main, "base/5/16384");
        // New to PostgreSQL, so nothing is wrong with them; and two that nobody has written.
        (0..blocks).for_each(|block| main.write(rel, block * B, &mem::page(0)).unwrap());
        let child = mem::fork(&store, "main", "child");
        [1, 4].into_iter().for_each(|block| child.write(rel, block * B, &mem::page(7)).unwrap());
        child.sync_all().unwrap();
        let map = Counted { map: parts.map.clone(), gets: AtomicU64::new(0) };
        let stored = Stored { map: &map, delta: &parts.delta, inplace: &parts.inplace, in_use: &|_| false };
        let options = scrub::Options { postgres: true, ..Default::default() };
        let (findings, progress) = scrub::scrub(&stored, &options, &mut |_| true).unwrap();
        assert_eq!(progress.pages, blocks + 2);
        let found: Vec<_> =
            findings.iter().map(|f| (f.path.as_deref(), f.block, f.forks.as_slice())).collect();
        let forks = ["child".to_string()];
        let wrong = |block| (Some("base/5/16384"), Some(block), &forks[..]);
        assert_eq!(found, [wrong(1), wrong(4)]);
        store.close().unwrap();
        map.gets.into_inner()
    };
    assert_eq!(lookups(10), lookups(3000));
}
