//! RocksDB's logs, against a second reader that is written as the format is
//! described: a file of blocks, each of which holds fragments.

use pgcowfs::map::log_file::{Contents, scan};

use super::super::target::{Bytes, piece};

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
const LOG_MAX: usize = 1 << 20;

// What an input consists of.
const RAW: u8 = 0;
const FILL: u8 = 1;
/// And the numbers above: fragments of type 1, 2, ...
const FRAGMENT: u8 = 2;

pub fn run(input: &[u8]) {
    let log = build(input);
    let found = all(&log);
    assert_eq!(found, model(&log));
    assert_eq!(found.len, log.len() as u64);
    assert!(found.end <= found.len);
    // What is cut off was not part of it.
    let whole = all(&log[..found.end as usize]);
    assert_eq!(whole, Contents { len: found.end, ..found });
    assert!(!whole.is_torn());
}

fn all(log: &[u8]) -> Contents {
    scan(log, log.len() as u64).expect("it is in memory")
}

/// A log by one who knows the format: fragments with right CRCs, or anything.
fn build(input: &[u8]) -> Vec<u8> {
    let (mut input, mut log) = (Bytes(input), Vec::new());
    while !input.0.is_empty() && log.len() < LOG_MAX {
        match input.u8() {
            RAW => log.extend_from_slice(input.piece()),
            FILL => log.resize(log.len().next_multiple_of(BLOCK), input.u8()),
            kind => {
                let len = input.u16();
                let mut contents = input.piece().to_vec();
                contents.resize(len.into(), 0x5a);
                let kind = kind - FRAGMENT + 1;
                log.extend(crc(kind, &contents).to_le_bytes());
                log.extend(len.to_le_bytes());
                log.push(kind);
                log.extend(contents);
            }
        }
    }
    log
}

fn crc(kind: u8, contents: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[kind]), contents).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The second reader.
fn model(log: &[u8]) -> Contents {
    let mut found = Contents { last_change: 0, end: 0, len: log.len() as u64 };
    // The record that has begun.
    let mut record: Option<Vec<u8>> = None;
    for (number, block) in log.chunks(BLOCK).enumerate() {
        let mut at = 0;
        while at < block.len() {
            if at + HEADER > BLOCK {
                if block[at..].iter().any(|&b| b != 0) {
                    return found;
                }
                at = block.len();
                if record.is_none() {
                    found.end = (number * BLOCK + at) as u64;
                }
                continue;
            }
            let Some((head, rest)) = block[at..].split_first_chunk::<HEADER>() else { return found };
            let (kind, len) = (head[6], usize::from(u16::from_le_bytes([head[4], head[5]])));
            let Some(contents) = rest.get(..len) else { return found };
            if head[..4] != crc(kind, contents).to_le_bytes() {
                return found;
            }
            at += HEADER + len;
            record = match (kind, record) {
                (1, None) | (2, None) => Some(contents.to_vec()),
                (3 | 4, Some(begun)) => Some([&begun, contents].concat()),
                _ => return found,
            };
            if kind == 1 || kind == 4 {
                found.end = (number * BLOCK + at) as u64;
                if let Some(head) = record.take().as_deref().and_then(|r| r.first_chunk::<12>()) {
                    let number = u64::from_le_bytes(*head.first_chunk().expect("12 bytes"));
                    let count = u32::from_le_bytes(*head.last_chunk().expect("12 bytes"));
                    found.last_change = number.saturating_add(count.into()).saturating_sub(1);
                }
            }
        }
    }
    found
}

/// A record as [`build`] makes it: its number, and the lengths of its fragments.
fn record(number: u64, lens: &[u16]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, len) in lens.iter().enumerate() {
        let kind = match (i == 0, i + 1 == lens.len()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        let head = [number.to_le_bytes().as_slice(), &1u32.to_le_bytes()].concat();
        out.push(kind + FRAGMENT - 1);
        out.extend(len.to_le_bytes());
        out.extend(piece(if i == 0 { &head } else { b"" }));
    }
    out
}

pub fn seeds() -> Vec<Vec<u8>> {
    let block = BLOCK as u16;
    let to_the_end = block - HEADER as u16;
    vec![
        Vec::new(),
        [record(1, &[100]), record(2, &[12])].concat(),
        // Over three blocks.
        [record(7, &[to_the_end, to_the_end, 40]), record(8, &[30])].concat(),
        // A block whose rest is too short for a header.
        [record(1, &[to_the_end - 3]), vec![FILL, 0], record(2, &[20])].concat(),
        [record(1, &[50]), vec![RAW], piece(b"torn")].concat(),
    ]
}
