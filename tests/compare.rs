//! How forks and snapshots differ, and what a fork has for itself, as the page tables tell.

#[path = "common/mem.rs"]
mod mem;

use mem::{B, Parts3, cluster, collect, file, fork, page};
use pgcowfs::{Error, FileId, FileUsage, Fork, PageChanges, SetAttr, Side, Store};

fn side(place: &str) -> Side {
    match place.split_once('@') {
        Some((fork, label)) => Side { fork: fork.into(), label: Some(label.into()) },
        None => Side { fork: place.into(), label: None },
    }
}

/// Path, sizes in blocks, and added, removed, changed, rewritten pages of each file that differs.
type Row = (String, Option<u64>, Option<u64>, [u64; 4]);

fn diff(store: &Store, a: &str, b: &str) -> Vec<Row> {
    let changes = store.diff(&side(a), &side(b)).unwrap();
    let row = |change: pgcowfs::FileChange| {
        let PageChanges { added, removed, changed, rewritten } = change.pages;
        let blocks = |bytes: Option<u64>| bytes.map(|bytes| bytes / B);
        (change.path, blocks(change.before), blocks(change.after), [added, removed, changed, rewritten])
    };
    changes.into_iter().map(row).collect()
}

fn write(fork: &Fork, file: FileId, block: u64, byte: u8) {
    fork.write(file, block * B, &page(byte)).unwrap();
}

fn fill(fork: &Fork, file: FileId, blocks: u64, byte: u8) {
    (0..blocks).for_each(|block| write(fork, file, block, byte));
}

fn truncate(fork: &Fork, file: FileId, blocks: u64) {
    fork.set_attr(file, SetAttr { size: Some(blocks * B), ..Default::default() }).unwrap();
}

/// The same rows, seen from the other side.
fn reversed(rows: Vec<Row>) -> Vec<Row> {
    let turn = |(path, a, b, pages): Row| {
        let [added, removed, changed, rewritten] = pages;
        (path, b, a, [removed, added, changed, rewritten])
    };
    rows.into_iter().map(turn).collect()
}

#[test]
fn forks_differ_by_what_they_wrote() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let paths = ["base/5/1", "base/5/2", "base/5/3", "base/5/4", "base/5/6"];
    let [grows, shrinks, same, goes, stays] = paths.map(|path| file(&main, path));
    let wal = file(&main, "pg_wal/000000010000000000000001");
    for of in [grows, shrinks, same, goes, stays, wal] {
        fill(&main, of, 40, 1);
    }
    let child = fork(&store, "main", "child");
    assert_eq!(diff(&store, "main", "child"), []);

    fill(&child, grows, 43, 2);
    truncate(&child, shrinks, 30);
    write(&child, shrinks, 3, 9);
    write(&child, same, 7, 1);
    write(&child, wal, 0, 5);
    let base5 = child.resolve("base/5").unwrap().file;
    child.unlink(base5, b"4").unwrap();
    fill(&child, file(&child, "base/5/5"), 2, 1);
    // The parent's own changes count as well.
    write(&main, stays, 20, 3);
    let row = |path: &str, a, b, pages| (path.to_string(), a, b, pages);
    let want = vec![
        row("base/5/1", Some(40), Some(43), [3, 0, 40, 0]),
        row("base/5/2", Some(40), Some(30), [0, 10, 1, 0]),
        row("base/5/3", Some(40), Some(40), [0, 0, 0, 1]),
        row("base/5/4", Some(40), None, [0, 40, 0, 0]),
        row("base/5/5", None, Some(2), [2, 0, 0, 0]),
        row("base/5/6", Some(40), Some(40), [0, 0, 1, 0]),
    ];
    assert_eq!(diff(&store, "main", "child"), want);
    assert_eq!(diff(&store, "child", "main"), reversed(want.clone()));
    assert_eq!(diff(&store, "child", "child"), []);

    // From the block map alone, and after layers have been merged.
    store.close().unwrap();
    drop((main, child, store));
    let store = parts.open();
    assert_eq!(diff(&store, "main", "child"), want);
    collect(&store);
    assert_eq!(diff(&store, "child", "main"), reversed(want));
    store.close().unwrap();
}

#[test]
fn snapshots_and_strangers() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/1");
    fill(&main, f, 20, 1);
    store.snapshot("main", "one").unwrap();
    write(&main, f, 2, 2);
    store.snapshot("main", "two").unwrap();
    write(&main, f, 3, 3);
    let changed = |n| vec![("base/5/1".to_string(), Some(20), Some(20), [0, 0, n, 0])];
    assert_eq!(diff(&store, "main@one", "main@two"), changed(1));
    assert_eq!(diff(&store, "main@one", "main"), changed(2));
    assert_eq!(diff(&store, "main@two", "main"), changed(1));
    // A hole reads as zeros, and so do zeros.
    truncate(&main, f, 2);
    truncate(&main, f, 20);
    let rewritten = |a: &str| match diff(&store, a, "main")[..] {
        [(.., [0, 0, changed, rewritten])] => (changed, rewritten),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(rewritten("main@one"), (18, 0));
    store.snapshot("main", "holes").unwrap();
    write(&main, f, 5, 0);
    assert_eq!(rewritten("main@holes"), (0, 1));

    // Roots that have nothing in common are compared by path.
    let other = cluster(&store, "other");
    let g = file(&other, "base/5/1");
    fill(&other, g, 21, 1);
    let row = |pages| vec![("base/5/1".to_string(), Some(20), Some(21), pages)];
    assert_eq!(diff(&store, "main@one", "other"), row([1, 0, 0, 20]));

    for (a, b) in [("main", "nobody"), ("nobody", "main")] {
        assert!(matches!(store.diff(&side(a), &side(b)), Err(Error::NoSuchFork(_))));
    }
    let error = store.diff(&side("main@none"), &side("main"));
    assert!(matches!(error, Err(Error::NoSuchSnapshot(..))));
    store.close().unwrap();
}

#[test]
fn pages_of_a_fork_alone() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (f, g) = (file(&main, "base/5/1"), file(&main, "base/5/2"));
    fill(&main, f, 50, 1);
    fill(&main, g, 10, 1);
    let usage = |name: &str| -> Vec<(String, u64, u64, u64)> {
        let row = |u: FileUsage| (u.path, u.bytes / B, u.exclusive_pages, u.shared_pages);
        let rows = store.usage(name).unwrap().into_iter().map(row);
        rows.filter(|(path, ..)| path.starts_with("base/5/")).collect()
    };
    let row = |path: &str, blocks, own, shared| (path.to_string(), blocks, own, shared);
    assert_eq!(usage("main"), [row("base/5/1", 50, 50, 0), row("base/5/2", 10, 10, 0)]);

    let child = fork(&store, "main", "child");
    assert_eq!(usage("main"), [row("base/5/1", 50, 0, 50), row("base/5/2", 10, 0, 10)]);
    for block in 45..55 {
        write(&child, f, block, 2);
    }
    assert_eq!(usage("child"), [row("base/5/1", 55, 10, 45), row("base/5/2", 10, 0, 10)]);
    // Snapshots of its own take nothing away from it.
    store.snapshot("child", "v1").unwrap();
    write(&child, g, 0, 2);
    assert_eq!(usage("child"), [row("base/5/1", 55, 10, 45), row("base/5/2", 10, 1, 9)]);
    let grandchild = fork(&store, "child", "grandchild");
    write(&grandchild, g, 0, 3);
    assert_eq!(usage("grandchild"), [row("base/5/1", 55, 0, 55), row("base/5/2", 10, 1, 9)]);

    // What is left of others is one's own again.
    for name in ["grandchild", "main"] {
        store.remove(name).unwrap();
    }
    collect(&store);
    assert_eq!(usage("child"), [row("base/5/1", 55, 55, 0), row("base/5/2", 10, 10, 0)]);
    assert!(matches!(store.usage("main"), Err(Error::NoSuchFork(_))));
    store.close().unwrap();
}
