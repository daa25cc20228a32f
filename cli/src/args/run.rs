//! The command line about databases for one command.

use std::ffi::OsString;

use clap::Args;

use super::{CheckpointOptions, Place, StartOptions};

/// `run`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs run main -- cargo test
  pgcowfs run main@seeded -- ./migrate.sh
  pgcowfs run main --count 4 -- npx jest --maxWorkers 4     DATABASE_URL_1 to DATABASE_URL_4
  pgcowfs run main --keep-on-failure -- pytest -x           and then: pgcowfs psql NAME

The command finds its fork in PGHOST, PGPORT, PGUSER, PGDATABASE, DATABASE_URL and PGCOWFS_FORK. The fork is ephemeral unless \
--durable is given, and goes when the command ends, however it or this program ends. SIGINT, SIGTERM and SIGHUP are passed on. \
The exit code is the command's, or 128 and the signal that ended it; 127 if there is no such command.")]
pub struct Run {
    /// The fork to copy, or a snapshot of one
    #[arg(value_name = "FORK[@LABEL]")]
    pub parent: Place,
    /// Make it a fork like any other, whose fsync means what it says
    #[arg(long)]
    pub durable: bool,
    /// So many forks, in variables with numbers: DATABASE_URL_1, PGPORT_1, ...
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// The fork's name; with --count, NAME-1, NAME-2, ... [default: made up]
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the forks, running, when the command fails, and say their names
    #[arg(long)]
    pub keep_on_failure: bool,
    /// The database in PGDATABASE and DATABASE_URL
    #[arg(long, short, value_name = "NAME", default_value = "postgres")]
    pub database: String,
    /// About the parent's server.
    #[command(flatten)]
    pub checkpoint: CheckpointOptions,
    /// How to start it.
    #[command(flatten)]
    pub options: StartOptions,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}
