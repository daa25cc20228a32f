//! The command line about dumps.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::branches::period;
use super::{BinaryOptions, Place, ServerOptions, setting};

/// What is dumped of a database, wherever it is.
#[derive(Args, Debug)]
pub struct ChoiceOptions {
    /// Only this database; may be repeated
    #[arg(long, short, value_name = "NAME")]
    pub database: Vec<String>,
    /// Only tables that match this pattern of pg_dump's --table, in the one --database; may be repeated
    #[arg(long, short, value_name = "PATTERN", requires = "database")]
    pub table: Vec<String>,
}

/// How a dump is loaded.
#[derive(Args, Clone, Debug)]
pub struct LoadOptions {
    /// Tables and indexes that are dumped and loaded at once [default: one for each processor, at most 8]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// Leave roles, owners and privileges out: everything belongs to the superuser
    #[arg(long)]
    pub no_owner: bool,
    /// Keep what can be loaded, and show errors as warnings
    #[arg(long)]
    pub ignore_errors: bool,
}

/// `restore`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs restore /backup/main-friday restored        what `pgcowfs dump` has made
  pgcowfs restore /backup/main-friday try --database shop
  pgcowfs restore shop.dump shop --no-owner           what pg_dump has made: custom, directory, tar or plain
  pgcowfs restore all.sql server -j 4                 what pg_dumpall has made

A new root fork of the dump's version of PostgreSQL, or else of the next newer one on this machine, whose server does not run \
then. It is there when all of it is loaded, analysed and durable; else nothing is. The same as \
`pgcowfs create NAME --from-dump FILE`, which also loads from a server.")]
pub struct Restore {
    /// The dump: a directory or a file
    #[arg(value_name = "DIR|FILE")]
    pub dump: PathBuf,
    /// The new fork's name
    pub name: String,
    /// Only this one of the dump's databases; may be repeated
    #[arg(long, short, value_name = "NAME")]
    pub database: Vec<String>,
    /// How to load it.
    #[command(flatten)]
    pub load: LoadOptions,
    /// Which PostgreSQL to use.
    #[command(flatten)]
    pub binaries: BinaryOptions,
    /// The operating system's user that owns and runs it, for root only [default: the store's --run-as]
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
    /// About its server.
    #[command(flatten)]
    pub server: ServerOptions,
}

/// `dump`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs dump main -o /backup/main-friday                 all databases and roles, in a directory
  pgcowfs dump main -o shop.dump --database shop           one database, in one file
  pgcowfs dump main@friday -o /backup/friday -j 4          a snapshot
  pgcowfs dump main -o /backup --every 24h --keep 7        by the daemon; `pgcowfs dumps` tells of them
  pgcowfs dump main -o /tmp/t --database shop --table 'public.order*'

pg_dump runs on a fork that is made for it, with the lowest priority, and goes when it ends, however it ends; main's own server \
is asked for nothing. What is written is complete and durable when it has its name; else nothing is there. A directory has \
pgcowfs-dump.json, globals.sql with the roles and the hashes of their passwords, and a directory of pg_dump's for each database; \
a name that ends in .dump is a file in pg_dump's custom format. `pgcowfs restore` takes both.")]
pub struct Dump {
    /// The fork to dump, or a snapshot of one
    #[arg(value_name = "FORK[@LABEL]")]
    pub fork: Place,
    /// Where to: a directory, or, with one --database, a file whose name ends in .dump
    #[arg(long, short, value_name = "DIR|FILE.dump")]
    pub output: PathBuf,
    /// Tables that are written at once, in a directory [default: one for each processor, at most 8]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: Option<u16>,
    /// What to dump.
    #[command(flatten)]
    pub choice: ChoiceOptions,
    /// Definitions only, no data
    #[arg(long)]
    pub schema_only: bool,
    /// pg_dump's --compress: none, a level, or from PostgreSQL 16 on gzip, lz4 or zstd with one [default: pg_dump's]
    #[arg(long, short = 'Z', value_name = "METHOD")]
    pub compress: Option<String>,
    /// Have it made by the clock, as DIR/FORK-DATE-TIME; units: s, m, h, d, w
    #[arg(long, value_name = "TIME", requires = "keep", conflicts_with_all = ["force", "settings", "pg_bin"], value_parser = period)]
    pub every: Option<Duration>,
    /// How many of those are kept
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub keep: Option<u32>,
    /// Replace a dump that is there, when the new one is complete
    #[arg(long)]
    pub force: bool,
    /// Which PostgreSQL to use.
    #[command(flatten)]
    pub binaries: BinaryOptions,
    /// How far the dump stands back for others, as nice(1) has it: 19 takes what nobody else has use for, 0 its share
    #[arg(long, value_name = "N", default_value = "19", value_parser = clap::value_parser!(i32).range(0..=19))]
    pub nice: i32,
    /// A setting for the fork's server; may be repeated
    #[arg(long = "set", short = 'c', value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

/// `dumps`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs dump main -o /backup --every 24h --keep 7
  pgcowfs dumps                      lists the schedules, with the last success and the last failure
  pgcowfs dumps main --cancel        ends the dump under way
  pgcowfs dumps main --off           ends the schedule; what it has made stays

The daemon makes a dump when the last one is so old, one at a time, and then removes the oldest that this schedule has made \
beyond --keep. After a failure it tries again in ten minutes.")]
pub struct DumpsArgs {
    /// The fork [default: all that have a schedule]
    pub fork: Option<String>,
    /// End the schedule
    #[arg(long, requires = "fork")]
    pub off: bool,
    /// End the dump under way
    #[arg(long, requires = "fork", conflicts_with = "off")]
    pub cancel: bool,
}
