//! A store of each format version that there ever was must open, show what it
//! showed when it was made, and go on working.
//!
//! `tests/golden/vN.tar.gz` is such a store, `tests/golden/vN.txt` what is in it:
//! a line for each file of each fork with its size and the CRC-32 of its
//! contents. They are never made anew; a new version adds its own:
//!
//! ```text
//! PGCOWFS_GOLDEN=v3 cargo test --release --workspace --test golden -- --ignored
//! ```

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pgcowfs::{FileId, Fork, Kind, Make, Options, RenameMode, SetAttr, Store};

const B: u64 = 8192;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn make(fork: &Fork, path: &str, what: Make) -> FileId {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = fork.resolve(dir).unwrap().file;
    fork.make(dir, name.as_bytes(), what, 0o700, 26, 26).unwrap().file
}

fn pages(first: u8, blocks: usize) -> Vec<u8> {
    (0..blocks).flat_map(|i| [first.wrapping_add(i as u8); B as usize]).collect()
}

/// One of everything that the format can hold, a base apart: that is a path on
/// one machine.
fn fill(store: &Store) {
    let main = store.create("main", 26, 26, b"what the caller keeps").unwrap();
    for dir in ["base", "base/5", "global", "pg_wal", "pg_xact", "log"] {
        make(&main, dir, Make::Directory);
    }
    let table = make(&main, "base/5/16384", Make::File);
    main.write(table, 0, &pages(1, 40)).unwrap();
    let control = make(&main, "global/pg_control", Make::File);
    main.write(control, 0, &pages(90, 1)).unwrap();
    let text = make(&main, "postgresql.conf", Make::File);
    main.write(text, 0, b"shared_buffers = 128MB\n").unwrap();
    make(&main, "pg_tblspc_link", Make::Symlink(b"base/5".to_vec()));
    main.link(text, FileId::ROOT, b"second name").unwrap();
    let wal = make(&main, "pg_wal/000000010000000000000001", Make::File);
    main.write(wal, 0, &pages(200, 12)).unwrap();
    store.publish("main").unwrap();
    store.snapshot("main", "first").unwrap();

    store.fork("main", "child", b"", &mut |_| Ok(())).unwrap();
    let child = store.by_name("child").unwrap();
    // Changed, cleared, grown over what was cleared, removed, renamed, shared.
    child.write(table, 3 * B, &pages(50, 2)).unwrap();
    child.set_attr(table, SetAttr { size: Some(20 * B), ..SetAttr::default() }).unwrap();
    child.set_attr(table, SetAttr { size: Some(30 * B), ..SetAttr::default() }).unwrap();
    child.unlink(FileId::ROOT, b"second name").unwrap();
    let xact = child.resolve("pg_xact").unwrap().file;
    child.rename(FileId::ROOT, b"postgresql.conf", xact, b"moved", RenameMode::Replace).unwrap();
    let copy = make(&child, "base/5/16385", Make::File);
    assert_eq!(child.copy_range(table, 0, copy, 0, 10 * B).unwrap(), 10 * B);
    // Over the parent's WAL file: blocks that are known, and some that are only
    // known by the pattern they do not hold.
    child.write(wal, 2 * B, &pages(240, 1)).unwrap();
    child.sync_all().unwrap();
    child.write(wal, 5 * B, &pages(241, 1)).unwrap();
    child.sync(wal, true).unwrap();
    main.write(table, 0, &pages(120, 1)).unwrap();
    main.sync_all().unwrap();

    store.fork("child", "grandchild", b"", &mut |_| Ok(())).unwrap();
    store.fork("main", "gone", b"", &mut |_| Ok(())).unwrap();
    store.remove("gone").unwrap();
    store.wait_for_collection();
    store.set_quota("child", Some(1 << 30)).unwrap();
}

/// What is in a store, in words.
fn describe(store: &Store) -> String {
    let mut out = String::new();
    let mut names: Vec<String> = store.forks().into_iter().map(|f| f.name).collect();
    names.sort();
    for name in names {
        let fork = store.by_name(&name).unwrap();
        describe_dir(&fork, &name, FileId::ROOT, &mut out);
        for label in store.snapshots(&name).unwrap().into_iter().map(|snapshot| snapshot.label) {
            store.fork_snapshot(&name, &label, "probe", b"", &mut |_| Ok(())).unwrap();
            let fork = store.by_name("probe").unwrap();
            describe_dir(&fork, &format!("{name}@{label}"), FileId::ROOT, &mut out);
            store.remove("probe").unwrap();
        }
    }
    out
}

fn describe_dir(fork: &Fork, path: &str, dir: FileId, out: &mut String) {
    let mut entries: Vec<_> =
        fork.read_dir(dir).unwrap().into_iter().map(|entry| (entry.name.to_vec(), entry.file)).collect();
    entries.sort();
    for (name, file) in entries {
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        let attr = fork.attr(file).unwrap();
        match attr.kind {
            Kind::Directory => {
                writeln!(out, "{path}/ {:o}", attr.perm).unwrap();
                describe_dir(fork, &path, file, out);
            }
            Kind::Symlink => {
                let target = fork.read_link(file).unwrap();
                writeln!(out, "{path} -> {}", String::from_utf8_lossy(&target)).unwrap();
            }
            _ => {
                let mut bytes = Vec::new();
                fork.read(file, 0, attr.size as usize, &mut bytes).unwrap();
                let crc = crc32fast::hash(&bytes);
                writeln!(out, "{path} {} {} {crc:08x}", attr.size, attr.nlink).unwrap();
            }
        }
    }
}

fn tar(args: &[&str], archive: &Path, dir: &Path) {
    let done = Command::new("tar").args(args).arg(archive).arg("-C").arg(dir).arg(".").status().unwrap();
    assert!(done.success(), "tar {args:?} {}", archive.display());
}

/// Makes the golden store of the current version; see above.
#[test]
#[ignore = "makes what the other test compares with"]
fn make_golden() {
    let Ok(version) = std::env::var("PGCOWFS_GOLDEN") else { return };
    let dir = tempfile::tempdir().unwrap();
    Store::init(dir.path()).unwrap();
    let options = Options { seal_after: Duration::ZERO, ..Options::default() };
    let store = Store::open(dir.path(), options).unwrap();
    fill(&store);
    // Time for the seals of WAL files at rest.
    std::thread::sleep(Duration::from_secs(5));
    let text = describe(&store);
    // Whoever opens it finds no more than its record.
    let mut edit = |fork: &Fork| {
        fork.set_ephemeral();
        Ok(())
    };
    store.fork("main", "ephemeral", b"", &mut edit).unwrap();
    store.close().unwrap();
    drop(store);
    tar(&["--sparse", "-czf"], &golden().join(format!("{version}.tar.gz")), dir.path());
    std::fs::write(golden().join(format!("{version}.txt")), text).unwrap();
}

#[test]
fn every_version_opens_and_goes_on() {
    let mut tried = 0;
    for entry in std::fs::read_dir(golden()).unwrap() {
        let text = entry.unwrap().path();
        if text.extension().is_none_or(|e| e != "txt") {
            continue;
        }
        let want = std::fs::read_to_string(&text).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tar(&["-xzf"], &text.with_extension("tar.gz"), dir.path());
        let store = Store::open(dir.path(), Options::default()).unwrap();
        assert_eq!(describe(&store), want, "{}", text.display());
        let ended: Vec<String> = store.ended().into_iter().map(|fork| fork.name).collect();
        let since_3 = text.file_stem().is_some_and(|version| version != "v1" && version != "v2");
        assert_eq!(ended == ["ephemeral"], since_3, "{}: {ended:?}", text.display());
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "{}", text.display());
        // It is a store like any other.
        store.fork("grandchild", "new", b"", &mut |_| Ok(())).unwrap();
        let new = store.by_name("new").unwrap();
        let table = new.resolve("base/5/16384").unwrap().file;
        new.write(table, 0, &pages(77, 1)).unwrap();
        new.sync_all().unwrap();
        store.remove("child").unwrap();
        store.wait_for_collection();
        assert_eq!(store.check(true).unwrap(), Vec::<String>::new(), "{}", text.display());
        store.close().unwrap();
        drop((new, store));
        let store = Store::open(dir.path(), Options::default()).unwrap();
        let mut bytes = Vec::new();
        store.by_name("new").unwrap().read(table, 0, B as usize, &mut bytes).unwrap();
        assert_eq!(bytes, pages(77, 1));
        store.close().unwrap();
        tried += 1;
    }
    assert!(tried > 0, "there is no golden store");
}
