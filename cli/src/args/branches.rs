//! The command line about snapshots, and what is done with whole forks.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{StartOptions, size};

/// A fork, or one of its snapshots: `FORK` or `FORK@LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The fork.
    pub fork: String,
    /// The snapshot's label.
    pub label: Option<String>,
}

impl FromStr for Place {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Place, Infallible> {
        // No name has an @ in it.
        Ok(match text.split_once('@') {
            Some((fork, label)) => Place { fork: fork.into(), label: Some(label.into()) },
            None => Place { fork: text.into(), label: None },
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{}@{label}", self.fork),
            None => f.write_str(&self.fork),
        }
    }
}

/// Whether a running server is asked for a checkpoint first.
#[derive(Args, Debug)]
pub struct CheckpointOptions {
    /// Ask a running server for a CHECKPOINT first; auto: when it wrote more WAL than --checkpoint-wal since the last one
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub checkpoint: CheckpointMode,
    /// The amount of WAL for --checkpoint auto
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = size)]
    pub checkpoint_wal: u64,
    /// Refuse if it is a standby (create --follow) that is further behind its server than that, or nobody knows how far
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub max_lag: Option<Duration>,
}

/// Whether a checkpoint is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckpointMode {
    /// When much WAL was written since the last one.
    Auto,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// `snapshot`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs snapshot pr42                       as pr42@20260102-030405 (the time, UTC)
  pgcowfs snapshot pr42 seeded                as pr42@seeded
  pgcowfs snapshot main --checkpoint always   shortest recovery in what is made from it
  pgcowfs fork pr42@seeded pr43               a fork of it
  pgcowfs reset pr42 --to seeded              the fork as it was then
  pgcowfs rm pr42@seeded

The fork may be running, and busy. A snapshot takes no space at first; it keeps what the fork changes from then on.")]
pub struct Snapshot {
    /// The fork to keep
    pub fork: String,
    /// The snapshot's label [default: the time]
    pub label: Option<String>,
    /// About its server.
    #[command(flatten)]
    pub checkpoint: CheckpointOptions,
}

/// `snapshots`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs snapshots
  pgcowfs snapshots pr42 --json | jq -r '.[].label'

CHANGED is the pages by which a snapshot differs from the one before it (or from what its fork was made from); FORKS were \
made from it. They keep all they have when it is removed.")]
pub struct Snapshots {
    /// Only this fork's
    pub fork: Option<String>,
}

/// `reset`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs reset pr42                  as it was when it was made
  pgcowfs reset pr42 --to parent      as its parent is now
  pgcowfs reset pr42 --to seeded      as it was when that snapshot was made
  pgcowfs reset pr42 --force          whoever is connected

What the fork has become is thrown away: take a snapshot before, to keep it. Name, port, sockets, URL, password, quota and \
snapshots stay; a server that runs is stopped at once and started again. As with `dropdb`, a fork that somebody is connected \
to is refused without --force. The same settings are switched off as in a new fork: what is put back does not archive, \
replicate, subscribe or run scheduled jobs (unless it was made with --keep-identity).")]
pub struct Reset {
    /// The fork
    pub fork: String,
    /// What to put it back to: parent, or a snapshot's label [default: what it was made from]
    #[arg(long, value_name = "parent|LABEL")]
    pub to: Option<String>,
    /// Disconnect whoever is connected
    #[arg(long, short)]
    pub force: bool,
    /// About its parent's server, with --to parent.
    #[command(flatten)]
    pub checkpoint: CheckpointOptions,
    /// How to start it again, if it runs.
    #[command(flatten)]
    pub options: StartOptions,
}

/// `tree`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs tree
  pgcowfs tree --json | jq -r '.. | .name? // empty'

OWN is what only a fork holds, and for a snapshot the pages by which it differs from the one before. Forks are below the \
snapshot or the fork that they were made from, the oldest first.")]
pub struct Tree {}

/// `promote`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs promote pr42
  pgcowfs promote pr42 && pgcowfs rename main old && pgcowfs rename pr42 main

The fork stays what it is, and may be running. It can no longer be put back to what it was made from, nor to its parent; space \
that only this held goes back to the disk. A fork needs no promotion to outlive its parent.")]
pub struct Promote {
    /// The fork
    pub fork: String,
}

/// `rename`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs rename pr42 pr42-good
  pgcowfs stop pr42 && pgcowfs rename pr42 main && pgcowfs start main

Its server must be stopped. The name is in the paths of the data directory, of the sockets and of the log, and so in its URL; \
the port stays. Forks that were made from it know it by the new name.")]
pub struct Rename {
    /// The fork
    pub fork: String,
    /// Its new name
    pub new: String,
}

/// `protect`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs protect main
  pgcowfs protect pr42 --for 2h           units: s, m, h, d, w
  pgcowfs protect main --off

rm, reset and rename refuse a protected fork, and rm its snapshots; --force makes no difference. It can be used, forked, \
snapshot, stopped and started. Forks of it are not protected.")]
pub struct Protect {
    /// The fork
    pub fork: String,
    /// For how long [default: until --off]
    #[arg(long = "for", value_name = "TIME", value_parser = period, conflicts_with = "off")]
    pub period: Option<Duration>,
    /// Lift it
    #[arg(long)]
    pub off: bool,
}

/// A time from now, such as `2h` or `7d`.
pub(super) fn period(text: &str) -> Result<Duration, String> {
    let wrong = || "a time such as 30m, 2h or 7d is needed, of ten years at most".to_string();
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let time = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    match Duration::try_from(time) {
        Ok(time) if !time.is_zero() && time <= PERIOD_MAX => Ok(time),
        _ => Err(wrong()),
    }
}

const PERIOD_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        for (text, fork, label) in [("a", "a", None), ("a@b", "a", Some("b")), ("a@", "a", Some(""))] {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.fork.as_str(), place.label.as_deref()), (fork, label));
            assert_eq!(place.to_string(), text);
        }
    }
}
