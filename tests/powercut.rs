//! Loss of power: the harness behind `scripts/powercut`.
//!
//! A store on a real file system, on a loop device, on a disk that records every write and flush (`powercut/disk.rs`).
//! Then, for many moments, the disk as a loss of power would have left it: everything flushed, and of the writes after
//! that none, all, some in any order, or some sectors of some. Each is mounted and judged: the store opens, its own
//! check finds nothing, and all that was acknowledged as durable is there. Two workloads: the library's operations
//! against a model (many cuts), and PostgreSQL with the oracle's clients (fewer, with a recovery each).
//!
//! The controls come first and must fail: a disk that forgets its last flushes, and a PostgreSQL with fsync=off.
//! Without arguments (in `cargo test`) it runs a few seconds.
//!
//! Exit status: 0 nothing was found, 1 something was (the recording is left, to be looked at), 2 bad arguments, 3 the
//! set-up or a control failed, so that there is no verdict.

// Shared with the end-to-end tests, which use other parts of it.
#[allow(dead_code, unused_imports)]
mod common;
#[allow(dead_code)]
#[path = "model/files.rs"]
mod files;
#[path = "common/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "model/ops.rs"]
mod ops;
#[allow(dead_code, unused_imports)]
mod oracle;
#[path = "common/words.rs"]
mod words;

/// Parts of the harness.
mod powercut {
    pub mod args;
    pub mod cuts;
    pub mod disk;
    pub mod log;
    pub mod rig;
    pub mod server;
    pub mod session;
    pub mod writer;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use powercut::args::Args;
use powercut::session::{self, Outcome, Sums};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--disk") {
        return match powercut::disk::main(&words[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                println!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    let args = match Args::parse(words.into_iter()) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("powercut: {why}\n{}", powercut::args::USAGE);
            return ExitCode::from(2);
        }
    };
    let cannot = if args.common.long { 3 } else { 0 };
    if let Some(why) = args.host.missing() {
        common::skipped(&format!("powercut: {why}"));
        return ExitCode::from(cannot);
    }
    if let Some((rig, cut)) = &args.show {
        return match session::show(&args, rig, cut) {
            Ok(copy) => {
                println!("the store is copied to {}", copy.display());
                ExitCode::SUCCESS
            }
            Err(why) => {
                eprintln!("powercut: {why}");
                ExitCode::from(3)
            }
        };
    }
    let Some(_turn) = common::turn_on_a_mount() else {
        return ExitCode::from(cannot);
    };
    println!("powercut: {args}");
    let mut sums = Sums::default();
    for n in 0..args.sessions {
        for session in [session::writer, session::server] {
            // A panic here is the set-up's: the verdict itself panics nowhere.
            let outcome = catch_unwind(AssertUnwindSafe(|| session(&args, n, &mut sums)));
            match outcome {
                Ok(Ok(Outcome::Clean)) => {}
                Ok(Ok(Outcome::Found)) => {
                    println!("{sums}");
                    return ExitCode::from(1);
                }
                Ok(Err(why)) => {
                    println!("powercut: no verdict: {why}");
                    return ExitCode::from(3);
                }
                Err(_) => {
                    println!("powercut: no verdict: the set-up failed, see above");
                    return ExitCode::from(3);
                }
            }
        }
    }
    println!("{sums}");
    println!("test result: ok. {} cuts, nothing found", sums.cuts());
    ExitCode::SUCCESS
}
