//! The command line about forks that are kept ready.

use std::time::Duration;

use clap::Args;

use super::branches::period;

/// `pool`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs pool main --size 4                 four started forks of main, ready for `run`
  pgcowfs pool main --size 4 --max-age 10m   also if main has changed within ten minutes
  pgcowfs pool                               lists the pools
  pgcowfs pool main --size 0                 ends it

`pgcowfs run main` without --name, --durable, --set and --pg-bin takes its forks from the pool, as many as are ready. One is \
stale, and is replaced, when main's server has written WAL since, or main was put back.")]
pub struct PoolArgs {
    /// The fork [default: all that have a pool]
    pub fork: Option<String>,
    /// How many are kept ready; 0: none
    #[arg(long, value_name = "N", requires = "fork", value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub size: Option<u16>,
    /// Hand out one of that age although the fork has changed since [default: never]
    #[arg(long, value_name = "TIME", requires = "size", value_parser = period)]
    pub max_age: Option<Duration>,
}
