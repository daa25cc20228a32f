//! RocksDB's logs, read far enough to tell where they end and whether they are
//! whole: before RocksDB sees them, for it is too trusting. Version 11 drops
//! records after some kinds of damage without a word, and reads for ever where
//! one bit of a record's type is flipped.
//!
//! A log is a sequence of blocks of 32 KiB. A record is cut into fragments that
//! lie within one block each: CRC-32C over type and contents (4 bytes, rotated
//! and shifted), length (2 bytes), type (1: all of it, 2: first, 3: middle, 4:
//! last), contents. What is left of a block that has no room for a header is
//! zeros. In a WAL, a record is a batch: the number of its first change (8
//! bytes), the number of changes (4 bytes), and those.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// The numbers at the beginning of a batch.
const HEAD: usize = 12;
/// No name of a file is longer.
const NAME_MAX: u64 = 256;
/// A record of the list of tables is short: what is torn off at its end is, too.
const TORN_MAX: u64 = 1 << 20;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// What a log holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last change of the last whole record; 0 if there is none.
    pub last_change: u64,
    /// Where the last whole record ends.
    pub end: u64,
    /// Length of the file.
    pub len: u64,
}

impl Contents {
    /// Whether there is more after the last whole record.
    pub fn is_torn(&self) -> bool {
        self.end < self.len
    }
}

/// One fragment; `None` if there is no whole one at `at`.
fn fragment(bytes: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let header: &[u8; HEADER] = bytes.get(at..at + HEADER)?.try_into().ok()?;
    let [c0, c1, c2, c3, l0, l1, kind] = *header;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    let contents = bytes.get(at + HEADER..at + HEADER + len)?;
    if at % BLOCK + HEADER + len > BLOCK || !(FULL..=LAST).contains(&kind) {
        return None;
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), contents);
    let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
    (masked == u32::from_le_bytes([c0, c1, c2, c3])).then_some((kind, contents))
}

/// Reads a log of `len` bytes up to the first record that is not whole. However
/// long it is, one block of it is in memory.
pub fn scan(mut log: impl Read, len: u64) -> io::Result<Contents> {
    let mut found = Contents { len, ..Contents::default() };
    // The beginning of the record: its first fragment may have less of it.
    let mut head: Vec<u8> = Vec::with_capacity(HEAD);
    let mut inside = false;
    let mut block = Vec::with_capacity(BLOCK);
    let mut start = 0;
    loop {
        block.clear();
        log.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(found);
        }
        let mut at = 0;
        while at < block.len() {
            if BLOCK - at < HEADER {
                if block[at..].iter().any(|&b| b != 0) {
                    return Ok(found);
                }
                at = block.len();
                if !inside {
                    found.end = start + at as u64;
                }
                continue;
            }
            let Some((kind, contents)) = fragment(&block, at) else { return Ok(found) };
            let begins = matches!(kind, FULL | FIRST);
            if begins == inside {
                return Ok(found);
            }
            if begins {
                head.clear();
            }
            head.extend(contents.iter().take(HEAD - head.len()));
            at += HEADER + contents.len();
            inside = matches!(kind, FIRST | MIDDLE);
            if !inside {
                found.end = start + at as u64;
                if head.len() == HEAD {
                    let number = head[..8].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
                    let count = head[8..].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
                    found.last_change = number.saturating_add(count).saturating_sub(1);
                }
            }
        }
        start += block.len() as u64;
    }
}

fn scan_file(file: &File) -> io::Result<Contents> {
    scan(file, file.metadata()?.len())
}

/// The WAL files in `dir`, oldest first, and what they hold.
pub fn logs(dir: &Path) -> Result<Vec<(PathBuf, Contents)>> {
    let error = |e: io::Error| Error::io(format!("reading {}", dir.display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "log")
            && let Some(number) =
                path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok())
        {
            found.push((number, path));
        }
    }
    found.sort();
    found
        .into_iter()
        .map(|(_, path)| {
            let contents = File::open(&path).and_then(|file| scan_file(&file)).map_err(error)?;
            Ok((path, contents))
        })
        .collect()
}

/// The list of RocksDB's tables must be whole: it is never read with an end
/// that is torn, for its writer starts a new one then.
pub fn check_manifest(dir: &Path) -> Result<()> {
    let damaged = |what: String| Err(Error::Damaged(format!("block map in {}: {what}", dir.display())));
    let mut current = String::new();
    let read = File::open(dir.join("CURRENT")).and_then(|f| f.take(NAME_MAX).read_to_string(&mut current));
    if let Err(e) = read {
        return damaged(format!("CURRENT: {e}"));
    }
    let Some(name) = current.strip_suffix('\n').filter(|n| n.starts_with("MANIFEST-") && !n.contains('/'))
    else {
        return damaged("CURRENT does not name a MANIFEST".into());
    };
    let mut torn = Vec::new();
    let mut read = || {
        let mut file = File::open(dir.join(name))?;
        let found = scan_file(&file)?;
        file.seek(SeekFrom::Start(found.end))?;
        file.take(TORN_MAX + 1).read_to_end(&mut torn)?;
        Ok::<_, io::Error>(found)
    };
    let found = match read() {
        Ok(found) => found,
        Err(e) => return damaged(format!("{name}: {e}")),
    };
    // What RocksDB was writing when the power went has no whole record behind
    // it; damage in the middle has.
    let too_much = torn.len() as u64 > TORN_MAX;
    let follows =
        || (1..torn.len()).any(|i| fragment(&torn, i).is_some_and(|(_, contents)| !contents.is_empty()));
    if found.is_torn() && (too_much || torn.get(6).is_some_and(|&kind| kind > LAST) || follows()) {
        return damaged(format!("{name} is damaged at byte {}", found.end));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Contents {
        scan(bytes, bytes.len() as u64).unwrap()
    }

    /// A log with batches of the given sizes, numbered from 1, one change each.
    fn log(sizes: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let mut record = (i as u64 + 1).to_le_bytes().to_vec();
            record.extend(1u32.to_le_bytes());
            record.resize(12 + size, i as u8);
            let mut rest = record.as_slice();
            let mut first = true;
            loop {
                let mut room = BLOCK - out.len() % BLOCK;
                if room < HEADER {
                    out.resize(out.len() + room, 0);
                    room = BLOCK;
                }
                let (part, after) = rest.split_at(rest.len().min(room - HEADER));
                let kind = match (first, after.is_empty()) {
                    (true, true) => FULL,
                    (true, false) => FIRST,
                    (false, false) => MIDDLE,
                    (false, true) => LAST,
                };
                let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), part);
                out.extend(crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
                out.extend((part.len() as u16).to_le_bytes());
                out.push(kind);
                out.extend(part);
                (rest, first) = (after, false);
                if rest.is_empty() {
                    break;
                }
            }
        }
        out
    }

    #[test]
    fn whole_logs_are_read_to_their_end() {
        for sizes in
            [vec![], vec![0], vec![100; 400], vec![BLOCK - HEADER - 12 - 3, 5, 100_000, 7], vec![70_000; 3]]
        {
            let bytes = log(&sizes);
            let want = Contents {
                last_change: sizes.len() as u64,
                end: bytes.len() as u64,
                len: bytes.len() as u64,
            };
            assert_eq!(all(&bytes), want, "{sizes:?}");
        }
    }

    #[test]
    fn a_batch_may_begin_in_the_last_bytes_of_a_block() {
        for room in 0..30 {
            let first = BLOCK - HEADER - HEAD - (HEADER + room);
            let bytes = log(&[first, 300]);
            assert!(bytes.len() > BLOCK, "it goes over the block's end");
            assert_eq!(all(&bytes).last_change, 2, "with {room} bytes there");
        }
    }

    #[test]
    fn a_cut_or_flipped_record_ends_the_log() {
        let bytes = log(&[100, 70_000, 50]);
        let ends = [0, 119, log(&[100, 70_000]).len()];
        for len in (0..bytes.len()).step_by(211).chain(bytes.len() - 60..bytes.len()) {
            let found = all(&bytes[..len]);
            let whole = ends.iter().filter(|&&e| e > 0 && e <= len).count() as u64;
            assert_eq!(found.last_change, whole, "cut to {len}");
        }
        for at in (0..bytes.len()).step_by(97).chain(0..HEADER) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(all(&bad).is_torn(), "byte {at}");
        }
    }

    /// A file without end is read up to where it makes no sense, and no further.
    #[test]
    fn a_log_is_not_taken_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("MANIFEST-000001");
        std::fs::write(dir.path().join("CURRENT"), "MANIFEST-000001\n").unwrap();
        std::fs::write(&manifest, log(&[100, 40_000])).unwrap();
        std::fs::write(dir.path().join("000002.log"), log(&[5])).unwrap();
        check_manifest(dir.path()).unwrap();
        for name in ["MANIFEST-000001", "000002.log"] {
            File::options().write(true).open(dir.path().join(name)).unwrap().set_len(1 << 40).unwrap();
        }
        assert!(check_manifest(dir.path()).unwrap_err().to_string().contains("damaged at byte"));
        let logs = logs(dir.path()).unwrap();
        assert_eq!((logs[0].1.last_change, logs[0].1.len), (1, 1 << 40));
    }
}
