//! Free space of delta files goes back to the host: which slots, when, and when
//! not. In memory, where each byte of the device can be accounted for, and on a
//! real disk.

#[path = "common/mem.rs"]
mod mem;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use parking_lot::Mutex;
use pgcowfs::device::mem::MemDevice;
use pgcowfs::device::power::{Point, Power};
use pgcowfs::device::{Device, DeviceFile};
use pgcowfs::map::mem::MemMap;
use pgcowfs::{FileId, Fork, Options, SetAttr, Store};

const MIB: u64 = 1 << 20;

/// Parts whose device calls are counted; some may be told to fail.
struct Watched {
    parts: Parts3,
    calls: Arc<Mutex<BTreeMap<Point, u64>>>,
    fail: Arc<Mutex<Option<(Point, i32)>>>,
}

impl Watched {
    fn new() -> Watched {
        let power = Power::default();
        let parts =
            Parts3 { map: MemMap::on(&power), delta: MemDevice::on(&power), inplace: MemDevice::on(&power) };
        let (calls, fail) = (Arc::<Mutex<BTreeMap<Point, u64>>>::default(), Arc::<Mutex<_>>::default());
        let (counts, failing) = (calls.clone(), fail.clone());
        power.watch(Some(Box::new(move |point| {
            *counts.lock().entry(point).or_default() += 1;
            match *failing.lock() {
                Some((which, errno)) if which == point => Err(io::Error::from_raw_os_error(errno)),
                _ => Ok(()),
            }
        })));
        Watched { parts, calls, fail }
    }

    /// Calls since the last time, of those that take space and give it back.
    fn space_calls(&self) -> [u64; 3] {
        let calls = std::mem::take(&mut *self.calls.lock());
        [Point::Allocate, Point::Punch, Point::Truncate].map(|point| calls.get(&point).copied().unwrap_or(0))
    }
}

/// The delta file of that number.
fn delta(parts: &Parts3, id: u32) -> Arc<dyn DeviceFile> {
    parts.delta.open(&format!("{id:08}"), false).unwrap()
}

/// Its length and its space, in slots.
fn slots(parts: &Parts3, id: u32) -> (u64, u64) {
    let file = delta(parts, id);
    (file.len().unwrap() / B, file.allocated().unwrap() / B)
}

/// Writes blocks in order: they get slots in order, and with the end of the
/// writer those that were set aside are free.
fn write(fork: &Fork, file: FileId, blocks: std::ops::Range<u64>, byte: u8) {
    fork.open(file).unwrap();
    for block in blocks {
        fork.write(file, block * B, &page(byte)).unwrap();
    }
    fork.release(file);
}

/// The same with a file of that name, made durable.
fn filled(fork: &Fork, path: &str, blocks: u64, byte: u8) -> FileId {
    let file = file(fork, path);
    write(fork, file, 0..blocks, byte);
    fork.sync_all().unwrap();
    file
}

fn has(fork: &Fork, file: FileId, blocks: std::ops::Range<u64>, byte: u8) {
    for block in blocks {
        assert_eq!(read(fork, file, block * B, B), page(byte), "block {block}");
    }
}

fn unlink(fork: &Fork, path: &str) {
    let (dir, name) = path.rsplit_once('/').unwrap();
    fork.unlink(fork.resolve(dir).unwrap().file, name.as_bytes()).unwrap();
    fork.sync_all().unwrap();
}

fn sound(store: &Store) {
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

#[test]
fn a_frozen_wal_file_keeps_the_space_of_what_was_written_to_it() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let wal = filled(&main, "pg_wal/000000010000000000000001", 2048, 1);
    fork(&store, "main", "before");
    // Lies over the segment in a file of its own, filled with the pattern.
    write(&main, wal, 100..103, 2);
    write(&main, wal, 2000..2001, 3);
    main.sync(wal, true).unwrap();
    let allocated = |parts: &Parts3, host: u64| {
        let file = parts.inplace.open(&format!("{host:012}"), false).unwrap();
        (file.len().unwrap() / B, file.allocated().unwrap() / B)
    };
    let own = (1..100).rev().find(|host| parts.inplace.open(&format!("{host:012}"), false).is_ok()).unwrap();
    let over = (1..=own).find(|&host| {
        let mut page = vec![0; B as usize];
        let file = parts.inplace.open(&format!("{host:012}"), false);
        file.is_ok_and(|file| file.read_at(&mut page, 2000 * B).is_ok() && page[0] == 3)
    });
    let over = over.unwrap();
    store.seal_at_rest(Duration::ZERO).unwrap();
    assert_eq!(allocated(&parts, over), (2048, 2048), "main still writes to it");
    fork(&store, "main", "after");
    store.seal_at_rest(Duration::ZERO).unwrap();
    assert_eq!(allocated(&parts, over), (2048, 4));
    // Both go on, each in a file of its own.
    write(&main, wal, 100..101, 4);
    main.sync(wal, true).unwrap();
    let right = |store: &Store| {
        let fork = |name| store.by_name(name).unwrap();
        has(&fork("before"), wal, 0..2048, 1);
        for (name, hundred) in [("after", 2), ("main", 4)] {
            let fork = fork(name);
            has(&fork, wal, 0..100, 1);
            has(&fork, wal, 100..101, hundred);
            has(&fork, wal, 101..103, 2);
            has(&fork, wal, 103..2000, 1);
            has(&fork, wal, 2000..2001, 3);
            has(&fork, wal, 2001..2048, 1);
        }
        sound(store);
    };
    right(&store);
    for crashed in [parts.worst_crash(), parts.copy()] {
        right(&crashed.open());
    }
    store.close().unwrap();
    right(&parts.open());
}

#[test]
fn a_delta_file_is_never_much_larger_than_its_pages() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let one = filled(&main, "base/5/1", 4000, 1);
    let before = slots(&parts, 1).1;
    let child = fork(&store, "main", "child");
    for n in 1..=2000 {
        // 1,999 is prime to 4,000: no block comes twice.
        write(&child, one, n * 1999 % 4000..n * 1999 % 4000 + 1, 2);
        child.sync_all().unwrap();
        let (_, allocated) = slots(&parts, 2);
        assert!(allocated <= n + (n / 16).max(32), "{allocated} slots for {n} pages");
    }
    assert_eq!(slots(&parts, 1).1, before, "none of it is the parent's");
    store.close().unwrap();
}

#[test]
fn free_runs_become_holes_and_the_free_end_is_cut() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    // In slots 0.., 100.., 116.., 131.., 200..: the last two stay.
    for (name, blocks) in [("1", 100), ("2", 16), ("3", 15), ("4", 69), ("5", 100)] {
        filled(&main, &format!("base/5/{name}"), blocks, name.as_bytes()[0]);
    }
    let (four, five) = (main.resolve("base/5/4").unwrap().file, main.resolve("base/5/5").unwrap().file);
    let kept = |main: &Fork| {
        has(main, four, 0..69, b'4');
        has(main, five, 0..100, b'5');
    };
    collect(&store);
    assert_eq!(slots(&parts, 1), (300, 300), "what was allocated ahead is cut off");

    // 15 free slots are too few for a hole, 16 are enough.
    unlink(&main, "base/5/3");
    assert_eq!(collect(&store), 0);
    assert_eq!(slots(&parts, 1), (300, 300));
    unlink(&main, "base/5/1");
    assert_eq!(collect(&store), 100 * B);
    assert_eq!(slots(&parts, 1), (300, 200));
    // Between a hole and free slots, the 16 make one run of all.
    unlink(&main, "base/5/2");
    assert_eq!(collect(&store), 31 * B);
    assert_eq!(slots(&parts, 1), (300, 169));
    let mut hole = vec![1; 131 * B as usize];
    delta(&parts, 1).read_at(&mut hole, 0).unwrap();
    assert!(hole.iter().all(|&byte| byte == 0));
    kept(&main);

    // The holes are filled before the file grows, in steps.
    let new = filled(&main, "base/5/6", 1, 6);
    assert_eq!(slots(&parts, 1), (300, 169 + 32), "the least that is taken at a time");
    write(&main, new, 1..131, 6);
    main.sync_all().unwrap();
    assert_eq!(slots(&parts, 1), (300, 300));
    write(&main, new, 131..132, 6);
    main.sync_all().unwrap();
    assert_eq!(slots(&parts, 1), (332, 332), "nothing is left but growth");
    has(&main, new, 0..132, 6);
    kept(&main);
    sound(&store);
    // What a loss of power leaves is all there, whatever became of the holes.
    for crashed in [parts.worst_crash(), parts.copy()] {
        let again = crashed.open();
        let main = again.by_name("main").unwrap();
        has(&main, new, 0..132, 6);
        kept(&main);
        sound(&again);
        again.close().unwrap();
    }
    store.close().unwrap();
}

#[test]
fn of_a_removed_fork_only_what_others_share_stays() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let own = filled(&main, "base/5/1", 100, 1);
    let shared = filled(&main, "base/5/2", 50, 2);
    unlink(&main, "base/5/1");
    // In the fork's own layer; the slots of the first file are used again.
    let child = fork(&store, "main", "child");
    let rest = filled(&main, "base/5/3", 400, 3);
    assert!(main.resolve("base/5/3").is_ok() && child.attr(own).is_err() && child.attr(rest).is_err());
    let before = slots(&parts, 1);
    assert!(before.1 >= 450, "{before:?}");
    store.remove("main").unwrap();
    store.wait_for_collection();
    // Nothing is kept for a fork that is gone: the background does it unasked.
    for _ in 0..1000 {
        if slots(&parts, 1) == (150, 50) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(slots(&parts, 1), (150, 50));
    assert_eq!(store.given_back(), (before.1 - 50) * B);
    has(&child, shared, 0..50, 2);
    sound(&store);
    store.remove("child").unwrap();
    collect(&store);
    assert!(parts.delta.list().unwrap().is_empty());
    assert_eq!(store.given_back(), before.1 * B);
    store.close().unwrap();
}

/// Pages that the last fork on them has replaced go with the merging of its layers.
#[test]
fn a_delta_file_goes_with_its_last_page() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let one = filled(&main, "base/5/1", 50, 1);
    let child = fork(&store, "main", "child");
    store.remove("main").unwrap();
    collect(&store);
    assert_eq!(slots(&parts, 1), (50, 50));
    write(&child, one, 0..50, 2);
    child.sync_all().unwrap();
    collect(&store);
    assert_eq!(slots(&parts, 1), (50, 50), "the child could be put back to what it was");
    store.promote("child").unwrap();
    collect(&store);
    assert_eq!(parts.delta.list().unwrap(), ["00000002"]);
    assert_eq!(slots(&parts, 2), (50, 50));
    has(&child, one, 0..50, 2);
    sound(&store);
    store.close().unwrap();
}

/// What a store that was just opened does not know, it finds out.
#[test]
fn free_space_goes_back_after_a_restart_too() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    filled(&main, "base/5/1", 100, 1);
    filled(&main, "base/5/2", 100, 2);
    let child = fork(&store, "main", "child");
    filled(&main, "base/5/3", 100, 3);
    unlink(&child, "base/5/1");
    filled(&child, "base/5/4", 100, 4);
    filled(&child, "base/5/5", 100, 5);
    unlink(&child, "base/5/4");
    store.close().unwrap();
    assert!(slots(&parts, 1).1 >= 300 && slots(&parts, 2).1 >= 200);

    let store = parts.open();
    store.remove("main").unwrap();
    collect(&store);
    assert_eq!((slots(&parts, 1), slots(&parts, 2)), ((200, 200), (200, 100)));
    sound(&store);
    store.close().unwrap();
    // A hole is not taken for space, and space not for a hole.
    let store = parts.open();
    let child = store.by_name("child").unwrap();
    let new = filled(&child, "base/5/6", 100, 6);
    assert_eq!(slots(&parts, 2), (200, 200));
    has(&child, new, 0..100, 6);
    assert_eq!(collect(&store), 0);
    sound(&store);
    store.close().unwrap();
}

/// A server that writes the same pages at every checkpoint uses the same slots
/// over and over: the device is not asked for space, nor given any back.
#[test]
fn steady_overwriting_does_not_go_in_a_circle() {
    const PAGES: u64 = 2000;
    let watched = Watched::new();
    let store = watched.parts.open();
    let main = cluster(&store, "main");
    let rel = filled(&main, "base/5/1", PAGES, 0);
    let round = |byte: u8| {
        for i in 0..PAGES {
            let block = i * 7919 % PAGES;
            main.write(rel, block * B, &page(byte)).unwrap();
        }
        main.sync_all().unwrap();
        store.reclaim_unused().unwrap();
    };
    // One to have the slots for it, one to have been asked before.
    (1..=2).for_each(round);
    watched.space_calls();
    (3..20).for_each(round);
    assert_eq!(watched.space_calls(), [0, 0, 0], "calls that take space, punch, cut");
    has(&main, rel, 0..PAGES, 19);

    // When it stops, the slots that it overwrote with are spare; some are kept.
    let (_, before) = slots(&watched.parts, 1);
    store.reclaim_unused().unwrap();
    store.reclaim_unused().unwrap();
    let (_, after) = slots(&watched.parts, 1);
    assert!(before >= 2 * PAGES, "{before}");
    assert_eq!(after, PAGES + 4 * MIB / B);
    // They are enough for a little work.
    watched.space_calls();
    for block in 0..400 {
        main.write(rel, block * B, &page(20)).unwrap();
    }
    main.sync_all().unwrap();
    assert_eq!(watched.space_calls(), [0, 0, 0]);
    sound(&store);
    store.close().unwrap();
}

#[test]
fn a_big_fork_keeps_a_quarter_of_what_it_uses() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    filled(&main, "base/5/1", 10_000, 1);
    filled(&main, "base/5/2", 4_000, 2);
    unlink(&main, "base/5/2");
    store.reclaim_unused().unwrap();
    store.reclaim_unused().unwrap();
    assert_eq!(slots(&parts, 1).1, 12_500);
    collect(&store);
    assert_eq!(slots(&parts, 1).1, 10_000);
    sound(&store);
    store.close().unwrap();
}

/// Not every host file system has holes. Then the end of a file is all that can
/// be given back, and nobody asks twice.
#[test]
fn a_host_without_holes() {
    let watched = Watched::new();
    let store = watched.parts.open();
    let main = cluster(&store, "main");
    let one = filled(&main, "base/5/1", 300, 1);
    filled(&main, "base/5/2", 300, 2);
    filled(&main, "base/5/3", 300, 3);
    filled(&main, "base/5/4", 300, 4);
    *watched.fail.lock() = Some((Point::Punch, libc::EOPNOTSUPP));
    unlink(&main, "base/5/2");
    collect(&store);
    unlink(&main, "base/5/4");
    watched.space_calls();
    collect(&store);
    assert_eq!(watched.space_calls(), [0, 0, 1]);
    assert_eq!(slots(&watched.parts, 1), (900, 900));
    // The free slots in the middle can be taken all the same.
    filled(&main, "base/5/5", 300, 5);
    assert_eq!(slots(&watched.parts, 1), (900, 900));
    has(&main, one, 0..300, 1);
    sound(&store);
    store.close().unwrap();
}

#[test]
fn a_failure_to_give_back_harms_nothing() {
    for point in [Point::Punch, Point::Truncate] {
        let watched = Watched::new();
        let store = watched.parts.open();
        let main = cluster(&store, "main");
        let one = filled(&main, "base/5/1", 100, 1);
        filled(&main, "base/5/2", 100, 2);
        let three = filled(&main, "base/5/3", 100, 3);
        unlink(&main, "base/5/2");
        *watched.fail.lock() = Some((point, libc::EIO));
        assert!(store.collect_all(&mut |_| true).is_err(), "{point:?}");
        assert_eq!(main.fault(), None);
        // Nobody knows what has become of the slots: they are reserved anew.
        let new = filled(&main, "base/5/4", 200, 4);
        *watched.fail.lock() = None;
        collect(&store);
        has(&main, one, 0..100, 1);
        has(&main, three, 0..100, 3);
        has(&main, new, 0..200, 4);
        assert_eq!(slots(&watched.parts, 1), (400, 400), "{point:?}");
        sound(&store);
        store.close().unwrap();
    }
}

/// Writers, truncation and removals go on while all that is free is given back
/// again and again: what is read is always what was written.
#[test]
fn nothing_in_use_is_given_back() {
    let parts = Parts3::new();
    let store = parts.open();
    cluster(&store, "main");
    let forks: Vec<Arc<Fork>> = (0..3).map(|i| fork(&store, "main", &format!("f{i}"))).collect();
    let writing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let reclaim = || {
            let mut rounds = 0;
            while writing.load(Ordering::SeqCst) {
                store.reclaim_all(&mut |_| true).unwrap();
                rounds += 1;
            }
            rounds
        };
        let collectors = [scope.spawn(reclaim), scope.spawn(reclaim)];
        let writers: Vec<_> = forks
            .iter()
            .enumerate()
            .map(|(n, fork)| {
                scope.spawn(move || {
                    let rel = file(fork, "base/5/1");
                    for round in 0..60u8 {
                        let blocks = 40 + u64::from(round) * 37 % 200;
                        write(fork, rel, 0..blocks, round);
                        if round % 3 == 0 {
                            fork.sync_all().unwrap();
                        }
                        has(fork, rel, 0..blocks, round);
                        let size = Some(blocks / (2 + n as u64) * B);
                        fork.set_attr(rel, SetAttr { size, ..SetAttr::default() }).unwrap();
                        has(fork, rel, 0..blocks / (2 + n as u64), round);
                    }
                    fork.sync_all().unwrap();
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        writing.store(false, Ordering::SeqCst);
        assert!(collectors.map(|c| c.join().unwrap()).iter().sum::<u32>() > 10);
    });
    sound(&store);
    collect(&store);
    let used: u64 = (2..5).map(|id| slots(&parts, id).1).sum();
    let live: u64 = forks.iter().map(|f| store.info(&f.name()).unwrap().used_bytes / B).sum();
    assert!(used >= live && used <= live + 3 * 15 + 3 * 64, "{used} slots have space, {live} are in use");
    store.close().unwrap();
}

// ---- on a real disk --------------------------------------------------------

fn on_disk() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    Store::init(&path).unwrap();
    let store = Store::open(&path, Options::default()).unwrap();
    (dir, store)
}

/// Bytes that the host has for the delta files.
fn delta_bytes(dir: &tempfile::TempDir) -> u64 {
    let files = std::fs::read_dir(dir.path().join("store/delta")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn punches_holes(dir: &tempfile::TempDir) -> bool {
    let device = pgcowfs::device::HostDevice::new(dir.path());
    let probe = device.open("probe", true).unwrap();
    probe.allocate(0, MIB).unwrap();
    let can = probe.punch(0, MIB / 2).is_ok();
    if !can {
        println!("SKIPPED: the file system of {} punches no holes", dir.path().display());
    }
    can
}

#[test]
fn the_disk_gets_its_blocks_back() {
    let (dir, store) = on_disk();
    if !punches_holes(&dir) {
        return;
    }
    let main = cluster(&store, "main");
    // Each file's pages lie between the others'.
    let files: Vec<FileId> = (0..4).map(|n| file(&main, &format!("base/5/{n}"))).collect();
    for piece in 0..16 {
        for &file in &files {
            write(&main, file, piece * 64..(piece + 1) * 64, 1);
        }
    }
    main.sync_all().unwrap();
    let (full, eighth) = (4 * 1024 * B, 4 * 1024 * B / 8);
    collect(&store);
    // The host keeps its own books in blocks, too.
    const SLACK: u64 = 256 << 10;
    let about = |want: u64| {
        let have = delta_bytes(&dir);
        assert!(have >= want && have <= want + SLACK, "{have} bytes where {want} are used");
    };
    about(full);
    // A relation is truncated to half.
    main.set_attr(files[0], SetAttr { size: Some(512 * B), ..SetAttr::default() }).unwrap();
    main.sync_all().unwrap();
    assert!(store.status().unwrap().reclaimable_bytes >= eighth);
    assert!(collect(&store) + SLACK >= eighth);
    about(full - eighth);
    // A fork overwrites and removes; its parent goes, and it shares the rest.
    let child = fork(&store, "main", "child");
    write(&main, files[1], 0..1024, 2);
    main.sync_all().unwrap();
    collect(&store);
    about(full + eighth);
    let status = store.status().unwrap();
    assert_eq!(status.shared_bytes, full - eighth);
    assert_eq!(status.used_bytes, full + eighth);
    let before = status.reclaimed_bytes;
    store.remove("main").unwrap();
    collect(&store);
    about(full - eighth);
    let status = store.status().unwrap();
    assert_eq!((status.used_bytes, status.shared_bytes), (full - eighth, 0));
    assert!(
        status.reclaimable_bytes <= SLACK && status.reclaimed_bytes + SLACK >= before + 2 * eighth,
        "{status:?}"
    );
    has(&child, files[1], 0..1024, 1);
    // What a snapshot shows is shared with its fork.
    store.snapshot("child", "kept").unwrap();
    assert_eq!(store.status().unwrap().shared_bytes, full - eighth);
    store.remove_snapshot("child", "kept").unwrap();
    assert_eq!(store.status().unwrap().shared_bytes, 0);
    collect(&store);
    let status = store.status().unwrap();
    assert_eq!((status.layers_to_merge, status.merging_pages), (0, None));
    sound(&store);
    store.close().unwrap();
}
