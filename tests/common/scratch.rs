//! Directories for tests: on a real disk, and reachable by the user that PostgreSQL runs as.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory of one test, removed at its end.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// Makes one. `PGCOWFS_TEST_DIR` decides where; otherwise the first of /var/tmp and /tmp that is not in memory.
    ///
    /// tmpfs would hide every mistake about durability and free space, and has other rules for O_DIRECT and holes.
    pub fn new() -> Scratch {
        let chosen = std::env::var_os("PGCOWFS_TEST_DIR").map(PathBuf::from);
        let parents: Vec<PathBuf> = match chosen {
            Some(dir) => vec![dir],
            None => vec![PathBuf::from("/var/tmp"), PathBuf::from("/tmp")],
        };
        let parent = parents.iter().find(|dir| dir.is_dir() && !in_memory(dir));
        let parent = parent
            .unwrap_or_else(|| panic!("none of {parents:?} is a directory on a disk: set PGCOWFS_TEST_DIR"));
        let dir = tempfile::Builder::new()
            .prefix("pgcowfs-test-")
            .tempdir_in(parent)
            .expect("make a scratch directory");
        // As root the server runs as another user, who has to pass through.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))
            .expect("open the scratch directory");
        Scratch { dir }
    }

    /// Leaves it where it is at the end of the test.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// A path in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new, empty directory in it that belongs to the given user.
    pub fn subdir_of(&self, name: &str, owner: Option<(u32, u32)>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir(&path).expect("make a directory");
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("give a directory away");
        }
        path
    }
}

/// True when `dir` is on tmpfs or ramfs.
pub fn in_memory(dir: &Path) -> bool {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let fs = nix::sys::statfs::statfs(dir).expect("statfs");
    fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC || fs.filesystem_type().0 == RAMFS_MAGIC
}

/// Type of the file system that holds `path`, as the kernel's mount table names it ("ext4", "fuse", "fuse.pgcowfs").
pub fn mount_type(path: &Path) -> String {
    // Not everybody can look through a mount that is another user's.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let table = std::fs::read_to_string("/proc/self/mounts").expect("read the mount table");
    let mut best = (0, String::from("none"));
    for line in table.lines() {
        let mut fields = line.split(' ');
        let (Some(_), Some(at), Some(kind)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let at = at.replace("\\040", " ");
        // The last line wins among equals: it is the mount on top.
        if path.starts_with(&at) && at.len() >= best.0 {
            best = (at.len(), kind.to_owned());
        }
    }
    best.1
}
