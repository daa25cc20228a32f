//! Ten thousand forks: the long harness behind `scripts/soak`.
//!
//! A store with a PostgreSQL under load on `main`; cycle after cycle makes a fork, of `main` or of a fork, writes to
//! both sides, and removes one, so that there are always as many. What each fork must hold is kept in memory. Every so
//! many cycles a sample is taken of all that could grow or slow down, and twice with the background work at its end:
//! after the first cycles and after the last. The second must not be greater than the first by more than a fifth.
//! Without arguments (in `cargo test`) it runs a few cycles and asserts counts only.
//!
//! Exit status: 0 nothing was found, 1 something was (the store is left, to be looked at), 2 bad arguments, 3 the
//! set-up failed, so that there is no verdict.

// Shared with the end-to-end tests, which use other parts of it.
#[allow(dead_code, unused_imports)]
mod common;
#[allow(dead_code)]
#[path = "common/harness.rs"]
mod harness;
#[allow(dead_code, unused_imports)]
mod oracle;
#[allow(dead_code)]
#[path = "common/words.rs"]
mod words;

/// Parts of the harness.
mod soak {
    pub mod args;
    pub mod control;
    pub mod forest;
    pub mod layers;
    pub mod load;
    pub mod probe;
    pub mod run;
    pub mod sample;
    pub mod tree;
    pub mod verdict;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use soak::args::Args;
use soak::run::Run;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("soak: {why}\n{}", soak::args::USAGE);
            return ExitCode::from(2);
        }
    };
    let Some(_turn) = common::turn_on_a_mount() else {
        return ExitCode::from(if args.common.long { 3 } else { 0 });
    };
    println!("soak: {args}");
    // A panic here is the set-up's: what is found comes as an error.
    let Ok(mut run) = catch_unwind(|| Run::set_up(&args)) else {
        println!("soak: no verdict: the set-up failed, see above");
        return ExitCode::from(3);
    };
    let found = match catch_unwind(AssertUnwindSafe(|| run.all())) {
        Ok(found) => found,
        Err(_) => Err(vec!["a panic, see above".to_owned()]),
    };
    match found {
        Ok(()) => {
            println!("test result: ok. {} cycles, nothing found", args.cycles);
            ExitCode::SUCCESS
        }
        Err(findings) => {
            println!("FOUND");
            findings.iter().for_each(|finding| println!("  {finding}"));
            println!("again: scripts/soak {args}");
            println!("left as it is: {}", run.keep().display());
            ExitCode::from(1)
        }
    }
}
