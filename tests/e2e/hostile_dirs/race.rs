//! Directories that change while they are brought in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::rig::{Rig, judge_fork};
use crate::common::pg::as_owner;
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::{rounds, turn_on_a_mount};

/// One change to a file or directory, and the way back.
type Change = fn(&Path, &Rig);

fn away(path: &Path) -> PathBuf {
    path.with_file_name(".away")
}

/// What may take the place of a file or directory that was moved away.
const CHANGES: [Change; 5] = [
    |path, rig| symlink(rig.outside.join("foreign"), path).expect("make a link"),
    |path, rig| symlink(rig.outside.join("foreign/passwd"), path).expect("make a link"),
    |path, _| mkfifo(path, Mode::from_bits_truncate(0o666)).expect("make a pipe"),
    |path, _| symlink("/dev/zero", path).expect("make a link"),
    // Nothing: it has vanished.
    |_, _| {},
];

/// Changes things, in ways that are left to chance, until it is told to stop. All is as it was then.
fn disturb(rig: &Rig, dir: &Path, seed: u64, stop: &AtomicBool, changes: &AtomicU64) {
    let mut random = Random::new(seed);
    let victims = ["base/1/1259", "base/1/112", "base/1", "pg_xact", "pg_wal", "global/1262", "base/1/20000"];
    while !stop.load(Ordering::Relaxed) {
        let path = dir.join(random.pick(&victims).expect("one of them"));
        if random.percent(20) {
            // It grows while it is read; and is cut again.
            let file = fs::File::options().append(true).open(dir.join("base/1/20000")).expect("open");
            let len = file.metadata().expect("its size").len();
            file.set_len(len + random.below(1 << 30)).expect("grow");
            std::thread::yield_now();
            file.set_len(len).expect("cut");
        } else {
            let change = random.pick(&CHANGES).expect("one of them");
            fs::rename(&path, away(&path)).expect("move away");
            change(&path, rig);
            for _ in 0..random.below(300) {
                std::thread::yield_now();
            }
            // What has taken the place of a directory cannot be renamed over.
            if path.symlink_metadata().is_ok() {
                fs::remove_file(&path).expect("remove");
            }
            fs::rename(away(&path), &path).expect("move back");
        }
        changes.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(random.below(30_000)));
    }
}

/// Files and directories that grow, vanish, and turn into links, pipes and devices while they are brought in: what is
/// brought in is what was there, or nothing is.
#[test]
fn a_directory_that_changes() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let rig = Rig::new();
    let dir = rig.fresh("race");
    let script = "i=0; while [ $i -lt 400 ]; do head -c 20000 /dev/zero > \"$1/base/1/$((20000 + i))\"; i=$((i+1)); done";
    run(as_owner("sh").args(["-ec", script, "sh"]).arg(&dir)).expect_ok();
    let seed = std::env::var("PGCOWFS_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    let (mut worked, mut refused) = (0, 0);
    let changes = AtomicU64::new(0);
    for round in 0..rounds(25) as u64 {
        for how in ["--from", "--base"] {
            let stop = AtomicBool::new(false);
            let done = std::thread::scope(|scope| {
                scope.spawn(|| disturb(&rig, &dir, seed * 1000 + round, &stop, &changes));
                let done = rig.create(how, &dir);
                stop.store(true, Ordering::Relaxed);
                done
            });
            match done.code {
                0 => {
                    worked += 1;
                    // A base that has changed since it was looked at says so when it is read.
                    if how == "--from" {
                        let wrong = judge_fork(&dir, &rig.store.path("prod"));
                        assert!(wrong.is_empty(), "round {round}: {wrong:#?}");
                    } else {
                        base_is_itself_or_an_error(&rig, &dir);
                    }
                    rig.store.ok(["rm", "prod"]);
                }
                // Unusable, or the wrong moment.
                7 => refused += 1,
                code => panic!("round {round} {how}: {code}: {}", done.report()),
            }
            assert!(rig.store.listing().is_empty(), "left by {}", done.report());
        }
    }
    let changes = changes.into_inner();
    println!("{changes} changes; {worked} forks were made and {refused} refused");
    assert!(refused > 0 && changes > 100, "the race was none: {refused} refused, {changes} changes");
    rig.end();
}

/// Every file of a base's fork reads as in the base, or with EIO.
fn base_is_itself_or_an_error(rig: &Rig, dir: &Path) {
    let fork = rig.store.path("prod");
    for entry in fs::read_dir(dir.join("base/1")).expect("list").flatten() {
        let path = fork.join("base/1").join(entry.file_name());
        match fs::read(&path) {
            Ok(bytes) => {
                assert!(bytes == fs::read(entry.path()).expect("read"), "{} differs", path.display());
            }
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::EIO), "{}: {e}", path.display()),
        }
    }
}
