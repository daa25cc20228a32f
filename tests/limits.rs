//! Full disks, quotas and other limits, on a store in memory.
//!
//! Every refusal has to come before anything is acknowledged; what must never
//! fail for want of space does not; and with room again all goes on.

#[path = "common/mem.rs"]
mod mem;
#[path = "limits/unwritten.rs"]
mod unwritten;

use std::collections::BTreeMap;
use std::sync::Arc;

use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use pgcowfs::{Error, FileId, Fork, Make, RenameMode, SetAttr, Store};

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 64 * MIB;

fn used(store: &Store, name: &str) -> u64 {
    store.info(name).unwrap().used_bytes
}

/// Writes blocks of `byte` from the start until there is no room; how many.
fn fill(fork: &Fork, file: FileId, byte: u8) -> u64 {
    for block in 0.. {
        match fork.write(file, block * B, &page(byte)) {
            Ok(()) => {}
            Err(e) => {
                assert!(e.is_full() && e.errno() == libc::ENOSPC, "{e}");
                return block;
            }
        }
    }
    unreachable!()
}

/// What must work whatever the disk or the quota says.
fn use_without_room(fork: &Fork, rel: FileId, blocks: u64, byte: u8) {
    fork.sync(rel, false).unwrap();
    fork.rename(FileId::ROOT, b"log", FileId::ROOT, b"log2", RenameMode::Replace).unwrap();
    fork.rename(FileId::ROOT, b"log2", FileId::ROOT, b"log", RenameMode::Replace).unwrap();
    fork.sync_all().unwrap();
    for block in 0..blocks {
        assert_eq!(read(fork, rel, block * B, B), page(byte), "block {block}");
    }
}

fn resize(fork: &Fork, file: FileId, size: u64) {
    fork.set_attr(file, SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
}

#[test]
fn a_quota_refuses_the_write_and_nothing_else() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    store.set_quota("main", Some(100 * B)).unwrap();
    assert_eq!(fill(&main, rel, 1), 100, "the quota is exact, whatever other files' runs had set aside");
    assert_eq!(used(&store, "main"), 100 * B);
    use_without_room(&main, rel, 100, 1);
    // Not even a byte more, in no way.
    let other = file(&main, "plain");
    assert!(main.write(other, 0, b"x").unwrap_err().is_full());
    assert!(main.write(rel, 100 * B, &page(1)[..100]).unwrap_err().is_full(), "a part of a block");
    assert!(main.fallocate(other, 0, 0, B).unwrap_err().is_full());
    // Raised: on it goes.
    store.set_quota("main", Some(101 * B)).unwrap();
    main.write(other, 0, b"x").unwrap();
    assert!(main.write(rel, 100 * B, &page(1)).unwrap_err().is_full());
    // Room made by truncating to any length is room at once.
    resize(&main, rel, 50 * B + 1);
    assert_eq!(read(&main, rel, 50 * B, 10), [1], "and the rest of the last block is kept");
    assert_eq!(fill(&main, rel, 2), 100);
    // Lowered below what is used: refused, and nothing is lost.
    store.set_quota("main", Some(B)).unwrap();
    assert!(main.write(other, B, b"y").unwrap_err().is_full());
    use_without_room(&main, rel, 100, 2);
    store.set_quota("main", None).unwrap();
    main.write(other, B, b"y").unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn pages_can_be_overwritten_for_ever_within_a_quota() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    for block in 0..100 {
        main.write(rel, block * B, &page(0)).unwrap();
    }
    main.sync_all().unwrap();
    // Durable pages are replaced out of place: with room for ten more, a
    // commit comes in between whenever these are used up.
    store.set_quota("main", Some(110 * B)).unwrap();
    for round in 1..5 {
        for block in 0..100 {
            main.write(rel, block * B, &page(round)).unwrap();
        }
        use_without_room(&main, rel, 100, round);
    }
    assert_eq!(used(&store, "main"), 100 * B);
    // So it is on a full disk.
    store.set_quota("main", None).unwrap();
    parts.delta.set_free_bytes(Some(RESERVE));
    for round in 5..9 {
        for block in 0..100 {
            main.write(rel, block * B, &page(round)).unwrap();
        }
        use_without_room(&main, rel, 100, round);
    }
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn a_quota_is_durable_and_not_inherited() {
    let parts = Parts3::new();
    let store = parts.open();
    cluster(&store, "main");
    store.set_quota("main", Some(40 * MIB)).unwrap();
    let quota = |child: Option<u64>| {
        move |fork: &Fork| {
            fork.set_first_quota(child);
            Ok(())
        }
    };
    store.fork("main", "free", b"", &mut quota(None)).unwrap();
    store.fork("main", "bound", b"", &mut quota(Some(5 * B))).unwrap();
    let quotas = |store: &Store| -> Vec<Option<u64>> {
        ["main", "free", "bound"].map(|name| store.info(name).unwrap().quota_bytes).to_vec()
    };
    let wanted = [Some(40 * MIB), None, Some(5 * B)];
    assert_eq!(quotas(&store), wanted);
    let crashed = parts.worst_crash();
    let again = crashed.open();
    assert_eq!(quotas(&again), wanted);
    let bound = again.by_name("bound").unwrap();
    let rel = file(&bound, "base/5/1");
    assert_eq!(fill(&bound, rel, 1), 5);
    // It goes with its fork, and the next fork of that name has none.
    again.remove("bound").unwrap();
    let bound = fork(&again, "main", "bound");
    assert_eq!(bound.quota(), None);
    again.close().unwrap();
    store.close().unwrap();
}

#[test]
fn wal_counts_where_it_is_written_and_recycled_segments_need_no_room() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let segment = |n: u32| format!("pg_wal/0000000100000000000000{n:02X}");
    let write = |fork: &Fork, wal: FileId, byte: u8| -> Result<(), Error> {
        (0..16 * MIB / B).try_for_each(|block| fork.write(wal, block * B, &page(byte)))
    };
    let first = file(&main, &segment(1));
    write(&main, first, 1).unwrap();
    assert_eq!(used(&store, "main"), 16 * MIB);
    store.set_quota("main", Some(20 * MIB)).unwrap();
    let second = file(&main, &segment(2));
    assert!(write(&main, second, 2).unwrap_err().is_full());
    assert_eq!(used(&store, "main"), 20 * MIB);
    main.unlink(main.resolve("pg_wal").unwrap().file, segment(2).rsplit('/').next().unwrap().as_bytes())
        .unwrap();
    main.sync_all().unwrap();
    assert_eq!(used(&store, "main"), 16 * MIB, "a removed segment's space is given back");
    // A segment that is there is written over in place.
    store.set_quota("main", Some(16 * MIB)).unwrap();
    write(&main, first, 3).unwrap();
    main.sync(first, true).unwrap();

    // After a fork the segment is shared and counts for neither; each side's
    // first write takes one of its own.
    let child = fork(&store, "main", "child");
    assert_eq!((used(&store, "main"), used(&store, "child")), (0, 0));
    write(&main, first, 4).unwrap();
    store.set_quota("child", Some(15 * MIB)).unwrap();
    assert!(child.write(first, 0, &page(5)).unwrap_err().is_full(), "a chunk is taken as a whole");
    assert_eq!(read(&child, first, 0, B), page(3));
    store.set_quota("child", Some(16 * MIB)).unwrap();
    child.write(first, 0, &page(5)).unwrap();
    assert_eq!((used(&store, "main"), used(&store, "child")), (16 * MIB, 16 * MIB));
    main.sync_all().unwrap();
    child.sync_all().unwrap();

    // A restart counts the same.
    let crashed = parts.worst_crash();
    let again = crashed.open();
    for name in ["main", "child"] {
        again.by_name(name).unwrap();
        assert_eq!(used(&again, name), 16 * MIB, "{name}");
    }
    again.close().unwrap();
    store.close().unwrap();
}

#[test]
fn the_low_water_mark_is_what_forks_leave_free() {
    let parts = Parts3::new();
    let store = parts.open_keeping(500 * MIB);
    let main = cluster(&store, "main");
    let (rel, wal) = (file(&main, "base/5/1"), file(&main, "pg_wal/000000010000000000000001"));
    parts.delta.set_free_bytes(Some(500 * MIB + 40 * B));
    parts.inplace.set_free_bytes(Some(500 * MIB + 3 * MIB));
    assert_eq!(fill(&main, rel, 1), 40);
    assert_eq!(fill(&main, wal, 1), 3 * MIB / B);
    use_without_room(&main, rel, 40, 1);
    store.close().unwrap();
}

/// Free bytes of the delta files' disk.
fn free(parts: &Parts3) -> u64 {
    pgcowfs::device::Device::free_bytes(&parts.delta).unwrap()
}

/// Opened and released, so that the slots set aside for it are free.
fn filled(fork: &Fork, path: &str, blocks: u64, byte: u8) -> FileId {
    let rel = file(fork, path);
    fork.open(rel).unwrap();
    for block in 0..blocks {
        fork.write(rel, block * B, &page(byte)).unwrap();
    }
    fork.release(rel);
    fork.sync_all().unwrap();
    rel
}

fn unlink(fork: &Fork, path: &str) {
    let (dir, name) = path.rsplit_once('/').unwrap();
    fork.unlink(fork.resolve(dir).unwrap().file, name.as_bytes()).unwrap();
    fork.sync_all().unwrap();
}

/// A slot without space is none: where holes were made, a full disk is full.
#[test]
fn a_hole_is_no_room() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    filled(&main, "base/5/1", 200, 1);
    let kept = filled(&main, "base/5/2", 200, 2);
    unlink(&main, "base/5/1");
    parts.delta.set_free_bytes(Some(RESERVE));
    collect(&store);
    // Somebody else takes all but ten pages of it.
    assert!(free(&parts) >= RESERVE + 200 * B);
    parts.delta.set_free_bytes(Some(RESERVE + 10 * B));
    let rel = file(&main, "base/5/3");
    assert_eq!(fill(&main, rel, 3), 10);
    assert_eq!(free(&parts), RESERVE);
    use_without_room(&main, rel, 10, 3);
    use_without_room(&main, kept, 200, 2);
    let again = parts.worst_crash().open();
    use_without_room(&again.by_name("main").unwrap(), rel, 10, 3);
    use_without_room(&again.by_name("main").unwrap(), kept, 200, 2);
    assert_eq!(again.check(true).unwrap(), Vec::<String>::new());
    again.close().unwrap();
    parts.delta.set_free_bytes(None);
    for block in 0..200 {
        main.write(rel, block * B, &page(4)).unwrap();
    }
    use_without_room(&main, rel, 200, 4);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

/// A store that was just opened does not know which free slots have space. On a
/// full disk it finds those that have, and takes nothing of the reserve for the
/// others.
#[test]
fn a_full_disk_and_a_restart() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = filled(&main, "base/5/1", 100, 1);
    filled(&main, "base/5/2", 100, 2);
    let text = filled(&main, "plain", 1, 3);
    // A hole first, then free slots with space.
    unlink(&main, "base/5/2");
    collect(&store);
    filled(&main, "base/5/4", 20, 4);
    unlink(&main, "base/5/4");
    parts.delta.set_free_bytes(Some(RESERVE));
    store.close().unwrap();
    let store = parts.open();
    let main = store.by_name("main").unwrap();
    for round in 5..8 {
        for block in 0..100 {
            main.write(rel, block * B, &page(round)).unwrap();
        }
        // A part of a block asks for room first.
        main.write(rel, 0, &page(round)[..100]).unwrap();
        use_without_room(&main, rel, 100, round);
    }
    main.write(text, 5, b"text").unwrap();
    main.sync_all().unwrap();
    let other = file(&main, "base/5/5");
    let blocks = fill(&main, other, 9);
    assert!((1..=45).contains(&blocks), "{blocks} more pages where 45 free slots had space at most");
    assert_eq!(free(&parts), RESERVE);
    use_without_room(&main, other, blocks, 9);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

/// What forks keep for their next pages is there for others when the disk is full,
/// all but a few MiB of each.
#[test]
fn a_full_disk_takes_what_other_forks_keep() {
    let parts = Parts3::new();
    let parts = Parts3 { inplace: parts.delta.clone(), ..parts };
    let store = parts.open();
    let main = cluster(&store, "main");
    let wal = file(&main, "pg_wal/000000010000000000000001");
    let rich = fork(&store, "main", "rich");
    let kept = filled(&rich, "base/5/1", 100, 1);
    filled(&rich, "base/5/2", 4000, 2);
    unlink(&rich, "base/5/2");
    parts.delta.set_free_bytes(Some(RESERVE));
    let rel = file(&main, "base/5/3");
    for block in 0..1000 {
        main.write(rel, block * B, &page(3)).unwrap();
        main.write(wal, block * B, &page(3)).unwrap();
    }
    main.sync_all().unwrap();
    // At the end 4 MiB of free slots are left to the rich one.
    assert!(fill(&main, file(&main, "base/5/4"), 4) > 1000);
    let rich_file = pgcowfs::device::Device::open(&parts.delta, "00000002", false).unwrap();
    assert_eq!(rich_file.allocated().unwrap(), (100 + 512) * B);
    use_without_room(&main, rel, 1000, 3);
    use_without_room(&main, wal, 1000, 3);
    use_without_room(&rich, kept, 100, 1);
    // It can go on as well.
    for block in 0..512 {
        rich.write(kept, block * B, &page(5)).unwrap();
    }
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

/// Directories nest as deep as their owner likes; nothing here goes down by recursion.
#[test]
fn directories_may_nest_very_deep() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let mut dir = main.resolve("log").unwrap().file;
    for _ in 0..6000 {
        dir = main.make(dir, b"d", Make::Directory, 0o700, 0, 0).unwrap().file;
    }
    main.make(dir, b"f", Make::File, 0o600, 0, 0).unwrap();
    // A fork leaves all of it out, name by name.
    let child = fork(&store, "main", "child");
    assert!(child.list("log").unwrap().is_empty());
    // Moved to where forks inherit it, and away again.
    main.rename(main.resolve("log").unwrap().file, b"d", FileId::ROOT, b"deep", RenameMode::Replace).unwrap();
    fork(&store, "main", "grandchild").remove_tree("deep").unwrap();
    main.sync_all().unwrap();
    let again = parts.worst_crash().open();
    again.by_name("main").unwrap().remove_tree("deep").unwrap();
    again.close().unwrap();
    store.close().unwrap();
}

/// Sparse files cost nothing, so their sizes may come to more than a number holds.
#[test]
fn the_sum_of_all_sizes_may_exceed_a_number() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let dir = main.resolve("base").unwrap().file;
    let largest = pgcowfs::block::MAX_FILE_BYTES;
    let files: Vec<FileId> = (0..u64::MAX / largest + 2)
        .map(|n| {
            let name = format!("f{n}");
            let file = main.make(dir, name.as_bytes(), Make::File, 0o600, 0, 0).unwrap().file;
            resize(&main, file, largest);
            file
        })
        .collect();
    main.sync_all().unwrap();
    let sum = |store: &Store| store.info("main").unwrap().logical_bytes;
    let child = fork(&store, "main", "child");
    let before = sum(&store);
    resize(&child, files[0], 1);
    child.unlink(dir, b"f1").unwrap();
    child.sync_all().unwrap();
    let again = parts.worst_crash().open();
    assert_eq!(sum(&again), before);
    assert_eq!(again.check(true).unwrap(), Vec::<String>::new());
    again.close().unwrap();
    store.close().unwrap();
}

// ---- the disk fills at every point ----------------------------------------

/// A fork and what was acknowledged in it.
struct Shadow {
    fork: Arc<Fork>,
    files: BTreeMap<&'static str, Vec<u8>>,
    refused: u64,
}

impl Shadow {
    fn new(fork: Arc<Fork>) -> Self {
        Shadow { fork, files: BTreeMap::new(), refused: 0 }
    }

    fn id(&self, path: &str) -> FileId {
        self.fork.resolve(path).unwrap().file
    }

    fn make(&mut self, path: &'static str) {
        file(&self.fork, path);
        self.files.insert(path, Vec::new());
    }

    /// A write of one block or less: wholly there, or refused and not there.
    fn write(&mut self, path: &'static str, offset: u64, bytes: &[u8]) {
        match self.fork.write(self.id(path), offset, bytes) {
            Ok(()) => {
                let file = self.files.get_mut(path).unwrap();
                let (start, end) = (offset as usize, offset as usize + bytes.len());
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[start..end].copy_from_slice(bytes);
            }
            Err(e) if e.is_full() => self.refused += 1,
            Err(e) => panic!("writing {path}: {e}"),
        }
    }

    fn truncate(&mut self, path: &'static str, size: u64) {
        resize(&self.fork, self.id(path), size);
        self.files.get_mut(path).unwrap().resize(size as usize, 0);
    }

    fn unlink(&mut self, path: &'static str) {
        let (dir, name) = path.rsplit_once('/').unwrap();
        self.fork.unlink(self.id(dir), name.as_bytes()).unwrap();
        self.files.remove(path);
    }

    fn assert_in(&self, fork: &Fork, when: &str) {
        for (path, bytes) in &self.files {
            let attr = fork.resolve(path).unwrap_or_else(|e| panic!("{when}: {path}: {e}"));
            assert_eq!(attr.size, bytes.len() as u64, "{when}: size of {path}");
            assert!(read(fork, attr.file, 0, attr.size) == *bytes, "{when}: contents of {path}");
        }
    }
}

const REL: &str = "base/5/1";
const OTHER: &str = "base/5/2";
const CONF: &str = "plain.conf";
const WAL: &str = "pg_wal/000000010000000000000001";
const WAL2: &str = "pg_wal/000000010000000000000002";

/// What a server does to its files, in little; with forks in between. Every
/// call but `write` must succeed however little room there is.
fn live(store: &Store, main: &mut Shadow) -> Option<Shadow> {
    for path in [REL, OTHER, CONF, WAL] {
        main.make(path);
    }
    for block in 0..70 {
        main.write(REL, block * B, &page(block as u8));
        if block % 3 == 0 {
            main.write(WAL, block / 3 * B, &page(block as u8));
            main.fork.sync(main.id(WAL), true).unwrap();
        }
    }
    main.fork.sync_all().unwrap();
    main.write(CONF, 10, b"some text");
    main.write(CONF, 9000, b"more of it");
    // Halves of blocks, one of them left alone.
    main.write(OTHER, 0, &page(1)[..4096]);
    main.write(OTHER, 4096, &page(2)[..4096]);
    main.write(OTHER, B, &page(3)[..5000]);
    main.fork.sync(main.id(OTHER), false).unwrap();
    // A fork needs room for its WAL only when it writes some. The fork itself
    // is of the kind that never fails.
    let child = fork(store, "main", "child");
    let mut child = Shadow { fork: child, files: main.files.clone(), refused: 0 };
    for block in 0..40 {
        main.write(REL, block * B, &page(100 + block as u8));
        child.write(REL, (block + 20) * B, &page(200));
    }
    child.write(WAL, 3 * B + 100, b"the child's record");
    main.write(WAL, 3 * B + 100, b"the parent's");
    child.fork.sync_all().unwrap();
    main.truncate(REL, 30 * B + 17);
    main.make(WAL2);
    for block in 0..200 {
        main.write(WAL2, block * B, &page(9));
    }
    main.fork.sync(main.id(WAL2), true).unwrap();
    let dir = main.id("pg_wal");
    let (old, new) = (&WAL.as_bytes()[7..], b"000000010000000000000003");
    main.fork.rename(dir, old, dir, new, RenameMode::Replace).unwrap();
    let moved = main.files.remove(WAL).unwrap();
    main.files.insert("pg_wal/000000010000000000000003", moved);
    child.unlink(OTHER);
    for block in 0..30 {
        child.write(REL, block * B, &page(77));
    }
    main.truncate(CONF, 5);
    child.fork.sync_all().unwrap();
    main.fork.sync_all().unwrap();
    Some(child)
}

/// The disk is full from each step of its filling on, one run for each.
#[test]
fn the_disk_fills_at_every_point() {
    let mut refusals = Vec::new();
    for step in 0.. {
        // Delta files grow by 256 KiB, in-place files by 1 MiB.
        let free = RESERVE + if step < 32 { step * MIB / 8 } else { (step - 28) * MIB };
        let parts = Parts3::new();
        let store = parts.open();
        let mut main = Shadow::new(cluster(&store, "main"));
        parts.delta.set_free_bytes(Some(free));
        parts.inplace.set_free_bytes(Some(free));
        let mut child = live(&store, &mut main).unwrap();
        for (shadow, name) in [(&main, "main"), (&child, "child")] {
            shadow.assert_in(&shadow.fork, name);
            assert_eq!(shadow.fork.fault(), None, "{free} bytes free");
        }
        // All of it was synced: it is there after a loss of power.
        let crashed = parts.worst_crash();
        let again = crashed.open();
        main.assert_in(&again.by_name("main").unwrap(), "main after a crash");
        child.assert_in(&again.by_name("child").unwrap(), "child after a crash");
        assert_eq!(again.check(true).unwrap(), Vec::<String>::new(), "{free} bytes free, after a crash");
        again.close().unwrap();
        refusals.push(main.refused + child.refused);
        // With room everything goes on, with the same store.
        parts.delta.set_free_bytes(None);
        parts.inplace.set_free_bytes(None);
        let before = main.refused + child.refused;
        for block in 0..70 {
            main.write(REL, block * B, &page(4));
            child.write(WAL, block * B, &page(5));
        }
        assert_eq!(main.refused + child.refused, before, "refused although there is room");
        main.fork.sync_all().unwrap();
        main.assert_in(&main.fork, "main with room");
        child.assert_in(&child.fork, "child with room");
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "{free} bytes free");
        store.remove("main").unwrap();
        child.assert_in(&child.fork, "child without its parent");
        store.close().unwrap();
        if refusals.last() == Some(&0) {
            break;
        }
    }
    assert!(refusals.len() > 30, "the disk was full at {} points only", refusals.len());
    assert!(refusals[0] > 100, "{refusals:?}");
}
