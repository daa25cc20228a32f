//! What the harness is asked for.

use std::fmt;

use crate::harness::{OfCargoTest, number, of_cargo_test, some_seed, switch, word};

/// The options of `scripts/torture`.
pub const USAGE: &str = "usage: scripts/torture [OPTION]...
  --rounds N                     how many kills (default 100)
  --mode daemon|postgres|both    whom to kill; both: sometimes one, sometimes the other, sometimes both (default both)
  --seed S                       for what is left to chance (default: of the clock)
  --full-page-writes on|off      (default: varies)
  --checksums on|off             PostgreSQL's page checksums (default: varies)
  --dir D                        where the store goes (default /var/tmp)
  --no-controls                  do not first prove that lost writes are found
  -h, --help                     this text
exit status: 0 nothing found, 1 something found, 2 bad arguments, 3 set-up or control failed: no verdict";

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The daemon.
    Daemon,
    /// Processes of PostgreSQL.
    Postgres,
    /// One or the other, or both.
    Both,
}

/// The options, parsed.
#[derive(Debug)]
pub struct Args {
    /// For a script, not as a test among others: being unable to run is a failure.
    pub long: bool,
    /// How many rounds.
    pub rounds: u64,
    /// Whom to kill.
    pub mode: Mode,
    /// For what is left to chance.
    pub seed: u64,
    /// None: varies.
    pub full_page_writes: Option<bool>,
    /// None: varies.
    pub checksums: Option<bool>,
    /// Whether the controls come first.
    pub controls: bool,
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let mut args = Args {
            long: false,
            rounds: 100,
            mode: Mode::Both,
            seed: some_seed(),
            full_page_writes: None,
            checksums: None,
            controls: true,
        };
        let mut words = words;
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--rounds" => args.rounds = number(&value()?)?,
                "--seed" => args.seed = number(&value()?)?,
                "--mode" => {
                    args.mode = match value()?.as_str() {
                        "daemon" => Mode::Daemon,
                        "postgres" => Mode::Postgres,
                        "both" => Mode::Both,
                        other => return Err(format!("no mode {other:?}")),
                    }
                }
                "--full-page-writes" => args.full_page_writes = Some(switch(&value()?)?),
                "--checksums" => args.checksums = Some(switch(&value()?)?),
                "--no-controls" => args.controls = false,
                "--long" => args.long = true,
                "-h" | "--help" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other if !args.long => match of_cargo_test(other, "torture") {
                    Some(OfCargoTest::Ignore) => {}
                    Some(OfCargoTest::NothingToDo) => return Ok(None),
                    None => return Err(format!("unknown argument {other:?}")),
                },
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        if !args.long {
            args.rounds = 2;
            args.controls = false;
        }
        Ok(Some(args))
    }

    /// The options that repeat this run.
    pub fn again(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Daemon => "daemon",
            Mode::Postgres => "postgres",
            Mode::Both => "both",
        };
        write!(f, "--rounds {} --mode {mode} --seed {}", self.rounds, self.seed)?;
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
