//! The command line.

// As a file of the fuzz targets, this one has no directory of its own.
#[path = "args/branches.rs"]
mod branches;
#[path = "args/dumps.rs"]
mod dumps;
#[path = "args/expire.rs"]
mod expire;
#[path = "args/export.rs"]
mod export;
#[path = "args/generate.rs"]
mod generate;
#[path = "args/mask.rs"]
mod mask;
#[path = "args/pool.rs"]
mod pool;
#[path = "args/refresh.rs"]
mod refresh;
#[path = "args/role.rs"]
mod role;
#[path = "args/run.rs"]
mod run;
#[path = "args/schedule.rs"]
mod schedule;
#[path = "args/seeing.rs"]
mod seeing;
#[path = "args/source.rs"]
mod source;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{KeepFree, MapMemory};
use crate::daemon::ports::PortRange;
use crate::error::Kind;

pub use self::branches::{
    CheckpointMode, CheckpointOptions, Place, Promote, Protect, Rename, Reset, Snapshot, Snapshots, Tree,
};
pub use self::dumps::{ChoiceOptions, Dump, DumpsArgs, LoadOptions, Restore};
pub use self::expire::{Expire, ExpiryOptions};
pub use self::export::Export;
pub use self::generate::{Completions, Man, Shell};
pub use self::mask::MaskOptions;
pub use self::pool::PoolArgs;
pub use self::refresh::Refresh;
pub use self::role::RoleOptions;
pub use self::run::Run;
pub use self::schedule::ScheduleArgs;
pub use self::seeing::{Diff, Doctor, Du, Footprint, Stats, Top};
pub use self::source::{RunningServer, ServerCheckpoint, slot_of};

/// Fork a running PostgreSQL cluster on any disk, in an instant.
///
/// A store holds forks; each fork is a complete, writable data directory under the store's mount point, and shares with
/// its parent every page that neither has changed. The daemon that serves a store is started by the first command that needs it.
#[derive(Debug, Parser)]
#[command(name = "pgcowfs", version, max_term_width = 110, after_long_help = general_help(), after_help = SHORT_HELP)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// The store's directory [default: $XDG_DATA_HOME/pgcowfs, else ~/.local/share/pgcowfs; for root /var/lib/pgcowfs]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "DIR",
        env = "PGCOWFS_STORE",
        hide_env_values = true
    )]
    pub store: Option<PathBuf>,
    /// Print the result as JSON (errors too, on stderr)
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// No progress and no remarks on stderr
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a store
    Init(Init),
    /// Make a root fork: a fresh cluster, a copy of one, or one used in place
    Create(Create),
    /// Start a fork's PostgreSQL and wait until it accepts connections
    Start(Start),
    /// Stop a fork's PostgreSQL
    Stop(Stop),
    /// Stop a fork's PostgreSQL if it runs, and start it
    Restart(Restart),
    /// Fork a cluster, running or stopped, or a snapshot
    Fork(Fork),
    /// Run a command with a fork of its own, which goes when the command ends
    Run(Run),
    /// Keep started forks of a fork ready for `run`
    Pool(PoolArgs),
    /// Keep what a fork is now, under a label
    Snapshot(Snapshot),
    /// List snapshots
    Snapshots(Snapshots),
    /// Have snapshots made by the clock
    Schedule(ScheduleArgs),
    /// Put a fork back to what it was made from, to its parent's newest state, or to a snapshot
    Reset(Reset),
    /// Make a root what the cluster it was copied from is now
    Refresh(Refresh),
    /// Make a fork a root of its own
    Promote(Promote),
    /// Give a fork another name
    Rename(Rename),
    /// Protect a fork against rm, reset and rename
    Protect(Protect),
    /// Have a fork removed when its time is over
    Expire(Expire),
    /// Write a fork out, as a data directory on any disk
    Export(Export),
    /// Write a fork's databases to files, by pg_dump on a fork of it
    Dump(Dump),
    /// Show, end or cancel dumps that are made by the clock
    Dumps(DumpsArgs),
    /// Make a root fork of a dump
    Restore(Restore),
    /// Run psql on a fork
    Psql(Psql),
    /// Print a fork's connection strings
    Url(Url),
    /// List the forks
    #[command(visible_alias = "ls")]
    List(List),
    /// Show which fork and snapshot was made from which
    Tree(Tree),
    /// Show everything about one fork
    Show(Show),
    /// Print the path of a fork's data directory
    Path(Show),
    /// Limit what a fork's own writes may take of the disk
    Quota(Quota),
    /// Remove forks or snapshots
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Mount the store (starts its daemon)
    Mount(Mount),
    /// Unmount the store (ends its daemon)
    Umount(Umount),
    /// Show the state of the store and its daemon
    Status(Status),
    /// Show by which pages two forks or snapshots differ, or how their definitions do
    Diff(Diff),
    /// Run a command on a throwaway fork, and show what it has written and locked
    Footprint(Footprint),
    /// Show what a fork takes, alone and with others
    Du(Du),
    /// Show what the daemon has counted: requests, how long they took, bytes
    Stats(Stats),
    /// Show live what each fork asks of the daemon
    Top(Top),
    /// Give the space that nothing needs back to the disk
    Gc(Gc),
    /// Look for what on this machine is in pgcowfs's way, and say how to mend it
    Doctor(Doctor),
    /// Check that the store's records fit together
    Check(Check),
    /// Check the store, and read every page in it
    Scrub(Scrub),
    /// Print a script with which a shell completes command lines
    Completions(Completions),
    /// Write manual pages
    Man(Man),
}

/// `init`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs init
  pgcowfs --store /data/forks init --port-range 7000-7499
  sudo pgcowfs init --run-as postgres
  pgcowfs init --keep-free 10%          forks leave a tenth of the disk to others")]
pub struct Init {
    /// Where the forks appear [default: STORE/mnt]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// The ports that forks are given
    #[arg(long, value_name = "FIRST-LAST", default_value = "6000-6999")]
    pub port_range: PortRange,
    /// The user PostgreSQL runs as when this program runs as root [default: postgres]
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
    /// What forks leave free of the store's disk: a size, or a percentage of the disk [default and least: 64MB]
    #[arg(long, value_name = "SIZE|PERCENT%")]
    pub keep_free: Option<KeepFree>,
}

/// Options about a fork's server that `create` and `fork` share.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// The fork's TCP port [default: the first free one of the store's range]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Addresses the server listens on; empty for none. Whom it lets in, pg_hba.conf says: a
    /// fresh cluster, this machine only
    #[arg(long, value_name = "ADDRESSES", default_value = "localhost")]
    pub listen: String,
    /// A setting for the fork's postgresql.auto.conf; may be repeated
    #[arg(long = "set", short = 'c', value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
    /// Keep replication, archiving and job settings as they are: the fork may act as its parent
    #[arg(long)]
    pub keep_identity: bool,
    /// The most that the fork's own writes may take of the disk (its WAL included) [default: no limit; not inherited]
    #[arg(long, value_name = "SIZE", value_parser = quota_size)]
    pub quota: Option<u64>,
}

/// Which PostgreSQL to use.
#[derive(Args, Clone, Debug)]
pub struct BinaryOptions {
    /// The directory with postgres and initdb [default: found by version in PATH, pg_config, /usr/lib/postgresql/*/bin]
    #[arg(long, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
}

/// `create`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs create main                                         a fresh cluster (initdb)
  pgcowfs create main --pg-version 16 --initdb-arg=--data-checksums
  pgcowfs create prod --from /var/lib/postgresql/15/main      a copy of a stopped cluster
  pgcowfs create prod --base /var/lib/postgresql/15/main      a stopped cluster used in place, read-only, at once
  pgcowfs create prod --from-server postgresql://repl@db1/    a copy of a running server
  pgcowfs create prod --from-server \"host=db1 user=repl\" --max-rate 50MB
  pgcowfs create stage --follow postgresql://repl@db1/        a standby of it, that forks can be made from
  pgcowfs create prod --from-dump postgresql://app@db/shop    one database of a running server, by pg_dump
  pgcowfs create prod --from-dump /backup/main-friday         a dump; `restore` does the same
  pgcowfs create dev --from /srv/backup/prod --mask mask.sql  nobody sees it before the script has run

A URL has no password in it: that comes from ~/.pgpass, or from PGPASSFILE or PGPASSWORD in the environment. --from-dump of a \
URL with a database loads that one, else all that the role may connect to. A Debian cluster's configuration under \
/etc/postgresql is found and brought in.")]
pub struct Create {
    /// The new fork's name
    pub name: String,
    /// Copy this stopped cluster in
    #[arg(long, value_name = "PGDATA", conflicts_with_all = ["base", "pg_version", "initdb_arg"])]
    pub from: Option<PathBuf>,
    /// Use this stopped cluster in place, read-only; it must stay as it is
    #[arg(long, value_name = "PGDATA", conflicts_with_all = ["pg_version", "initdb_arg"])]
    pub base: Option<PathBuf>,
    /// A running server instead.
    #[command(flatten)]
    pub running: RunningServer,
    /// Load a dump (of this program's, pg_dump's or pg_dumpall's), or what pg_dump gets from the server at a URL
    #[arg(long, value_name = "URL|PATH", conflicts_with_all = ["from", "base", "config_dir", "from_server", "follow"])]
    pub from_dump: Option<OsString>,
    /// What of it to load.
    #[command(flatten)]
    pub choice: ChoiceOptions,
    /// How to load it.
    #[command(flatten)]
    pub load: LoadOptions,
    /// Where that cluster's postgresql.conf is, if not in its data directory [default: found as Debian lays it out]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Which PostgreSQL to use.
    #[command(flatten)]
    pub binaries: BinaryOptions,
    /// The major version of a fresh cluster [default: that of the first binaries found]
    #[arg(long, value_name = "N")]
    pub pg_version: Option<u32>,
    /// An argument for initdb; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub initdb_arg: Vec<String>,
    /// The operating system's user that owns and runs it, for root only [default: the source's owner, else the store's --run-as]
    #[arg(long, value_name = "USER")]
    pub run_as: Option<String>,
    /// The database superuser to connect as [default: postgres, or the source directory's owner]
    #[arg(long, value_name = "ROLE")]
    pub superuser: Option<String>,
    /// What masks it.
    #[command(flatten)]
    pub mask: MaskOptions,
    /// Have each fork of it masked by this SQL script before the fork is there for others; may be repeated
    #[arg(long, value_name = "FILE")]
    pub mask_forks: Vec<PathBuf>,
    /// About its server.
    #[command(flatten)]
    pub server: ServerOptions,
}

/// How `start` starts.
#[derive(Args, Debug)]
pub struct StartOptions {
    /// Seconds to wait until it accepts connections
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
    /// PostgreSQL's protection against torn pages, for this run (never written to the data directory)
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub full_page_writes: Switch,
    /// Which PostgreSQL to use.
    #[command(flatten)]
    pub binaries: BinaryOptions,
    /// A setting for this run, on the server's command line; may be repeated
    #[arg(long = "set", short = 'c', value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

/// `start`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs start pr42
  pgcowfs start pr42 -c shared_buffers=1GB
  pgcowfs start pr42 --port 6500              moves it to that port, for good

The server's log is STORE/logs/FORK.log.")]
pub struct Start {
    /// The fork
    pub fork: String,
    /// Give the fork this port from now on
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// How to start it.
    #[command(flatten)]
    pub options: StartOptions,
}

/// How `stop` stops.
#[derive(Args, Debug)]
pub struct StopOptions {
    /// smart waits for clients, fast disconnects them, immediate leaves recovery to the next start
    #[arg(long, short, default_value = "fast")]
    pub mode: StopMode,
    /// Seconds to wait until it has stopped
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// `stop`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs stop pr42
  pgcowfs stop pr42 --mode immediate")]
pub struct Stop {
    /// The fork
    pub fork: String,
    /// How to stop it.
    #[command(flatten)]
    pub options: StopOptions,
}

/// `restart`
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  pgcowfs restart pr42 -c work_mem=64MB")]
pub struct Restart {
    /// The fork
    pub fork: String,
    /// How to stop it: smart, fast or immediate
    #[arg(long, short, default_value = "fast")]
    pub mode: StopMode,
    /// How to start it.
    #[command(flatten)]
    pub options: StartOptions,
}

/// `fork`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs fork main pr42
  pgcowfs fork main pr42 --start
  pgcowfs fork main pr42 --idle 7d                removed when nobody was connected to it for a week
  pgcowfs fork main test --ephemeral --start      for a test run: faster, and gone when the daemon ends
  pgcowfs fork main@seeded pr42                   main as it was when that snapshot was made
  pgcowfs fork main@'10 minutes ago' oops         main's newest snapshot that is as old as that
  pgcowfs fork main pr42 --checkpoint always      shortest recovery in the fork
  pgcowfs fork main dev --mask mask.sql           nobody sees it before the script has run
  pgcowfs fork main pr42 --json                   with fork_ms and stall_ms
  pgcowfs fork main pr42 --start --user app --password-file ~/.app-password --restricted

The fork is the parent at one instant; a running parent runs on. The fork has its own port and socket directory, and does \
not archive, replicate, subscribe or run scheduled jobs (unless --keep-identity).")]
pub struct Fork {
    /// The fork to copy, or a snapshot of one
    #[arg(value_name = "FORK[@LABEL]")]
    pub parent: Place,
    /// The new fork's name
    pub child: String,
    /// About the parent's server.
    #[command(flatten)]
    pub checkpoint: CheckpointOptions,
    /// Begin a new timeline at its first start, as every fork of a standby does: it can never be taken for its parent's
    #[arg(long, conflicts_with = "keep_identity")]
    pub new_timeline: bool,
    /// Make nothing of it durable: fsync returns at once, and the fork ends with the daemon
    #[arg(long)]
    pub ephemeral: bool,
    /// When it is removed.
    #[command(flatten)]
    pub expiry: ExpiryOptions,
    /// What masks it.
    #[command(flatten)]
    pub mask: MaskOptions,
    /// Start the new fork, too
    #[arg(long)]
    pub start: bool,
    /// Who uses it.
    #[command(flatten)]
    pub role: RoleOptions,
    /// About its server.
    #[command(flatten)]
    pub server: ServerOptions,
}

/// `psql`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs psql pr42
  pgcowfs psql pr42 -- -c 'select 1'
  pgcowfs psql pr42 -- -d shop -f migration.sql

The exit code is psql's.")]
pub struct Psql {
    /// The fork
    pub fork: String,
    /// Arguments for psql
    #[arg(last = true, value_name = "ARGS")]
    pub args: Vec<std::ffi::OsString>,
}

/// `url`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs url pr42
  psql \"$(pgcowfs url pr42 --socket)\"
  DATABASE_URL=$(pgcowfs url pr42 --tcp)

The TCP string carries the password that `create` made; `list`, `show` and `start` never show it.")]
pub struct Url {
    /// The fork
    pub fork: String,
    /// Only the connection string for TCP
    #[arg(long, conflicts_with = "socket")]
    pub tcp: bool,
    /// Only the connection string for the Unix socket
    #[arg(long)]
    pub socket: bool,
    /// The database [default: postgres]
    #[arg(long, short, value_name = "NAME")]
    pub database: Option<String>,
}

/// `list`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs list
  pgcowfs list --json | jq -r '.[] | select(.state == \"running\") | .url'")]
pub struct List {}

/// `show`, `path`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs show pr42
  pgcowfs show pr42 --json
  du -sh \"$(pgcowfs path pr42)\"")]
pub struct Show {
    /// The fork
    pub fork: String,
}

/// `quota`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs quota pr42                  shows it
  pgcowfs quota pr42 2GB
  pgcowfs quota pr42 none

It counts the pages that the fork has written, those that a fork made from it still needs included, and the WAL segments \
that it alone writes to. A write beyond it fails with \"No space left on device\", and everything goes on when there is \
room again: raise the quota, or remove data. PostgreSQL stops when it has no room for WAL, as on any full disk.")]
pub struct Quota {
    /// The fork
    pub fork: String,
    /// The new quota (units of 1024: kB, MB, GB, TB), or none
    #[arg(value_name = "SIZE|none", value_parser = quota)]
    pub size: Option<QuotaChange>,
}

/// What becomes of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaChange {
    /// That many bytes.
    Bytes(u64),
    /// No quota.
    Lift,
}

/// `rm`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs rm pr42
  pgcowfs rm --force pr42 pr43        stops their servers first (immediate mode)
  pgcowfs rm main@seeded              a snapshot

A parent may be removed before its children, and a snapshot before the forks that were made from it; they keep everything \
they share with it. The snapshots of a fork go with it.")]
pub struct Rm {
    /// The forks and snapshots
    #[arg(required = true, value_name = "FORK[@LABEL]")]
    pub places: Vec<Place>,
    /// Stop a running server first
    #[arg(long, short)]
    pub force: bool,
}

/// `mount`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs mount
  pgcowfs mount --mountpoint /srv/forks         remembered by the store
  pgcowfs mount --map-memory 512MB              likewise
  pgcowfs mount --foreground                    for a service manager: SIGTERM stops servers, unmounts, ends

The daemon's log is STORE/daemon.log (stderr with --foreground); PGCOWFS_LOG=debug makes it chatty.")]
pub struct Mount {
    /// Stay in the foreground, log to stderr
    #[arg(long)]
    pub foreground: bool,
    /// Where the forks appear, from now on [default: STORE/mnt]
    #[arg(long, value_name = "DIR")]
    pub mountpoint: Option<PathBuf>,
    /// The most memory for page tables, from now on: idle ones are dropped, and loaded again when they are used
    /// [default: a sixteenth of the machine's]
    #[arg(long, value_name = "SIZE")]
    pub map_memory: Option<MapMemory>,
    /// Internal: be the daemon, and tell on stdout when ready.
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub daemon: bool,
}

/// `umount`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs umount
  pgcowfs umount --stop           stops running servers first (fast mode)
  pgcowfs umount --force          stops them at once, and detaches a mount that is in use")]
pub struct Umount {
    /// Stop running servers first, disconnecting their clients
    #[arg(long)]
    pub stop: bool,
    /// Stop running servers in immediate mode, and unmount although other processes use the mount
    #[arg(long)]
    pub force: bool,
}

/// `status`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs status
  pgcowfs status --json

\"used\" is what forks and snapshots refer to, each page counted once; of that \"shared\" is the pages that more than one fork \
or snapshot is built on. \"to be merged\" is what removed forks have left of layers: the background joins them, with pauses. \
\"reclaimable\" is what nothing refers to and the disk still holds: removed forks that the background has not come to, and free space that running forks keep for their next pages (a quarter of what they use, or what they have used in the \
last ten minutes; `pgcowfs gc` gives that back, too). \"given back\" counts since the daemon was started. What the store takes \
beyond used and reclaimable is its block map.

It does not mount a store that is not mounted.")]
pub struct Status {}

/// `gc`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs gc                 lets the daemon begin at once
  pgcowfs gc --wait          and waits until it is done
  pgcowfs rm pr42 && pgcowfs gc --wait --json | jq .reclaimed_bytes

The daemon gives space back by itself, with pauses, and leaves running forks some room for their next pages. This is for who \
needs the space now. Forks may run meanwhile; a fork that is written to takes space again.")]
pub struct Gc {
    /// Wait until all is given back, and say how much it was
    #[arg(long)]
    pub wait: bool,
}

/// `check`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs check
  pgcowfs check --json
  pgcowfs umount --stop && pgcowfs check --repair

Forks may run meanwhile. It reads the records of the store, not the pages; that is `pgcowfs scrub`. A store that no daemon \
can open is checked as well. The exit code is 8 if something is found.")]
pub struct Check {
    /// Count anew what can be counted (which slots are free, references, sizes); no daemon may serve the store
    #[arg(long)]
    pub repair: bool,
}

/// `scrub`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs scrub                                everything
  pgcowfs scrub main --rate 50MB               what one fork sees, at 50 MB/s
  pgcowfs scrub main --seal                    gives the files of its base checksums, which are compared from then on
  pgcowfs scrub --pg                           looks at page headers and PostgreSQL's own checksums, too
  pgcowfs scrub pr42 --restore base/5/16384:7  brings back the last whole version of a damaged page, in pr42 only

Forks may run meanwhile. Findings name fork, file and block, and what is left of the page; they are in the daemon's log too. \
The exit code is 8 if something is found.")]
pub struct Scrub {
    /// Only what this fork sees, and what lies below it
    pub fork: Option<String>,
    /// Give the files of the fork's base checksums
    #[arg(long, requires = "fork")]
    pub seal: bool,
    /// Look at relation pages as PostgreSQL does
    #[arg(long)]
    pub pg: bool,
    /// Read at most this much a second
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub rate: Option<u64>,
    /// Replace a damaged page by its last whole version; what was written to it since then is lost
    #[arg(long, value_name = "PATH:BLOCK", requires = "fork", value_parser = page, conflicts_with_all = ["seal", "pg", "rate"])]
    pub restore: Option<(String, u32)>,
}

/// on or off, as PostgreSQL writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// on
    On,
    /// off
    Off,
}

/// PostgreSQL's three ways to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StopMode {
    /// Wait for the clients to go.
    Smart,
    /// Disconnect them.
    Fast,
    /// Without a shutdown checkpoint.
    Immediate,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 86_400.0 * 365.0 => Ok(Duration::from_secs_f64(s)),
        _ => Err("a number of seconds above 0 is needed".into()),
    }
}

/// A size as PostgreSQL writes it: units of 1024, `kB`, `MB`, `GB`, `TB`.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kb" | "k" => 10,
        "mb" | "m" => 20,
        "gb" | "g" => 30,
        "tb" | "t" => 40,
        _ => return Err(format!("unknown unit {unit:?}; use kB, MB, GB or TB")),
    };
    let number: u64 = number.parse().map_err(|_| "a size such as 64MB is needed".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is too large".to_string())
}

/// A quota: a WAL segment must fit, or nothing can be written.
fn quota_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= QUOTA_MIN => Ok(bytes),
        _ => Err("a quota has at least 32MB: PostgreSQL needs two WAL segments to live".into()),
    }
}

fn quota(text: &str) -> Result<QuotaChange, String> {
    match text {
        "none" => Ok(QuotaChange::Lift),
        _ => quota_size(text).map(QuotaChange::Bytes),
    }
}

/// A block of a file.
fn page(text: &str) -> Result<(String, u32), String> {
    match text.rsplit_once(':').and_then(|(path, block)| Some((path, block.parse().ok()?))) {
        Some((path, block)) if !path.is_empty() => Ok((path.to_string(), block)),
        _ => Err("PATH:BLOCK is needed, such as base/5/16384:7".into()),
    }
}

/// `name=value` for a configuration file.
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    let name = name.trim();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')) {
        return Err(format!("{name:?} is not the name of a setting"));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err("a value has one line".into());
    }
    Ok((name.to_ascii_lowercase(), value.to_string()))
}

/// The smallest quota: two WAL segments of the usual size.
const QUOTA_MIN: u64 = 32 << 20;

const SHORT_HELP: &str = "\
First steps:
  pgcowfs init && pgcowfs create main && pgcowfs start main
  pgcowfs fork main pr42 --start && pgcowfs psql pr42

`pgcowfs --help` lists the exit codes.";

fn general_help() -> String {
    let mut help = format!("{SHORT_HELP}\n\nExit codes:\n   0  done\n")
        .replace("`pgcowfs --help` lists the exit codes.\n\n", "");
    for kind in Kind::ALL {
        help += &format!("  {:2}  {}\n", kind.exit_code(), kind.meaning());
    }
    help + "psql's exit code is its own."
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_help() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("pgcowfs"), "{} has no example", command.get_name());
        }
        let help = Cli::command().render_long_help().to_string();
        for kind in Kind::ALL {
            assert!(help.contains(kind.meaning()), "{kind:?}");
        }
    }

    #[test]
    fn parses_what_the_documentation_shows() {
        for line in [
            "pgcowfs init --port-range 7000-7499",
            "pgcowfs create main --initdb-arg --data-checksums",
            "pgcowfs create p --base /x --json",
            "pgcowfs create p --follow host=x --slot stage --max-rate 50MB",
            "pgcowfs fork a b --max-lag 30s",
            "pgcowfs create p --from-server host=x --max-rate 50MB --checkpoint spread",
            "pgcowfs --store /s fork a b --checkpoint never --checkpoint-wal 1GB",
            "pgcowfs psql a -- -c x",
            "pgcowfs stop a --timeout 3 -m immediate",
            "pgcowfs url a --tcp -d shop",
            "pgcowfs rm -f a b",
            "pgcowfs rm a@b c",
            "pgcowfs snapshot a",
            "pgcowfs snapshot a v1 --checkpoint always",
            "pgcowfs snapshots --json",
            "pgcowfs fork a@v1 b",
            "pgcowfs fork a b --start --user app --password-file f --restricted",
            "pgcowfs reset a",
            "pgcowfs fork a b --new-timeline",
            "pgcowfs promote a",
            "pgcowfs fork a b --mask x.sql --mask ./y --mask-database shop",
            "pgcowfs create a --base /x --mask anon --mask-forks x.sql",
            "pgcowfs refresh a --from /x --force -c work_mem=1MB",
            "pgcowfs export a@b /x --checkpoint always",
            "pgcowfs rename a b",
            "pgcowfs protect a",
            "pgcowfs protect a --for 2h",
            "pgcowfs protect a --for 7d12h",
            "pgcowfs protect a --off",
            "pgcowfs reset a --to parent --force -c work_mem=1MB",
            "pgcowfs fork a b --quota 1GB",
            "pgcowfs quota a",
            "pgcowfs quota a 2GB",
            "pgcowfs quota a none",
            "pgcowfs init --keep-free 10%",
            "pgcowfs init --keep-free 5GB",
            "pgcowfs diff a b@v1 --checkpoint",
            "pgcowfs diff a b --schema -d shop",
            "pgcowfs du a --relations --top 5",
            "pgcowfs footprint a --max-pages 5 --max-wal 1MB --max-lock-wait 0.5 --max-time 9 -- psql -c x",
            "pgcowfs dump a -o /x",
            "pgcowfs dump a@v1 -o x.dump --database shop -t public.* --compress none",
            "pgcowfs dump a -o /x -j 4 --schema-only --force -c shared_buffers=1GB",
            "pgcowfs dump a -o /x --every 24h --keep 7 -j 2",
            "pgcowfs dumps",
            "pgcowfs dumps a --cancel",
            "pgcowfs restore /x a -j 4 --no-owner --ignore-errors -d shop --port 6001",
            "pgcowfs create a --from-dump postgresql://db/shop -d shop -t public.t -j 4",
            "pgcowfs top --interval 5 --once --json",
            "pgcowfs doctor --json",
            "pgcowfs completions zsh",
            "pgcowfs man /x",
            "pgcowfs stats",
            "pgcowfs stats a --watch 0.5 --json",
            "pgcowfs stats --prometheus",
            "pgcowfs gc",
            "pgcowfs gc --wait --json",
            "pgcowfs check --repair --json",
            "pgcowfs scrub main --seal --rate 50MB",
            "pgcowfs scrub pr42 --restore base/5/16384:7",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "pgcowfs create a --from /x --base /y",
            "pgcowfs create a --from /x --pg-version 15",
            "pgcowfs create a --from-dump /x --base /y",
            "pgcowfs create a --port 0",
            "pgcowfs create a --from-server host=x --from /x",
            "pgcowfs create a --from-server host=x --max-rate 1kB",
            "pgcowfs create a --from-server host=x --slot x",
            "pgcowfs create a --follow host=x --slot X",
            "pgcowfs create a --follow host=x --slot x --no-slot",
            "pgcowfs fork a b --max-lag 30",
            "pgcowfs create a --port 65536",
            "pgcowfs init --port-range 7",
            "pgcowfs start a --timeout 0",
            "pgcowfs fork a",
            "pgcowfs rm",
            "pgcowfs rename a",
            "pgcowfs export a",
            "pgcowfs protect a --for 2h --off",
            "pgcowfs protect a --for 2",
            "pgcowfs protect a --for 0s",
            "pgcowfs protect a --for 9999999999999999d",
            "pgcowfs fork a -b",
            "pgcowfs fork a b --new-timeline --keep-identity",
            "pgcowfs fork a b --start --user app",
            "pgcowfs fork a b --user app --password-file f",
            "pgcowfs fork a b --start --restricted",
            "pgcowfs dump a",
            "pgcowfs dump a -o /x -j 0",
            "pgcowfs dump a -o /x --every 1h",
            "pgcowfs dump a -o /x --every 1h --keep 2 --force",
            "pgcowfs dumps --off",
            "pgcowfs dumps a --off --cancel",
            "pgcowfs dump a -o /x --table t",
            "pgcowfs fork a b --quota 1MB",
            "pgcowfs quota a lots",
            "pgcowfs init --keep-free 100%",
            "pgcowfs stats --prometheus --json",
            "pgcowfs diff a",
            "pgcowfs completions",
            "pgcowfs man",
            "pgcowfs diff a b -d shop",
            "pgcowfs du a --top 5",
            "pgcowfs footprint a",
            "pgcowfs init --keep-free 1%2",
            "pgcowfs scrub --seal",
            "pgcowfs scrub a --restore base/5/1",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn sizes_and_settings() {
        assert_eq!(size("64MB"), Ok(64 << 20));
        assert_eq!(size("8192"), Ok(8192));
        assert!(
            size("").is_err()
                && size("MB").is_err()
                && size("1XB").is_err()
                && size("99999999999TB").is_err()
        );
        assert_eq!(setting("Work_Mem= 4MB"), Ok(("work_mem".into(), " 4MB".into())));
        assert!(setting("a").is_err() && setting("a b=1").is_err() && setting("a=1\nb=2").is_err());
    }
}
