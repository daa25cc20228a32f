//! A store made by somebody with bad intentions, and everything that one can do
//! with it.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use pgcowfs::map::{Batch, Map};
use pgcowfs::{Error, FileId, Fork, Make, RenameMode, ResetTo, Seek, SetAttr, Store};

use super::mem::{B, Parts3, cluster, file, fork, page};

pub type Record = (Vec<u8>, Vec<u8>);

/// Where choices come from: a random generator, or the bytes of an input.
pub trait Chance {
    fn next(&mut self) -> u64;
    /// Less than `n`, or 0.
    fn below(&mut self, n: usize) -> usize;
    /// Numbers that are at some border.
    fn odd(&mut self) -> u64 {
        const ODD: [u64; 16] = [
            0,
            1,
            2,
            3,
            7,
            0xff,
            2047,
            2048,
            u32::MAX as u64 - 1,
            u32::MAX as u64,
            1 << 32,
            (1 << 36) - 1,
            1 << 45,
            i64::MAX as u64,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.next(),
            1 => self.next() % 40,
            _ => ODD[self.below(ODD.len())],
        }
    }
}

/// A value's CRC made right, for whatever key.
pub fn seal(key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(body);
    [body, &crc.finalize().to_le_bytes()].concat()
}

fn body(record: &Record) -> Vec<u8> {
    record.1[..record.1.len() - 4].to_vec()
}

pub fn records(parts: &Parts3) -> Vec<Record> {
    let mut all = Vec::new();
    parts
        .map
        .scan(&[], &[0xff], &mut |k, v| {
            all.push((k.to_vec(), v.to_vec()));
            Ok(true)
        })
        .unwrap();
    all
}

/// Puts a number somewhere into these bytes.
fn put_number(random: &mut impl Chance, at: &mut [u8], big_endian: bool) {
    if at.is_empty() {
        return;
    }
    let start = random.below(at.len());
    let width = [1, 4, 8][random.below(3)].min(at.len() - start);
    let n = random.odd();
    let number =
        if big_endian { n.to_be_bytes()[8 - width..].to_vec() } else { n.to_le_bytes()[..width].to_vec() };
    at[start..start + width].copy_from_slice(&number);
}

/// One record changed by one who knows the format.
pub fn mutate(random: &mut impl Chance, records: &[Record], batch: &mut Batch) {
    // Kinds evenly: there are many more blocks than forks.
    let mut tags: Vec<u8> = records.iter().map(|(k, _)| k[0]).collect();
    tags.dedup();
    let tag = tags[random.below(tags.len())];
    let of_kind: Vec<&Record> = records.iter().filter(|(k, _)| k[0] == tag).collect();
    let victim = of_kind[random.below(of_kind.len())];
    let (mut key, mut bytes) = (victim.0.clone(), body(victim));
    let mut put = |key: &[u8], bytes: &[u8]| batch.put((key.to_vec(), seal(key, bytes)));
    match random.below(9) {
        0..=2 => {
            // Not the version.
            put_number(random, bytes.get_mut(1..).unwrap_or_default(), false);
            put(&key, &bytes);
        }
        3 => {
            // Fields mostly lie at these offsets.
            let at = (1 + 4 * random.below(bytes.len() / 4)).min(bytes.len());
            let width = [4, 8][random.below(2)].min(bytes.len() - at);
            let n = random.odd().to_le_bytes();
            bytes[at..at + width].copy_from_slice(&n[..width]);
            put(&key, &bytes);
        }
        4 => {
            put_number(random, key.get_mut(1..).unwrap_or_default(), true);
            put(&key, &bytes);
        }
        5 => {
            let cut = random.below(bytes.len() + 1);
            bytes.truncate(cut);
            put(&key, &bytes);
        }
        6 => {
            bytes.extend((0..random.below(40)).map(|_| random.next() as u8).collect::<Vec<_>>());
            put(&key, &bytes);
        }
        7 => {
            // Another record's contents under this key.
            let other = of_kind[random.below(of_kind.len())];
            put(&key, &body(other));
        }
        _ => {
            // A name, or something else at a key's end, made longer or odd.
            let tail: [&[u8]; 8] = [b"/", b"..", b"\0", b"a/b", b"\xff\xfe", b".", b"", &[b'x'; 300]];
            let keep = [9, 17, key.len()][random.below(3)].min(key.len());
            key.truncate(keep);
            key.extend_from_slice(tail[random.below(tail.len())]);
            put(&key, &bytes);
        }
    }
    if random.below(8) == 0 {
        batch.delete(of_kind[random.below(of_kind.len())].0.clone());
    }
}

/// A directory for a fork to stand on.
pub fn make_base(dir: &Path) -> PathBuf {
    let base = dir.join("base");
    std::fs::create_dir_all(base.join("base/5")).unwrap();
    std::fs::create_dir_all(base.join("pg_wal")).unwrap();
    std::fs::write(base.join("base/5/9"), [8; 3 * B as usize]).unwrap();
    std::fs::write(base.join("pg_wal/000000010000000000000001"), [8; 2 * B as usize]).unwrap();
    base
}

/// An honest store with something of everything in it.
pub fn honest(base: &Path) -> Parts3 {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let rel = file(&main, "base/5/1");
    for block in 0..40 {
        main.write(rel, block * B, &page(block as u8)).unwrap();
    }
    let wal = file(&main, "pg_wal/000000010000000000000001");
    main.write(wal, 0, &page(1)).unwrap();
    file(&main, "log/server.log");
    main.write_file("log/server.log", b"scratch").unwrap();
    let top = FileId::ROOT;
    main.make(top, b"link", Make::Symlink(b"base/5".to_vec()), 0o777, 0, 0).unwrap();
    main.make(top, b"pipe", Make::Node(pgcowfs::Kind::Fifo, 0), 0o600, 0, 0).unwrap();
    main.link(rel, top, b"hard").unwrap();
    let copy = file(&main, "base/5/2");
    main.copy_range(rel, 0, copy, 0, 10 * B).unwrap();
    main.sync_all().unwrap();
    let child = fork(&store, "main", "child");
    for block in 5..15 {
        child.write(rel, block * B, &page(9)).unwrap();
    }
    child.set_attr(rel, SetAttr { size: Some(30 * B), ..SetAttr::default() }).unwrap();
    child.fallocate(rel, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 3 * B).unwrap();
    child.write(wal, 3 * B, &page(2)).unwrap();
    child.unlink(top, b"hard").unwrap();
    child.sync_all().unwrap();
    fork(&store, "child", "grandchild");
    store.snapshot("child", "before").unwrap();
    store.set_quota("child", Some(100 << 20)).unwrap();
    let based = store.create_on_base("based", pgcowfs::base::scan(base, None).unwrap(), b"{}").unwrap();
    let old = based.resolve("base/5/9").unwrap().file;
    based.write(old, B, &page(5)).unwrap();
    based.fallocate(old, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, B).unwrap();
    store.publish("based").unwrap();
    store.seal_at_rest(std::time::Duration::ZERO).unwrap();
    assert!(store.seal_base("based", &mut |_| true).unwrap() > 0);
    store.close().unwrap();
    parts
}

/// Uses everything of a fork. Errors are fine.
pub fn use_fork(store: &Store, fork: &Fork) {
    let _ = fork.read_file("postmaster.pid");
    let mut dirs = vec![FileId::ROOT];
    let mut seen = 0;
    let mut out = Vec::new();
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fork.read_dir(dir) else { continue };
        for entry in entries {
            seen += 1;
            assert!(seen < 10_000, "the walk does not end");
            assert!(!entry.name.contains(&b'/') && *entry.name != *b"..", "{:?}", entry.name);
            if entry.kind == pgcowfs::Kind::Directory {
                dirs.push(entry.file);
                continue;
            }
            let Ok(attr) = fork.attr(entry.file) else { continue };
            let _ = fork.open(entry.file);
            for offset in [0, 3 * B, 2048 * B - 100, attr.size.saturating_sub(2 * B), u64::MAX - 5] {
                out.clear();
                let _ = fork.read(entry.file, offset, 64 << 10, &mut out);
            }
            let _ = fork.seek(entry.file, 0, Seek::Hole);
            let _ = fork.seek(entry.file, attr.size / 2, Seek::Data);
            let _ = fork.read_link(entry.file);
            let _ = fork.parent_dir(entry.file);
            let _ = fork.write(entry.file, B, &page(3));
            let _ = fork.write(entry.file, attr.size, b"more");
            let _ = fork.sync(entry.file, true);
            let _ = fork.fallocate(
                entry.file,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                0,
                attr.size.max(1),
            );
            let _ = fork.set_attr(entry.file, SetAttr { size: Some(5000), ..SetAttr::default() });
            let _ = fork.link(entry.file, FileId::ROOT, b"another");
            let _ = fork.rename(dir, &entry.name, FileId::ROOT, b"moved", RenameMode::Replace);
            fork.release(entry.file);
        }
    }
    let _ = fork.make(FileId::ROOT, b"new", Make::Directory, 0o700, 0, 0);
    let _ = fork.write_file("new/file", b"contents");
    let _ = fork.rename(FileId::ROOT, b"base", FileId::ROOT, b"new2", RenameMode::Exchange);
    let _ = fork.sync_all();
    let _ = store.fork(&fork.name(), "made-of-it", b"", &mut |_| Ok(()));
    let _ = fork.remove_tree("log");
    let _ = fork.remove_tree("base");
}

pub fn use_store(parts: &Parts3) -> Result<(), Error> {
    // Little room, so that what takes space in earnest is refused.
    let room = Some((64 << 20) + (24 << 20));
    parts.delta.set_free_bytes(room);
    parts.inplace.set_free_bytes(room);
    let store = parts.try_open()?;
    let _ = store.status();
    for info in store.forks() {
        pgcowfs::check_fork_name(&info.name).expect("no fork has a name that leads elsewhere");
        if let Ok(fork) = store.by_name(&info.name) {
            use_fork(&store, &fork);
        }
        let _ = store.info(&info.name);
    }
    let _ = store.check(true);
    for name in store.forks().into_iter().map(|info| info.name) {
        for snapshot in store.snapshots(&name).unwrap_or_default() {
            pgcowfs::check_fork_name(&snapshot.label).expect("no label leads elsewhere");
            let _ = store.fork_snapshot(&name, &snapshot.label, "of-it", b"", &mut |_| Ok(()));
            let _ = store.reset(&name, &ResetTo::Snapshot(snapshot.label.clone()), None, &mut |_| Ok(()));
            let _ = store.remove_snapshot(&name, &snapshot.label);
        }
        let _ = store.reset(&name, &ResetTo::Origin, None, &mut |_| Ok(()));
        let _ = store.promote(&name);
    }
    let _ = store.collect_all(&mut |_| true);
    let names: Vec<String> = store.forks().into_iter().map(|info| info.name).collect();
    for name in names {
        let _ = store.remove(&name);
    }
    let _ = store.close();
    Ok(())
}
