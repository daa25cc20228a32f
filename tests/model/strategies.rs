//! Random operations.

use proptest::prelude::*;

use super::files::{B, NAMES, WAL_NAMES};
use super::ops::Op;

/// Anything.
pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        28 => living_op(),
        1 => Just(Op::Kill),
        2 => Just(Op::Crash),
    ]
}

/// Anything that does not end the store it works on.
pub fn living_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        16 => file_op(0..NAMES.len() as u8),
        // Those in place are few, and have the most to go wrong.
        8 => file_op(WAL_NAMES),
        3 => (0u8..8).prop_map(|parent| Op::Fork { parent }),
        2 => (0u8..8).prop_map(|parent| Op::ForkEphemeral { parent }),
        1 => (0u8..8, 1u8..255).prop_map(|(parent, byte)| Op::ForkInSteps { parent, byte }),
        1 => (0u8..8).prop_map(|fork| Op::Remove { fork }),
        1 => Just(Op::Seal),
        2 => Just(Op::Collect),
        2 => Just(Op::Sort),
        4 => Just(Op::DropTables),
        4 => snapshot_op(),
        1 => Just(Op::Restart),
    ]
}

/// Snapshots, and what is done with them.
fn snapshot_op() -> impl Strategy<Value = Op> {
    let (fork, label) = (0u8..8, 0u8..3);
    prop_oneof![
        3 => (fork.clone(), label.clone()).prop_map(|(fork, label)| Op::Snapshot { fork, label }),
        1 => (fork.clone(), label.clone()).prop_map(|(fork, label)| Op::ForkSnapshot { fork, label }),
        1 => (fork.clone(), label.clone()).prop_map(|(fork, label)| Op::Reset { fork, label }),
        1 => fork.clone().prop_map(|fork| Op::ResetToOrigin { fork }),
        1 => fork.clone().prop_map(|fork| Op::ResetToParent { fork }),
        1 => (fork.clone(), 0u8..8).prop_map(|(fork, other)| Op::ResetToFork { fork, other }),
        1 => (fork.clone(), label).prop_map(|(fork, label)| Op::RemoveSnapshot { fork, label }),
        1 => fork.clone().prop_map(|fork| Op::Promote { fork }),
        1 => fork.prop_map(|fork| Op::RenameFork { fork }),
    ]
}

/// WAL files, forks, and every way for a store to end.
pub fn wal_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => file_op(WAL_NAMES),
        4 => (0u8..8).prop_map(|parent| Op::Fork { parent }),
        2 => (0u8..8).prop_map(|parent| Op::ForkEphemeral { parent }),
        1 => (0u8..8).prop_map(|fork| Op::Remove { fork }),
        1 => Just(Op::Seal),
        2 => Just(Op::Collect),
        2 => snapshot_op(),
        1 => Just(Op::Restart),
        1 => Just(Op::Kill),
        2 => Just(Op::Crash),
    ]
}

fn file_op(names: std::ops::Range<u8>) -> impl Strategy<Value = Op> {
    let fork = 0u8..8;
    let name = names;
    let offset = prop_oneof![(0u64..12).prop_map(|b| b * B), 0u64..12 * B];
    let len = prop_oneof![(1u64..4).prop_map(|b| b * B), 1u64..3 * B, 1u64..600];
    prop_oneof![
        12 => (fork.clone(), name.clone(), offset.clone(), len.clone(), 1u8..255)
            .prop_map(|(fork, name, offset, len, byte)| Op::Write { fork, name, offset, len, byte }),
        2 => (fork.clone(), name.clone(), offset.clone())
            .prop_map(|(fork, name, size)| Op::Truncate { fork, name, size }),
        1 => (fork.clone(), name.clone(), offset.clone(), len.clone())
            .prop_map(|(fork, name, offset, len)| Op::Allocate { fork, name, offset, len }),
        1 => (fork.clone(), name.clone(), offset.clone(), len.clone())
            .prop_map(|(fork, name, offset, len)| Op::Punch { fork, name, offset, len }),
        2 => (fork.clone(), name.clone(), name.clone(), 0u64..8, 0u64..8, len)
            .prop_map(|(fork, from, to, from_block, to_block, len)| Op::Copy { fork, from, to, from_block, to_block, len }),
        2 => (fork.clone(), name.clone()).prop_map(|(fork, name)| Op::Unlink { fork, name }),
        1 => (fork.clone(), name.clone(), name.clone())
            .prop_map(|(fork, from, to)| Op::Rename { fork, from, to }),
        1 => (fork.clone(), name.clone(), name.clone())
            .prop_map(|(fork, from, to)| Op::Link { fork, from, to }),
        3 => (fork.clone(), name, any::<bool>())
            .prop_map(|(fork, name, data_only)| Op::SyncFile { fork, name, data_only }),
        1 => fork.prop_map(|fork| Op::Sync { fork }),
    ]
}
