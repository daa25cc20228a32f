//! Layers that only one other layer stands on become one with it: at the cost of
//! the smaller, whatever is done to them, and nobody sees a difference.

#[path = "common/mem.rs"]
mod mem;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use pgcowfs::device::Device;
use pgcowfs::map::mem::MemMap;
use pgcowfs::map::schema::{ForkRecord, LayerRecord, SnapshotRecord};
use pgcowfs::map::{Batch, Change, Map, Visit};
use pgcowfs::{Error, FileId, Fork, LayerId, Options, RenameMode, SetAttr, Store};

/// Called before each commit.
type Watch = Mutex<Option<Box<dyn Fn() + Send>>>;

/// A map that counts the changes that are made to it.
#[derive(Clone)]
struct Counting {
    map: MemMap,
    changes: Arc<AtomicU64>,
    ranges: Arc<AtomicU64>,
    watch: Arc<Watch>,
}

impl Map for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.map.get(key)
    }
    fn scan(&self, start: &[u8], end: &[u8], visit: &mut Visit<'_>) -> Result<(), Error> {
        self.map.scan(start, end, visit)
    }
    fn commit(&self, batch: &Batch) -> Result<(), Error> {
        if let Some(watch) = &*self.watch.lock().unwrap() {
            watch();
        }
        self.changes.fetch_add(batch.changes.len() as u64, SeqCst);
        let ranges = batch.changes.iter().filter(|change| matches!(change, Change::DeleteRange(..)));
        self.ranges.fetch_add(ranges.count() as u64, SeqCst);
        self.map.commit(batch)
    }
    fn close(&self) -> Result<(), Error> {
        self.map.close()
    }
    fn verify(&self, alive: &mut dyn FnMut() -> bool) -> Result<Vec<String>, Error> {
        self.map.verify(alive)
    }
}

/// A store that merges when it is told to.
struct Rig {
    parts: Parts3,
    store: Arc<Store>,
    map: Counting,
}

impl Rig {
    fn new() -> Rig {
        Rig::of(Parts3::new())
    }

    fn of(parts: Parts3) -> Rig {
        Rig::of_scattered(parts, Options::default().scattered_max)
    }

    fn of_scattered(parts: Parts3, scattered_max: usize) -> Rig {
        let map = Counting {
            map: parts.map.clone(),
            changes: Arc::default(),
            ranges: Arc::default(),
            watch: Arc::default(),
        };
        let options = Options { merge: false, merge_step_records: 16, scattered_max, ..Options::default() };
        let store = parts.open_on(Arc::new(map.clone()), options).unwrap();
        Rig { parts, store, map }
    }

    /// Changes of the map while layers are merged.
    fn merge(&self) -> u64 {
        self.store.wait_for_collection();
        let before = self.map.changes.load(SeqCst);
        collect(&self.store);
        self.map.changes.load(SeqCst) - before
    }

    fn count(&self, tag: u8) -> u64 {
        let mut count = 0;
        let counted = self.map.scan(&[tag], &[tag + 1], &mut |_, _| {
            count += 1;
            Ok(true)
        });
        counted.unwrap();
        count
    }

    fn layers(&self) -> u64 {
        self.count(b'L')
    }

    fn pages(&self) -> u64 {
        self.count(b'B')
    }

    fn check(&self) {
        assert_eq!(self.store.check(true).unwrap(), Vec::<String>::new());
    }

    fn reopened(self) -> Rig {
        self.store.close().unwrap();
        Rig::of(self.parts)
    }
}

fn write(fork: &Fork, file: FileId, block: u64, byte: u8) {
    fork.write(file, block * B, &page(byte)).unwrap();
}

fn cut(fork: &Fork, file: FileId, size: u64) {
    fork.set_attr(file, SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

/// All that a fork shows: contents by path.
fn seen(fork: &Fork, paths: &[&str]) -> BTreeMap<String, Option<Vec<u8>>> {
    let content = |path: &str| {
        let attr = fork.resolve(path).ok()?;
        Some(read(fork, attr.file, 0, attr.size))
    };
    paths.iter().map(|path| (path.to_string(), content(path))).collect()
}

#[test]
fn a_fork_that_comes_and_goes_leaves_nothing() {
    let rig = Rig::new();
    let main = cluster(&rig.store, "main");
    let f = file(&main, "base/5/16384");
    for block in 0..500 {
        write(&main, f, block, 1);
    }
    main.sync_all().unwrap();
    let mut costs = Vec::new();
    for round in 0..20u64 {
        let gone = file(&main, "base/5/16385");
        let child = fork(&rig.store, "main", "child");
        // What takes the place of a file, and the end of one.
        cut(&child, gone, 0);
        main.unlink(main.resolve("base/5").unwrap().file, b"16385").unwrap();
        for block in 0..10 {
            write(&main, f, (round * 10 + block) % 500, 2);
            write(&child, f, block, 3);
        }
        rig.store.remove("child").unwrap();
        main.sync_all().unwrap();
        costs.push(rig.merge());
        assert_eq!((rig.layers(), rig.pages()), (2, 500), "round {round}");
    }
    // The old layer's 500 pages are never moved: ten are, and a few records
    // more.
    assert!(costs.iter().all(|&cost| cost < 80), "{costs:?}");
    // Reads slow down with each range that was deleted.
    assert_eq!(rig.map.ranges.load(SeqCst), 0, "few records are deleted one by one");
    rig.check();
    assert_eq!(rig.store.info("main").unwrap().delta_bytes, 500 * B);
}

#[test]
fn what_a_merge_costs_follows_from_the_smaller_layer() {
    let cost = |big: u64, small: u64, big_below: bool| {
        let rig = Rig::new();
        let main = cluster(&rig.store, "main");
        let f = file(&main, "base/5/16384");
        let (first, second) = if big_below { (big, small) } else { (small, big) };
        for block in 0..first {
            write(&main, f, block, 1);
        }
        fork(&rig.store, "main", "child");
        for block in 0..second {
            write(&main, f, 10_000 + block, 2);
        }
        fork(&rig.store, "main", "other");
        rig.store.remove("child").unwrap();
        rig.store.remove("other").unwrap();
        let cost = rig.merge();
        assert_eq!((rig.layers(), rig.pages()), (2, first + second));
        rig.check();
        cost
    };
    for big_below in [true, false] {
        let (one, hundred) = (cost(100, 4, big_below), cost(1000, 4, big_below));
        assert!(hundred <= one + 4, "4 pages into 100: {one}, into 1000: {hundred}");
        assert!(cost(1000, 40, big_below) > hundred + 36);
    }
}

#[test]
fn everything_that_a_layer_can_say_survives() {
    const WAL: &str = "pg_wal/000000010000000000000001";
    const PATHS: [&str; 8] =
        ["base/5/1", "base/5/2", "base/5/3", "base/5/4", "base/5/5", "base/5/6", WAL, "base/5/link"];
    // Which of the two layers is the larger one decides the direction.
    for filler in [0, 200] {
        for restart in [false, true] {
            let rig = Rig::new();
            let main = cluster(&rig.store, "main");
            let files: Vec<FileId> = PATHS[..5].iter().map(|path| file(&main, path)).collect();
            let wal = file(&main, WAL);
            for &f in &files {
                (0..20).for_each(|block| write(&main, f, block, 1));
            }
            (0..4).for_each(|block| write(&main, wal, block, 1));
            // It stands below all, and stays: names and files of it are hidden,
            // not gone.
            fork(&rig.store, "main", "kept");
            let kept = seen(&rig.store.by_name("kept").unwrap(), &PATHS);
            write(&main, files[0], 3, 2);
            let filled = file(&main, "base/5/6");
            (0..20).for_each(|block| write(&main, filled, block, 2));
            cut(&main, files[1], 5 * B);
            write(&main, files[1], 9, 2);
            let base5 = main.resolve("base/5").unwrap().file;
            main.unlink(base5, b"3").unwrap();
            write(&main, wal, 1, 2);
            fork(&rig.store, "main", "child");
            // And over that again.
            for block in 0..filler {
                write(&main, files[0], 100 + block, 3);
            }
            write(&main, files[0], 3, 3);
            cut(&main, files[1], 3 * B);
            write(&main, files[1], 4, 3);
            cut(&main, files[0], 4 * B);
            main.unlink(base5, b"6").unwrap();
            main.unlink(base5, b"4").unwrap();
            main.rename(base5, b"5", base5, b"3", RenameMode::Replace).unwrap();
            main.link(files[0], base5, b"link").unwrap();
            write(&main, wal, 2, 3);
            main.sync_all().unwrap();
            let before = seen(&main, &PATHS);
            drop(main);
            rig.store.remove("child").unwrap();
            let rig = if restart { rig.reopened() } else { rig };
            rig.merge();
            rig.check();
            // Below, main's two as one, main's head, and the other fork's head.
            assert_eq!(rig.layers(), 4);
            let compare = |rig: &Rig| {
                assert_eq!(seen(&rig.store.by_name("main").unwrap(), &PATHS), before);
                assert_eq!(seen(&rig.store.by_name("kept").unwrap(), &PATHS), kept);
            };
            compare(&rig);
            let rig = rig.reopened();
            compare(&rig);
            // The rest goes as well, and then there is one below the head.
            rig.store.remove("kept").unwrap();
            rig.merge();
            assert_eq!(rig.layers(), 2);
            let rig = rig.reopened();
            assert_eq!(seen(&rig.store.by_name("main").unwrap(), &PATHS), before);
            rig.check();
        }
    }
}

#[test]
fn tables_that_were_not_loaded_are_found_in_their_new_place() {
    let rig = Rig::new();
    let main = cluster(&rig.store, "main");
    let f = file(&main, "base/5/16384");
    (0..50).for_each(|block| write(&main, f, block, 1));
    fork(&rig.store, "main", "a");
    (0..5).for_each(|block| write(&main, f, block, 2));
    fork(&rig.store, "main", "b");
    drop(main);
    let rig = rig.reopened();
    // Both are in memory, the table of one of them loaded, before anything moves.
    let (main, b) = (rig.store.by_name("main").unwrap(), rig.store.by_name("b").unwrap());
    assert_eq!(read(&rig.store.by_name("a").unwrap(), f, 0, B), page(1));
    rig.store.remove("a").unwrap();
    rig.merge();
    assert_eq!(rig.layers(), 3);
    for fork in [&main, &b] {
        for block in 0..50 {
            assert_eq!(read(fork, f, block * B, B), page(if block < 5 { 2 } else { 1 }));
        }
    }
    rig.check();
}

#[test]
fn superseded_pages_come_back_while_a_fork_goes_on() {
    let rig = Rig::new();
    let main = cluster(&rig.store, "main");
    let f = file(&main, "base/5/16384");
    (0..100).for_each(|block| write(&main, f, block, 1));
    fork(&rig.store, "main", "child");
    rig.store.remove("child").unwrap();
    for round in 2..6 {
        (0..100).for_each(|block| write(&main, f, block, round));
        main.sync_all().unwrap();
        rig.merge();
        assert_eq!((rig.layers(), rig.pages()), (2, 100));
    }
    cut(&main, f, 0);
    main.sync_all().unwrap();
    rig.merge();
    assert_eq!((rig.layers(), rig.pages()), (2, 0));
    rig.check();
}

#[test]
fn a_merge_goes_on_after_a_crash_in_its_midst() {
    let rig = Rig::new();
    let main = cluster(&rig.store, "main");
    let f = file(&main, "base/5/16384");
    (0..100).for_each(|block| write(&main, f, block, 1));
    fork(&rig.store, "main", "child");
    (0..60).for_each(|block| write(&main, f, block, 2));
    rig.store.remove("child").unwrap();
    main.sync_all().unwrap();
    let images = Arc::new(Mutex::new(Vec::new()));
    {
        let (images, parts) = (images.clone(), rig.parts.share());
        *rig.map.watch.lock().unwrap() = Some(Box::new(move || images.lock().unwrap().push(parts.copy())));
    }
    rig.merge();
    *rig.map.watch.lock().unwrap() = None;
    let images = std::mem::take(&mut *images.lock().unwrap());
    assert!(images.len() > 5, "{}", images.len());
    for parts in images {
        let rig = Rig::of(parts);
        rig.check();
        let main = rig.store.by_name("main").unwrap();
        let right = |main: &Fork| {
            (0..100).for_each(|block| {
                assert_eq!(read(main, f, block * B, B), page(if block < 60 { 2 } else { 1 }))
            })
        };
        right(&main);
        rig.merge();
        assert_eq!((rig.layers(), rig.pages()), (2, 100));
        right(&main);
        rig.check();
    }
}

/// Each fork leaves a host file behind in which the segment has one of its blocks.
#[test]
fn a_segment_that_outlives_many_forks_lies_in_few_host_files() {
    const MOST: usize = 4;
    let rig = Rig::of_scattered(Parts3::new(), MOST);
    let main = cluster(&rig.store, "main");
    let wal = file(&main, "pg_wal/000000010000000000000001");
    (0..64).for_each(|block| write(&main, wal, block, 1));
    main.sync_all().unwrap();
    for round in 0..16u8 {
        fork(&rig.store, "main", "child");
        write(&main, wal, u64::from(round) * 3, 2 + round);
        main.sync(wal, true).unwrap();
        // What was acknowledged survives, whatever is under way.
        let crashed = Rig::of(rig.parts.worst_crash());
        let child = crashed.store.by_name("child").unwrap();
        let after = crashed.store.by_name("main").unwrap();
        assert_eq!(read(&after, wal, u64::from(round) * 3 * B, B), page(2 + round));
        assert_eq!(read(&child, wal, u64::from(round) * 3 * B, B), page(1));
        crashed.check();
        rig.store.remove("child").unwrap();
        rig.merge();
        // The spare ones are nobody's yet.
        let files = rig.parts.inplace.list().unwrap().len();
        assert!(files <= MOST + 1 + 2, "{files} host files after {} forks", round + 1);
    }
    for block in 0..64 {
        let byte = if block % 3 == 0 && block < 48 { 2 + (block / 3) as u8 } else { 1 };
        assert_eq!(read(&main, wal, block * B, B), page(byte), "block {block}");
    }
    rig.check();
}

/// Somebody removes a fork while a merge is under way, and the daemon ends at once: the
/// removed layer is still there, and the one below it has become one with another.
#[test]
fn a_removal_that_merging_has_overtaken_is_finished_at_the_next_start() {
    let rig = Rig::new();
    let main = cluster(&rig.store, "main");
    let table = file(&main, "base/5/16384");
    write(&main, table, 0, 1);
    main.sync_all().unwrap();
    let child = fork(&rig.store, "main", "child");
    write(&child, table, 0, 2);
    child.sync_all().unwrap();
    let (layers, pages) = (rig.layers(), rig.pages());
    rig.store.close().unwrap();

    let mut heads = Vec::new();
    let each = rig.parts.map.scan(b"F", b"G", &mut |key, value| {
        let record = ForkRecord::decode(key, value)?;
        heads.extend((record.name == "child").then_some((record.id, record.head)));
        Ok(true)
    });
    each.unwrap();
    let [(id, head)] = heads[..] else { panic!("one child: {heads:?}") };
    let key = LayerRecord::key(head);
    let record = LayerRecord::decode(&key, &rig.parts.map.get(&key).unwrap().unwrap()).unwrap();
    let mut batch = Batch::default();
    batch.put(LayerRecord { parent: LayerId(4000), ..record }.encode());
    rig.parts.map.commit(&batch).unwrap();
    let refused = rig.parts.open_on(Arc::new(rig.parts.map.clone()), Options::default());
    let why = refused.err().expect("a fork's layers are missing").to_string();
    assert!(why.contains("parent 4000 is missing"), "{why}");

    let mut batch = Batch::default();
    batch.delete(ForkRecord::key(id));
    batch.delete(SnapshotRecord::key(id, ""));
    rig.parts.map.commit(&batch).unwrap();
    let rig = Rig::of(rig.parts);
    rig.store.wait_for_collection();
    assert_eq!((rig.layers(), rig.pages()), (layers - 1, pages - 1));
    rig.check();
    assert_eq!(read(&rig.store.by_name("main").unwrap(), table, 0, B), page(1));
}
