//! Ephemeral forks: nothing waits for them, they harm nobody, and they end with the
//! store's closing.

#[path = "common/mem.rs"]
mod mem;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use mem::{B, Parts3, cluster, file, fork, page, read};
use pgcowfs::device::mem::MemDevice;
use pgcowfs::device::power::{Point, Power};
use pgcowfs::map::mem::MemMap;
use pgcowfs::{Fork, Options, ResetTo, Store};

fn ephemeral(store: &Store, parent: &str, child: &str) -> Arc<Fork> {
    let mut edit = |fork: &Fork| {
        fork.set_ephemeral();
        Ok(())
    };
    store.fork(parent, child, b"of its own", &mut edit).unwrap();
    store.by_name(child).unwrap()
}

fn names(store: &Store) -> Vec<String> {
    store.forks().into_iter().map(|info| info.name).collect()
}

fn check(store: &Store) {
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

/// Parts of which such points are counted.
fn counted(which: &'static [Point]) -> (Parts3, Arc<AtomicU64>) {
    let power = Power::default();
    let parts =
        Parts3 { map: MemMap::on(&power), delta: MemDevice::on(&power), inplace: MemDevice::on(&power) };
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    power.watch(Some(Box::new(move |point| {
        if which.contains(&point) {
            counter.fetch_add(1, SeqCst);
        }
        Ok(())
    })));
    (parts, count)
}

/// Quiet but for what a test asks for.
fn open(parts: &Parts3, ephemeral_pending_max: usize) -> Arc<Store> {
    let options = Options { merge: false, ephemeral_pending_max, ..Options::default() };
    parts.open_on(Arc::new(parts.map.clone()), options).unwrap()
}

#[test]
fn a_sync_makes_nothing_durable() {
    // Spare WAL files are made, and flushed, in the background.
    for (path, points) in [
        ("base/5/1", &[Point::Flush, Point::FlushNames, Point::Commit][..]),
        ("pg_wal/000000010000000000000001", &[Point::Commit][..]),
    ] {
        let (parts, count) = counted(points);
        let store = open(&parts, usize::MAX);
        let main = cluster(&store, "main");
        let id = file(&main, path);
        main.write(id, 0, &page(1)).unwrap();
        let child = ephemeral(&store, "main", "child");
        assert!(store.info("child").unwrap().ephemeral && !store.info("main").unwrap().ephemeral);
        let write_and_sync = |fork: &Fork, byte| {
            // Its delta file is made with the first page.
            fork.write(id, B, &page(byte)).unwrap();
            count.store(0, SeqCst);
            for data_only in [true, false] {
                fork.write(id, 0, &page(byte)).unwrap();
                fork.sync(id, data_only).unwrap();
            }
            count.load(SeqCst)
        };
        assert_eq!(write_and_sync(&child, 2), 0, "{path}");
        assert!(write_and_sync(&main, 3) > 0, "{path}: a fork that lasts");
        assert_eq!((read(&child, id, 0, B), read(&main, id, 0, B)), (page(2), page(3)));
        check(&store);
        store.close().unwrap();
    }
}

/// However the store ended, the fork is gone, and its caller is told what it was.
#[test]
fn it_is_gone_when_the_store_is_opened_again() {
    for clean in [true, false] {
        let parts = Parts3::new();
        let store = parts.open();
        let main = cluster(&store, "main");
        let table = file(&main, "base/5/1");
        main.write(table, 0, &page(1)).unwrap();
        let child = ephemeral(&store, "main", "child");
        for block in 0..64 {
            child.write(table, block * B, &page(2)).unwrap();
        }
        // A part of it may be committed.
        child.sync_all().unwrap();
        child.write(table, 0, &page(3)).unwrap();
        store.snapshot("child", "kept").unwrap();
        main.sync_all().unwrap();
        let parts = match clean {
            true => {
                store.close().unwrap();
                parts
            }
            false => {
                let left = parts.worst_crash();
                store.close().unwrap();
                left
            }
        };
        let store = parts.open();
        assert_eq!(names(&store), ["main"]);
        let ended = store.ended();
        assert_eq!(
            (ended.len(), ended[0].name.as_str(), ended[0].meta.as_slice()),
            (1, "child", &b"of its own"[..])
        );
        assert_eq!(read(&store.by_name("main").unwrap(), table, 0, B), page(1));
        mem::collect(&store);
        check(&store);
        // Its name can be had again.
        fork(&store, "main", "child");
        store.close().unwrap();
        let store = parts.open();
        assert_eq!((names(&store), store.ended().len()), (vec!["child".to_string(), "main".to_string()], 0));
        store.close().unwrap();
    }
}

/// What is made from it is as durable as any fork, with all that was not.
#[test]
fn forks_of_it_last() {
    let parts = Parts3::new();
    let store = open(&parts, usize::MAX);
    let main = cluster(&store, "main");
    let (table, wal) = (file(&main, "base/5/1"), file(&main, "pg_wal/000000010000000000000001"));
    let passing = ephemeral(&store, "main", "passing");
    passing.write(table, 0, &page(4)).unwrap();
    passing.write(wal, 0, &page(5)).unwrap();
    fork(&store, "passing", "kept");
    passing.write(table, 0, &page(6)).unwrap();
    store.snapshot("passing", "six").unwrap();
    passing.write(table, 0, &page(7)).unwrap();
    store.fork_snapshot("passing", "six", "of-six", b"", &mut |_| Ok(())).unwrap();
    assert!(!store.info("kept").unwrap().ephemeral && !store.info("of-six").unwrap().ephemeral);
    let left = parts.worst_crash();
    store.close().unwrap();
    let store = left.open();
    assert_eq!(names(&store), ["kept", "main", "of-six"]);
    for (name, byte) in [("kept", 4), ("of-six", 6)] {
        let fork = store.by_name(name).unwrap();
        assert_eq!((read(&fork, table, 0, B), read(&fork, wal, 0, B)), (page(byte), page(5)), "{name}");
    }
    mem::collect(&store);
    check(&store);
    store.close().unwrap();
}

/// A reset and a rename leave it what it is.
#[test]
fn it_stays_ephemeral() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let table = file(&main, "base/5/1");
    main.write(table, 0, &page(1)).unwrap();
    ephemeral(&store, "main", "child").write(table, 0, &page(2)).unwrap();
    store.reset("child", &ResetTo::Origin, None, &mut |_| Ok(())).unwrap();
    store.rename("child", "renamed").unwrap();
    assert!(store.info("renamed").unwrap().ephemeral);
    assert_eq!(read(&store.by_name("renamed").unwrap(), table, 0, B), page(1));
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(names(&store), ["main"]);
    check(&store);
    store.close().unwrap();
}

/// What it has changed is committed in the background before it takes much memory.
#[test]
fn its_changes_do_not_pile_up() {
    let (parts, count) = counted(&[Point::Commit]);
    let store = open(&parts, 100);
    let main = cluster(&store, "main");
    let table = file(&main, "base/5/1");
    let child = ephemeral(&store, "main", "child");
    let committed = || {
        let before = count.load(SeqCst);
        mem_wait(|| count.load(SeqCst) > before)
    };
    for block in 0..200 {
        child.write(table, block * B, &page(block as u8)).unwrap();
    }
    assert!(committed(), "much is pending");
    // Punched again and again, it would be a long list of nothing.
    for _ in 0..200 {
        child.fallocate(table, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, B).unwrap();
    }
    assert!(committed(), "much is pending again");
    assert_eq!(read(&child, table, 100 * B, B), page(100));
    check(&store);
    store.close().unwrap();
}

/// Waits a minute at most.
fn mem_wait(mut done: impl FnMut() -> bool) -> bool {
    (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        done()
    })
}
