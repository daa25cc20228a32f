//! What the kernel keeps, counted: each request that it spares is a context
//! switch less, and each that it spares wrongly is wrong data.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::{Mounted, drop_pages, errno, pattern};

const BLOCK: usize = 8192;

fn open(m: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(m.path("f")).unwrap()
}

#[test]
fn what_was_read_or_written_is_not_asked_for_again() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m);
    let data = pattern(1, 100 * BLOCK);
    file.write_all_at(&data, 0).unwrap();
    let read = || assert!(fs::read(m.path("f")).unwrap() == data);
    assert_eq!(m.caused("read", read), 0, "just written");
    drop_pages(&file);
    assert!(m.caused("read", read) > 0, "the pages were dropped");
    assert_eq!(m.caused("read", read), 0, "read before");
    drop(file);
    assert_eq!(m.caused("read", read), 0, "opened anew");

    // Writes, also by others, and what they do to mtime and size, drop nothing.
    let file = open(&m);
    let mut data = data;
    let reads = m.caused("read", || {
        for i in 0..50 {
            let block = pattern(i, BLOCK);
            let at = (i as usize * 37 % 110) * BLOCK;
            open(&m).write_all_at(&block, at as u64).unwrap();
            data.resize(data.len().max(at + BLOCK), 0);
            data[at..at + BLOCK].copy_from_slice(&block);
            file.sync_data().unwrap();
            assert_eq!(file.metadata().unwrap().len(), data.len() as u64);
            // Holes between the old end and the new are the only thing not known.
            let known = 100 * BLOCK;
            let mut seen = vec![0; known];
            file.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen == data[..known]);
        }
    });
    assert_eq!(reads, 0);
}

#[test]
fn an_aligned_block_is_one_write() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m);
    let writes = m.caused("write", || {
        for i in 0..64 {
            file.write_all_at(&pattern(i, BLOCK), i * 3 * BLOCK as u64).unwrap();
        }
    });
    assert_eq!(writes, 64);
    let writes = m.caused("write", || file.write_all_at(&pattern(1, 1 << 20), 0).unwrap());
    assert_eq!(writes, 1, "a mebibyte in one request");
    assert!(m.caused("write_bytes", || file.write_all_at(&[1; 100], 5).unwrap()) == 100);
}

#[test]
fn no_requests_for_nothing() {
    let Some(m) = Mounted::start() else { return };
    for i in 0..50 {
        let file = open(&m);
        file.write_all_at(&[i; BLOCK], 0).unwrap();
        drop(file);
        fs::metadata(m.path("f")).unwrap();
    }
    assert!(m.count("getxattr") <= 1 && m.count("flush") <= 1, "{:?}", m.store.stats().requests());
    assert_eq!((m.count("access"), m.count("getlk"), m.count("setlk")), (0, 0, 0));
}

#[test]
fn attributes_and_names_are_kept() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), "12345").unwrap();
    fs::metadata(m.path("d/f")).unwrap();
    assert_eq!(m.caused("getattr", || assert_eq!(fs::metadata(m.path("d/f")).unwrap().len(), 5)), 0);
    // Only the fork's own name is looked up again.
    assert_eq!(m.caused("lookup", || fs::metadata(m.path("d/f")).unwrap()), 1);

    // Names that are not there, until they are.
    let missing = || assert_eq!(errno(File::open(m.path("d/g"))), libc::ENOENT);
    missing();
    assert_eq!(m.caused("lookup", missing), 1);
    fs::write(m.path("d/g"), "x").unwrap();
    assert_eq!(fs::read(m.path("d/g")).unwrap(), b"x");
    fs::remove_file(m.path("d/g")).unwrap();
    missing();
    fs::rename(m.path("d/f"), m.path("d/g")).unwrap();
    assert_eq!(fs::read(m.path("d/g")).unwrap(), b"12345");
    assert_eq!(errno(File::open(m.path("d/f"))), libc::ENOENT);
    fs::hard_link(m.path("d/g"), m.path("d/f")).unwrap();
    assert_eq!(fs::read(m.path("d/f")).unwrap(), b"12345");
}

#[test]
fn the_size_is_asked_for_once_after_a_write() {
    let Some(m) = Mounted::start() else { return };
    let mut file = open(&m);
    file.write_all_at(&[1; BLOCK], 0).unwrap();
    let asked = m.caused("getattr", || {
        for _ in 0..10 {
            assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), BLOCK as u64);
        }
    });
    assert!(asked <= 1, "{asked}");
}

#[test]
fn what_changes_behind_the_kernel_is_told() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/conf"), "port = 1\n").unwrap();
    assert_eq!(fs::read(m.path("d/conf")).unwrap(), b"port = 1\n");
    assert_eq!(errno(File::open(m.path("d/new"))), libc::ENOENT);
    for path in ["d/conf", "d/new", "top"] {
        m.main.write_file(path, b"port = 6000\nhost = here\n").unwrap();
        m.mount().changed(&m.main, path).unwrap();
        assert_eq!(fs::read(m.path(path)).unwrap(), b"port = 6000\nhost = here\n");
    }
    assert_eq!(fs::read_dir(m.path("d")).unwrap().count(), 2);
}
