//! What the long harnesses have in common: they are test programs without libtest, which `cargo test` starts with its own
//! options, and scripts with theirs. They run the oracle's clients on one cluster, set up in one of several ways.

use std::fmt;

use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::run;
use crate::common::store::{AGGRESSIVE, Store};
use crate::oracle;
pub use crate::words::number;
use crate::words::{OfCargoTest, of_cargo_test};

/// How a cluster is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether the first change of a page after a checkpoint puts all of it into the WAL.
    pub full_page_writes: bool,
    /// PostgreSQL's own page checksums. Without them hint bits change pages that have no image in the WAL.
    pub checksums: bool,
}

impl Settings {
    /// Makes the cluster `main` in a store, starts its server, and gives it what the oracle's clients work on.
    pub fn create(self, store: &Store) -> Endpoint {
        if self.checksums {
            store.create("main", AGGRESSIVE);
        } else {
            store.create_without_checksums("main", AGGRESSIVE);
        }
        let at = self.start(store, "main").unwrap_or_else(|why| panic!("{why}"));
        oracle::install(&at);
        at
    }

    /// Starts the server of the cluster or of a fork of it.
    pub fn start(self, store: &Store, name: &str) -> Result<Endpoint, String> {
        let pages = word(self.full_page_writes);
        let done = run(&mut store.command(["start", name, "--full-page-writes", pages]));
        if done.ok() { Ok(store.endpoint(name)) } else { Err(done.report()) }
    }

    /// Stops that server, and looks at all pages if they have checksums.
    pub fn stop_and_check_pages(self, store: &Store, name: &str) -> Result<(), String> {
        let stop = run(&mut store.command(["stop", name]));
        if !stop.ok() {
            return Err(stop.report());
        }
        if self.checksums {
            let pages = Postgres::get().checksums(&store.path(name));
            if !pages.ok() {
                return Err(pages.report());
            }
        }
        Ok(())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "full_page_writes {}, checksums {}", word(self.full_page_writes), word(self.checksums))
    }
}

/// The options that all of these harnesses have.
#[derive(Debug)]
pub struct Common {
    /// For a script, not as a test among others: being unable to run is a failure.
    pub long: bool,
    /// For what is left to chance.
    pub seed: u64,
    /// None: the harness varies it.
    pub full_page_writes: Option<bool>,
    /// None: the harness varies it.
    pub checksums: Option<bool>,
}

/// The value that follows an option; Err if there is none.
pub type Value<'a> = dyn FnMut() -> Result<String, String> + 'a;

impl Common {
    /// Parses the command line of the harness `name`. An option that is not among these goes to `own`, which says
    /// whether the harness knows it. None when there is nothing to do.
    pub fn parse(
        name: &str,
        usage: &str,
        mut words: impl Iterator<Item = String>,
        mut own: impl FnMut(&str, &mut Value<'_>) -> Result<bool, String>,
    ) -> Result<Option<Common>, String> {
        let mut common = Common { long: false, seed: some_seed(), full_page_writes: None, checksums: None };
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--seed" => common.seed = number(&value()?)?,
                "--full-page-writes" => common.full_page_writes = Some(switch(&value()?)?),
                "--checksums" => common.checksums = Some(switch(&value()?)?),
                "--long" => common.long = true,
                "-h" | "--help" => {
                    println!("{usage}");
                    return Ok(None);
                }
                other if own(other, &mut value)? => {}
                other if !common.long => match of_cargo_test(other, name) {
                    Some(OfCargoTest::Ignore) => {}
                    Some(OfCargoTest::NothingToDo) => return Ok(None),
                    None => return Err(format!("unknown argument {other:?}")),
                },
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        Ok(Some(common))
    }
}

/// As they are given.
impl fmt::Display for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--seed {}", self.seed)?;
        for (option, value) in
            [("--full-page-writes", self.full_page_writes), ("--checksums", self.checksums)]
        {
            if let Some(on) = value {
                write!(f, " {option} {}", word(on))?;
            }
        }
        Ok(())
    }
}

/// An option's value that is on or off.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("{other:?} is neither on nor off")),
    }
}

/// The same as a word.
pub fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A seed of the clock, for whoever gives none.
fn some_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() % 1_000_000)
}
