//! The memory of page tables has a ceiling: what is idle is dropped and loaded again. Everything here is counted: bytes of
//! page tables, which are those of the process (so there is one test at a time), and lookups of the block map.

#[path = "common/counting.rs"]
mod counting;
#[path = "common/mem.rs"]
mod mem;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use counting::Counting;
use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use pgcowfs::layer::tree;
use pgcowfs::{FileId, Fork, Options, Store};

/// The memory is one for all tests of this program.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

fn open(parts: &Parts3, map_memory_bytes: u64) -> (Arc<Store>, Counting) {
    let map = Counting::of(parts);
    let options = Options { merge: false, map_memory_bytes, ..Options::default() };
    (parts.open_on(Arc::new(map.clone()), options).unwrap(), map)
}

/// The byte that a page of a file is full of.
fn byte(n: u64, block: u64) -> u8 {
    (n * 31 + block * 7 + 1) as u8
}

/// Relations with that many pages each, far apart: each page has a leaf of its own.
fn relations(fork: &Fork, count: u64, pages: u64) -> Vec<FileId> {
    let files: Vec<FileId> = (0..count).map(|n| file(fork, &format!("base/5/{n}"))).collect();
    for (n, &file) in files.iter().enumerate() {
        for i in 0..pages {
            fork.write(file, i * 16 * B, &page(byte(n as u64, i))).unwrap();
        }
    }
    fork.sync_all().unwrap();
    files
}

/// Reads all but the first, to which others write.
fn check_others(fork: &Fork, files: &[FileId], pages: u64) {
    for (n, &file) in files.iter().enumerate().skip(1) {
        for i in 0..pages {
            assert_eq!(read(fork, file, i * 16 * B, B), page(byte(n as u64, i)), "file {n}, page {i}");
        }
    }
}

#[test]
fn ten_times_the_ceiling_is_read_through() {
    let _turn = turn();
    const FILES: u64 = 200;
    const PAGES: u64 = 40;
    let parts = Parts3::new();
    let all = {
        let (store, _) = open(&parts, u64::MAX);
        relations(&cluster(&store, "main"), FILES, PAGES);
        let all = tree::memory().bytes;
        store.close().unwrap();
        all
    };
    let ceiling = all / 10;
    let (store, map) = open(&parts, ceiling);
    let main = store.by_name("main").unwrap();
    let files: Vec<FileId> = (0..FILES).map(|n| main.resolve(&format!("base/5/{n}")).unwrap().file).collect();
    let one = all / FILES;
    map.taken();
    let mut lookups = 0;
    for round in 1..=3 {
        let mut most = 0;
        for (n, &file) in files.iter().enumerate() {
            for i in 0..PAGES {
                assert_eq!(read(&main, file, i * 16 * B, B), page(byte(n as u64, i)));
                most = tree::memory().bytes.max(most);
            }
        }
        // What is being used: the one that is read, and one that was loaded when all others had just been used.
        assert!(most <= ceiling + 2 * one, "round {round}: {most} bytes with a ceiling of {ceiling}");
        // A table that is loaded takes two lookups, of cleared ranges and of pages: this layer is the lowest. One that is
        // dropped takes one, for the layer to load it from. Each is loaded once in a round.
        let loaded = round * FILES;
        let dropped = loaded - tree::memory().bytes / one;
        let taken = map.taken();
        lookups += taken.0;
        assert_eq!(lookups, 2 * loaded + dropped, "round {round}");
        assert!(taken.1 <= FILES * (PAGES + 2), "round {round}: {} records", taken.1);
    }
    store.close().unwrap();
}

/// A table that is used again and again stays, whatever else is read.
#[test]
fn what_is_used_stays() {
    let _turn = turn();
    const PAGES: u64 = 40;
    let parts = Parts3::new();
    let (store, map) = open(&parts, 100 * 1024);
    let main = cluster(&store, "main");
    let files = relations(&main, 100, PAGES);
    store.drop_page_tables();
    read(&main, files[0], 0, B);
    map.taken();
    for (n, &file) in files.iter().enumerate().skip(1) {
        assert_eq!(read(&main, file, 16 * B, B), page(byte(n as u64, 1)));
        let before = map.taken();
        assert!(before.0 >= 2, "file {n} was loaded");
        assert_eq!(read(&main, files[0], 16 * B, B), page(byte(0, 1)));
        assert_eq!(map.taken(), (0, 0), "file 0 stays");
    }
    store.close().unwrap();
}

/// What has changed and is not durable is not dropped, whoever asks.
#[test]
fn what_is_pending_stays() {
    let _turn = turn();
    let parts = Parts3::new();
    let (store, _) = open(&parts, 0);
    let main = cluster(&store, "main");
    let files = relations(&main, 3, 4);
    store.drop_page_tables();
    assert_eq!(tree::memory().bytes, 0);
    main.write(files[1], 0, &page(99)).unwrap();
    // Half a block, whose other half is on its way.
    main.write(files[2], 0, &page(77)[..4096]).unwrap();
    store.drop_page_tables();
    assert!(tree::memory().bytes > 0);
    assert_eq!(read(&main, files[1], 0, B), page(99));
    assert_eq!(read(&main, files[2], 0, 4096), page(77)[..4096]);
    main.sync_all().unwrap();
    main.write(files[2], 4096, &page(77)[4096..]).unwrap();
    main.sync_all().unwrap();
    assert!(store.drop_page_tables() > 0);
    assert_eq!(tree::memory().bytes, 0);
    assert_eq!(read(&main, files[1], 0, B), page(99));
    assert_eq!(read(&main, files[2], 0, B), page(77));
    assert_eq!(read(&main, files[2], 16 * B, B), page(byte(2, 1)));
    store.close().unwrap();
}

/// Forks that shared a table before it was dropped share it after it was loaded again; and where a fork has changed a
/// file, it shares what it has not changed.
#[test]
fn forks_go_on_sharing() {
    let _turn = turn();
    const PAGES: u64 = 200;
    const FORKS: u64 = 20;
    let parts = Parts3::new();
    let (store, map) = open(&parts, u64::MAX);
    let main = cluster(&store, "main");
    let files = relations(&main, 1, PAGES);
    let alone = tree::memory().bytes;
    let forks: Vec<_> = (0..FORKS).map(|n| fork(&store, "main", &format!("f{n}"))).collect();
    for (n, fork) in forks.iter().enumerate() {
        assert_eq!(read(fork, files[0], 0, B), page(byte(0, 0)));
        // Of half of them the file is their own.
        if n % 2 == 1 {
            fork.write(files[0], 5 * 16 * B, &page(n as u8)).unwrap();
            fork.sync_all().unwrap();
        }
    }
    let shared = tree::memory().bytes;
    assert!(store.drop_page_tables() > 0);
    assert_eq!(tree::memory().bytes, 0);
    map.taken();
    for (n, fork) in forks.iter().enumerate() {
        let other = if n % 2 == 1 { page(n as u8) } else { page(byte(0, 5)) };
        assert_eq!(read(fork, files[0], 5 * 16 * B, B), other, "fork {n}");
        assert_eq!(read(fork, files[0], 6 * 16 * B, B), page(byte(0, 6)), "fork {n}");
    }
    assert!(tree::memory().bytes <= shared.max(alone + FORKS * 4096), "{shared} -> {:?}", tree::memory());
    let (lookups, records) = map.taken();
    // The pages of the relation are read once, by one of the twenty; besides, each fork looks through the layers that it
    // stands on for the nearest that has the relation.
    assert!(records < 2 * PAGES && lookups <= FORKS * FORKS / 2, "{lookups} lookups, {records} records");
    store.close().unwrap();
}

/// Tables go and come while forks are made, removed and merged, and others read.
#[test]
fn everything_else_goes_on() {
    let _turn = turn();
    const PAGES: u64 = 30;
    let parts = Parts3::new();
    let store = parts
        .open_on(Arc::new(parts.map.clone()), Options { map_memory_bytes: 64 << 10, ..Options::default() })
        .unwrap();
    let main = cluster(&store, "main");
    let files = relations(&main, 20, PAGES);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    check_others(&main, &files, PAGES);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(SeqCst) {
                store.drop_page_tables();
                std::thread::yield_now();
            }
        });
        for n in 0..60u8 {
            let name = format!("f{n}");
            let child = fork(&store, "main", &name);
            main.write(files[0], u64::from(n) % 8 * B, &page(n)).unwrap();
            child.write(files[0], u64::from(n) % 8 * B, &page(n + 100)).unwrap();
            if n % 3 == 0 {
                store.snapshot("main", &name).unwrap();
            }
            assert_eq!(read(&main, files[0], u64::from(n) % 8 * B, B), page(n));
            assert_eq!(read(&child, files[0], u64::from(n) % 8 * B, B), page(n + 100));
            if n >= 5 {
                store.remove(&format!("f{}", n - 5)).unwrap();
            }
            if n >= 9 && n % 3 == 0 {
                store.remove_snapshot("main", &format!("f{}", n - 9)).unwrap();
            }
        }
        done.store(true, SeqCst);
    });
    collect(&store);
    check_others(&main, &files, PAGES);
    let found = store.check(true).unwrap();
    assert!(found.is_empty(), "{found:#?}");
    store.close().unwrap();
}
