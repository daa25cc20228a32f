//! What the harness is asked for.

use std::fmt;

use crate::words::{OfCargoTest, number, of_cargo_test};

/// The options of `scripts/restart`.
pub const USAGE: &str = "usage: scripts/restart [OPTION]...
  --forks N     forks of one parent (default 1000)
  --pages N     changed pages of each (default 10000)
  --runs N      starts that are measured, of each kind (default 5)
  --warm        leave the store's files in the kernel's cache between runs
  --keep        leave the store where it is
  --dir D       where the store goes (default /var/tmp)
  -h, --help    this text
exit status: 0, 1 a wrong answer, 2 bad arguments, 3 no figures can be had here";

/// The options, parsed.
#[derive(Debug)]
pub struct Args {
    /// For a script, not as a test among others.
    pub long: bool,
    /// Forks of one parent.
    pub forks: u64,
    /// Changed pages of each.
    pub pages: u64,
    /// Starts of each kind.
    pub runs: u64,
    /// Whether the store's files are taken out of the kernel's cache first.
    pub cold: bool,
    /// Whether the store stays.
    pub keep: bool,
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let mut args = Args { long: false, forks: 12, pages: 300, runs: 1, cold: true, keep: false };
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or(format!("{option} needs a value")).and_then(|v| number(&v));
            match option.as_str() {
                "--long" => args = Args { long: true, forks: 1000, pages: 10_000, runs: 5, ..args },
                "--forks" => args.forks = value()?.clamp(1, 30_000),
                "--pages" => args.pages = value()?.clamp(1, 100_000),
                "--runs" => args.runs = value()?,
                "--warm" => args.cold = false,
                "--keep" => args.keep = true,
                "-h" | "--help" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other if !args.long => match of_cargo_test(other, "restart") {
                    Some(OfCargoTest::Ignore) => {}
                    Some(OfCargoTest::NothingToDo) => return Ok(None),
                    None => return Err(format!("unknown argument {other:?}")),
                },
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        Ok(Some(args))
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Args { forks, pages, runs, .. } = self;
        let cache = if self.cold { "" } else { " --warm" };
        write!(f, "--forks {forks} --pages {pages} --runs {runs}{cache}")
    }
}
