//! The command line about snapshots that are made by the clock.

use std::time::Duration;

use clap::Args;

use super::branches::period;

/// `schedule`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs schedule main --every 1h --keep 24
  pgcowfs schedule                               lists the schedules
  pgcowfs schedule main --off                    ends it; its snapshots stay
  pgcowfs fork main@'10 minutes ago' oops        the newest snapshot that is as old as that

The daemon makes a snapshot `auto-DATE-TIME` (UTC) when the last one of this kind is so old, and then removes the oldest of \
this kind beyond --keep. Forks that were made from one keep all they have when it goes. Snapshots with other labels are left alone.")]
pub struct ScheduleArgs {
    /// The fork [default: all that have a schedule]
    pub fork: Option<String>,
    /// How often; units: s, m, h, d, w
    #[arg(long, value_name = "TIME", requires = "fork", requires = "keep", value_parser = period)]
    pub every: Option<Duration>,
    /// How many snapshots of this kind are kept
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub keep: Option<u32>,
    /// End it
    #[arg(long, requires = "fork", conflicts_with = "every")]
    pub off: bool,
}
