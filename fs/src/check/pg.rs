//! PostgreSQL's own view of a page: its header, and its checksum where the
//! cluster has them.

use std::collections::HashMap;

use crate::attr::Kind as FileKind;
use crate::base::BaseFile;
use crate::block::{BLOCK_SIZE, BlockNo, ZERO_PAGE};
use crate::class::Role;
use crate::delta;
use crate::device::DirectBuf;
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::map::schema::{self, BaseFileRecord, InodeRecord, NameRecord, tag};
use crate::map::{Map, prefix_end};

use super::Stored;
use super::locate::{Locator, page_of};

/// Bytes of a page's header.
const HEADER: usize = 24;
/// Flags that PostgreSQL knows (`PD_VALID_FLAG_BITS`).
const KNOWN_FLAGS: u16 = 0x0007;
/// Page layout versions in use since PostgreSQL 8.3.
const LAYOUT: u16 = 4;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where each lane begins: PostgreSQL's constants (storage/checksum_impl.h).
const OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The checksum that PostgreSQL gives a page: 32 lanes of FNV-1a over its words,
/// the stored checksum taken for zero, folded together with the block's number.
pub fn checksum(page: &[u8], block: BlockNo) -> u16 {
    let mut sums = OFFSETS;
    for (row, words) in page.chunks_exact(4 * LANES).enumerate() {
        for (lane, word) in words.as_chunks::<4>().0.iter().enumerate() {
            let mut word = *word;
            if row == 0 && lane == 2 {
                // pd_checksum is the first half of the third word.
                (word[0], word[1]) = (0, 0);
            }
            sums[lane] = mix(sums[lane], u32::from_le_bytes(word));
        }
    }
    for _ in 0..2 {
        sums = sums.map(|sum| mix(sum, 0));
    }
    let folded = sums.into_iter().fold(0, |all, sum| all ^ sum) ^ block;
    // Never zero, which means that there is none.
    (folded % 65_535) as u16 + 1
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

/// What is wrong with a relation's page, if anything. `block` is its number
/// within the whole relation, all segments together.
pub fn wrong(page: &[u8], block: BlockNo, checksums: bool) -> Option<String> {
    if page.iter().all(|&b| b == 0) {
        // A page that was added to the relation and not used yet.
        return None;
    }
    let (flags, lower, upper, special) =
        (u16_at(page, 10), u16_at(page, 12), u16_at(page, 14), u16_at(page, 16));
    let size_and_layout = u16_at(page, 18);
    if flags & !KNOWN_FLAGS != 0 {
        return Some(format!("its header has unknown flags {flags:#06x}"));
    }
    let in_order =
        HEADER as u16 <= lower && lower <= upper && upper <= special && usize::from(special) <= BLOCK_SIZE;
    if !in_order || special % 8 != 0 {
        return Some(format!("its header is out of order: lower {lower}, upper {upper}, special {special}"));
    }
    if size_and_layout != BLOCK_SIZE as u16 | LAYOUT {
        return Some(format!("its header has page size and layout {size_and_layout:#06x}"));
    }
    let (have, want) = (u16_at(page, 8), checksum(page, block));
    (checksums && have != want).then(|| format!("PostgreSQL's checksum is {have}, and should be {want}"))
}

/// The first block of a relation's file within the whole relation; `None` if
/// that is no name of a relation's file.
fn first_block(name: &[u8]) -> Option<BlockNo> {
    let name = std::str::from_utf8(name).ok()?;
    let (node, segment) = match name.split_once('.') {
        Some((node, segment)) => (node, segment.parse::<u32>().ok()?),
        None => (name, 0),
    };
    let number = node.split_once('_').map_or(node, |(number, _)| number);
    let relation = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    relation.then_some(())?;
    segment.checked_mul(SEGMENT_BLOCKS)
}

/// Blocks of one file of a relation: a gibibyte.
const SEGMENT_BLOCKS: BlockNo = 131_072;

/// The relations of a store: a file has the same number in all layers and forks,
/// so what it is has to be found out once, however many pages it has.
pub struct Relations<'a> {
    stored: Stored<'a>,
    /// The first block of each relation's file.
    first_blocks: HashMap<FileId, BlockNo>,
    /// Which layers' clusters have checksums.
    checksums: HashMap<LayerId, bool>,
}

impl<'a> Relations<'a> {
    /// Finds them by their names.
    pub fn new(stored: Stored<'a>) -> Result<Relations<'a>> {
        let mut roles: HashMap<FileId, Role> = HashMap::from([(FileId::ROOT, Role::Top)]);
        let mut first_blocks = HashMap::new();
        let all = (vec![tag::INODE], prefix_end(&[tag::INODE]));
        stored.map.scan(&all.0, &all.1, &mut |k, v| {
            // A record that cannot be read is a finding of the check.
            if let (Ok(file), Ok(Some(inode))) = (schema::file_of_key(k), InodeRecord::decode(k, v))
                && inode.kind == FileKind::Directory
            {
                roles.insert(file, inode.role);
            }
            Ok(true)
        })?;
        let all = (vec![tag::NAME], prefix_end(&[tag::NAME]));
        stored.map.scan(&all.0, &all.1, &mut |k, v| {
            if let Ok((dir, name, NameRecord::Entry(file, FileKind::File))) = NameRecord::decode(k, v)
                && roles.get(&dir) == Some(&Role::Relations)
                && let Some(block) = first_block(&name)
            {
                first_blocks.insert(file, block);
            }
            Ok(true)
        })?;
        Ok(Relations { stored, first_blocks, checksums: HashMap::new() })
    }

    /// What is wrong with a block of a file as `layer` has it, if that file is a
    /// relation's.
    pub fn wrong(
        &mut self,
        locator: &Locator<'_>,
        layer: LayerId,
        file: FileId,
        block: BlockNo,
        page: &[u8],
    ) -> Result<Option<String>> {
        let Some(first) = self.first_blocks.get(&file) else { return Ok(None) };
        let Some(block) = first.checked_add(block) else { return Ok(None) };
        let checksums = match self.checksums.get(&layer) {
            Some(known) => *known,
            None => {
                let chain = locator.chain_from(layer).unwrap_or_default();
                let found = cluster_has_checksums(&self.stored, chain)?;
                self.checksums.insert(layer, found);
                found
            }
        };
        Ok(wrong(page, block, checksums))
    }
}

/// `pg_control` of PostgreSQL 12 to 18: where the version of the control file
/// and of the data checksums are.
const CONTROL_VERSIONS: [u32; 3] = [1201, 1300, 1800];
const CONTROL_VERSION_AT: usize = 8;
const CHECKSUM_VERSION_AT: usize = 252;

/// Whether a cluster has data checksums, by its pg_control in these layers.
fn cluster_has_checksums(stored: &Stored<'_>, chain: &[LayerId]) -> Result<bool> {
    let mut control = FileId::ROOT;
    for name in [&b"global"[..], b"pg_control"] {
        match entry(stored.map, chain, control, name)? {
            Some(file) => control = file,
            None => return Ok(false),
        }
    }
    let mut page = Box::new(ZERO_PAGE);
    match page_of(stored.map, chain, control, 0)? {
        Some((_, record)) => {
            let mut buf = DirectBuf::with_capacity(BLOCK_SIZE);
            let name = delta::file_name(record.slot.delta());
            let read = stored
                .delta
                .open(&name, false)
                .and_then(|f| f.read_direct(&mut buf, BLOCK_SIZE, record.slot.offset()));
            read.map_err(|e| Error::io("reading pg_control", e))?;
            page.copy_from_slice(buf.as_slice());
        }
        // A base, on which no server has run since.
        None => match base_of(stored.map, chain, control)? {
            Some(base) => base.read(0, &mut page[..])?,
            None => return Ok(false),
        },
    }
    let word = |at: usize| page.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(CONTROL_VERSIONS.contains(&word(CONTROL_VERSION_AT)) && word(CHECKSUM_VERSION_AT) != 0)
}

/// The entry `name` of a directory, as the newest of these layers has it.
fn entry(map: &dyn Map, chain: &[LayerId], dir: FileId, name: &[u8]) -> Result<Option<FileId>> {
    for &layer in chain {
        let key = NameRecord::key(layer, dir, name);
        if let Some(value) = map.get(&key)? {
            return Ok(match NameRecord::decode(&key, &value)?.2 {
                NameRecord::Entry(file, _) => Some(file),
                NameRecord::Whiteout => None,
            });
        }
    }
    Ok(None)
}

/// The base file that a file is in these layers.
fn base_of(map: &dyn Map, chain: &[LayerId], file: FileId) -> Result<Option<BaseFile>> {
    for &layer in chain {
        let key = BaseFileRecord::key(layer, file);
        if let Some(value) = map.get(&key)? {
            return Ok(Some(BaseFile::new(BaseFileRecord::decode(&key, &value)?.1)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages as a server wrote them, with their path and block.
    fn pages() -> Vec<(String, BlockNo, Vec<u8>)> {
        let mut pages: Vec<(String, BlockNo, Vec<u8>)> = Vec::new();
        for line in include_str!("pages.txt").lines().filter(|line| !line.starts_with('#')) {
            if let Some(rest) = line.strip_prefix("page ") {
                let mut words = rest.split([' ', ':']);
                let (path, block) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
                pages.push((path.into(), block, vec![0; BLOCK_SIZE]));
                continue;
            }
            let (at, bytes) = line.split_once(": ").unwrap();
            let at: usize = at.trim().parse().unwrap();
            let page = &mut pages.last_mut().unwrap().2;
            for (i, hex) in bytes.as_bytes().chunks(2).enumerate() {
                page[at + i] = u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
            }
        }
        pages
    }

    #[test]
    fn pages_of_a_real_server_are_right() {
        let pages = pages();
        assert_eq!(pages.len(), 11);
        for (path, block, page) in &pages {
            assert_eq!(wrong(page, *block, true), None, "{path}, block {block}");
            let elsewhere = wrong(page, block + 1, true).unwrap();
            assert!(elsewhere.contains("checksum"), "{path} in another block: {elsewhere}");
            assert_eq!(wrong(page, block + 1, false), None);
            let mut bad = page.clone();
            let mut missed = 0;
            for bit in 0..8 * BLOCK_SIZE {
                bad[bit / 8] ^= 1 << (bit % 8);
                missed += usize::from(wrong(&bad, *block, true).is_none());
                bad[bit / 8] ^= 1 << (bit % 8);
            }
            // The checksum has 16 bits: of so many flips it misses one or two.
            assert!(missed < 10, "{path}: {missed} flips of {} are not seen", 8 * BLOCK_SIZE);
        }
        let (_, _, mut page) = pages[0].clone();
        let cases: [(usize, u8, &str); 4] = [
            (10, 0x80, "unknown flags"),
            (13, 0x40, "out of order"),
            (17, 0xff, "out of order"),
            (18, 1, "layout"),
        ];
        for (at, byte, what) in cases {
            let right = std::mem::replace(&mut page[at], byte);
            let found = wrong(&page, 0, false).unwrap();
            assert!(found.contains(what), "{found}");
            page[at] = right;
        }
    }

    #[test]
    fn relations_by_their_names() {
        for (name, first) in [
            ("1259", Some(0)),
            ("1259.1", Some(SEGMENT_BLOCKS)),
            ("16384_fsm", Some(0)),
            ("16384_vm.2", Some(2 * SEGMENT_BLOCKS)),
            ("16384.99999999", None),
            ("pg_filenode.map", None),
            ("PG_VERSION", None),
            ("x", None),
        ] {
            assert_eq!(first_block(name.as_bytes()), first, "{name}");
        }
    }
}
