//! The contract (docs/SEMANTICS.md), line by line, on a store in memory.

#[path = "common/mem.rs"]
mod mem;

use std::sync::Arc;

use mem::{B, Parts3, cluster, file, fork, make, page, read};
use pgcowfs::device::Device;
use pgcowfs::map::Map;
use pgcowfs::{Error, FileId, Make, RenameMode, Store};

/// Bytes that are kept back for the block map.
const RESERVE: u64 = 64 << 20;

#[test]
fn line_1_one_sync_makes_the_whole_fork_durable() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (a, b) = (file(&main, "base/5/1"), file(&main, "b"));
    main.write(a, 0, &page(1)).unwrap();
    main.write(b, 0, b"text").unwrap();
    let wal = file(&main, "pg_wal/000000010000000000000001");
    main.write(wal, 0, &page(2)).unwrap();
    main.rename(FileId::ROOT, b"b", FileId::ROOT, b"c", RenameMode::Replace).unwrap();
    // The sync is of one file; all others come with it.
    main.sync(a, true).unwrap();
    main.write(a, 0, &page(9)).unwrap();
    let crashed = parts.worst_crash();
    store.close().unwrap();
    let main = crashed.open().by_name("main").unwrap();
    assert_eq!(read(&main, a, 0, B), page(1));
    assert_eq!(main.read_file("c").unwrap(), b"text");
    assert!(matches!(main.resolve("b"), Err(Error::NotFound)));
    assert_eq!(read(&main, wal, 0, B), page(2));
}

#[test]
fn line_1_a_settled_wal_file_needs_no_map_commit() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let wal = file(&main, "pg_wal/xlogtemp.1");
    main.write(wal, 0, &vec![0; 16 << 20]).unwrap();
    main.sync(wal, false).unwrap();
    let before = parts.map.commits();
    for i in 0..100 {
        main.write(wal, i * B, &page(i as u8 + 1)).unwrap();
        main.sync(wal, true).unwrap();
    }
    assert_eq!(parts.map.commits(), before, "a commit of PostgreSQL is one flush");
    let crashed = parts.worst_crash();
    store.close().unwrap();
    let main = crashed.open().by_name("main").unwrap();
    assert_eq!(read(&main, wal, 99 * B, B), page(100));

    // After a fork one map commit per segment and side, then none again.
    let store = crashed.open();
    let child = fork(&store, "main", "child");
    let main = store.by_name("main").unwrap();
    let before = crashed.map.commits();
    for i in 100..200 {
        for one in [&main, &child] {
            one.write(wal, i * B, &page(i as u8)).unwrap();
            one.sync(wal, true).unwrap();
        }
    }
    let commits = crashed.map.commits() - before;
    assert!(commits <= 4, "{commits} map commits (identifiers included)");
    let again = crashed.worst_crash();
    store.close().unwrap();
    let store = again.open();
    for name in ["main", "child"] {
        let one = store.by_name(name).unwrap();
        assert_eq!(read(&one, wal, 99 * B, B), page(100), "{name}");
        assert_eq!(read(&one, wal, 199 * B, B), page(199), "{name}");
        assert_eq!(read(&one, wal, 200 * B, B), page(0), "{name}");
    }
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

#[test]
fn line_2_half_a_block_waits_for_its_other_half() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (rel, other) = (file(&main, "base/5/1"), file(&main, "base/5/2"));
    main.write(rel, 0, &page(1)).unwrap();
    main.sync(rel, false).unwrap();
    let half = (B / 2) as usize;

    // The kernel has split one write: reads see the half, a commit that another
    // file asks for does not take it.
    main.write(rel, 0, &page(2)[..half]).unwrap();
    assert_eq!(read(&main, rel, 0, B / 2), page(2)[..half]);
    assert_eq!(read(&main, rel, B / 2, B / 2), page(1)[..half]);
    main.write(other, 0, &page(5)).unwrap();
    main.sync(other, true).unwrap();
    let crashed = parts.worst_crash();
    let after = crashed.open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B), page(1), "wholly the old block");
    assert_eq!(read(&after, other, 0, B), page(5));

    // The other half comes: the block is whole.
    main.write(rel, B / 2, &page(2)[..half]).unwrap();
    main.sync(other, true).unwrap();
    let after = parts.worst_crash().open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B), page(2), "wholly the new block");

    // Its own sync takes a half as it is; so does a fork if no other half comes.
    main.write(rel, 0, &page(3)[..half]).unwrap();
    main.sync(rel, true).unwrap();
    let after = parts.worst_crash().open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B / 2), page(3)[..half]);
    main.write(rel, 0, &page(4)[..half]).unwrap();
    let child = fork(&store, "main", "child");
    assert_eq!(read(&child, rel, 0, B / 2), page(4)[..half]);
    store.close().unwrap();
}

#[test]
fn line_2_a_write_split_at_any_byte_is_one_block() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (rel, other) = (file(&main, "base/5/1"), file(&main, "base/5/2"));
    main.write(rel, 0, &page(1)).unwrap();
    main.sync(rel, false).unwrap();
    main.write(other, 0, &page(5)).unwrap();

    // As the kernel does it where the writer's buffer is not aligned.
    let pieces = [0, 1664, 4096, B as usize];
    for (at, to) in pieces.iter().zip(&pieces[1..]) {
        main.sync(other, true).unwrap();
        let after = parts.worst_crash().open().by_name("main").unwrap();
        assert_eq!(read(&after, rel, 0, B), page(1), "wholly the old block before byte {at}");
        main.write(rel, *at as u64, &page(2)[*at..*to]).unwrap();
        assert_eq!(read(&main, rel, 0, *to as u64), page(2)[..*to]);
    }
    main.write(other, 0, &page(6)).unwrap();
    main.sync(other, true).unwrap();
    let after = parts.worst_crash().open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B), page(2), "wholly the new block");
    store.close().unwrap();
}

#[test]
fn line_2_a_part_never_comes_back_over_a_later_block() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    main.write(rel, 0, &page(1)).unwrap();
    // A part whose others never come, or came earlier; then the block as a whole.
    main.write(rel, B / 2, &page(2)[..B as usize / 2]).unwrap();
    main.write(rel, 0, &page(3)).unwrap();
    assert_eq!(read(&main, rel, 0, B), page(3));
    main.sync(rel, false).unwrap();
    assert_eq!(read(&main, rel, 0, B), page(3), "after its sync");
    let child = fork(&store, "main", "child");
    assert_eq!(read(&child, rel, 0, B), page(3), "in a fork");
    let after = parts.worst_crash().open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B), page(3), "after a crash");
    store.close().unwrap();
}

#[test]
fn line_3_a_fork_is_one_instant_under_load() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let files: Vec<FileId> = (0..4).map(|i| file(&main, &format!("base/5/{}", 100 + i))).collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // One writer goes through the files in turn with rising numbers, so every
    // instant shows numbers that differ by one at the most.
    let writer = {
        let (main, files, stop) = (main.clone(), files.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                let mut bytes = page(0);
                bytes[..8].copy_from_slice(&n.to_le_bytes());
                for &f in &files {
                    main.write(f, 0, &bytes).unwrap();
                }
            }
        })
    };
    let mut last = 0;
    for i in 0..50 {
        let child = fork(&store, "main", &format!("c{i}"));
        let numbers: Vec<u64> = files
            .iter()
            .map(|&f| read(&child, f, 0, 8).first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b)))
            .collect();
        assert!(numbers.windows(2).all(|w| w[0] == w[1] || w[0] == w[1] + 1), "{numbers:?}");
        assert!(numbers[0] - numbers[3] <= 1, "{numbers:?}");
        assert!(numbers[3] >= last, "a later fork is not older");
        last = numbers[3];
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn line_4_a_fork_is_durable_when_it_returns() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (rel, wal) = (file(&main, "base/5/1"), file(&main, "pg_wal/000000010000000000000001"));
    main.write(rel, 0, &page(1)).unwrap();
    main.write(wal, 0, &page(2)).unwrap();
    fork(&store, "main", "child");
    main.write(rel, 0, &page(3)).unwrap();
    main.write(wal, 0, &page(4)).unwrap();
    let crashed = parts.worst_crash();
    store.close().unwrap();
    let store = crashed.open();
    for name in ["main", "child"] {
        let one = store.by_name(name).unwrap();
        assert_eq!(read(&one, rel, 0, B), page(1), "{name}");
        assert_eq!(read(&one, wal, 0, B), page(2), "{name}");
    }
}

/// Found by `scripts/torture`: the record of the parent's new layer counted pages that only the parent's next commit
/// would bring, and a crash before it left the count wrong for good.
#[test]
fn line_4_a_write_to_the_parent_during_a_fork_is_not_counted_before_its_commit() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let a = file(&main, "base/5/1");
    main.write(a, 0, &page(1)).unwrap();
    let mut write = |_: &pgcowfs::Fork| main.write(a, B, &page(2));
    store.fork("main", "child", b"", &mut write).unwrap();
    let crashed = parts.worst_crash();
    store.close().unwrap();
    let store = crashed.open();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    let main = store.by_name("main").unwrap();
    assert_eq!(main.attr(a).unwrap().size, B, "the second page was never synced");
    main.write(a, B, &page(3)).unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn line_6_a_failed_commit_poisons_the_fork_only() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let other = cluster(&store, "other");
    let rel = file(&main, "base/5/1");
    main.write(rel, 0, &page(1)).unwrap();
    parts.map.fail_after(Some(0));
    assert!(main.sync(rel, false).is_err());
    parts.map.fail_after(None);
    assert!(matches!(main.sync(rel, false), Err(Error::Poisoned(..))), "never pretend");
    assert!(matches!(main.write(rel, 0, &page(2)), Err(Error::Poisoned(..))));
    assert!(store.info("main").unwrap().fault.is_some());
    let rel = file(&other, "base/5/1");
    other.write(rel, 0, &page(1)).unwrap();
    other.sync(rel, false).unwrap();
    store.remove("main").unwrap();
    store.close().unwrap();
}

#[test]
fn line_7_a_full_disk_refuses_the_write_and_nothing_else() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (rel, other) = (file(&main, "base/5/1"), file(&main, "base/5/2"));
    main.write(other, 0, &page(7)).unwrap();
    main.sync_all().unwrap();
    parts.delta.set_free_bytes(Some(RESERVE + (4 << 20)));
    let mut written = 0;
    let full = loop {
        match main.write(rel, written * B, &page(written as u8)) {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, Error::NoSpace), "{full}");
    assert!(written >= 128, "only {written} blocks fitted");
    // What was acknowledged can be made durable; names can change; files can go.
    main.sync(rel, false).unwrap();
    main.rename(FileId::ROOT, b"log", FileId::ROOT, b"log2", RenameMode::Replace).unwrap();
    main.sync_all().unwrap();
    for i in 0..written {
        assert_eq!(read(&main, rel, i * B, B), page(i as u8));
    }
    let base = main.resolve("base/5").unwrap().file;
    main.unlink(base, b"1").unwrap();
    main.sync_all().unwrap();
    // And with that there is room again, without a restart.
    let again = file(&main, "base/5/3");
    for i in 0..written / 2 {
        main.write(again, i * B, &page(3)).unwrap();
    }
    main.sync_all().unwrap();
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn line_8_forks_go_in_any_order_and_leave_no_space_behind() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    for i in 0..20 {
        main.write(rel, i * B, &page(i as u8)).unwrap();
    }
    let a = fork(&store, "main", "a");
    a.write(rel, 0, &page(100)).unwrap();
    let b = fork(&store, "a", "b");
    b.write(rel, B, &page(101)).unwrap();
    let c = fork(&store, "b", "c");
    c.write(rel, 2 * B, &page(102)).unwrap();
    let whole = |c: &pgcowfs::Fork| {
        let first: Vec<u8> = (0..4).map(|i| read(c, rel, i * B, B)[0]).collect();
        assert_eq!(first, [100, 101, 102, 3]);
    };
    for gone in ["a", "main", "b"] {
        store.remove(gone).unwrap();
        store.wait_for_collection();
        whole(&c);
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "after {gone}");
    }
    store.close().unwrap();
    let store = parts.open();
    let c = store.by_name("c").unwrap();
    whole(&c);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.remove("c").unwrap();
    store.wait_for_collection();
    assert_eq!(pgcowfs::device::Device::list(&parts.delta).unwrap(), Vec::<String>::new());
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(pgcowfs::device::Device::list(&parts.inplace).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn a_fork_leaves_the_server_behind() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    for path in ["postmaster.pid", "postmaster.opts", "log/today.log", "postgresql.conf"] {
        main.write_file(path, b"x").unwrap();
    }
    make(&main, "base/pgsql_tmp", Make::Directory);
    make(&main, "base/pgsql_tmp/set", Make::Directory);
    main.write_file("base/pgsql_tmp/set/1", b"x").unwrap();
    let child = fork(&store, "main", "child");
    let names = |path: &str| -> Vec<String> {
        child.list(path).unwrap().iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect()
    };
    assert_eq!(names(""), ["base", "log", "pg_wal", "postgresql.conf"]);
    assert_eq!(names("log"), Vec::<String>::new());
    assert_eq!(names("base/pgsql_tmp"), Vec::<String>::new());
    assert_eq!(main.read_file("log/today.log").unwrap(), b"x");
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn a_refused_edit_undoes_the_fork() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let refused = store.fork("main", "child", b"", &mut |child| {
        child.write_file("half", b"made")?;
        Err(Error::Unsupported)
    });
    assert!(matches!(refused, Err(Error::Unsupported)));
    assert!(matches!(store.by_name("child"), Err(Error::NoSuchFork(_))));
    main.write_file("after", b"1").unwrap();
    main.sync_all().unwrap();
    fork(&store, "main", "child");
    let crashed = parts.worst_crash();
    store.close().unwrap();
    let store = crashed.open();
    assert_eq!(store.by_name("child").unwrap().read_file("after").unwrap(), b"1");
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

fn on_disk() -> (tempfile::TempDir, Arc<Store>, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base-dir");
    std::fs::create_dir_all(base.join("base/5")).unwrap();
    std::fs::create_dir_all(base.join("pg_wal")).unwrap();
    let pages: Vec<u8> = (0..10u8).flat_map(page).collect();
    std::fs::write(base.join("base/5/1"), &pages).unwrap();
    std::fs::write(base.join("base/5/2"), &pages[..100]).unwrap();
    std::fs::write(base.join("pg_wal/000000010000000000000001"), &pages).unwrap();
    let store_dir = dir.path().join("store");
    Store::init(&store_dir).unwrap();
    let store = Store::open(&store_dir, pgcowfs::Options::default()).unwrap();
    (dir, store, base)
}

#[test]
fn a_base_is_used_in_place_and_never_written() {
    let (dir, store, base) = on_disk();
    let before = std::fs::read(base.join("base/5/1")).unwrap();
    let main = store.create_on_base("main", pgcowfs::base::scan(&base, None).unwrap(), b"").unwrap();
    store.publish("main").unwrap();
    let rel = main.resolve("base/5/1").unwrap().file;
    let wal = main.resolve("pg_wal/000000010000000000000001").unwrap().file;
    assert_eq!(read(&main, rel, 3 * B, B), page(3));
    main.write(rel, 3 * B, &page(33)).unwrap();
    main.write(wal, 4 * B + 5, b"in place").unwrap();
    main.sync_all().unwrap();
    let child = fork(&store, "main", "child");
    child.fallocate(rel, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 5 * B, B).unwrap();
    let cut = pgcowfs::SetAttr { size: Some(8 * B), ..Default::default() };
    child.set_attr(rel, cut).unwrap();
    child.write(rel, 9 * B, &page(99)).unwrap();
    let check = |main: &pgcowfs::Fork, child: &pgcowfs::Fork| {
        assert_eq!(read(main, rel, 3 * B, B), page(33));
        assert_eq!(read(main, rel, 5 * B, B), page(5));
        assert_eq!(read(main, rel, 9 * B, B), page(9));
        assert_eq!(&read(main, wal, 4 * B, 13)[..], b"\x04\x04\x04\x04\x04in place");
        assert_eq!(read(main, wal, 5 * B, B), page(5));
        assert_eq!(read(child, rel, 5 * B, B), page(0), "punched");
        assert_eq!(read(child, rel, 8 * B, B), page(0), "cut and extended");
        assert_eq!(read(child, rel, 9 * B, B), page(99));
    };
    check(&main, &child);
    drop((main, child));
    store.close().unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("store"), pgcowfs::Options::default()).unwrap();
    let (main, child) = (store.by_name("main").unwrap(), store.by_name("child").unwrap());
    check(&main, &child);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read(base.join("base/5/1")).unwrap(), before);
    store.close().unwrap();
}

#[test]
fn a_changed_base_is_an_error_that_names_the_file() {
    let (_dir, store, base) = on_disk();
    let main = store.create_on_base("main", pgcowfs::base::scan(&base, None).unwrap(), b"").unwrap();
    store.publish("main").unwrap();
    let rel = main.resolve("base/5/1").unwrap().file;
    assert_eq!(read(&main, rel, 0, B), page(0));
    std::fs::write(base.join("base/5/1"), b"another server was here").unwrap();
    let mut out = Vec::new();
    let e = main.read(rel, 0, 100, &mut out).unwrap_err();
    assert!(matches!(&e, Error::BaseChanged { path, .. } if path.ends_with("base/5/1")), "{e}");
    assert_eq!(e.errno(), libc::EIO);
    store.close().unwrap();
}

#[test]
fn scratch_stays_in_place_over_forks_and_can_become_a_file() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let log = file(&main, "log/today");
    main.write(log, 0, b"one\n").unwrap();
    main.sync_all().unwrap();
    let hosts = || pgcowfs::device::Device::list(&parts.inplace).unwrap().len();
    let before = hosts();
    fork(&store, "main", "a");
    main.write(log, 4, b"two\n").unwrap();
    assert_eq!(hosts(), before, "a fork costs scratch nothing");
    // Under a name that forks inherit it is an ordinary file.
    let dir = main.resolve("log").unwrap().file;
    main.rename(dir, b"today", FileId::ROOT, b"kept", RenameMode::Replace).unwrap();
    let b = fork(&store, "main", "b");
    main.write(log, 0, b"ONE\n").unwrap();
    assert_eq!(b.read_file("kept").unwrap(), b"one\ntwo\n");
    assert_eq!(main.read_file("kept").unwrap(), b"ONE\ntwo\n");
    // So are the files of a scratch directory that is renamed.
    file(&main, "log/set");
    make(&main, "log/sub", Make::Directory);
    let deep = file(&main, "log/sub/deep");
    main.write(deep, 0, b"deep").unwrap();
    main.rename(FileId::ROOT, b"log", FileId::ROOT, b"archive", RenameMode::Replace).unwrap();
    let c = fork(&store, "main", "c");
    main.write(deep, 0, b"DEEP").unwrap();
    assert_eq!(c.read_file("archive/sub/deep").unwrap(), b"deep");
    drop((main, b, c));
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(store.by_name("b").unwrap().read_file("kept").unwrap(), b"one\ntwo\n");
    assert_eq!(store.by_name("main").unwrap().read_file("kept").unwrap(), b"ONE\ntwo\n");
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    store.close().unwrap();
}

#[test]
fn line_3_a_fork_in_the_middle_of_a_split_write_has_the_old_block() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    main.write(rel, 0, &page(1)).unwrap();
    let half = (B / 2) as usize;
    // The other half comes a moment after the fork has begun to wait for it.
    main.write(rel, 0, &page(2)[..half]).unwrap();
    let writer = {
        let main = main.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            main.write(rel, B / 2, &page(2)[..half]).unwrap();
            main.write(rel, 0, &page(3)[..half]).unwrap();
        })
    };
    let child = fork(&store, "main", "child");
    let got = read(&child, rel, 0, B);
    assert!(got == page(2), "the whole write, and nothing of the next");
    writer.join().unwrap();
    main.write(rel, B / 2, &page(3)[..half]).unwrap();
    assert_eq!(read(&main, rel, 0, B), page(3), "the parent's half was kept");
    assert_eq!(read(&child, rel, 0, B), page(2));
    main.sync(rel, true).unwrap();
    let after = parts.worst_crash().open().by_name("main").unwrap();
    assert_eq!(read(&after, rel, 0, B), page(3));
    store.close().unwrap();
}

const SEGMENT_1: &str = "pg_wal/000000010000000000000001";
const SEGMENT_2: &str = "pg_wal/000000010000000000000002";
const NOW: std::time::Duration = std::time::Duration::ZERO;

/// Host files that have a seal in the map.
fn seals(parts: &Parts3) -> usize {
    let mut count = 0;
    parts
        .map
        .scan(b"H", b"I", &mut |_, _| {
            count += 1;
            Ok(true)
        })
        .unwrap();
    count
}

/// Flips one bit of one in-place file, behind everybody's back.
fn flip(parts: &Parts3, name: &str, at: u64) {
    let file = parts.inplace.open(name, false).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, at).unwrap();
    file.write_at(&[byte[0] ^ 1], at).unwrap();
}

fn read_error(fork: &pgcowfs::Fork, file: FileId, offset: u64, len: u64) -> Error {
    let mut out = Vec::new();
    match fork.read(file, offset, len as usize, &mut out) {
        Ok(()) => panic!("wrong data was returned: {:?}...", &out[..4]),
        Err(e) => e,
    }
}

/// A store with two segments; the second is being written.
fn two_segments() -> (Parts3, Arc<Store>, Arc<pgcowfs::Fork>, FileId, FileId) {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (one, two) = (file(&main, SEGMENT_1), file(&main, SEGMENT_2));
    for i in 0..20 {
        main.write(one, i * B, &page(i as u8 + 1)).unwrap();
    }
    main.write(two, 0, &page(99)).unwrap();
    main.sync_all().unwrap();
    (parts, store, main, one, two)
}

#[test]
fn line_5_a_segment_that_was_left_is_sealed_and_damage_to_it_found() {
    let (parts, store, main, one, two) = two_segments();
    assert_eq!(store.seal_at_rest(std::time::Duration::from_secs(600)).unwrap(), 0, "it may go on");
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 1, "all but the newest");
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 0, "once");
    assert_eq!(seals(&parts), 1);
    assert_eq!(read(&main, one, 3 * B, B), page(4));
    flip(&parts, "000000000001", 3 * B + 77);
    flip(&parts, "000000000002", 77);
    let check = |main: &pgcowfs::Fork| {
        let e = read_error(main, one, 2 * B, 3 * B);
        assert_eq!(e.errno(), libc::EIO);
        let text = e.to_string();
        for part in ["fork \"main\"", SEGMENT_1, "block 3:", "in-place file 000000000001"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(read(main, one, 0, 3 * B), [page(1), page(2), page(3)].concat());
        assert_eq!(read(main, one, 4 * B, B), page(5));
        // The control: without a seal nobody can tell.
        assert_eq!(read(main, two, 77, 1), [98]);
    };
    check(&main);
    store.close().unwrap();
    check(&parts.open().by_name("main").unwrap());
}

#[test]
fn line_5_a_write_removes_the_seal_before_it_changes_a_byte() {
    let (parts, store, main, one, _) = two_segments();
    store.seal_at_rest(NOW).unwrap();
    assert_eq!(seals(&parts), 1);
    // No commit, no write.
    parts.map.fail_after(Some(0));
    assert!(main.write(one, 0, &page(50)).is_err());
    parts.map.fail_after(None);
    assert_eq!(read(&main, one, 0, B), page(1));
    assert_eq!(seals(&parts), 1);
    let before = parts.map.commits();
    for i in 0..5 {
        main.write(one, i * B, &page(60)).unwrap();
    }
    assert_eq!(parts.map.commits(), before + 1, "one commit for a segment");
    assert_eq!(seals(&parts), 0);
    // Whatever of it is there after a loss of power, it can be read.
    let mut seed = 1u64;
    for _ in 0..20 {
        let mut coin = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed & 1 == 1
        };
        let image = Parts3 {
            map: parts.map.crash_image(),
            delta: parts.delta.crash_image(&mut coin),
            inplace: parts.inplace.crash_image(&mut coin),
        };
        let store = image.open();
        let main = store.by_name("main").unwrap();
        let bytes = read(&main, one, 0, 20 * B);
        assert!(bytes[..B as usize].iter().all(|b| *b == 1 || *b == 60));
        assert_eq!(bytes[19 * B as usize], 20);
        store.close().unwrap();
    }
    store.close().unwrap();
}

#[test]
fn line_5_a_recycled_segment_costs_its_first_write_nothing() {
    let (parts, store, main, one, two) = two_segments();
    store.seal_at_rest(NOW).unwrap();
    let dir = main.resolve("pg_wal").unwrap().file;
    main.rename(dir, b"000000010000000000000001", dir, b"000000010000000000000003", RenameMode::Replace)
        .unwrap();
    assert_eq!(seals(&parts), 1);
    main.sync(dir, false).unwrap();
    assert_eq!(seals(&parts), 0, "the seal goes with the new name");
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 0, "it waits for its writes");
    let before = parts.map.commits();
    main.write(one, 0, &page(70)).unwrap();
    main.sync(one, true).unwrap();
    assert_eq!(parts.map.commits(), before);
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 1, "now the other one is left");
    assert_eq!(read(&main, two, 0, B), page(99));
    store.close().unwrap();
}

#[test]
fn line_5_frozen_segments_are_sealed_for_all_forks_and_the_seal_goes_with_them() {
    let (parts, store, main, one, two) = two_segments();
    let child = fork(&store, "main", "child");
    // The background may have been first.
    store.seal_at_rest(std::time::Duration::from_secs(600)).unwrap();
    assert_eq!(seals(&parts), 2, "both are frozen");
    // The child goes on over the second one.
    child.write(two, B, &page(5)).unwrap();
    child.sync_all().unwrap();
    assert_eq!(seals(&parts), 2);
    flip(&parts, "000000000001", 9);
    for (name, one_fork) in [("main", &main), ("child", &child)] {
        let text = read_error(one_fork, one, 0, B).to_string();
        assert!(text.contains(name) && text.contains("block 0"), "{text}");
    }
    assert_eq!(read(&child, two, 0, 2 * B), [page(99), page(5)].concat());
    // What lies over others is sealed too, and stays right over a crash.
    let three = file(&child, "pg_wal/000000010000000000000003");
    child.write(three, 0, &page(1)).unwrap();
    child.sync_all().unwrap();
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 1);
    let crashed = parts.worst_crash();
    let again = crashed.open();
    assert_eq!(read(&again.by_name("child").unwrap(), two, 0, 2 * B), [page(99), page(5)].concat());
    assert_eq!(read(&again.by_name("main").unwrap(), two, 0, 2 * B), page(99));
    again.close().unwrap();
    assert_eq!(seals(&parts), 3);
    store.remove("child").unwrap();
    store.wait_for_collection();
    assert_eq!(seals(&parts), 2, "one was the child's alone");
    store.remove("main").unwrap();
    store.wait_for_collection();
    assert_eq!(seals(&parts), 0);
    store.close().unwrap();
}

#[test]
fn line_5_scratch_and_unloaded_forks_are_left_alone() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let log = file(&main, "log/today");
    main.write(log, 0, b"one").unwrap();
    main.sync_all().unwrap();
    fork(&store, "main", "child");
    main.write(log, 0, b"two").unwrap();
    main.sync_all().unwrap();
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 0);
    let wal = file(&main, SEGMENT_1);
    main.write(wal, 0, &page(1)).unwrap();
    main.sync_all().unwrap();
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 0, "nobody has looked at it since the start");
    store.by_name("main").unwrap();
    assert_eq!(store.seal_at_rest(NOW).unwrap(), 1);
    store.close().unwrap();
}
