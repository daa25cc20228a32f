//! Sudden deaths under load, again and again: the long harness behind `scripts/torture`.
//!
//! Each round runs the oracle's clients on `main` while forks are made, started, stopped and removed, kills the daemon,
//! PostgreSQL or both at a random moment, and then judges everything: the acknowledged commits, the forks, page
//! checksums, indexes, and the store's own check. Without arguments (in `cargo test`) it runs a few rounds.
//!
//! Exit status: 0 nothing was found, 1 something was (everything is left as it is, to be looked at), 2 bad arguments,
//! 3 the set-up or a control failed, so that there is no verdict.

// Shared with the end-to-end tests, which use other parts of it.
#[allow(dead_code, unused_imports)]
mod common;
#[path = "common/harness.rs"]
mod harness;
#[allow(dead_code, unused_imports)]
mod oracle;
#[path = "common/words.rs"]
mod words;

/// Parts of the harness.
mod torture {
    pub mod args;
    pub mod controls;
    pub mod round;
    pub mod table;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use common::random::Random;
use harness::Settings;
use torture::args::Args;
use torture::round::{Cluster, Victim};
use torture::table::Table;

/// Rounds with one store; then the next one is made, with other settings if those may vary.
const ROUNDS_OF_A_STORE: u64 = 20;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("torture: {why}\n{}", torture::args::USAGE);
            return ExitCode::from(2);
        }
    };
    let Some(_turn) = common::turn_on_a_mount() else {
        return ExitCode::from(if args.common.long { 3 } else { 0 });
    };
    println!("torture: {args}");
    if args.controls
        && let Err(why) = caught(torture::controls::run_all).unwrap_or_else(Err)
    {
        println!("torture: no verdict, a control did not find what it must find: {why}");
        return ExitCode::from(3);
    }
    let mut table = Table::default();
    let mut done = 0;
    while done < args.rounds {
        let mut random = Random::part(args.common.seed, done);
        let settings = Settings {
            full_page_writes: args.common.full_page_writes.unwrap_or_else(|| random.percent(50)),
            checksums: args.common.checksums.unwrap_or_else(|| random.percent(50)),
        };
        let mut cluster = match caught(|| Cluster::make(settings)) {
            Ok(cluster) => cluster,
            Err(why) => {
                println!("torture: set-up failed: {why}");
                return ExitCode::from(3);
            }
        };
        println!("store {}: {settings}", cluster.dir().display());
        for round in done..args.rounds.min(done + ROUNDS_OF_A_STORE) {
            let mut random = Random::part(args.common.seed, round);
            let victim = Victim::choose(args.mode, &mut random);
            let outcome = caught(AssertUnwindSafe(|| cluster.round(round, victim, &mut random)));
            match outcome.unwrap_or_else(|panic| Err(vec![panic])) {
                Ok(report) => {
                    println!("round {round:4} {victim:<12} {report}");
                    table.add(settings, victim, &report);
                }
                Err(findings) => {
                    println!("round {round:4} {victim:<12} FOUND, settings {settings}");
                    findings.iter().for_each(|finding| println!("  {finding}"));
                    println!("{table}");
                    println!("again: scripts/torture {}", args.again());
                    println!("left as it is: {}", cluster.dir().display());
                    cluster.keep();
                    return ExitCode::from(1);
                }
            }
        }
        done += ROUNDS_OF_A_STORE.min(args.rounds - done);
    }
    println!("{table}");
    println!("test result: ok. {} rounds, nothing found", args.rounds);
    ExitCode::SUCCESS
}

/// Runs a part that may panic; Err is the message.
fn caught<T>(part: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(part)).map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast::<&str>().map_or_else(|_| "a panic".to_owned(), |text| (*text).to_owned())
        }
    })
}
