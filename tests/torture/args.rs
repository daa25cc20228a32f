//! What the harness is asked for.

use std::fmt;

use crate::harness::{Common, number};

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
    /// What every harness is asked for.
    pub common: Common,
    /// How many rounds.
    pub rounds: u64,
    /// Whom to kill.
    pub mode: Mode,
    /// Whether the controls come first.
    pub controls: bool,
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let (mut rounds, mut mode, mut controls) = (100, Mode::Both, true);
        let common = Common::parse("torture", USAGE, words, |option, value| {
            match option {
                "--rounds" => rounds = number(&value()?)?,
                "--mode" => {
                    mode = match value()?.as_str() {
                        "daemon" => Mode::Daemon,
                        "postgres" => Mode::Postgres,
                        "both" => Mode::Both,
                        other => return Err(format!("no mode {other:?}")),
                    }
                }
                "--no-controls" => controls = false,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let Some(common) = common else { return Ok(None) };
        if !common.long {
            rounds = 2;
            controls = false;
        }
        Ok(Some(Args { common, rounds, mode, controls }))
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
        write!(f, "--rounds {} --mode {mode} {}", self.rounds, self.common)
    }
}
