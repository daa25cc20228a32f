//! The command line of those who only look.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;

use super::{Place, seconds, setting, size};

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

/// `diff`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs diff main pr42                      which tables and indexes differ, and by how many pages
  pgcowfs diff pr42@before pr42 --checkpoint  what a migration has done
  pgcowfs diff main pr42 --schema             what pg_dump says of both, compared
  pgcowfs diff main pr42 --json | jq '.relations[0]'

It compares where pages are, not the pages: what both sides share is not looked at, so the time follows the difference. Pages with \
the same contents in another place (by their checksum) are counted apart. What a server has not written yet is not there; \
--checkpoint has it written first. The names of tables come from a running server of either side; without one, files are named.")]
pub struct Diff {
    /// A fork or a snapshot
    #[arg(value_name = "FORK[@LABEL]")]
    pub a: Place,
    /// Another one
    #[arg(value_name = "FORK[@LABEL]")]
    pub b: Place,
    /// Have running servers write what they have changed (CHECKPOINT)
    #[arg(long)]
    pub checkpoint: bool,
    /// Compare the definitions (pg_dump --schema-only), not the pages; both forks must run
    #[arg(long, conflicts_with = "checkpoint")]
    pub schema: bool,
    /// Only this database, with --schema
    #[arg(long, short, value_name = "NAME", requires = "schema")]
    pub database: Option<String>,
}

/// `du`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs du pr42
  pgcowfs du pr42 --relations                 the 20 tables and indexes that take most for this fork alone
  pgcowfs du pr42 --relations --top 5 --json

\"exclusive\" is what goes back to the disk when the fork goes: pages and WAL that it alone has. \"shared\" is pages that others are \
built on, too. \"kept\" is what it does not show any more and holds nevertheless: pages of its snapshots, and of layers that are to \
be merged.")]
pub struct Du {
    /// The fork
    pub fork: String,
    /// Each table and index
    #[arg(long)]
    pub relations: bool,
    /// So many of them
    #[arg(long, value_name = "N", default_value = "20", requires = "relations")]
    pub top: usize,
}

/// `footprint`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs footprint main -- psql -f migration.sql
  pgcowfs footprint main --max-pages 10000 --max-lock-wait 0.5 --json -- ./migrate.sh
  pgcowfs footprint main@seeded -- npm run migrate

It forks FORK, starts the fork, runs the command with PGHOST, PGPORT, PGUSER, PGDATABASE and DATABASE_URL leading there, as `pgcowfs run` does, and says \
which tables and indexes it has written to, which of them it has written anew as a whole, how much WAL that made, how long \
somebody waited for a lock (looked at every 50 ms, so shorter waits are not seen), and how long it took. Autovacuum is off meanwhile. The fork is removed afterwards. \
The exit code is 10 if a budget is exceeded, and 1 if the command fails.")]
pub struct Footprint {
    /// The fork to try it on, or a snapshot; it stays as it is
    #[arg(value_name = "FORK[@LABEL]")]
    pub fork: Place,
    /// Pages that may be written, new ones included
    #[arg(long, value_name = "N")]
    pub max_pages: Option<u64>,
    /// WAL that may be written
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_wal: Option<u64>,
    /// How long anybody may wait for a lock (PostgreSQL 14 or newer)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub max_lock_wait: Option<Duration>,
    /// How long the command may take; it is stopped then
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub max_time: Option<Duration>,
    /// A setting for the fork's server; may be repeated
    #[arg(long = "set", short = 'c', value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `top`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs top
  pgcowfs top --interval 5 | tee load.txt     one table each 5 seconds
  pgcowfs top --once --json

It shows what the kernel asks the daemon for, of each fork and in all; what the kernel answers from its cache does not come here.")]
pub struct Top {
    /// Seconds that each table is about
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,
    /// End after one table
    #[arg(long)]
    pub once: bool,
}

/// `doctor`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs doctor
  pgcowfs doctor --json | jq '.checks[] | select(.state != \"ok\")'

It looks at the machine, and at the store if there is one; it changes and starts nothing. The exit code is 6 if something keeps pgcowfs \
from working; a warning does not count.")]
pub struct Doctor {}
