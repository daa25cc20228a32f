//! What a start reads, and what the first requests read: in lookups and records of the block map, which do not depend on
//! how fast or busy the machine is. `scripts/restart` has the time.

#[path = "common/counting.rs"]
mod counting;
#[path = "common/mem.rs"]
mod mem;

use std::fs::File;
use std::sync::Arc;

use counting::Counting;
use mem::{B, Parts3, cluster, file, fork, page, read};
use pgcowfs::map::schema::{BlockRecord, ForkRecord, SLOTS_PER_RECORD, Slot, SlotsRecord, tag};
use pgcowfs::map::{Batch, Map, prefix_end};
use pgcowfs::{Options, Store};

/// Opens a store that merges nothing, and counts.
fn open(parts: &Parts3) -> (Arc<Store>, Counting) {
    let map = Counting::of(parts);
    let store = parts.open_on(Arc::new(map.clone()), Options { merge: false, ..Options::default() });
    (store.unwrap(), map)
}

/// A store with some forks, each with that many pages of one relation.
fn forks_with_pages(pages: u32) -> Parts3 {
    const FORKS: u32 = 10;
    let parts = Parts3::new();
    let (store, _) = open(&parts);
    let main = cluster(&store, "main");
    let relation = file(&main, "base/5/16384");
    main.sync_all().unwrap();
    for n in 0..FORKS {
        let child = fork(&store, "main", &format!("f{n}"));
        // So that the relation is one of its own layer's files.
        child.write(relation, 0, &page(1)).unwrap();
    }
    store.close().unwrap();
    let mut forks = Vec::new();
    let all_forks = parts.map.scan(&[tag::FORK], &prefix_end(&[tag::FORK]), &mut |k, v| {
        forks.push(ForkRecord::decode(k, v)?);
        Ok(true)
    });
    all_forks.unwrap();
    for ForkRecord { head, delta, .. } in forks {
        let mut batch = Batch::default();
        for page in 0..pages {
            let record = BlockRecord { slot: Slot::new(delta, SLOTS_PER_RECORD + page), crc: 0 };
            batch.put(record.encode(head, relation, page + 1));
        }
        for chunk in 1..=pages.div_ceil(SLOTS_PER_RECORD) {
            batch.put(SlotsRecord::encode(delta, chunk, &[0xff; 128]));
        }
        parts.map.commit(&batch).unwrap();
    }
    parts
}

#[test]
fn a_start_reads_no_pages() {
    let count = |pages| {
        let (store, map) = open(&forks_with_pages(pages));
        let counts = map.taken();
        store.close().unwrap();
        counts
    };
    let (few, many) = (count(1024), count(20 * 1024));
    assert_eq!(few.0, many.0, "lookups with a thousand pages a fork, and with twenty");
    // Eleven forks, and a bitmap for each 1,024 slots of theirs.
    assert_eq!(many.1 - few.1, 11 * 19, "records: {few:?}, {many:?}");
    assert!(few.1 < 100, "{few:?}");
}

/// A cluster of 1 TiB in a thousand relations: nothing of a start depends on that, the first request on the number of
/// files, and the first read of a relation on its changed pages.
#[test]
fn a_terabyte_opens_lazily() {
    const RELATIONS: u64 = 1000;
    const CHANGED: u64 = 5;
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("base/5");
    std::fs::create_dir_all(&dir).unwrap();
    for n in 0..RELATIONS {
        File::create(dir.join(n.to_string())).and_then(|file| file.set_len(1 << 30)).unwrap();
    }
    let parts = Parts3::new();
    let path = |n: u64| format!("base/5/{n}");
    {
        let (store, _) = open(&parts);
        let main =
            store.create_on_base("main", pgcowfs::base::scan(base.path(), None).unwrap(), b"").unwrap();
        store.publish("main").unwrap();
        for n in 0..RELATIONS {
            let file = main.resolve(&path(n)).unwrap().file;
            for i in 0..CHANGED {
                main.write(file, i * 1000 * B, &page(i as u8 + 1)).unwrap();
            }
        }
        main.sync_all().unwrap();
        assert_eq!(store.info("main").unwrap().logical_bytes, RELATIONS << 30);
        store.close().unwrap();
    }
    let (store, map) = open(&parts);
    let (lookups, records) = map.taken();
    assert!(lookups < 20 && records < 50, "the start: {lookups} lookups, {records} records");

    let main = store.by_name("main").unwrap();
    let (lookups, records) = map.taken();
    // The base's layer has each relation, its name and its base file; the head each of them once more.
    assert!(lookups < 20 && records < 4 * RELATIONS + 50, "the fork: {lookups} lookups, {records} records");

    let file = main.resolve(&path(500)).unwrap().file;
    assert_eq!(read(&main, file, 2000 * B, B), page(3));
    let (lookups, records) = map.taken();
    // Two layers, pages and cleared ranges of each, whether the lower one has the file, and whether the base file is sealed.
    assert!(lookups <= 6 && records <= CHANGED + 2, "a page: {lookups} lookups, {records} records");
    assert_eq!(read(&main, file, 3001 * B, B), page(0));
    assert_eq!(read(&main, file, 4000 * B, B), page(5));
    let (lookups, _) = map.taken();
    assert!(lookups <= 1, "pages of the same relation: {lookups} lookups");
    store.close().unwrap();
}
