//! The files of one fork in the model, and what a crash may leave of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pgcowfs::{Error, FileId, Fork, Kind};

/// Bytes of a block.
pub const B: u64 = 8192;
/// What a disk writes wholly or not at all.
const SECTOR: usize = 512;

/// The files that operations choose from.
pub const NAMES: [&str; 8] = [
    "a",
    "b",
    "base/5/16384",
    "base/5/16385",
    "base/5/x",
    "pg_xact/0000",
    "pg_wal/000000010000000000000001",
    "pg_wal/000000010000000000000002",
];
/// Those that are made in place.
pub const WAL_NAMES: std::ops::Range<u8> = 6..8;
/// The directories that give files their class.
pub const DIRS: [&str; 4] = ["base", "base/5", "pg_xact", "pg_wal"];

/// Whether a file that is made under that name is written in place.
fn is_wal(name: usize) -> bool {
    WAL_NAMES.contains(&(name as u8))
}

/// Whether PostgreSQL writes a file that is made under that name in whole
/// blocks only.
fn is_paged(name: usize) -> bool {
    NAMES[name].contains("1638") || NAMES[name].contains("xact")
}

/// Names lead to numbers, numbers to contents.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Files {
    /// By index into [`NAMES`].
    pub names: BTreeMap<usize, u64>,
    contents: BTreeMap<u64, Arc<Vec<u8>>>,
    /// Those that are written in place, and those of whole blocks, which is
    /// decided when they are made.
    wal: BTreeSet<u64>,
    paged: BTreeSet<u64>,
    /// What writes to files in place would have left that failed: they may have
    /// been carried out in part, beyond the end of the file.
    failed: BTreeMap<u64, Vec<Arc<Vec<u8>>>>,
    /// An operation that failed was on its way here; perhaps nobody ever was.
    pub attempted: bool,
    next: u64,
}

impl Files {
    /// The contents of a file, made if it is not there.
    pub fn open(&mut self, name: usize) -> &mut Vec<u8> {
        let file = match self.names.get(&name) {
            Some(file) => *file,
            None => {
                self.next += 1;
                self.names.insert(name, self.next);
                if is_wal(name) {
                    self.wal.insert(self.next);
                }
                if is_paged(name) {
                    self.paged.insert(self.next);
                }
                self.next
            }
        };
        Arc::make_mut(self.contents.entry(file).or_default())
    }

    pub fn get(&self, name: usize) -> Option<&[u8]> {
        self.names.get(&name).map(|file| self.contents[file].as_slice())
    }

    pub fn write(&mut self, name: usize, offset: usize, bytes: &[u8]) {
        let contents = self.open(name);
        let end = offset + bytes.len();
        if contents.len() < end {
            contents.resize(end, 0);
        }
        contents[offset..end].copy_from_slice(bytes);
    }

    /// Whether the file of that name is written in place.
    pub fn in_place(&self, name: usize) -> bool {
        self.names.get(&name).is_some_and(|file| self.wal.contains(file))
    }

    /// Whether the file of that name, or the one that would be made, takes whole
    /// blocks only.
    pub fn paged(&self, name: usize) -> bool {
        self.names.get(&name).map_or(is_paged(name), |file| self.paged.contains(file))
    }

    /// Whether the file that has that name here has the same names and size
    /// there.
    pub fn has_as(&self, name: usize, other: &Files) -> bool {
        let file = self.names.get(&name);
        let shape = |files: &Files| {
            let names: Vec<usize> = files.names.iter().filter(|n| Some(n.1) == file).map(|n| *n.0).collect();
            (names, file.and_then(|file| files.contents.get(file)).map(|contents| contents.len()))
        };
        shape(self) == shape(other)
    }

    /// Notes that the operation that leads to `attempted` has failed.
    pub fn note_failed(&mut self, attempted: &Files) {
        for file in &attempted.wal {
            if let Some(contents) = attempted.contents.get(file) {
                self.failed.entry(*file).or_default().push(contents.clone());
            }
        }
    }

    /// Takes the contents of one file over.
    pub fn take_contents(&mut self, name: usize, from: &Files) {
        if let Some(file) = from.names.get(&name)
            && self.contents.contains_key(file)
        {
            self.contents.insert(*file, from.contents[file].clone());
        }
    }
}

/// All that a fork was since it was last durable, oldest first; never empty.
pub type Moments = Vec<Files>;

/// The moment at which the fork is, with the contents that its WAL files have;
/// an error says how it differs from each.
pub fn moment_of(fork: &Fork, moments: &[Files]) -> Result<Files, String> {
    let mut differences = Vec::new();
    for (number, moment) in moments.iter().enumerate().rev() {
        match differs(fork, moment, moments) {
            Ok(found) => return Ok(found),
            Err(difference) => differences.push(format!("moment {number}: {difference}")),
        }
    }
    Err(format!("fork {} is at none of {} moments: {differences:#?}", fork.name(), moments.len()))
}

/// Looks whether the fork is at `moment`. A WAL file is written in place: each
/// of its sectors may be from any of `moments`.
fn differs(fork: &Fork, moment: &Files, moments: &[Files]) -> Result<Files, String> {
    let mut found = moment.clone();
    for (name, path) in NAMES.iter().enumerate() {
        let (file, number) = match (find(fork, path), moment.names.get(&name)) {
            (None, None) => continue,
            (Some(file), Some(number)) => (file, *number),
            (Some(_), None) => return Err(format!("{path} is there")),
            (None, Some(_)) => return Err(format!("{path} is missing")),
        };
        let want = &moment.contents[&number];
        let attr = fork.attr(file).map_err(|e| format!("{path}: {e}"))?;
        if attr.kind != Kind::File || attr.size != want.len() as u64 {
            return Err(format!("{path} has {} bytes, not {}", attr.size, want.len()));
        }
        let mut have = Vec::new();
        fork.read(file, 0, want.len(), &mut have).map_err(|e| format!("{path}: {e}"))?;
        if have == **want {
            continue;
        }
        if !moment.wal.contains(&number) {
            let at = (0..want.len()).find(|&at| have.get(at) != Some(&want[at])).unwrap_or(want.len());
            return Err(format!("{path} differs at byte {at} (block {})", at as u64 / B));
        }
        let failed = moment.failed.get(&number).into_iter().flatten().map(|contents| &**contents);
        let versions: Vec<&Vec<u8>> =
            moments.iter().filter_map(|m| m.contents.get(&number).map(|c| &**c)).chain(failed).collect();
        for (sector, bytes) in have.chunks(SECTOR).enumerate() {
            let known = |version: &&Vec<u8>| {
                let start = (sector * SECTOR).min(version.len());
                let there = &version[start..(start + bytes.len()).min(version.len())];
                bytes.starts_with(there) && bytes[there.len()..].iter().all(|b| *b == 0)
            };
            if !versions.iter().any(known) {
                let start = &bytes[..16.min(bytes.len())];
                return Err(format!(
                    "{path}, sector {sector}: bytes that were never written there: {start:?}"
                ));
            }
        }
        found.contents.insert(number, Arc::new(have));
    }
    Ok(found)
}

/// The file of a path, if it is there.
pub fn find(fork: &Fork, path: &str) -> Option<FileId> {
    match fork.resolve(path) {
        Ok(attr) => Some(attr.file),
        Err(Error::NotFound) => None,
        Err(e) => panic!("{path}: {e}"),
    }
}
