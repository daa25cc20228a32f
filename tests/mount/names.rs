//! Making, renaming, linking and removing names.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::{Mounted, errno, root};

fn rename(from: &std::path::Path, to: &std::path::Path, flags: RenameFlags) -> std::io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

#[test]
fn create_and_exclusive_create() {
    let Some(m) = Mounted::start() else { return };
    assert_eq!(errno(File::open(m.path("a"))), libc::ENOENT);
    File::create_new(m.path("a")).unwrap().write_all(b"1").unwrap();
    assert_eq!(errno(File::create_new(m.path("a"))), libc::EEXIST);
    // Without O_EXCL the file that is there is opened; O_TRUNC empties it.
    OpenOptions::new().append(true).create(true).open(m.path("a")).unwrap().write_all(b"2").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"12");
    File::create(m.path("a")).unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"");
    assert_eq!(errno(File::create(m.path("no/such/dir"))), libc::ENOENT);
    assert_eq!(errno(File::create(m.path("a/b"))), libc::ENOTDIR);
    assert_eq!(errno(OpenOptions::new().write(true).open(m.path("."))), libc::EISDIR);
}

#[test]
fn names_are_bytes_of_up_to_255() {
    let Some(m) = Mounted::start() else { return };
    let longest = "n".repeat(255);
    fs::write(m.path(&longest), "x").unwrap();
    assert_eq!(fs::read(m.path(&longest)).unwrap(), b"x");
    assert_eq!(errno(fs::write(m.path(&"n".repeat(256)), "x")), libc::ENAMETOOLONG);
    let odd = m.mnt.join("main").join(OsStr::from_bytes(b"\xff\x01 \n"));
    fs::write(&odd, "y").unwrap();
    let listed: Vec<_> = fs::read_dir(m.path(".")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(listed.len(), 2);
    assert_eq!(fs::read(odd).unwrap(), b"y");
}

#[test]
fn rename_replaces_or_not_or_swaps() {
    let Some(m) = Mounted::start() else { return };
    let (a, b, c) = (m.path("a"), m.path("b"), m.path("c"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    assert_eq!(errno(rename(&a, &b, RenameFlags::RENAME_NOREPLACE)), libc::EEXIST);
    rename(&a, &b, RenameFlags::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    assert_eq!(errno(rename(&a, &c, RenameFlags::RENAME_EXCHANGE)), libc::ENOENT);
    rename(&a, &c, RenameFlags::RENAME_NOREPLACE).unwrap();
    assert!(!a.exists());
    let replaced = File::open(&b).unwrap();
    fs::rename(&c, &b).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    // What was replaced lives on for those who have it open.
    assert_eq!(replaced.metadata().unwrap().nlink(), 0);
    let mut old = String::new();
    (&replaced).read_to_string(&mut old).unwrap();
    assert_eq!(old, "a");
    assert_eq!(errno(fs::rename(&a, &b)), libc::ENOENT);
    // A file onto itself, and onto another name of itself: nothing happens.
    fs::rename(&b, &b).unwrap();
    fs::hard_link(&b, &c).unwrap();
    fs::rename(&b, &c).unwrap();
    assert!(b.exists() && c.exists());
}

#[test]
fn rename_of_directories() {
    let Some(m) = Mounted::start() else { return };
    for dir in ["x/in", "y", "full/in"] {
        fs::create_dir_all(m.path(dir)).unwrap();
    }
    fs::write(m.path("file"), "").unwrap();
    assert_eq!(errno(fs::rename(m.path("x"), m.path("x/in/deep"))), libc::EINVAL);
    assert_eq!(errno(fs::rename(m.path("x"), m.path("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::rename(m.path("x"), m.path("file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::rename(m.path("file"), m.path("x"))), libc::EISDIR);
    fs::rename(m.path("x"), m.path("y")).unwrap();
    assert!(m.path("y/in").is_dir() && !m.path("x").exists());
    let links = |dir: &str| fs::metadata(m.path(dir)).unwrap().nlink();
    assert_eq!((links("y"), links("full")), (3, 3));
    fs::rename(m.path("y/in"), m.path("full/too")).unwrap();
    assert_eq!((links("y"), links("full")), (2, 4));
    let above = fs::metadata(m.path("full/too/..")).unwrap().ino();
    assert_eq!(above, fs::metadata(m.path("full")).unwrap().ino());
}

#[test]
fn hard_links_are_one_file() {
    let Some(m) = Mounted::start() else { return };
    fs::write(m.path("a"), "1").unwrap();
    fs::create_dir(m.path("d")).unwrap();
    fs::hard_link(m.path("a"), m.path("d/b")).unwrap();
    let (a, b) = (fs::metadata(m.path("a")).unwrap(), fs::metadata(m.path("d/b")).unwrap());
    assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    OpenOptions::new().append(true).open(m.path("d/b")).unwrap().write_all(b"2").unwrap();
    assert_eq!(fs::read(m.path("a")).unwrap(), b"12");
    assert_eq!(errno(fs::hard_link(m.path("a"), m.path("d/b"))), libc::EEXIST);
    assert_eq!(errno(fs::hard_link(m.path("d"), m.path("e"))), libc::EPERM);
    fs::remove_file(m.path("a")).unwrap();
    assert_eq!(fs::metadata(m.path("d/b")).unwrap().nlink(), 1);
    assert_eq!(fs::read(m.path("d/b")).unwrap(), b"12");
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let Some(m) = Mounted::start() else { return };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("a")).unwrap();
    file.write_all_at(&[1; 20_000], 0).unwrap();
    fs::remove_file(m.path("a")).unwrap();
    assert_eq!(errno(File::open(m.path("a"))), libc::ENOENT);
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"after", 30_000).unwrap();
    crate::drop_pages(&file);
    let mut tail = [0; 5];
    file.read_exact_at(&mut tail, 30_000).unwrap();
    assert_eq!(&tail, b"after");
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    file.sync_all().unwrap();
    // A new file of that name is another one.
    fs::write(m.path("a"), "new").unwrap();
    assert_ne!(fs::metadata(m.path("a")).unwrap().ino(), file.metadata().unwrap().ino());
    drop(file);
    assert_eq!(fs::read(m.path("a")).unwrap(), b"new");
}

#[test]
fn directories() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    assert_eq!(errno(fs::create_dir(m.path("d"))), libc::EEXIST);
    fs::create_dir(m.path("d/e")).unwrap();
    assert_eq!(fs::metadata(m.path("d")).unwrap().nlink(), 3);
    assert_eq!(errno(fs::remove_dir(m.path("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_file(m.path("d"))), libc::EISDIR);
    fs::remove_dir(m.path("d/e")).unwrap();
    assert_eq!(fs::metadata(m.path("d")).unwrap().nlink(), 2);
    fs::write(m.path("f"), "").unwrap();
    assert_eq!(errno(fs::remove_dir(m.path("f"))), libc::ENOTDIR);
    fs::remove_dir(m.path("d")).unwrap();
    assert_eq!(errno(fs::metadata(m.path("d"))), libc::ENOENT);
}

#[test]
fn symbolic_links() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    symlink("../target", m.path("d/link")).unwrap();
    let long = "x/".repeat(2000);
    symlink(&long, m.path("long")).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read_link(m.path("d/link")).unwrap().as_os_str(), "../target");
        assert_eq!(fs::read_link(m.path("long")).unwrap().as_os_str(), &*long);
    }
    let meta = fs::symlink_metadata(m.path("d/link")).unwrap();
    assert!(meta.is_symlink());
    assert_eq!(meta.len(), 9);
    assert_eq!(errno(fs::read(m.path("d/link"))), libc::ENOENT);
    fs::write(m.path("target"), "there").unwrap();
    assert_eq!(fs::read(m.path("d/link")).unwrap(), b"there");
    // A new link under an old name does not show the old one's target.
    fs::remove_file(m.path("d/link")).unwrap();
    symlink("../other", m.path("d/link")).unwrap();
    assert_eq!(fs::read_link(m.path("d/link")).unwrap().as_os_str(), "../other");
}

#[test]
fn sockets_pipes_and_devices() {
    let Some(m) = Mounted::start() else { return };
    // A socket's address has room for 107 bytes; go by a short path.
    let short = std::path::PathBuf::from(format!("/proc/self/fd/{}", {
        use std::os::fd::AsRawFd;
        let dir = File::open(m.path(".")).unwrap();
        let fd = dir.as_raw_fd();
        std::mem::forget(dir);
        fd
    }));
    let listener = UnixListener::bind(short.join("s")).unwrap();
    let mut client = UnixStream::connect(short.join("s")).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert!(fs::metadata(m.path("s")).unwrap().file_type().is_socket());

    nix::unistd::mkfifo(&m.path("p"), Mode::from_bits_truncate(0o600)).unwrap();
    let path = m.path("p");
    let writer = std::thread::spawn(move || fs::write(path, "through").unwrap());
    assert_eq!(fs::read(m.path("p")).unwrap(), b"through");
    writer.join().unwrap();
    assert!(fs::metadata(m.path("p")).unwrap().file_type().is_fifo());

    mknod(&m.path("f"), SFlag::S_IFREG, Mode::from_bits_truncate(0o640), 0).unwrap();
    let meta = fs::metadata(m.path("f")).unwrap();
    assert!(meta.is_file());
    if root() {
        mknod(&m.path("c"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(259, 70_000)).unwrap();
        let meta = fs::metadata(m.path("c")).unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!(meta.rdev(), makedev(259, 70_000));
    }
    nix::unistd::close(short.file_name().unwrap().to_str().unwrap().parse::<i32>().unwrap()).unwrap();
}
