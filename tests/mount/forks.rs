//! Forks that come and go under a mount in use.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::{Mounted, drop_pages, errno, eventually, pattern};

const BLOCK: usize = 8192;

fn fork(m: &Mounted, parent: &str, child: &str) {
    m.store.fork(parent, child, b"", &mut |_| Ok(())).unwrap();
}

fn names(m: &Mounted) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(&m.mnt).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_fork_is_there_at_once_and_independent() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("base")).unwrap();
    let data = pattern(1, 20 * BLOCK + 17);
    fs::write(m.path("base/1"), &data).unwrap();
    assert_eq!(errno(fs::metadata(m.mnt.join("child"))), libc::ENOENT);
    fork(&m, "main", "child");
    assert_eq!(names(&m), ["child", "main"]);
    let child = m.mnt.join("child/base/1");
    assert!(fs::read(&child).unwrap() == data);
    assert_ne!(fs::metadata(&child).unwrap().ino(), fs::metadata(m.path("base/1")).unwrap().ino());

    let write = |path: &std::path::Path, byte| {
        OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(&[byte; BLOCK], 3 * BLOCK as u64)
            .unwrap();
    };
    write(&child, 1);
    write(&m.path("base/1"), 2);
    fs::write(m.mnt.join("child/base/2"), "").unwrap();
    fs::remove_file(m.path("base/1")).unwrap();
    drop_pages(&File::open(&child).unwrap());
    let mut expected = data;
    expected[3 * BLOCK..4 * BLOCK].fill(1);
    assert!(fs::read(&child).unwrap() == expected);
    assert!(!m.path("base/2").exists());
}

#[test]
fn what_is_not_synced_is_in_the_fork_too() {
    let Some(m) = Mounted::start() else { return };
    let file = File::create(m.path("f")).unwrap();
    for round in 0..10 {
        let data = pattern(round, 9 * BLOCK + 100);
        file.write_all_at(&data, 0).unwrap();
        let name = format!("fork{round}");
        fork(&m, "main", &name);
        assert!(fs::read(m.mnt.join(&name).join("f")).unwrap() == data);
    }
    for round in 0..10 {
        let path = m.mnt.join(format!("fork{round}/f"));
        drop_pages(&File::open(&path).unwrap());
        assert!(fs::read(path).unwrap() == pattern(round, 9 * BLOCK + 100));
    }
}

#[test]
fn a_removed_fork_is_stale() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    fs::write(m.path("d/f"), "parent").unwrap();
    fork(&m, "main", "child");
    let child = m.mnt.join("child");
    let file = OpenOptions::new().read(true).write(true).open(child.join("d/f")).unwrap();
    let dir = File::open(child.join("d")).unwrap();
    m.store.remove("child").unwrap();

    assert_eq!(names(&m), ["main"]);
    assert_eq!(errno(fs::metadata(&child)), libc::ENOENT);
    assert_eq!(errno(fs::metadata(child.join("d/f"))), libc::ENOENT);
    assert_eq!(errno(file.write_all_at(b"x", 0)), libc::ESTALE);
    assert_eq!(errno(file.sync_all()), libc::ESTALE);
    assert_eq!(errno(file.set_len(0)), libc::ESTALE);
    assert_eq!(errno(dir.sync_all()), libc::ESTALE);
    drop_pages(&file);
    assert_eq!(errno(file.read_at(&mut [0; 4], 0)), libc::ESTALE);
    drop((file, dir));
    assert_eq!(fs::read(m.path("d/f")).unwrap(), b"parent");
}

#[test]
fn a_name_can_be_used_again_at_once() {
    let Some(m) = Mounted::start() else { return };
    for round in 0..20u8 {
        fs::write(m.path("f"), [round]).unwrap();
        fork(&m, "main", "again");
        let path = m.mnt.join("again/f");
        assert_eq!(fs::read(&path).unwrap(), [round]);
        fs::write(m.mnt.join("again/own"), [round]).unwrap();
        let held = File::open(&path).unwrap();
        m.store.remove("again").unwrap();
        assert_eq!(errno(fs::read(&path)), libc::ENOENT);
        drop(held);
    }
    // The notices of removal, which come later, leave a new fork alone.
    fork(&m, "main", "again");
    eventually("the fork is whole", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        fs::read(m.mnt.join("again/f")).is_ok_and(|f| f == [19])
    });
    assert!(!m.mnt.join("again/own").exists());
}

#[test]
fn nothing_moves_between_forks() {
    let Some(m) = Mounted::start() else { return };
    let data = pattern(2, 5 * BLOCK);
    fs::write(m.path("f"), &data).unwrap();
    fork(&m, "main", "child");
    let there = m.mnt.join("child/g");
    assert_eq!(errno(fs::rename(m.path("f"), &there)), libc::EXDEV);
    assert_eq!(errno(fs::hard_link(m.path("f"), &there)), libc::EXDEV);
    // The kernel copies instead.
    let (from, to) = (File::open(m.path("f")).unwrap(), File::create(&there).unwrap());
    assert_eq!(io::copy(&mut &from, &mut &to).unwrap(), data.len() as u64);
    assert!(fs::read(&there).unwrap() == data);
}

#[test]
fn an_incomplete_fork_can_be_filled() {
    let Some(m) = Mounted::start() else { return };
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    m.store.create("making", uid, gid, b"").unwrap();
    let path = m.mnt.join("making");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    fs::write(path.join("PG_VERSION"), "15\n").unwrap();
    m.store.publish("making").unwrap();
    assert_eq!(fs::read(path.join("PG_VERSION")).unwrap(), b"15\n");
    assert_eq!(names(&m), ["main", "making"]);
}
