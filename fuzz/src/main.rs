//! The fuzz targets under libFuzzer. `scripts/fuzz` builds and runs this; the
//! targets themselves are in `tests/fuzz/`, where the ordinary tests try them too.
//!
//! One program serves all targets: `PGCOWFS_FUZZ_TARGET` chooses one, and without it
//! their names are printed. With `PGCOWFS_FUZZ_SEEDS` the target's seeds are written
//! to that directory. All else is libFuzzer's command line.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

// pgcowfs is a program, and no other crate can link to one. A library of its modules
// for the fuzzer's sake would make everything public, and hide what is unused. So the
// modules that decode something are compiled here once more, from where they are, with
// what those need; `crate::` means the same in both.
#[allow(dead_code, unused_imports)]
#[path = "../../cli/src/args.rs"]
mod args;
#[allow(dead_code)]
#[path = "../../cli/src/config.rs"]
mod config;
#[allow(dead_code)]
#[path = "../../cli/src/daemon"]
mod daemon {
    pub mod clients;
    pub mod ports;
}
#[allow(dead_code)]
#[path = "../../cli/src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../cli/src/meta.rs"]
mod meta;
#[allow(dead_code)]
#[path = "../../cli/src/postgres"]
mod postgres {
    pub mod cluster;
    pub mod conf;
    pub mod identity;
    pub mod pid_file;
    pub mod timeline;
    pub mod tree;
}
#[allow(dead_code)]
#[path = "../../cli/src/proc.rs"]
mod proc;
#[allow(dead_code, unused_imports)]
#[path = "../../cli/src/protocol.rs"]
mod protocol;

#[path = "../../tests/fuzz/library.rs"]
mod library;
#[path = "../../tests/fuzz/program.rs"]
mod program;
#[path = "../../tests/fuzz/target.rs"]
mod target;

use target::Target;

static CHOSEN: OnceLock<&Target> = OnceLock::new();

/// Does what the environment says; libFuzzer reads its own arguments after this.
fn choose() -> &'static Target {
    let all = || library::TARGETS.iter().chain(program::TARGETS);
    let Ok(name) = std::env::var("PGCOWFS_FUZZ_TARGET") else {
        all().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    };
    let target = all().find(|target| target.name == name).unwrap_or_else(|| {
        eprintln!("there is no target {name:?}");
        std::process::exit(2);
    });
    if let Some(dir) = std::env::var_os("PGCOWFS_FUZZ_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let path = Path::new(&dir).join(format!("seed-{number:03}"));
            std::fs::write(&path, seed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        std::process::exit(0);
    }
    target
}

fuzz_target!(
    init: {
        CHOSEN.get_or_init(choose);
    },
    |input: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            (target.run)(input);
        }
    }
);
