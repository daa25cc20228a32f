//! The command line of those who only look.

use std::time::Duration;

use clap::Args;

use super::seconds;

/// `stats`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs stats                      of each fork and in all, since the daemon started
  pgcowfs stats pr42
  pgcowfs stats pr42 --watch 5       what came in each 5 seconds
  pgcowfs stats --json | jq '.all.requests.fsync'
  pgcowfs stats --prometheus         for a scraper; names begin with pgcowfs_

It counts what the kernel has asked the daemon for; what the kernel answers from its cache does not come here. Times are \
from when the daemon takes a request up until it has the answer; p50 and p99 are the ends of the bucket (of a factor of 2) that \
they lie in. A fork's counts begin when it is first used, and anew with a reset.")]
pub struct Stats {
    /// Only this fork's
    pub fork: Option<String>,
    /// Show what came in every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<Duration>,
    /// As text for Prometheus
    #[arg(long, conflicts_with_all = ["watch", "json"])]
    pub prometheus: bool,
}
