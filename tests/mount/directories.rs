//! Reading directories, and the top directory of all forks.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use pgcowfs::{FileId, Make};

use crate::{Mounted, c_path, errno};

/// A directory stream of the C library, for what `std` does not offer.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &std::path::Path) -> Stream {
        // SAFETY: the path ends with NUL.
        let dir = unsafe { libc::opendir(c_path(path).as_ptr()) };
        assert!(!dir.is_null(), "{}", io::Error::last_os_error());
        Stream(dir)
    }

    fn rewind(&mut self) {
        // SAFETY: an open stream.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Iterator for Stream {
    type Item = (String, u64);

    fn next(&mut self) -> Option<(String, u64)> {
        // SAFETY: an open stream; the entry is used before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            let name = std::ffi::CStr::from_ptr(entry.as_ref()?.d_name.as_ptr());
            Some((name.to_str().unwrap().to_string(), (*entry).d_ino))
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: an open stream, not used again.
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn entries_dots_and_rewinding() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/a"), "").unwrap();
    fs::create_dir(m.path("d/b")).unwrap();
    let ino = |path: &str| fs::metadata(m.path(path)).unwrap().ino();
    let mut stream = Stream::open(&m.path("d"));
    let entries: HashMap<_, _> = stream.by_ref().collect();
    let expected = [(".", ino("d")), ("..", ino(".")), ("a", ino("d/a")), ("b", ino("d/b"))];
    assert_eq!(entries, expected.map(|(name, ino)| (name.to_string(), ino)).into());

    fs::rename(m.path("d/a"), m.path("d/c")).unwrap();
    stream.rewind();
    let names: HashSet<_> = stream.by_ref().map(|(name, _)| name).collect();
    assert_eq!(names, [".", "..", "b", "c"].map(String::from).into());
    let kinds: HashMap<_, _> = fs::read_dir(m.path("d"))
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name(), e.file_type().unwrap()))
        .collect();
    assert!(kinds[std::ffi::OsStr::new("b")].is_dir() && kinds[std::ffi::OsStr::new("c")].is_file());
}

#[test]
fn a_hundred_thousand_entries_while_they_change() {
    const ENTRIES: usize = 100_000;
    let Some(m) = Mounted::start() else { return };
    // Made by the core, before the kernel has seen the directory.
    let dir = m.main.make(FileId::ROOT, b"d", Make::Directory, 0o777, 0, 0).unwrap().file;
    for i in 0..ENTRIES {
        m.main.make(dir, format!("file{i}").as_bytes(), Make::File, 0o600, 0, 0).unwrap();
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    for (n, (name, _)) in Stream::open(&m.path("d")).enumerate() {
        *seen.entry(name).or_default() += 1;
        // Of every ten of the first 20,000: one goes, one gets another name, and a new one comes.
        if n % 10 == 0 && n < 20_000 {
            let at = |k: usize| m.path(&format!("d/file{}", (n * 7919 + k) % ENTRIES));
            let _ = fs::remove_file(at(1));
            let _ = fs::rename(at(2), m.path(&format!("d/renamed{n}")));
            File::create(m.path(&format!("d/new{n}"))).unwrap();
        }
    }
    assert!(seen.values().all(|times| *times == 1), "shown twice");
    let mut stayed = 0;
    for entry in fs::read_dir(m.path("d")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("file") {
            assert!(seen.contains_key(&name), "{name} was there all the time");
            stayed += 1;
        }
    }
    assert!(stayed > 95_000 && stayed < ENTRIES, "{stayed}");
    // And all of it can be removed while being listed.
    fs::remove_dir_all(m.path("d")).unwrap();
    assert!(!m.path("d").exists());
}

#[test]
fn a_listing_brings_no_old_names_back() {
    let Some(m) = Mounted::start() else { return };
    let dir = m.main.make(FileId::ROOT, b"d", Make::Directory, 0o777, 0, 0).unwrap().file;
    for i in 0..2000 {
        let file = m.main.make(dir, format!("f{i:04}").as_bytes(), Make::File, 0o644, 0, 0).unwrap().file;
        m.main.write(file, 0, b"old").unwrap();
    }
    // The list is taken at the first entry; what comes after it is out of date
    // when the kernel gets it, together with what the files are.
    let mut entries = fs::read_dir(m.path("d")).unwrap();
    let first = entries.next().unwrap().unwrap();
    fs::metadata(first.path()).unwrap();
    for i in 0..2000 {
        // The file lives on elsewhere, its name is another's or nobody's.
        let path = m.path(&format!("d/f{i:04}"));
        fs::rename(&path, m.path(&format!("d/moved{i:04}"))).unwrap();
        if i % 2 == 0 {
            fs::write(path, "new").unwrap();
        }
    }
    for entry in entries {
        let _ = entry.unwrap().metadata();
    }
    for i in 0..2000 {
        let path = m.path(&format!("d/f{i:04}"));
        match i % 2 {
            0 => assert_eq!(fs::read(path).unwrap(), b"new"),
            _ => assert_eq!(errno(fs::metadata(path)), libc::ENOENT),
        }
        assert_eq!(fs::read(m.path(&format!("d/moved{i:04}"))).unwrap(), b"old");
    }
}

#[test]
fn a_listing_with_attributes_needs_few_lookups() {
    let Some(m) = Mounted::start() else { return };
    let dir = m.main.make(FileId::ROOT, b"d", Make::Directory, 0o777, 0, 0).unwrap().file;
    for i in 0..1000 {
        m.main.make(dir, format!("f{i}").as_bytes(), Make::File, 0o600, 0, 0).unwrap();
    }
    let lookups = m.caused("lookup", || {
        let sizes: u64 =
            fs::read_dir(m.path("d")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(sizes, 0);
    });
    assert!(lookups < 500, "{lookups}");
}

#[test]
fn the_top_directory_cannot_be_changed() {
    let Some(m) = Mounted::start() else { return };
    m.store.create("other", 0, 0, b"").unwrap();
    let top = |name: &str| m.mnt.join(name);
    fs::write(m.path("f"), "").unwrap();
    let refused = [
        errno(File::create(top("new"))),
        errno(fs::create_dir(top("new"))),
        errno(std::os::unix::fs::symlink("x", top("new"))),
        errno(fs::remove_dir(top("main"))),
        errno(fs::rename(top("main"), top("new"))),
        errno(fs::rename(m.path("f"), top("new"))),
        errno(fs::hard_link(m.path("f"), top("new"))),
        errno(
            renameat2(AT_FDCWD, &top("main"), AT_FDCWD, &top("other"), RenameFlags::RENAME_EXCHANGE)
                .map_err(io::Error::from),
        ),
        errno(fs::set_permissions(&m.mnt, std::os::unix::fs::PermissionsExt::from_mode(0o700))),
    ];
    assert_eq!(refused, [libc::EPERM; 9]);
    assert_eq!(errno(fs::metadata(top("none"))), libc::ENOENT);
    assert_eq!(errno(fs::metadata(top("-not a fork's name"))), libc::ENOENT);
    let entries: HashMap<_, _> = Stream::open(&m.mnt).collect();
    assert_eq!((entries["."], entries[".."] > 0), (1, true));
    assert_eq!(entries["main"], fs::metadata(top("main")).unwrap().ino());
    let meta = fs::metadata(&m.mnt).unwrap();
    assert!(meta.is_dir() && meta.ino() == 1);
}

#[test]
fn a_removed_directory_that_is_open_can_be_asked() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("gone")).unwrap();
    fs::create_dir(m.path("over")).unwrap();
    fs::create_dir(m.path("new")).unwrap();
    let (gone, over) = (File::open(m.path("gone")).unwrap(), File::open(m.path("over")).unwrap());
    fs::remove_dir(m.path("gone")).unwrap();
    fs::rename(m.path("new"), m.path("over")).unwrap();
    for dir in [gone, over] {
        let meta = dir.metadata().unwrap();
        assert!(meta.is_dir());
        assert_eq!(meta.nlink(), 0);
    }
}
