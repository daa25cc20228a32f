//! A store with as many forks and pages as one likes, in minutes: the forks by the program, their pages by records.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pgcowfs::block::{BLOCK_BYTES, BLOCK_SIZE, Page, ZERO_PAGE};
use pgcowfs::map::rocks::RocksMap;
use pgcowfs::map::schema::{
    BlockRecord, ForkRecord, InodeRecord, LayerRecord, NameRecord, SLOTS_PER_RECORD, Slot, SlotsRecord,
    file_of_key, tag,
};
use pgcowfs::map::{Batch, Map, prefix_end};
use pgcowfs::{FileId, LayerId, seal};

use crate::common::store::Store;

/// The relation that every fork has pages of.
const RELATION: &str = "99999";
/// Every so many blocks of it a fork has changed one.
const STRIDE: u64 = 7;
/// The log is as full as it gets when that many records are in none of the tables.
const LOG_RECORDS: u64 = 100_000;

/// One fork's pages.
struct Changed {
    name: String,
    layer: LayerId,
    delta: u32,
    /// Its first slot.
    first: u32,
    number: u64,
}

/// What a store was filled with.
pub struct Filler {
    file: FileId,
    inode: InodeRecord,
    pages: u64,
    forks: Vec<Changed>,
}

impl Filler {
    /// Makes the forks, and then their pages.
    pub fn make(store: &Store, forks: u64, pages: u64) -> Filler {
        store.create("main", "");
        let path = store.path("main").join("base/1").join(RELATION);
        let file = File::create(path).expect("a relation");
        file.set_len(pages * STRIDE * BLOCK_BYTES).and_then(|()| file.sync_all()).expect("its size");
        drop(file);
        for n in 0..forks {
            store.ok(["fork", "main", &name(n)]);
        }
        store.ok(["umount"]);
        let map = RocksMap::open(&store.dir().join("map"), false).expect("the block map opens");
        let filler = Filler::look(&map, pages);
        assert_eq!(filler.forks.len() as u64, forks);
        for fork in &filler.forks {
            let mut batch = filler.records(fork);
            let key = LayerRecord::key(fork.layer);
            let value = map.get(&key).expect("a lookup").expect("the layer is there");
            let layer = LayerRecord::decode(&key, &value).expect("a layer");
            batch.put(LayerRecord { pages: layer.pages + pages, ..layer }.encode());
            map.commit(&batch).expect("a commit");
            filler.make_delta_file(store, fork);
        }
        map.close().expect("the block map closes");
        filler
    }

    /// Finds the forks and the relation.
    fn look(map: &RocksMap, pages: u64) -> Filler {
        let scan = |tag: u8, visit: &mut dyn FnMut(&[u8], &[u8])| {
            map.scan(&[tag], &prefix_end(&[tag]), &mut |k, v| {
                visit(k, v);
                Ok(true)
            })
            .expect("a scan")
        };
        let mut file = None;
        scan(tag::NAME, &mut |k, v| {
            let (_, name, record) = NameRecord::decode(k, v).expect("a name");
            if let (true, NameRecord::Entry(found, _)) = (*name == *RELATION.as_bytes(), record) {
                file = Some(found);
            }
        });
        let file = file.expect("the relation has a name");
        let mut inode = None;
        scan(tag::INODE, &mut |k, v| {
            if file_of_key(k).is_ok_and(|of| of == file) {
                inode = InodeRecord::decode(k, v).expect("an inode");
            }
        });
        let mut used: HashMap<u32, u32> = HashMap::new();
        scan(tag::SLOTS, &mut |k, v| {
            let (delta, chunk, _) = SlotsRecord::decode(k, v).expect("a bitmap");
            let end = used.entry(delta).or_default();
            *end = (*end).max((chunk + 1) * SLOTS_PER_RECORD);
        });
        let mut forks = Vec::new();
        scan(tag::FORK, &mut |k, v| {
            let record = ForkRecord::decode(k, v).expect("a fork");
            if record.name != "main" {
                let first = used.get(&record.delta).copied().unwrap_or(0);
                let number = forks.len() as u64;
                let ForkRecord { name, head: layer, delta, .. } = record;
                forks.push(Changed { name, layer, delta, first, number });
            }
        });
        Filler { file, inode: inode.expect("the relation"), pages, forks }
    }

    /// The fork's pages are zeros, but for the first.
    fn records(&self, fork: &Changed) -> Batch {
        let mut batch = Batch::default();
        let zeros = seal::crcs_of(&ZERO_PAGE).next().expect("one block");
        let own = seal::crcs_of(&fork.first_page()).next().expect("one block");
        batch.put(self.inode.encode(fork.layer, self.file));
        for page in 0..self.pages {
            let slot = Slot::new(fork.delta, fork.first + page as u32);
            let record = BlockRecord { slot, crc: if page == 0 { own } else { zeros } };
            batch.put(record.encode(fork.layer, self.file, fork.block(page) as u32));
        }
        for start in (0..self.pages).step_by(SLOTS_PER_RECORD as usize) {
            let mut bits = [0; SLOTS_PER_RECORD as usize / 8];
            for i in 0..(self.pages - start).min(u64::from(SLOTS_PER_RECORD)) {
                bits[i as usize / 8] |= 1u8 << (i % 8);
            }
            let chunk = (fork.first + start as u32) / SLOTS_PER_RECORD;
            batch.put(SlotsRecord::encode(fork.delta, chunk, &bits));
        }
        batch
    }

    fn make_delta_file(&self, store: &Store, fork: &Changed) {
        let path = store.dir().join("delta").join(pgcowfs::delta::file_name(fork.delta));
        let file = File::options().write(true).create(true).truncate(false).open(path).expect("a delta file");
        file.set_len((u64::from(fork.first) + self.pages) * BLOCK_BYTES).expect("its length");
        let at = u64::from(fork.first) * BLOCK_BYTES;
        file.write_all_at(&fork.first_page(), at).and_then(|()| file.sync_all()).expect("its first page");
    }

    /// Commits what is there already once more, as a daemon that is killed leaves it: in the log.
    pub fn fill_log(&self, store: &Store) {
        let map = RocksMap::open(&store.dir().join("map"), false).expect("the block map opens");
        let forks = (LOG_RECORDS / self.pages).max(1) as usize;
        for fork in self.forks.iter().take(forks) {
            map.commit(&self.records(fork)).expect("a commit");
        }
    }

    /// A fork by number: a file and a block of it, and what that block holds.
    pub fn page_of(&self, store: &Store, number: usize) -> (PathBuf, u64, Box<Page>) {
        let fork = &self.forks[number];
        let path = store.dir().join("mnt").join(&fork.name).join("base/1").join(RELATION);
        (path, fork.block(0) * BLOCK_BYTES, Box::new(fork.first_page()))
    }

    /// How many forks there are.
    pub fn forks(&self) -> usize {
        self.forks.len()
    }
}

impl Changed {
    fn block(&self, page: u64) -> u64 {
        page * STRIDE + self.number % STRIDE
    }

    fn first_page(&self) -> Page {
        let mut page = [0; BLOCK_SIZE];
        page[..8].copy_from_slice(&self.number.to_le_bytes());
        page[8..16].copy_from_slice(b"the page");
        page
    }
}

fn name(n: u64) -> String {
    format!("f{n:05}")
}

impl fmt::Display for Filler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forks = self.forks.len();
        write!(f, "{forks} forks of a fresh cluster, {} pages in all", forks as u64 * self.pages)
    }
}
