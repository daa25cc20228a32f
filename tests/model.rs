//! Random operations on forks against an obviously right model, with restarts,
//! losses of power, crashes at every point, and failures at every point.
//!
//! A fork's files are a `BTreeMap` in the model. After a crash each fork must
//! be exactly what it was at one moment not before its last sync; the model
//! remembers all those moments. proptest prints the operations of a failure,
//! shortened; `PGCOWFS_MODEL_CASES` says how many sequences are tried.

#[path = "model/files.rs"]
mod files;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/points.rs"]
mod points;
#[path = "model/strategies.rs"]
mod strategies;
#[path = "model/world.rs"]
mod world;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use files::B;
use points::{Tried, count_points, crash_everywhere, run_with_failure};
use strategies::{living_op, op, wal_op};
use world::{Op, World};

fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PGCOWFS_MODEL_CASES").ok();
    ProptestConfig {
        // The short number here is a share of what is asked for.
        cases: asked
            .map_or(cases, |n| n.parse::<u32>().expect("PGCOWFS_MODEL_CASES is a number") * cases / 150),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn run(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.apply(op).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    }
    world.compare();
    world.check();
    world.apply(&Op::Crash).unwrap();
    world.store.close().unwrap();
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn forks_behave_like_the_model(ops in prop::collection::vec(op(), 1..80)) {
        run(&ops);
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn wal_files_behave_like_the_model(ops in prop::collection::vec(wal_op(), 1..40)) {
        run(&ops);
    }
}

#[test]
fn a_crash_at_every_point() {
    let tried = std::cell::RefCell::new(Tried::default());
    let sequences = (prop::collection::vec(living_op(), 1..24), any::<u64>());
    let result = TestRunner::new(config(60)).run(&sequences, |(ops, seed)| {
        crash_everywhere(&ops, seed, &mut tried.borrow_mut());
        Ok(())
    });
    // With --nocapture or --show-output.
    println!("{:?}", tried.borrow());
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Free space goes back to the host between pages that are in use, some of them
/// shared, and is taken again.
#[test]
fn a_crash_at_every_point_of_giving_space_back() {
    let write = |fork, name, byte| Op::Write { fork, name, offset: 0, len: 3 * B, byte };
    let mut ops = Vec::new();
    for byte in 1..3 {
        ops.extend([write(0, 0, byte), write(0, 1, byte), write(0, 2, byte), Op::Sync { fork: 0 }]);
        ops.extend([Op::Fork { parent: 0 }, write(1, 2, byte + 10), write(1, 1, byte), Op::Sync { fork: 1 }]);
        ops.extend([
            Op::Unlink { fork: 1, name: 2 },
            Op::Unlink { fork: 0, name: 0 },
            write(0, 1, byte + 20),
        ]);
        ops.extend([Op::Sync { fork: 0 }, Op::Sync { fork: 1 }, Op::Collect, write(0, 2, byte + 30)]);
        ops.extend([Op::Remove { fork: 1 }, Op::Collect, write(0, 0, byte + 40), Op::Collect]);
    }
    let mut tried = Tried::default();
    crash_everywhere(&ops, 1, &mut tried);
    println!("{tried:?}");
    assert!(tried.punches >= 2 && tried.cuts >= 2, "{tried:?}");
    for at in 0..count_points(&ops) {
        run_with_failure(&ops, at, std::io::Error::other("injected"));
        run_with_failure(&ops, at, std::io::Error::from_raw_os_error(libc::ENOSPC));
    }
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn a_failure_at_every_point(ops in prop::collection::vec(living_op(), 1..16)) {
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::other("injected"));
        }
    }

    #[test]
    fn a_full_disk_at_every_point(ops in prop::collection::vec(living_op(), 1..16)) {
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::from_raw_os_error(libc::ENOSPC));
        }
    }
}

/// What these found, shortened.
mod found {
    use super::*;

    fn write(name: u8, offset: u64, len: u64) -> Op {
        Op::Write { fork: 0, name, offset, len, byte: 7 }
    }

    /// A fork whose flush fails takes its parent along: what the parent lost it
    /// had acknowledged, and a second flush would find nothing to do.
    #[test]
    fn a_failed_fork_stops_the_parent() {
        let ops = [write(2, 0, B), Op::Fork { parent: 0 }, Op::Fork { parent: 0 }, Op::Sync { fork: 0 }];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::other("injected"));
        }
    }

    /// A fork that was put back to a snapshot can still be put back to what it was
    /// made from.
    #[test]
    fn a_reset_to_a_snapshot_keeps_the_origin() {
        run(&[
            Op::Fork { parent: 0 },
            write(0, 0, B),
            Op::Snapshot { fork: 0, label: 2 },
            Op::Reset { fork: 0, label: 2 },
            Op::ResetToOrigin { fork: 0 },
        ]);
    }

    /// A delta file whose name could not be made durable is not taken for one
    /// that has a durable name at the second try.
    #[test]
    fn a_delta_file_without_a_durable_name_is_not_used() {
        let ops = [write(0, 0, B), write(0, 0, B), Op::Fork { parent: 0 }];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::other("injected"));
        }
    }

    /// A write that fails half way may show when the file grows over it, and in
    /// no other way.
    #[test]
    fn a_failed_write_to_a_wal_file() {
        let write = |fork, name, offset, len| Op::Write { fork, name, offset, len, byte: 1 };
        let ops = [
            write(0, 7, 0, B),
            write(0, 0, 0, B),
            Op::Fork { parent: 0 },
            write(6, 7, B, 2 * B),
            write(6, 7, 2 * B, B),
        ];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::other("injected"));
        }
    }

    /// A lost write beyond the end of a WAL file must not show when the file
    /// grows over it.
    #[test]
    fn a_wal_file_grows_over_a_lost_write() {
        run(&[write(7, B, 20934), Op::Restart, write(7, 2 * B, 3 * B), Op::Crash, write(7, 10 * B, 135)]);
    }

    /// Cutting a WAL file within a block needs room, and without it must change
    /// nothing.
    #[test]
    fn a_full_disk_refuses_to_cut_a_wal_file() {
        let ops = [write(7, 6 * B, 2 * B), Op::Truncate { fork: 0, name: 7, size: 6 * B + 1 }];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::from_raw_os_error(libc::ENOSPC));
        }
    }

    /// A write that found no room has not made the file longer: a sync of its
    /// data is not one of all the fork.
    #[test]
    fn a_full_disk_before_a_sync_of_one_file() {
        let sync = |data_only| Op::SyncFile { fork: 0, name: 7, data_only };
        let ops = [write(7, 0, B), sync(false), write(7, 0, 2 * B), write(0, 0, B), sync(true)];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::from_raw_os_error(libc::ENOSPC));
        }
    }

    /// A host file of which a cut has let go is still written to as far as the
    /// block map knows: a seal would keep recovery from looking at it.
    #[test]
    fn a_cut_wal_file_is_not_sealed_before_the_cut_is_durable() {
        for seed in 1..40 {
            let mut world = World::new();
            world.seed = seed * 7919;
            let ops = [
                write(7, 28311, 410),
                Op::Sync { fork: 0 },
                write(7, 3 * B, B),
                Op::Truncate { fork: 0, name: 7, size: 19672 },
                Op::Seal,
                Op::Crash,
                write(7, 98038, 282),
            ];
            for op in &ops {
                world.apply(op).unwrap();
            }
            world.compare();
        }
    }

    /// A copy to a WAL file that fails half way may have been made in part.
    #[test]
    fn a_failed_copy_to_a_wal_file() {
        let ops = [
            Op::Write { fork: 0, name: 6, offset: 5 * B, len: B + 1, byte: 93 },
            write(7, 3 * B, 3 * B),
            Op::Fork { parent: 1 },
            Op::Copy { fork: 1, from: 6, to: 7, from_block: 5, to_block: 5, len: 3 * B },
        ];
        for at in 0..count_points(&ops) {
            run_with_failure(&ops, at, std::io::Error::other("injected"));
        }
    }

    /// A spare WAL file that is being made when the store is closed must not be
    /// written to when the next one has given its number to another.
    #[test]
    fn a_spare_file_does_not_outlive_its_store() {
        for _ in 0..20 {
            let mut ops = vec![Op::Write { fork: 0, name: 7, offset: 0, len: B, byte: 1 }];
            for byte in 2..6 {
                // Only a chunk that is covered wholly takes a spare.
                ops.push(Op::Truncate { fork: 0, name: 7, size: 2048 * B });
                ops.push(Op::Fork { parent: 0 });
                ops.push(Op::Write { fork: 0, name: 7, offset: B, len: 2 * B, byte });
                ops.push(Op::Restart);
            }
            run(&ops);
        }
    }
}

/// The rig can see a lost write: with flushes that do nothing, a synced page
/// must be missed.
#[test]
fn a_skipped_flush_is_found() {
    let found = (1..20u64).any(|seed| {
        let mut world = World::new();
        world.seed = seed * 7919;
        let write = |offset| Op::Write { fork: 0, name: 0, offset, len: 3 * B, byte: 9 };
        world.apply(&write(0)).unwrap();
        world.rig.delta.break_flushes();
        world.apply(&write(B)).unwrap();
        world.rig.delta.break_flushes();
        world.apply(&Op::Sync { fork: 0 }).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.apply(&Op::Crash))).is_err()
    });
    assert!(found, "no crash image showed the missing flush");
}
