//! The block map of a store that lives for years, in RocksDB: what forks that come
//! and go have left in it stays bounded, however many there were.

#[path = "common/mem.rs"]
mod mem;

use std::path::Path;
use std::sync::Arc;

use mem::{Parts3, cluster, file, fork, page};
use pgcowfs::map::rocks::{RocksMap, Statistics};
use pgcowfs::map::schema::{BlockRecord, SLOT_MAP_BYTES, Slot, SlotsRecord, layer_prefix, tag};
use pgcowfs::map::{Batch, Map, after, prefix_end};
use pgcowfs::{FileId, LayerId, Options, Store};

/// A store in memory, but for its map.
struct Rig {
    dir: tempfile::TempDir,
    parts: Parts3,
    map: Arc<RocksMap>,
    store: Arc<Store>,
    file: FileId,
}

fn open(dir: &Path, create: bool, parts: &Parts3) -> (Arc<RocksMap>, Arc<Store>) {
    let map = Arc::new(RocksMap::open(&dir.join("map"), create).unwrap());
    let store = parts.open_on(map.clone(), Options { merge: false, ..Options::default() }).unwrap();
    (map, store)
}

impl Rig {
    /// With a fork `main` of `pages` pages.
    fn new(pages: u64) -> Rig {
        let (dir, parts) = (tempfile::tempdir().unwrap(), Parts3::new());
        let (map, store) = open(dir.path(), true, &parts);
        let main = cluster(&store, "main");
        let file = file(&main, "base/5/16384");
        for block in 0..pages {
            main.write(file, block * mem::B, &page(1)).unwrap();
        }
        main.sync_all().unwrap();
        Rig { dir, parts, map, store, file }
    }

    /// Makes a fork, changes pages of both, and removes it, so many times.
    fn cycles(&self, n: u64, pages: u64) {
        for _ in 0..n {
            let child = fork(&self.store, "main", "child");
            for block in 0..pages {
                child.write(self.file, block * mem::B, &page(2)).unwrap();
            }
            child.sync_all().unwrap();
            self.store.by_name("main").unwrap().write(self.file, 0, &page(3)).unwrap();
            self.store.remove("child").unwrap();
            self.store.collect_all(&mut |_| true).unwrap();
        }
    }

    /// What the tables hold, with all that was committed in them.
    fn statistics(&mut self) -> Statistics {
        self.store.close().unwrap();
        (self.map, self.store) = open(self.dir.path(), false, &self.parts);
        self.map.statistics().unwrap()
    }

    fn records(&self) -> u64 {
        let mut count = 0;
        let counted = self.map.scan(&[], &[u8::MAX], &mut |_, _| {
            count += 1;
            Ok(true)
        });
        counted.unwrap();
        count
    }
}

/// A removed fork with a few changes is deleted record by record: a deleted range
/// would stay in memory, and all of them slow down every read.
#[test]
fn small_forks_leave_no_deleted_ranges() {
    let mut rig = Rig::new(100);
    rig.cycles(60, 3);
    let few = rig.statistics();
    assert_eq!(few.range_deletions, 0, "{few:?}");
    let records = rig.records();
    rig.cycles(140, 3);
    let many = rig.statistics();
    assert_eq!(many.range_deletions, 0, "{many:?}");
    assert!(rig.records() <= records + 2, "{records} records became {}", rig.records());
    assert_eq!(rig.store.check(true).unwrap(), Vec::<String>::new());
}

/// Records of the block map as a layer's pages have them.
fn put_layer(map: &RocksMap, layer: u64, blocks: u32) {
    for start in (0..blocks).step_by(4096) {
        let mut batch = Batch::default();
        for block in start..blocks.min(start + 4096) {
            let record = BlockRecord { slot: Slot::new(1, block), crc: block.wrapping_mul(layer as u32) };
            batch.put(record.encode(LayerId(layer), FileId(2), block));
        }
        map.commit(&batch).unwrap();
    }
}

/// Deletes them as the removal of a layer does.
fn delete_layer(map: &RocksMap, layer: u64) {
    let mut start = layer_prefix(tag::BLOCK, LayerId(layer));
    let end = prefix_end(&start);
    loop {
        let mut keys = Vec::new();
        map.scan(&start, &end, &mut |k, _| {
            keys.push(k.to_vec());
            Ok(keys.len() < 4096)
        })
        .unwrap();
        let mut batch = Batch::default();
        batch.delete_all(&keys);
        map.commit(&batch).unwrap();
        let Some(last) = keys.pop() else { return };
        start = after(last);
    }
}

/// Layers that are larger than what the map keeps in memory are in its tables when
/// they are deleted. What they took comes back.
#[test]
fn large_layers_leave_a_bounded_rest() {
    let dir = tempfile::tempdir().unwrap();
    let map = RocksMap::open(dir.path(), true).unwrap();
    const KEPT: u64 = 100_000;
    const PAGES: u64 = 300_000;
    put_layer(&map, 1, KEPT as u32);
    let mut seen = Vec::new();
    for layer in 2..10 {
        put_layer(&map, layer, PAGES as u32);
        delete_layer(&map, layer);
        seen.push(map.statistics().unwrap());
    }
    let last = seen.last().unwrap();
    // Two layers' worth at most, of the eight that were there.
    assert!(last.entries < KEPT + 2 * PAGES, "{last:?}");
    assert!(last.range_deletions < 1000 && last.tables < 20, "{last:?}");
    let most = seen[..3].iter().map(|s| s.table_bytes).max().unwrap();
    assert!(seen.iter().all(|s| s.table_bytes <= most + (32 << 20)), "{seen:#?}");
    // Memory: three memtables, and a cache with the indexes in it.
    assert!(seen.iter().all(|s| s.memtable_bytes < 32 << 20 && s.cache_bytes <= 17 << 20), "{seen:#?}");
    assert!(seen.iter().all(|s| s.reader_bytes < 1 << 20), "{seen:#?}");
}

/// However many ranges are deleted, few of them are ever kept.
#[test]
fn deleted_ranges_are_few() {
    let dir = tempfile::tempdir().unwrap();
    let map = RocksMap::open(dir.path(), true).unwrap();
    put_layer(&map, 1, 1000);
    let mut after_few = None;
    for n in 0..4000u32 {
        let mut batch = Batch::default();
        let key = BlockRecord::key(LayerId(2 + u64::from(n)), FileId(2), 7);
        batch.put((key.clone(), vec![0; 17]));
        // Which slots are in use is in every commit.
        batch.put(SlotsRecord::encode(1, n % 50, &[n as u8; SLOT_MAP_BYTES]));
        batch.delete_range(key.clone(), after(key));
        map.commit(&batch).unwrap();
        if n == 1000 {
            after_few = Some(map.statistics().unwrap());
        }
    }
    // What is in memory is flushed by the end.
    map.close().unwrap();
    drop(map);
    let last = RocksMap::open(dir.path(), false).unwrap().statistics().unwrap();
    println!("after 1,000: {after_few:?}, after 4,000: {last:?}");
    assert!(last.range_deletions <= 1500, "{last:?}");
    assert!(last.entries < 3000, "{last:?}");
}
