//! The input is a sequence of operations on forks, with restarts and crashes,
//! which are done next to the model of `tests/model.rs`.

use super::super::target::Bytes;

#[path = "../model/files.rs"]
mod files;
#[path = "../model/ops.rs"]
mod ops;
// Crashes at every point need more of it.
#[allow(dead_code)]
#[path = "../model/world.rs"]
mod world;

use files::{B, NAMES};
use world::{Op, World};

/// Longer sequences are slow, and no more interesting.
const OPERATIONS_MAX: usize = 40;

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let mut world = World::new();
    for _ in 0..OPERATIONS_MAX {
        if input.0.is_empty() {
            break;
        }
        let op = op(&mut input);
        world.apply(&op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    }
    world.compare();
    world.check();
    world.apply(&Op::Crash).expect("a crash is survived");
    world.store.close().expect("the store closes");
}

fn op(input: &mut Bytes<'_>) -> Op {
    let kind = input.u8();
    let fork = input.u8() % 8;
    let name = input.u8() % NAMES.len() as u8;
    match kind % 32 {
        0..=6 => Op::Write { fork, name, offset: offset(input), len: len(input), byte: input.u8().max(1) },
        7 => Op::Truncate { fork, name, size: offset(input) },
        8 => Op::Allocate { fork, name, offset: offset(input), len: len(input) },
        9 => Op::Punch { fork, name, offset: offset(input), len: len(input) },
        10 | 11 => {
            let (to, blocks) = (input.u8() % NAMES.len() as u8, input.u8());
            let (from_block, to_block) = (u64::from(blocks % 8), u64::from(blocks / 8 % 8));
            Op::Copy { fork, from: name, to, from_block, to_block, len: len(input) }
        }
        12 => Op::Unlink { fork, name },
        13 => Op::Rename { fork, from: name, to: input.u8() % NAMES.len() as u8 },
        14 => Op::Link { fork, from: name, to: input.u8() % NAMES.len() as u8 },
        15 | 16 => Op::SyncFile { fork, name, data_only: kind >= 128 },
        17 => Op::Sync { fork },
        18 if kind >= 128 => Op::ForkInSteps { parent: fork, byte: name + 1 },
        18 => Op::Fork { parent: fork },
        19 => Op::ForkEphemeral { parent: fork },
        20 => Op::Remove { fork },
        21 => Op::Seal,
        22 => Op::Restart,
        24 => match kind {
            0..64 => Op::Collect,
            64..128 => Op::RenameFork { fork },
            128..192 => Op::Sort,
            _ => Op::DropTables,
        },
        25 => Op::Snapshot { fork, label: name % 3 },
        26 => Op::ForkSnapshot { fork, label: name % 3 },
        27 => Op::Reset { fork, label: name % 3 },
        28 => Op::ResetToOrigin { fork },
        29 if kind >= 128 => Op::ResetToFork { fork, other: name },
        29 => Op::ResetToParent { fork },
        30 => Op::RemoveSnapshot { fork, label: name % 3 },
        31 => Op::Promote { fork },
        _ if kind >= 128 => Op::Kill,
        _ => Op::Crash,
    }
}

/// Whole blocks, or anything.
fn offset(input: &mut Bytes<'_>) -> u64 {
    match input.u8() {
        blocks @ 0..128 => u64::from(blocks % 12) * B,
        high => (u64::from(high) << 16 | u64::from(input.u16())) % (12 * B),
    }
}

fn len(input: &mut Bytes<'_>) -> u64 {
    match input.u8() {
        blocks @ 0..128 => u64::from(blocks % 3 + 1) * B,
        _ => u64::from(input.u16()) % (3 * B) + 1,
    }
}

/// Each number stands for an operation, see [`op`].
pub fn seeds() -> Vec<Vec<u8>> {
    let write = |fork, name, block| vec![0, fork, name, block, 1, 9];
    let plain = |kind, fork| vec![kind, fork, 0];
    vec![
        Vec::new(),
        [write(0, 2, 0), plain(18, 0), write(1, 2, 1), plain(17, 1), plain(20, 0), plain(23, 0)].concat(),
        [write(0, 7, 0), plain(21, 0), plain(18, 0), write(0, 7, 1), plain(22, 0), write(1, 7, 2)].concat(),
        [write(0, 0, 3), vec![10, 0, 0, 1, 3, 1], vec![12, 0, 0], plain(151, 0), vec![9, 0, 1, 0, 1]]
            .concat(),
        [
            write(0, 2, 0),
            plain(25, 0),
            write(0, 2, 1),
            plain(26, 0),
            plain(27, 0),
            plain(24, 0),
            plain(31, 1),
        ]
        .concat(),
        [plain(18, 0), write(1, 2, 0), plain(28, 1), write(0, 2, 1), plain(29, 1), plain(30, 0)].concat(),
        [write(0, 6, 0), vec![13, 0, 6, 7], plain(18, 0), vec![7, 1, 7, 200, 1, 2], plain(23, 0)].concat(),
    ]
}
