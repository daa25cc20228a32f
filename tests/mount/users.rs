//! Who may do what, compared with ext4: the same operation by the same user on the same files, here and there, must
//! have the same result, errno by errno, and leave the same modes and owners behind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use crate::{Mounted, as_user, c_path, check, root_or_skipped};

const OWNER: u32 = 4242;
const GROUP: u32 = 4343;
/// Root, the owner, one in the owner's group, and one with nothing to do here.
const USERS: [(u32, u32); 4] = [(0, 0), (OWNER, GROUP), (OWNER + 1, GROUP), (OWNER + 2, GROUP + 2)];
const DIR_MODES: [u32; 5] = [0o755, 0o700, 0o1777, 0o2775, 0o555];
const FILE_MODES: [u32; 6] = [0o600, 0o664, 0o4755, 0o2745, 0o6777, 0o6666];

/// What the kernel does by itself, and where it keeps a set-group-id bit without the right to execute that ext4 takes
/// away when one from outside of the group changes the file (docs/SEMANTICS.md). The bit has no effect there.
const KERNELS_OWN: [&str; 4] = ["write", "truncate", "open with O_TRUNC", "copy_file_range"];

type Op = fn(&Path) -> io::Result<()>;

fn write(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn allocate(dir: &Path, mode: i32) -> io::Result<()> {
    let file = write(&dir.join("f"))?;
    Ok(fallocate(&file, FallocateFlags::from_bits_retain(mode), 0, 4096)?)
}

/// Each on a directory with a file `f`, a link `l` to it, a directory `d` and a file `g` that is another user's.
const OPS: [(&str, Op); 30] = [
    ("open for reading", |d| File::open(d.join("f")).map(drop)),
    ("open for writing", |d| write(&d.join("f")).map(drop)),
    ("list", |d| fs::read_dir(d).map(drop)),
    ("stat", |d| fs::metadata(d.join("f")).map(drop)),
    ("create", |d| OpenOptions::new().write(true).create_new(true).mode(0o6777).open(d.join("n")).map(drop)),
    ("mkdir", |d| fs::DirBuilder::new().mode(0o777).create(d.join("n"))),
    ("mkdir in a directory", |d| fs::create_dir(d.join("d/n"))),
    ("symlink", |d| symlink("f", d.join("n"))),
    ("link", |d| fs::hard_link(d.join("f"), d.join("n"))),
    ("mkfifo", |d| Ok(nix::unistd::mkfifo(&d.join("n"), nix::sys::stat::Mode::from_bits_retain(0o666))?)),
    ("mknod", |d| {
        // SAFETY: the path ends with NUL.
        let made = unsafe { libc::mknod(c_path(&d.join("n")).as_ptr(), libc::S_IFCHR | 0o600, 0x103) };
        check(made).map(drop)
    }),
    ("unlink", |d| fs::remove_file(d.join("f"))),
    ("unlink another's", |d| fs::remove_file(d.join("g"))),
    ("rmdir", |d| fs::remove_dir(d.join("d"))),
    ("rename", |d| fs::rename(d.join("f"), d.join("n"))),
    ("rename over another's", |d| fs::rename(d.join("f"), d.join("g"))),
    ("rename into", |d| fs::rename(d.join("f"), d.join("d/n"))),
    ("chmod", |d| fs::set_permissions(d.join("f"), Permissions::from_mode(0o6711))),
    ("chmod a directory", |d| fs::set_permissions(d.join("d"), Permissions::from_mode(0o2755))),
    ("chown", |d| chown(d.join("f"), Some(OWNER + 1), None)),
    ("chown to oneself", |d| chown(d.join("f"), Some(OWNER), Some(GROUP))),
    ("chgrp", |d| chown(d.join("f"), None, Some(GROUP))),
    ("chgrp to another", |d| chown(d.join("f"), None, Some(GROUP + 2))),
    ("write", |d| write(&d.join("f"))?.write_all_at(b"x", 1)),
    ("truncate", |d| write(&d.join("f"))?.set_len(3)),
    ("open with O_TRUNC", |d| OpenOptions::new().write(true).truncate(true).open(d.join("l")).map(drop)),
    ("fallocate", |d| allocate(d, 0)),
    ("punch a hole", |d| allocate(d, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)),
    ("copy_file_range", |d| {
        let (from, to) = (File::open(d.join("source"))?, write(&d.join("f"))?);
        let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
        // SAFETY: both files are open, and no memory is passed.
        check(unsafe { libc::copy_file_range(from, std::ptr::null_mut(), to, std::ptr::null_mut(), 4096, 0) }
            as i64)
        .map(drop)
    }),
    ("set times", |d| {
        File::open(d.join("source")).and_then(|_| {
            let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            OpenOptions::new().read(true).open(d.join("f"))?.set_times(times)
        })
    }),
];

/// The files that an operation finds; all OWNER's but `g`.
fn set_up(dir: &Path, dir_mode: u32, file_mode: u32) {
    fs::create_dir(dir).unwrap();
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("f"), [1; 8192]).unwrap();
    fs::write(dir.join("source"), [2; 8192]).unwrap();
    fs::write(dir.join("g"), "g").unwrap();
    symlink("f", dir.join("l")).unwrap();
    for name in ["d", "f", "source", "."] {
        chown(dir.join(name), Some(OWNER), Some(GROUP)).unwrap();
    }
    chown(dir.join("g"), Some(OWNER + 2), Some(GROUP + 2)).unwrap();
    fs::set_permissions(dir.join("source"), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(dir.join("f"), Permissions::from_mode(file_mode)).unwrap();
    fs::set_permissions(dir, Permissions::from_mode(dir_mode)).unwrap();
}

/// Everything in a directory, its contents' sizes included.
fn left_behind(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["", "d", "d/n", "f", "g", "l", "n", "source"] {
        if let Ok(meta) = fs::symlink_metadata(dir.join(name)) {
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let (mode, links) = (meta.mode(), if meta.is_dir() { 0 } else { meta.nlink() });
            found.push(format!("{name}: {mode:o} {}:{} {links} links {size} bytes", meta.uid(), meta.gid()));
        }
    }
    found
}

fn outcome(dir: &Path, dir_mode: u32, file_mode: u32, user: (u32, u32), op: Op) -> Vec<String> {
    set_up(dir, dir_mode, file_mode);
    let result = match user {
        (0, _) => op(dir),
        (uid, gid) => as_user(uid, gid, || op(dir)),
    };
    let mut outcome = vec![match result {
        Ok(()) => "done".to_string(),
        Err(e) => format!("errno {:?}", e.raw_os_error()),
    }];
    outcome.extend(left_behind(dir));
    fs::remove_dir_all(dir).unwrap();
    outcome
}

#[test]
fn every_user_may_what_ext4_lets_them() {
    let Some(m) = Mounted::start() else { return };
    if !root_or_skipped() {
        return;
    }
    let plain = m.dir.path().join("plain");
    let kind = nix::sys::statfs::statfs(m.dir.path()).unwrap().filesystem_type();
    if kind != nix::sys::statfs::EXT4_SUPER_MAGIC {
        println!("SKIPPED: {} is not on ext4", m.dir.path().display());
        return;
    }
    let ours = m.path("here");
    let (mut tried, mut done, mut different) = (0, 0, Vec::new());
    for dir_mode in DIR_MODES {
        for file_mode in FILE_MODES {
            for user in USERS {
                for (name, op) in OPS {
                    let there = outcome(&plain, dir_mode, file_mode, user, op);
                    let mut here = outcome(&ours, dir_mode, file_mode, user, op);
                    if KERNELS_OWN.contains(&name) && file_mode & 0o2010 == 0o2000 && user.0 == OWNER + 2 {
                        here.iter_mut().for_each(|line| *line = line.replace("f: 1026", "f: 1006"));
                    }
                    tried += 1;
                    done += usize::from(there[0] == "done");
                    if here != there {
                        let case =
                            format!("{name}, user {user:?}, directory {dir_mode:o}, file {file_mode:o}");
                        different.push(format!("{case}:\n  ext4: {there:?}\n  here: {here:?}"));
                    }
                }
            }
        }
    }
    let shown = different.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(different.is_empty(), "{} of {tried} differ:\n{shown}", different.len());
    assert!(done > tried / 4 && done < tried * 3 / 4, "{done} of {tried} are allowed: nothing was compared");
}
