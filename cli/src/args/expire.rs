//! The command line about the end of a fork's time.

use std::time::Duration;

use clap::Args;

use super::branches::period;

/// When a fork is removed by itself.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct ExpiryOptions {
    /// Remove it after that time, whoever uses it
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub ttl: Option<Duration>,
    /// Remove it when nobody was connected to it for that time
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub idle: Option<Duration>,
}

/// `expire`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs expire pr42                 shows it
  pgcowfs expire pr42 --ttl 2h        from now; units: s, m, h, d, w
  pgcowfs expire pr42 --idle 30m
  pgcowfs expire pr42 --off

The daemon removes the fork, with its snapshots, and has a warning in its log a minute before. Forks that were made from it \
keep all they have. What is not given stays as it was. A fork is idle while nobody is connected to its server, and while that \
does not run; the time begins anew with the daemon.")]
pub struct Expire {
    /// The fork
    pub fork: String,
    /// When.
    #[command(flatten)]
    pub expiry: ExpiryOptions,
    /// Never
    #[arg(long, conflicts_with_all = ["ttl", "idle"])]
    pub off: bool,
}
