//! Pages that lie scattered are written together, and nobody sees a difference.

#[path = "common/mem.rs"]
mod mem;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use pgcowfs::{FileId, Fork, Layout, Options, Store};

const BLOCKS: u64 = 512;

fn open(parts: &Parts3) -> Arc<Store> {
    let options = Options { merge: false, ..Options::default() };
    parts.open_on(Arc::new(parts.map.clone()), options).unwrap()
}

/// Two files whose blocks were written in turns, far from each other in order.
fn scattered(main: &Fork) -> [FileId; 2] {
    let files = [file(main, "base/5/1"), file(main, "base/5/2")];
    for n in 0..BLOCKS {
        for (f, id) in files.iter().enumerate() {
            main.write(*id, n * 201 % BLOCKS * B, &page((n * 201 % BLOCKS % 200) as u8 + f as u8)).unwrap();
        }
    }
    main.sync_all().unwrap();
    files
}

fn right(fork: &Fork, files: &[FileId; 2]) {
    for (f, id) in files.iter().enumerate() {
        for n in 0..BLOCKS {
            assert_eq!(read(fork, *id, n * B, B), page((n % 200) as u8 + f as u8), "file {f}, block {n}");
        }
    }
}

fn check(store: &Store) {
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

#[test]
fn scattered_files_lie_in_long_pieces_afterwards() {
    let parts = Parts3::new();
    let store = open(&parts);
    let main = cluster(&store, "main");
    let files = scattered(&main);
    let times = main.attr(files[0]).unwrap().mtime;
    let before = store.layout("main").unwrap();
    assert_eq!(before.pages, 2 * BLOCKS);
    assert!(before.pieces > BLOCKS, "{before:?}");
    assert_eq!(store.sort_all().unwrap(), 2 * BLOCKS);
    let after = store.layout("main").unwrap();
    assert!(after.pages == before.pages && after.pieces < 40, "{after:?}");
    assert_eq!(store.sort_all().unwrap(), 0, "once is enough");
    assert_eq!(main.attr(files[0]).unwrap().mtime, times);
    right(&main, &files);
    // The old slots are free again: as many pages as before.
    assert_eq!(store.info("main").unwrap().delta_bytes, 2 * BLOCKS * B);
    check(&store);
    let crashed = parts.worst_crash();
    let again = open(&crashed);
    right(&again.by_name("main").unwrap(), &files);
    assert_eq!(again.layout("main").unwrap(), after);
    check(&again);
    again.close().unwrap();
    store.close().unwrap();
}

#[test]
fn reading_in_order_sets_the_disk_to_work_on_what_comes_a_mebibyte_later() {
    let parts = Parts3::new();
    let store = open(&parts);
    let main = cluster(&store, "main");
    let [scattered, _] = scattered(&main);
    let step = 16 * B;
    // What the kernel reads ahead, what a query looks up, and the last of the file.
    for (offset, len, blocks) in
        [(0, step, 16), (B, step, 16), (0, B, 0), ((BLOCKS - 136) * B, step, 8), ((BLOCKS - 16) * B, step, 0)]
    {
        read(&main, scattered, offset, len);
        let (mut told, patience) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        while told.iter().map(|(_, len)| len).sum::<u64>() < blocks * B && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
            told.extend(parts.delta.take_read_ahead());
        }
        let at = format!("{len} bytes from {offset}: {told:?}");
        assert_eq!(told.iter().map(|(_, len)| len).sum::<u64>(), blocks * B, "{at}");
        assert!(blocks == 0 || told.len() as u64 > blocks / 2, "not one after the other: {at}");
    }
    store.close().unwrap();
}

#[test]
fn pages_that_others_see_stay_where_they_are() {
    let parts = Parts3::new();
    let store = open(&parts);
    let main = cluster(&store, "main");
    let files = scattered(&main);
    fork(&store, "main", "child");
    assert_eq!(store.sort_all().unwrap(), 0);
    store.remove("child").unwrap();
    store.snapshot("main", "kept").unwrap();
    assert_eq!(store.sort_all().unwrap(), 0);
    store.remove_snapshot("main", "kept").unwrap();
    let copy = file(&main, "base/5/3");
    main.copy_range(files[0], 0, copy, 0, BLOCKS * B).unwrap();
    main.sync_all().unwrap();
    assert_eq!(store.sort_all().unwrap(), BLOCKS, "only the file that has no copy");
    right(&main, &files);
    collect(&store);
    // What was in the layer below has come together with the rest.
    assert_eq!(store.info("main").unwrap().delta_bytes, 2 * BLOCKS * B + BLOCKS * B);
    right(&main, &files);
    check(&store);
    store.close().unwrap();
}

#[test]
fn what_lies_well_is_not_touched() {
    let parts = Parts3::new();
    let store = open(&parts);
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/1");
    (0..BLOCKS).for_each(|n| main.write(f, n * B, &page(1)).unwrap());
    main.write(f, 100 * B, &page(2)).unwrap();
    main.sync_all().unwrap();
    main.write(f, 200 * B, &page(3)).unwrap();
    main.sync_all().unwrap();
    let before = store.layout("main").unwrap();
    assert!(before.pieces < 20, "{before:?}");
    let commits = parts.map.commits();
    assert_eq!(store.sort_all().unwrap(), 0);
    assert_eq!(parts.map.commits(), commits);
    assert_ne!(before, Layout::default());
    store.close().unwrap();
}
