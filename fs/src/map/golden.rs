//! The bytes of every record, fixed. A change here is a change of the format:
//! it needs a new version, and docs/FORMAT.md says so.

use super::schema::*;
use crate::attr::Kind;
use crate::class::{Class, Role};
use crate::error::Result;
use crate::ids::{FileId, ForkId, LayerId};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const T: Time = Time { secs: 0x0102, nanos: 3 };
const L: LayerId = LayerId(0x11);
const F: FileId = FileId(0x22);

fn records() -> Vec<(&'static str, Record)> {
    let inode = InodeRecord {
        kind: Kind::File,
        role: Role::Other,
        class: Class::Paged,
        perm: 0o600,
        uid: 1,
        gid: 2,
        nlink: 3,
        rdev: 4,
        size: 5,
        atime: T,
        mtime: T,
        ctime: T,
        parent: FileId(6),
        target: b"t".to_vec(),
    };
    let fork = ForkRecord {
        id: ForkId(7),
        name: "pr42".into(),
        parent: "main".into(),
        head: L,
        delta: 8,
        created: T,
        life: Life::Incomplete,
        meta: b"{}".to_vec(),
        base: "/b".into(),
    };
    let ephemeral = ForkRecord { life: Life::Ephemeral, ..fork.clone() };
    let extents = ExtentsRecord {
        runs: vec![RunRecord { start: 1, len: 2, host: 3 }],
        tops: vec![TopRecord { chunk: 4, host: 5, patterned: 6 }],
    };
    let base = BaseFileRecord { path: "/b/1".into(), dev: 1, ino: 2, size: 3, mtime: T, ctime: T };
    let mut bits = [0; SLOT_MAP_BYTES];
    bits[0] = 0x81;
    vec![
        ("counters", Counters { file: 1, layer: 2, fork: 3, delta: 4, host: 5 }.encode()),
        ("fork", fork.encode()),
        ("fork ephemeral", ephemeral.encode()),
        ("layer", LayerRecord { id: L, parent: LayerId(9), pages: 10, logical_bytes: 11 }.encode()),
        ("inode", inode.encode(L, F)),
        ("inode removed", InodeRecord::encode_removed(L, F)),
        ("name", NameRecord::Entry(F, Kind::Directory).encode(L, FileId(1), b"base")),
        ("name whiteout", NameRecord::Whiteout.encode(L, FileId(1), b"base")),
        ("block", BlockRecord { slot: Slot::new(2, 3), crc: 0xdead_beef }.encode(L, F, 7)),
        ("cleared", ClearedRecord::encode(L, F, 7, u32::MAX)),
        ("extents", extents.encode(L, F)),
        ("base file", base.encode(L, F)),
        ("slots", SlotsRecord::encode(2, 1, &bits)),
        ("shared", SharedRecord::encode(Slot::new(2, 3), 4)),
        ("quota", QuotaRecord::encode(ForkId(7), 0x0201)),
        ("snapshot", SnapshotRecord { layer: L, created: T }.encode(ForkId(7), "v1")),
        ("host seal", HostSealRecord::encode(5, &[1, 0xdead_beef])),
        ("base seal", BaseSealRecord::encode(F, 6, &[2, 3])),
    ]
}

#[test]
fn records_have_their_bytes() {
    let text: String =
        records().iter().map(|(name, (k, v))| format!("{name}\n  {}\n  {}\n", hex(k), hex(v))).collect();
    assert_eq!(text, include_str!("golden.txt"), "\n{text}");
}

/// A record as it is written again after it was read.
fn again(name: &str, k: &[u8], v: &[u8]) -> Result<Record> {
    Ok(match name {
        "counters" => Counters::decode(k, v)?.encode(),
        "fork" | "fork ephemeral" => ForkRecord::decode(k, v)?.encode(),
        "layer" => LayerRecord::decode(k, v)?.encode(),
        "inode" | "inode removed" => match InodeRecord::decode(k, v)? {
            Some(record) => record.encode(L, F),
            None => InodeRecord::encode_removed(L, F),
        },
        "name" | "name whiteout" => {
            let (dir, entry, rec) = NameRecord::decode(k, v)?;
            rec.encode(L, dir, &entry)
        }
        "block" => {
            let (file, block, rec) = BlockRecord::decode(k, v)?;
            rec.encode(L, file, block)
        }
        "cleared" => {
            let (start, end) = ClearedRecord::decode(k, v)?;
            ClearedRecord::encode(L, F, start, end)
        }
        "extents" => {
            let (layer, file, rec) = ExtentsRecord::decode(k, v)?;
            rec.encode(layer, file)
        }
        "base file" => {
            let (file, rec) = BaseFileRecord::decode(k, v)?;
            rec.encode(L, file)
        }
        "slots" => {
            let (delta, chunk, bits) = SlotsRecord::decode(k, v)?;
            SlotsRecord::encode(delta, chunk, &bits)
        }
        "shared" => {
            let (slot, count) = SharedRecord::decode(k, v)?;
            SharedRecord::encode(slot, count)
        }
        "quota" => {
            let (fork, bytes) = QuotaRecord::decode(k, v)?;
            QuotaRecord::encode(fork, bytes)
        }
        "snapshot" => {
            let (fork, label, rec) = SnapshotRecord::decode(k, v)?;
            rec.encode(fork, &label)
        }
        "host seal" => {
            let (host, crcs) = HostSealRecord::decode(k, v)?;
            HostSealRecord::encode(host, &crcs)
        }
        "base seal" => {
            let (file, number, crcs) = BaseSealRecord::decode(k, v)?;
            BaseSealRecord::encode(file, number, &crcs)
        }
        other => panic!("no decoder for {other}"),
    })
}

#[test]
fn records_survive_the_round_trip() {
    for (name, (k, v)) in records() {
        assert_eq!(again(name, &k, &v).unwrap(), (k, v), "{name}");
    }
}

/// The CRC made right for what a value, or its key, has become.
fn sealed(k: &[u8], body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(k);
    crc.update(body);
    [body, &crc.finalize().to_le_bytes()].concat()
}

/// Two spellings of one record would be two records of one thing, of which one
/// hides the other.
#[test]
fn a_record_has_one_spelling() {
    for (name, (k, v)) in records() {
        let longer = [k.as_slice(), &[0]].concat();
        let value = sealed(&longer, &v[..v.len() - 4]);
        match again(name, &longer, &value) {
            // Their keys end with a name, which cannot hold this byte.
            Err(error) if name.starts_with("name") || name == "snapshot" => {
                assert!(error.to_string().contains("cannot be"), "{name}: {error}");
            }
            Err(error) => assert!(error.to_string().contains("key is too long"), "{name}: {error}"),
            Ok(_) => panic!("{name} is read from a key that has more than its fields"),
        }
    }
    let (k, v) = &records()[1].1;
    let mut body = v[..v.len() - 4].to_vec();
    let life = 1 + 8 + 4 + 12;
    assert_eq!(body[life], 1);
    body[life] = 3;
    assert!(ForkRecord::decode(k, &sealed(k, &body)).is_err());
    let (k, v) = BaseSealRecord::encode(F, 0, &[0; BASE_SEAL_BLOCKS as usize + 1]);
    assert!(BaseSealRecord::decode(&k, &v).is_err(), "more blocks than a record has");
}

/// Whoever reads neighbouring slots asks for the next one.
#[test]
fn no_page_is_in_the_last_slot_of_all() {
    for (slot, can_be) in
        [(u64::MAX - 1, true), (u64::MAX, false), (Slot::new(7, u32::MAX).0, false), (5, false)]
    {
        let (k, v) = BlockRecord { slot: Slot(slot), crc: 1 }.encode(L, F, 7);
        assert_eq!(BlockRecord::decode(&k, &v).is_ok(), can_be, "{slot:x}");
        let (k, v) = SharedRecord::encode(Slot(slot), 2);
        assert_eq!(SharedRecord::decode(&k, &v).is_ok(), can_be, "{slot:x}");
    }
}

/// Any flipped bit, in key or value, and any cut is found.
#[test]
fn damage_is_found() {
    let (k, v) = BlockRecord { slot: Slot::new(2, 3), crc: 1 }.encode(L, F, 7);
    for bit in 0..v.len() * 8 {
        let mut bad = v.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(BlockRecord::decode(&k, &bad).is_err(), "value bit {bit}");
    }
    for bit in 8..k.len() * 8 {
        let mut bad = k.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(BlockRecord::decode(&bad, &v).is_err(), "key bit {bit}");
    }
    for len in 0..v.len() {
        assert!(BlockRecord::decode(&k, &v[..len]).is_err(), "cut to {len}");
    }
    assert!(BlockRecord::decode(&k[..5], &v).is_err());
}
