//! The core on a real directory: stores, forks and files, without FUSE.

use std::sync::Arc;

use pgcowfs::{Attr, Error, FileId, Fork, ForkInfo, Make, Options, RenameMode, Seek, SetAttr, Store};

const B: u64 = 8192;

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    Store::init(&path).unwrap();
    let store = Store::open(&path, Options::default()).unwrap();
    (dir, store)
}

fn reopen(dir: &tempfile::TempDir, store: Arc<Store>) -> Arc<Store> {
    store.close().unwrap();
    drop(store);
    Store::open(&dir.path().join("store"), Options::default()).unwrap()
}

fn root(store: &Store, name: &str) -> Arc<Fork> {
    let fork = store.create(name, 0, 0, b"").unwrap();
    store.publish(name).unwrap();
    fork
}

fn file(fork: &Fork, dir: FileId, name: &str) -> Attr {
    fork.make(dir, name.as_bytes(), Make::File, 0o600, 0, 0).unwrap()
}

fn dir(fork: &Fork, parent: FileId, name: &str) -> FileId {
    fork.make(parent, name.as_bytes(), Make::Directory, 0o700, 0, 0).unwrap().file
}

fn read(fork: &Fork, file: FileId, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    fork.read(file, offset, len, &mut out).unwrap();
    out
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; B as usize]
}

fn fork(store: &Store, parent: &str, child: &str) -> Arc<Fork> {
    store.fork(parent, child, b"", &mut |_| Ok(())).unwrap();
    store.by_name(child).unwrap()
}

#[test]
fn a_file_survives_a_restart() {
    let (tmp, store) = store();
    let main = root(&store, "main");
    let a = file(&main, FileId::ROOT, "a").file;
    main.write(a, 100, b"hello").unwrap();
    main.write(a, 3 * B, &page(7)).unwrap();
    main.sync(a, false).unwrap();
    let store = reopen(&tmp, store);
    let main = store.by_name("main").unwrap();
    let attr = main.lookup(FileId::ROOT, b"a").unwrap();
    assert_eq!((attr.file, attr.size), (a, 4 * B));
    assert_eq!(&read(&main, a, 98, 9), b"\0\0hello\0\0");
    assert_eq!(read(&main, a, 3 * B, 9000), page(7));
    assert_eq!(main.seek(a, 0, Seek::Hole).unwrap(), B);
    assert_eq!(main.seek(a, B, Seek::Data).unwrap(), 3 * B);
}

#[test]
fn a_fork_is_one_instant_and_independent() {
    let (tmp, store) = store();
    let main = root(&store, "main");
    let base = dir(&main, FileId::ROOT, "base");
    let db = dir(&main, base, "5");
    let rel = file(&main, db, "16384").file;
    for i in 0..50u8 {
        main.write(rel, u64::from(i) * B, &page(i)).unwrap();
    }
    // Nothing was synced: the fork makes it durable.
    let child = fork(&store, "main", "child");
    main.write(rel, 0, &page(100)).unwrap();
    child.write(rel, B, &page(200)).unwrap();
    let check = |main: &Fork, child: &Fork| {
        assert_eq!(read(main, rel, 0, B as usize), page(100));
        assert_eq!(read(main, rel, B, B as usize), page(1));
        assert_eq!(read(child, rel, 0, B as usize), page(0));
        assert_eq!(read(child, rel, B, B as usize), page(200));
        assert_eq!(read(child, rel, 49 * B, B as usize), page(49));
    };
    check(&main, &child);
    main.sync_all().unwrap();
    child.sync_all().unwrap();
    check(&main, &child);
    drop((main, child));
    let store = reopen(&tmp, store);
    let (main, child) = (store.by_name("main").unwrap(), store.by_name("child").unwrap());
    check(&main, &child);
    assert_eq!(store.info("child").unwrap().parent.as_deref(), Some("main"));
    assert_eq!(store.info("child").unwrap().delta_bytes, B);
    // The parent goes before its child.
    store.remove("main").unwrap();
    store.wait_for_collection();
    assert!(matches!(main.lookup(FileId::ROOT, b"base"), Err(Error::Stale)));
    assert_eq!(read(&child, rel, 2 * B, B as usize), page(2));
    drop((main, child));
    let store = reopen(&tmp, store);
    let child = store.by_name("child").unwrap();
    assert_eq!(read(&child, rel, 0, B as usize), page(0));
    assert_eq!(read(&child, rel, B, B as usize), page(200));
}

#[test]
fn wal_in_place_and_over_a_fork() {
    let (tmp, store) = store();
    let main = root(&store, "main");
    let wal = dir(&main, FileId::ROOT, "pg_wal");
    let seg = file(&main, wal, "xlogtemp.1").file;
    for i in 0..16u64 {
        main.write(seg, i << 20, &vec![0; 1 << 20]).unwrap();
    }
    main.sync(seg, false).unwrap();
    main.rename(wal, b"xlogtemp.1", wal, b"000000010000000000000001", RenameMode::Replace).unwrap();
    main.sync(wal, false).unwrap();
    for i in 0..10u8 {
        main.write(seg, u64::from(i) * B, &page(i + 1)).unwrap();
    }
    main.sync(seg, true).unwrap();
    let child = fork(&store, "main", "child");
    main.write(seg, 9 * B, &page(99)).unwrap();
    main.write(seg, 10 * B, &page(98)).unwrap();
    main.sync(seg, true).unwrap();
    child.write(seg, 9 * B + 100, b"part").unwrap();
    child.sync(seg, true).unwrap();
    // After the sync above, more writes to the same chunk need no commit.
    main.write(seg, 11 * B, &page(97)).unwrap();
    main.sync(seg, true).unwrap();
    let check = |main: &Fork, child: &Fork| {
        assert_eq!(read(main, seg, 8 * B, B as usize), page(9));
        assert_eq!(read(main, seg, 9 * B, B as usize), page(99));
        assert_eq!(read(main, seg, 10 * B, B as usize), page(98));
        assert_eq!(read(main, seg, 11 * B, B as usize), page(97));
        assert_eq!(read(main, seg, 12 * B, B as usize), page(0));
        let mut want = page(10);
        want[100..104].copy_from_slice(b"part");
        assert_eq!(read(child, seg, 9 * B, B as usize), want);
        assert_eq!(read(child, seg, 10 * B, B as usize), page(0));
        assert_eq!(child.attr(seg).unwrap().size, 16 << 20);
    };
    check(&main, &child);
    drop((main, child));
    // No clean end: what was synced must be found by its pattern.
    std::mem::forget(store.clone());
    let copy = tempfile::tempdir().unwrap();
    let status =
        std::process::Command::new("cp").arg("-a").arg(tmp.path().join("store")).arg(copy.path()).status();
    assert!(status.unwrap().success());
    let store = Store::open(&copy.path().join("store"), Options::default()).unwrap();
    check(&store.by_name("main").unwrap(), &store.by_name("child").unwrap());
    store.close().unwrap();
}

#[test]
fn names_links_and_open_files() {
    let (_tmp, store) = store();
    let main = root(&store, "main");
    let top = FileId::ROOT;
    let a = file(&main, top, "a").file;
    main.write(a, 0, b"aaa").unwrap();
    main.link(a, top, b"b").unwrap();
    assert_eq!(main.attr(a).unwrap().nlink, 2);
    main.unlink(top, b"a").unwrap();
    main.open(a).unwrap();
    main.unlink(top, b"b").unwrap();
    assert!(matches!(main.lookup(top, b"b"), Err(Error::NotFound)));
    assert_eq!(read(&main, a, 0, 10), b"aaa");
    main.write(a, 0, &page(5)).unwrap();
    main.sync(a, false).unwrap();
    main.write(a, 0, &page(6)).unwrap();
    assert_eq!(read(&main, a, 0, B as usize), page(6));
    let child = fork(&store, "main", "child");
    assert!(child.attr(a).is_err(), "a fork has no orphans");
    main.release(a);
    assert!(main.attr(a).is_err());

    let d = dir(&main, top, "d");
    let e = dir(&main, d, "e");
    file(&main, e, "f");
    assert!(matches!(main.rmdir(top, b"d"), Err(Error::NotEmpty)));
    assert!(matches!(main.rename(top, b"d", e, b"x", RenameMode::Replace), Err(Error::Invalid(_))));
    main.rename(d, b"e", top, b"e2", RenameMode::Replace).unwrap();
    assert_eq!(main.attr(d).unwrap().nlink, 2);
    assert_eq!(main.parent_dir(e).unwrap(), top);
    main.rename(top, b"d", top, b"e2", RenameMode::Exchange).unwrap();
    assert_eq!(main.lookup(top, b"d").unwrap().file, e);
    let names: Vec<_> = main.read_dir(top).unwrap().into_iter().map(|x| x.name).collect();
    assert_eq!(names, [b"d".as_slice().into(), b"e2".as_slice().into()] as [Box<[u8]>; 2]);
}

#[test]
fn truncated_and_extended_blocks_do_not_show_through() {
    let (tmp, store) = store();
    let main = root(&store, "main");
    let a = file(&main, FileId::ROOT, "a").file;
    for i in 0..20u8 {
        main.write(a, u64::from(i) * B, &page(i + 1)).unwrap();
    }
    let child = fork(&store, "main", "child");
    let size = |n| SetAttr { size: Some(n), ..SetAttr::default() };
    child.set_attr(a, size(5 * B + 10)).unwrap();
    child.set_attr(a, size(20 * B)).unwrap();
    child.fallocate(a, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, B, 2 * B).unwrap();
    let check = |child: &Fork| {
        assert_eq!(read(child, a, 0, B as usize), page(1));
        assert_eq!(read(child, a, B, 2 * B as usize), vec![0; 2 * B as usize]);
        let tail = read(child, a, 5 * B, B as usize);
        assert!(tail[..10] == page(6)[..10] && tail[10..] == page(0)[10..]);
        assert_eq!(read(child, a, 6 * B, B as usize), page(0));
    };
    check(&child);
    child.sync_all().unwrap();
    drop((main, child));
    let store = reopen(&tmp, store);
    check(&store.by_name("child").unwrap());
    assert_eq!(read(&store.by_name("main").unwrap(), a, 19 * B, B as usize), page(20));
}

#[test]
fn copies_share_pages() {
    let (tmp, store) = store();
    let main = root(&store, "main");
    let a = file(&main, FileId::ROOT, "a").file;
    let b = file(&main, FileId::ROOT, "b").file;
    for i in 0..10u8 {
        main.write(a, u64::from(i) * B, &page(i + 1)).unwrap();
    }
    main.sync_all().unwrap();
    let before = store.info("main").unwrap().delta_bytes;
    assert_eq!(main.copy_range(a, 0, b, 0, 10 * B).unwrap(), 10 * B);
    main.write(a, 0, &page(50)).unwrap();
    main.write(b, B, &page(60)).unwrap();
    main.sync_all().unwrap();
    main.unlink(FileId::ROOT, b"a").unwrap();
    main.sync_all().unwrap();
    let check = |main: &Fork| {
        assert_eq!(read(main, b, 0, B as usize), page(1));
        assert_eq!(read(main, b, B, B as usize), page(60));
        assert_eq!(read(main, b, 9 * B, B as usize), page(10));
    };
    check(&main);
    assert_eq!(before, 10 * B);
    for i in 0..100 {
        let n = file(&main, FileId::ROOT, &format!("n{i}")).file;
        main.write(n, 0, &page(77)).unwrap();
    }
    main.sync_all().unwrap();
    check(&main);
    drop(main);
    let store = reopen(&tmp, store);
    check(&store.by_name("main").unwrap());
}

/// What is worked out for all forks at once is what is worked out for each.
#[test]
fn a_list_says_what_each_fork_says() {
    let (_tmp, store) = store();
    let main = root(&store, "main");
    let wal = main.make(FileId::ROOT, b"pg_wal", Make::Directory, 0o700, 0, 0).unwrap().file;
    let segment = file(&main, wal, "000000010000000000000001").file;
    let a = file(&main, FileId::ROOT, "a").file;
    const FORKS: u32 = 12;
    for n in 0..FORKS {
        main.write(a, u64::from(n) * B, &page(1)).unwrap();
        main.write(segment, 0, &page(n as u8)).unwrap();
        main.sync_all().unwrap();
        store.fork("main", &format!("f{n:02}"), b"kept", &mut |_| Ok(())).unwrap();
    }
    let forks = store.forks();
    let names: Vec<String> = store.entries().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, forks.iter().map(|info| info.name.clone()).collect::<Vec<_>>());
    assert!(store.entries().iter().all(|entry| (entry.meta == b"kept") == (entry.name != "main")));
    for info in &forks {
        let alone = store.info(&info.name).unwrap();
        let of = |info: &ForkInfo| (info.depth, info.delta_bytes, info.wal_bytes, info.logical_bytes);
        assert_eq!(of(info), of(&alone), "{}", info.name);
        let stands_on = info.name.strip_prefix('f').map_or(FORKS, |n| n.parse::<u32>().unwrap() + 1);
        assert_eq!(info.depth, stands_on + 1, "{}", info.name);
    }
    store.close().unwrap();
}
