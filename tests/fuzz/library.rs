//! Targets: what the library reads from the disk.

use pgcowfs::Result;
use pgcowfs::block::{BLOCK_SIZE, BlockNo};
use pgcowfs::check::pg;
use pgcowfs::forks::store_file;
use pgcowfs::map::guard;
use pgcowfs::map::schema::*;

use super::target::{Bytes, Target, piece};

#[path = "log.rs"]
mod log;
#[path = "model.rs"]
mod model;
#[path = "store.rs"]
mod store;

#[allow(unused_imports)] // The fuzzer never comes to an end.
pub use store::forget_stores;

pub const TARGETS: &[Target] = &[
    Target { name: "map-record", run: map_record, seeds: golden_records, rounds: 4000 },
    Target { name: "map-log", run: log::run, seeds: log::seeds, rounds: 3000 },
    Target { name: "store-files", run: store_files, seeds: store_files_seeds, rounds: 3000 },
    Target { name: "postgres-page", run: postgres_page, seeds: pages, rounds: 3000 },
    Target { name: "hostile-store", run: store::run, seeds: store::seeds, rounds: 100 },
    Target { name: "model", run: model::run, seeds: model::seeds, rounds: 100 },
];

/// A key and a value's contents, to which the CRC is added: a record of one who
/// knows the format.
fn map_record(input: &[u8]) {
    let mut input = Bytes(input);
    let (flip, key, body) = (input.u16(), input.piece(), input.0);
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(body);
    let mut value = [body, &crc.finalize().to_le_bytes()].concat();
    // What is read is what is there, to the last bit.
    if let Ok(again) = encoded_again(key, &value) {
        assert_eq!(again, (key.to_vec(), value.clone()), "{}", key.escape_ascii());
    }
    // Whatever it says, it says so with every bit.
    let bit = usize::from(flip) % (value.len() * 8);
    value[bit / 8] ^= 1 << (bit % 8);
    assert!(encoded_again(key, &value).is_err(), "bit {bit} of {}", key.escape_ascii());
}

/// Reads a record as the one that its tag says, and writes it again.
fn encoded_again(k: &[u8], v: &[u8]) -> Result<Record> {
    let place = || Ok::<_, pgcowfs::Error>((layer_of_key(k)?, file_of_key(k)?));
    Ok(match k.first().copied().unwrap_or_default() {
        tag::COUNTERS => Counters::decode(k, v)?.encode(),
        tag::FORK => ForkRecord::decode(k, v)?.encode(),
        tag::LAYER => LayerRecord::decode(k, v)?.encode(),
        tag::INODE => {
            let ((layer, file), record) = (place()?, InodeRecord::decode(k, v)?);
            match record {
                Some(record) => record.encode(layer, file),
                None => InodeRecord::encode_removed(layer, file),
            }
        }
        tag::NAME => {
            let (layer, (dir, name, record)) = (layer_of_key(k)?, NameRecord::decode(k, v)?);
            record.encode(layer, dir, &name)
        }
        tag::BLOCK => {
            let (layer, (file, block, record)) = (layer_of_key(k)?, BlockRecord::decode(k, v)?);
            record.encode(layer, file, block)
        }
        tag::CLEARED => {
            let ((layer, file), (start, end)) = (place()?, ClearedRecord::decode(k, v)?);
            ClearedRecord::encode(layer, file, start, end)
        }
        tag::EXTENTS => {
            let (layer, file, record) = ExtentsRecord::decode(k, v)?;
            record.encode(layer, file)
        }
        tag::BASE_FILE => {
            let (layer, (file, record)) = (layer_of_key(k)?, BaseFileRecord::decode(k, v)?);
            record.encode(layer, file)
        }
        tag::SLOTS => {
            let (delta, chunk, bits) = SlotsRecord::decode(k, v)?;
            SlotsRecord::encode(delta, chunk, &bits)
        }
        tag::SHARED => {
            let (slot, count) = SharedRecord::decode(k, v)?;
            SharedRecord::encode(slot, count)
        }
        tag::QUOTA => {
            let (fork, bytes) = QuotaRecord::decode(k, v)?;
            QuotaRecord::encode(fork, bytes)
        }
        tag::SNAPSHOT => {
            let (fork, label, record) = SnapshotRecord::decode(k, v)?;
            record.encode(fork, &label)
        }
        tag::HOST_SEAL => {
            let (host, crcs) = HostSealRecord::decode(k, v)?;
            HostSealRecord::encode(host, &crcs)
        }
        tag::BASE_SEAL => {
            let (file, number, crcs) = BaseSealRecord::decode(k, v)?;
            BaseSealRecord::encode(file, number, &crcs)
        }
        // Nobody asks for it.
        _ => return Err(pgcowfs::Error::Damaged("no record has this tag".into())),
    })
}

/// One record of each kind.
fn golden_records() -> Vec<Vec<u8>> {
    let text = include_str!("../../fs/src/map/golden.txt");
    let lines: Vec<&str> = text.lines().collect();
    let record = |lines: &[&str]| {
        let (key, value) = (bytes_of(lines[1]), bytes_of(lines[2]));
        [&[0, 0], piece(&key).as_slice(), &value[..value.len() - 4]].concat()
    };
    lines.chunks(3).map(record).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.trim().as_bytes();
    let digit = |b: u8| char::from(b).to_digit(16).expect("a hex digit") as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The files `STORE` and `map/COMMITTED`.
fn store_files(input: &[u8]) {
    if let Ok((id, version)) = store_file::decode(input) {
        let same = store_file::encode(&id) == input;
        assert_eq!(same, version == STORE_VERSION, "it is as it is written now");
    }
    if let Some(number) = guard::decode(input) {
        assert_eq!(guard::encode(number), input);
    }
    let mut input = Bytes(input);
    let (flip, number) = (usize::from(input.u16()), input.u64());
    let id = std::array::from_fn(|_| input.u8());
    let mut file = store_file::encode(&id);
    assert_eq!(store_file::decode(&file), Ok((id, STORE_VERSION)));
    file[flip / 8 % store_file::BYTES] ^= 1 << (flip % 8);
    assert!(store_file::decode(&file).is_err());
    let mut file = guard::encode(number);
    assert_eq!(guard::decode(&file), Some(number));
    file[flip / 8 % guard::BYTES] ^= 1 << (flip % 8);
    assert_eq!(guard::decode(&file), None);
}

fn store_files_seeds() -> Vec<Vec<u8>> {
    vec![store_file::encode(b"0123456789abcdef").into(), guard::encode(0x0102_0304).into()]
}

/// The check of PostgreSQL's pages.
fn postgres_page(input: &[u8]) {
    let mut input = Bytes(input);
    let block = input.u64() as BlockNo;
    let mut page = vec![0; BLOCK_SIZE];
    let header = input.take(24);
    page[..header.len()].copy_from_slice(header);
    let tail = &input.0[..input.0.len().min(BLOCK_SIZE - 24)];
    page[BLOCK_SIZE - tail.len()..].copy_from_slice(tail);
    let unsigned = pg::wrong(&page, block, false);
    // With the right checksum it is as without any.
    let sum = pg::checksum(&page, block);
    assert_ne!(sum, 0, "it would stand for none");
    let new = page.iter().all(|&b| b == 0);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    if !new {
        assert_eq!(pg::wrong(&page, block, true), unsigned);
    }
}

fn pages() -> Vec<Vec<u8>> {
    let empty = {
        let mut header = [0; 24];
        let fields: [(usize, u16); 4] = [(12, 24), (14, 8192), (16, 8192), (18, 8192 | 4)];
        for (at, value) in fields {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        [&[7; 8], header.as_slice()].concat()
    };
    vec![empty.clone(), [empty, vec![5; 300]].concat(), vec![0; 32]]
}
