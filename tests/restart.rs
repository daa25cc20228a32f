//! How long a daemon takes from its start to its first answers, on a store with many forks and changed pages: the harness
//! behind `scripts/restart`.
//!
//! The store is real, and its pages mostly are not: forks are made by the program, their pages by records in the block
//! map and holes in the delta files. Without arguments (in `cargo test`) the store is a small one, and only what is
//! answered counts, not when.
//!
//! Exit status: 0, 1 an answer was wrong, 2 bad arguments, 3 there can be no figures here.

// Shared with the end-to-end tests, which use other parts of it.
#[allow(dead_code, unused_imports)]
mod common;
#[path = "common/words.rs"]
mod words;

/// Parts of the harness.
mod restart {
    pub mod args;
    pub mod fill;
    pub mod measure;
}

use std::process::ExitCode;

use common::store::Store;
use restart::args::Args;
use restart::fill::Filler;
use restart::measure::{Figures, before_a_run, machine, one_run};

/// How the daemon before had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Clean,
    /// Killed, with as much in the block map's log as there ever is.
    Killed,
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("restart: {why}\n{}", restart::args::USAGE);
            return ExitCode::from(2);
        }
    };
    let Some(_turn) = common::turn_on_a_mount() else {
        return ExitCode::from(if args.long { 3 } else { 0 });
    };
    println!("restart: {args}\n{}", machine());
    let mut store = Store::bare(None);
    if args.keep {
        store.keep();
    }
    let last = 20_000 + args.forks + 10;
    store.ok(["init", "--port-range", &format!("20000-{last}")]);
    let filler = Filler::make(&store, args.forks, args.pages);
    println!("{filler}");
    for end in [End::Clean, End::Killed] {
        let mut figures = Figures::default();
        for _ in 0..args.runs {
            if end == End::Killed {
                filler.fill_log(&store);
            }
            before_a_run(&store, args.cold);
            figures.add(one_run(&store, &filler));
            store.ok(["umount"]);
        }
        println!("after a {end:?} end, {} runs:\n{figures}", args.runs);
    }
    assert_eq!(common::check::check_store(store.dir()), Vec::<String>::new());
    println!("test result: ok. The store is whole");
    ExitCode::SUCCESS
}
