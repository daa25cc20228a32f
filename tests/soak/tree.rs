//! The files of one fork, and what they must hold.
//!
//! They lie in a directory that looks like a database's, in which PostgreSQL has nothing: one large table whose pages
//! are overwritten at random, and small tables that come, are truncated, and go.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::common::random::Random;

/// Bytes of a page.
pub const PAGE: usize = 8192;
/// The directory, below a fork's own.
pub const DIRECTORY: &str = "base/900000";
/// The large table.
pub const TABLE: u32 = 16384;
/// Small tables of a fork: when there are more, the oldest goes.
const SMALL_TABLES: usize = 8;
/// Pages of a small table when it is new.
const SMALL_PAGES: usize = 4;
/// Pages that one read takes where all of a file is read.
const READ_PAGES: usize = 32;

/// What a fork holds: the version of each page, by which its bytes are known.
#[derive(Clone)]
pub struct Contents {
    table: Vec<u32>,
    small: BTreeMap<u32, Vec<u32>>,
}

/// Gives out versions: no two writes have the same.
#[derive(Default)]
pub struct Versions(u32);

impl Versions {
    fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

/// The bytes of a page.
fn fill(page: &mut [u8], table: u32, block: usize, version: u32) {
    let mut random = Random::part(u64::from(table) << 32 | block as u64, u64::from(version));
    for word in page.chunks_exact_mut(8) {
        word.copy_from_slice(&random.number().to_le_bytes());
    }
}

/// A fork's files as they are on the mount.
pub struct Tree {
    dir: PathBuf,
    /// What must be in them.
    pub contents: Contents,
}

impl Tree {
    /// Makes the files in a fork whose directory is `pgdata`.
    pub fn make(pgdata: &Path, pages: u32, versions: &mut Versions) -> io::Result<Tree> {
        let dir = pgdata.join(DIRECTORY);
        std::fs::create_dir(&dir)?;
        let mut tree = Tree { dir, contents: Contents { table: Vec::new(), small: BTreeMap::new() } };
        let file = OpenOptions::new().write(true).create_new(true).open(tree.path(TABLE))?;
        let mut bytes = vec![0; PAGE * READ_PAGES];
        while tree.contents.table.len() < pages as usize {
            let first = tree.contents.table.len();
            let count = READ_PAGES.min(pages as usize - first);
            for (i, page) in bytes.chunks_exact_mut(PAGE).take(count).enumerate() {
                let version = versions.next();
                fill(page, TABLE, first + i, version);
                tree.contents.table.push(version);
            }
            file.write_all_at(&bytes[..count * PAGE], (first * PAGE) as u64)?;
        }
        file.sync_all()?;
        Ok(tree)
    }

    /// The same files in a fork of this one.
    pub fn forked(&self, pgdata: &Path) -> Tree {
        Tree { dir: pgdata.join(DIRECTORY), contents: self.contents.clone() }
    }

    /// A table's path.
    pub fn path(&self, table: u32) -> PathBuf {
        self.dir.join(table.to_string())
    }

    /// Overwrites random pages of the large table, one write each.
    pub fn write_pages(
        &mut self,
        count: u64,
        random: &mut Random,
        versions: &mut Versions,
    ) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(TABLE))?;
        let mut page = vec![0; PAGE];
        for _ in 0..count {
            let block = random.below(self.contents.table.len() as u64) as usize;
            let version = versions.next();
            fill(&mut page, TABLE, block, version);
            file.write_all_at(&page, (block * PAGE) as u64)?;
            self.contents.table[block] = version;
        }
        // A checkpoint comes now and then, not after every write.
        if random.percent(50) { file.sync_all() } else { Ok(()) }
    }

    /// Makes a small table, truncates an older one, and drops the oldest if there are too many.
    pub fn change_small_tables(
        &mut self,
        name: u32,
        random: &mut Random,
        versions: &mut Versions,
    ) -> io::Result<()> {
        let new = self.write_small(name, SMALL_PAGES, versions)?;
        let names: Vec<u32> = self.contents.small.keys().copied().collect();
        if let Some(&other) = random.pick(&names) {
            let fewer = self.write_small(other, 1, versions)?;
            self.contents.small.insert(other, fewer);
        }
        self.contents.small.insert(name, new);
        while self.contents.small.len() > SMALL_TABLES
            && let Some((oldest, _)) = self.contents.small.pop_first()
        {
            std::fs::remove_file(self.path(oldest))?;
        }
        Ok(())
    }

    fn write_small(&self, name: u32, pages: usize, versions: &mut Versions) -> io::Result<Vec<u32>> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(name))?;
        let mut page = vec![0; PAGE];
        let mut written = Vec::new();
        for block in 0..pages {
            let version = versions.next();
            fill(&mut page, name, block, version);
            file.write_all_at(&page, (block * PAGE) as u64)?;
            written.push(version);
        }
        Ok(written)
    }

    /// Reads some random pages of the large table, and says which are wrong.
    pub fn verify_some(&self, count: u64, random: &mut Random) -> Result<(), String> {
        let path = self.path(TABLE);
        let file = File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let (mut page, mut want) = (vec![0; PAGE], vec![0; PAGE]);
        for _ in 0..count {
            let block = random.below(self.contents.table.len() as u64) as usize;
            file.read_exact_at(&mut page, (block * PAGE) as u64)
                .map_err(|e| format!("{} block {block}: {e}", path.display()))?;
            fill(&mut want, TABLE, block, self.contents.table[block]);
            if page != want {
                return Err(format!("{} block {block} is not what was written", path.display()));
            }
        }
        Ok(())
    }

    /// Reads everything, past the kernel's cache, and says what is wrong.
    pub fn verify(&self) -> Result<(), String> {
        let mut there: Vec<String> = std::fs::read_dir(&self.dir)
            .and_then(|entries| entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect())
            .map_err(|e| format!("{}: {e}", self.dir.display()))?;
        let tables = || [(&TABLE, &self.contents.table)].into_iter().chain(&self.contents.small);
        let mut expected: Vec<String> = tables().map(|(name, _)| name.to_string()).collect();
        there.sort();
        expected.sort();
        if there != expected {
            return Err(format!("{} has {there:?} instead of {expected:?}", self.dir.display()));
        }
        tables().try_for_each(|(name, pages)| self.verify_table(*name, pages))
    }

    fn verify_table(&self, name: u32, pages: &[u32]) -> Result<(), String> {
        let path = self.path(name);
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        let file = File::open(&path).map_err(failed)?;
        forget_cached(&file).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length != (pages.len() * PAGE) as u64 {
            return Err(format!("{} has {length} bytes instead of {} pages", path.display(), pages.len()));
        }
        let (mut bytes, mut want) = (vec![0; READ_PAGES * PAGE], vec![0; PAGE]);
        for (i, versions) in pages.chunks(READ_PAGES).enumerate() {
            let first = i * READ_PAGES;
            let part = &mut bytes[..versions.len() * PAGE];
            file.read_exact_at(part, (first * PAGE) as u64).map_err(failed)?;
            for (j, (page, version)) in part.chunks_exact(PAGE).zip(versions).enumerate() {
                fill(&mut want, name, first + j, *version);
                if page != want {
                    let block = first + j;
                    return Err(format!("{} block {block} is not what was written", path.display()));
                }
            }
        }
        Ok(())
    }
}

/// Takes a file's pages out of the kernel's cache.
pub fn forget_cached(file: &File) -> io::Result<()> {
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}
