//! What client and daemon say to each other over the control socket: one JSON
//! object per line, a request and its reply in turn.
//!
//! Slow work (initdb, copying, starting and stopping servers) is the client's;
//! the daemon does what must be atomic: the store, ports, settings.
//!
//! An incomplete fork, of `create` or `fork`, belongs to the connection that made it
//! until it is published: nobody else is told of it, and if the connection ends before,
//! the daemon stops its server and removes it. So a client that is interrupted or
//! killed leaves nothing behind.

// As a file of the fuzz targets, this one has no directory of its own.
#[path = "protocol/seeing.rs"]
mod seeing;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use pgcowfs::check;
use serde::{Deserialize, Serialize};

use crate::config::StorePaths;
use crate::error::Error;
use crate::meta::{DumpFailure, DumpSchedule, Expiry, ForkMeta, Mask, Origin, Pool, Protection, Schedule};

pub use self::seeing::{FileChangeRow, FileUsageRow, Side, Stats, StatsRow, TimesRow};

/// Goes up with every incompatible change. `hello` and `shutdown` stay as they
/// are for ever, so that a new program can end an old daemon.
pub const PROTOCOL: u32 = 3;

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Who are you? -> [`Hello`]
    Hello,
    /// -> [`DaemonStatus`]
    Status,
    /// -> `Vec<ForkRow>`
    List,
    /// -> [`Stats`]
    Stats {
        /// Only this fork's; null: of each.
        fork: Option<String>,
    },
    /// -> [`ForkRow`]
    Info {
        /// The fork.
        fork: String,
        /// Whether to look at how its pages lie, which takes a moment.
        #[serde(default)]
        layout: bool,
    },
    /// Makes an incomplete root fork. -> [`Created`]
    Create(Box<CreateSpec>),
    /// Makes it complete and durable. -> [`ForkRow`]
    Publish {
        /// The fork.
        fork: String,
    },
    /// -> [`Forked`]
    Fork(ForkSpec),
    /// Lets a fork that was made for this connection live on when it ends. -> null
    Keep {
        /// The fork.
        fork: String,
    },
    /// Stops and removes the forks that were made for this connection. -> null
    EndLeases,
    /// One of the pool's started forks of a fork, for this connection.
    /// -> [`ForkRow`], or null if there is none
    Take {
        /// What they are forks of.
        parent: String,
    },
    /// Pools. -> `Vec<PoolRow>`
    Pools {
        /// Only that fork's; null: all.
        fork: Option<String>,
    },
    /// Sets or ends a fork's pool. -> `Vec<PoolRow>`, of that fork
    SetPool {
        /// The fork.
        fork: String,
        /// What to set; null: none.
        pool: Option<Pool>,
    },
    /// Removes a fork whose server does not run. -> null
    Remove {
        /// The fork.
        fork: String,
    },
    /// Makes a fork a root of its own. -> [`ForkRow`], as it was before
    Promote {
        /// The fork.
        fork: String,
    },
    /// Gives another name to a fork whose server does not run. -> [`ForkRow`]
    Rename {
        /// The fork.
        fork: String,
        /// Its new name.
        to: String,
    },
    /// Protects a fork, or lifts its protection. -> [`ForkRow`]
    Protect {
        /// The fork.
        fork: String,
        /// What to set; null: none.
        protection: Option<Protection>,
    },
    /// Sets or lifts the end of a fork's time. -> [`ForkRow`]
    SetExpiry {
        /// The fork.
        fork: String,
        /// What to set; null: none.
        expiry: Option<Expiry>,
    },
    /// Refuses what [`Request::Reset`] would refuse, whether or not the fork's server
    /// runs. -> null
    CheckReset(ResetSpec),
    /// Puts a fork back whose server does not run. -> [`Forked`]
    Reset(ResetSpec),
    /// Keeps what a fork is now. -> [`Snapshotted`]
    Snapshot {
        /// The fork.
        fork: String,
        /// The label; null: made from the time.
        label: Option<String>,
    },
    /// -> `Vec<SnapshotRow>`, the oldest of each fork first
    Snapshots {
        /// The fork; null: all.
        fork: Option<String>,
    },
    /// Removes a snapshot. -> null
    RemoveSnapshot {
        /// The fork.
        fork: String,
        /// The label.
        label: String,
    },
    /// Schedules of snapshots. -> `Vec<ScheduleRow>`
    Schedules {
        /// Only that fork's; null: all.
        fork: Option<String>,
    },
    /// Sets or ends a fork's schedule. -> `Vec<ScheduleRow>`, of that fork
    SetSchedule {
        /// The fork.
        fork: String,
        /// What to set; null: none.
        schedule: Option<Schedule>,
    },
    /// Schedules of dumps. -> `Vec<DumpRow>`
    Dumps {
        /// Only that fork's; null: all.
        fork: Option<String>,
    },
    /// Sets or ends a fork's schedule of dumps. -> `Vec<DumpRow>`, of that fork
    SetDumps {
        /// The fork.
        fork: String,
        /// What to set; null: none.
        schedule: Option<DumpSchedule>,
    },
    /// Has the dump under way by a fork's schedule end. -> `Vec<DumpRow>`, of that fork
    CancelDump {
        /// The fork.
        fork: String,
    },
    /// Makes everything in the fork durable. -> null
    Sync {
        /// The fork.
        fork: String,
    },
    /// Gives a stopped fork another port. -> [`ForkRow`]
    SetPort {
        /// The fork.
        fork: String,
        /// The port.
        port: u16,
    },
    /// Sets or lifts a fork's quota. -> [`ForkRow`]
    SetQuota {
        /// The fork.
        fork: String,
        /// The quota in bytes; null: none.
        bytes: Option<u64>,
    },
    /// Gives all free space back; with `wait`, replies when that is done, and sends
    /// [`Reply::Progress`] with [`Progress`] now and then. -> [`Collected`]
    Collect {
        /// Reply at the end, not at the beginning.
        wait: bool,
    },
    /// Checks the store, and with `scrub` reads everything in it. Sends
    /// [`Reply::Progress`] with [`Progress`] now and then. -> [`Inspected`]
    Inspect(InspectSpec),
    /// Puts the last whole version of a damaged page in its place, in a fork
    /// whose server does not run. -> what was done, in words
    Restore {
        /// The fork.
        fork: String,
        /// The file in it.
        path: String,
        /// Its block.
        block: u32,
    },
    /// Compares what two forks or snapshots have in pages. -> `Vec<FileChangeRow>`
    Diff {
        /// The first side.
        a: Side,
        /// The second side.
        b: Side,
    },
    /// What each file of a fork takes. -> `Vec<FileUsageRow>`
    Usage {
        /// The fork.
        fork: String,
    },
    /// Ends the daemon; refused while servers run. -> null, after everything is durable and unmounted
    Shutdown {
        /// Detach a mount that is in use.
        force: bool,
    },
}

/// The daemon's reply: either the value that the request names, or an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Not done yet; more replies follow.
    Progress(serde_json::Value),
    /// Done.
    Ok(serde_json::Value),
    /// Not done.
    Error(Error),
}

/// Who answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the daemon.
    pub protocol: u32,
    /// The program's version.
    pub version: String,
    /// The daemon's process.
    pub pid: i32,
    /// Where the forks are.
    pub mountpoint: PathBuf,
}

/// About the daemon and its store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Forks in the store.
    pub forks: u64,
    /// Layers in the store.
    pub layers: u64,
    /// Entries of the map in memory.
    pub map_entries: u64,
    /// Their memory.
    pub map_memory_bytes: u64,
    /// What the store takes on its disk.
    pub store_bytes: u64,
    /// What forks and snapshots refer to.
    #[serde(default)]
    pub used_bytes: u64,
    /// Pages that more than one fork or snapshot is built on.
    #[serde(default)]
    pub shared_bytes: u64,
    /// Layers that wait to be merged, or are being merged.
    #[serde(default)]
    pub layers_to_merge: u64,
    /// Pages that the merge under way has yet to move.
    #[serde(default)]
    pub merging_pages: Option<u64>,
    /// What nothing refers to and the disk still holds.
    #[serde(default)]
    pub reclaimable_bytes: u64,
    /// Given back since the daemon started.
    #[serde(default)]
    pub reclaimed_bytes: u64,
    /// Started forks that are kept ready.
    #[serde(default)]
    pub pools: Vec<PoolRow>,
    /// Dumps that are made by the clock.
    #[serde(default)]
    pub dumps: Vec<DumpRow>,
    /// Since the daemon started.
    pub uptime_s: f64,
    /// The way by which the kernel's requests come: `io_uring` or `device`.
    #[serde(default)]
    pub transport: String,
    /// What the kernel has asked so far, by kind.
    pub requests: Vec<(String, u64)>,
}

/// One fork, as the daemon knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForkRow {
    /// Its name.
    pub name: String,
    /// The fork it was made from.
    pub parent: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// Layers from its head down to its root.
    pub depth: u32,
    /// Bytes that only it holds.
    pub delta_bytes: u64,
    /// Those of them that are WAL segments.
    #[serde(default)]
    pub wal_bytes: u64,
    /// How much its own writes may take.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// What they take.
    #[serde(default)]
    pub used_bytes: u64,
    /// Whether it ends with the daemon.
    #[serde(default)]
    pub ephemeral: bool,
    /// Whether it waits in a pool.
    #[serde(default)]
    pub pooled: bool,
    /// Sum of its files' sizes.
    pub logical_bytes: u64,
    /// Pages of its files, and the pieces that they lie in; only for one fork.
    #[serde(default)]
    pub layout: Option<(u64, u64)>,
    /// The base below it.
    pub base: Option<PathBuf>,
    /// Why it accepts nothing any more.
    pub fault: Option<String>,
    /// Whether that is because its base has changed.
    #[serde(default)]
    pub base_changed: bool,
    /// Its data directory.
    pub pgdata: PathBuf,
    /// Its server's settings.
    pub meta: ForkMeta,
    /// Its postmaster.pid, if it has one.
    pub pid_file: Option<String>,
}

/// Snapshots that are made by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRow {
    /// Of which fork.
    pub fork: String,
    /// How often, in seconds.
    pub every_s: u64,
    /// How many are kept.
    pub keep: u32,
    /// How many there are.
    pub snapshots: usize,
    /// When the newest was made, RFC 3339.
    pub last_at: Option<String>,
}

/// Dumps that are made by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpRow {
    /// Of which fork.
    pub fork: String,
    /// The directory that they are made in.
    pub dir: PathBuf,
    /// How often, in seconds.
    pub every_s: u64,
    /// How many are kept.
    pub keep: u32,
    /// Names of those there are, the oldest first.
    pub dumps: Vec<String>,
    /// When the last one that is complete was begun, RFC 3339.
    pub last_at: Option<String>,
    /// What went wrong since.
    pub failure: Option<DumpFailure>,
    /// Since when one is under way, RFC 3339; null: none is.
    pub running_since: Option<String>,
}

/// Forks that are kept ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRow {
    /// What they are forks of.
    pub fork: String,
    /// How many there should be.
    pub size: u16,
    /// For how many seconds one may be handed out although that fork has changed since.
    pub max_age_s: u64,
    /// The forks that can be handed out now.
    pub ready: Vec<String>,
    /// Those that cannot, since the fork has changed.
    pub stale: Vec<String>,
    /// Why there are fewer than there should be, if that is known.
    pub failure: Option<String>,
}

/// A root fork to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateSpec {
    /// Its name.
    pub fork: String,
    /// Its server's settings; port (unless chosen) and socket directory are filled in by the daemon.
    pub meta: ForkMeta,
    /// The port that the user has chosen.
    pub port: Option<u16>,
    /// Its quota in bytes.
    #[serde(default)]
    pub quota: Option<u64>,
}

impl CreateSpec {
    /// The directory to use in place.
    pub fn base(&self) -> Option<&PathBuf> {
        match &self.meta.origin {
            Origin::Base(dir) => Some(dir),
            _ => None,
        }
    }
}

/// An incomplete root fork.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Created {
    /// Its data directory: empty, or showing its base.
    pub pgdata: PathBuf,
    /// Its server's settings, with port and socket directory.
    pub meta: ForkMeta,
}

/// A fork to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForkSpec {
    /// The fork to copy.
    pub parent: String,
    /// As it was when this snapshot of it was made; null: as it is now.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The new fork's name.
    pub child: String,
    /// The port that the user has chosen.
    pub port: Option<u16>,
    /// `listen_addresses`.
    pub listen: String,
    /// Settings for postgresql.auto.conf.
    pub settings: Vec<(String, String)>,
    /// Leave replication, archiving and jobs as they are.
    pub keep_identity: bool,
    /// Begin a new timeline at its first start.
    #[serde(default)]
    pub new_timeline: bool,
    /// Its quota in bytes; the parent's is not inherited.
    #[serde(default)]
    pub quota: Option<u64>,
    /// Whether it ends with the daemon, and makes nothing durable.
    #[serde(default)]
    pub ephemeral: bool,
    /// Whether it is for this connection: when that ends, the fork's server is stopped
    /// and the fork removed.
    #[serde(default)]
    pub leased: bool,
    /// When it is removed by itself.
    #[serde(default)]
    pub expiry: Option<Expiry>,
    /// Whether it is made to be changed, or read, before it is published, if ever.
    #[serde(default)]
    pub incomplete: bool,
    /// Whether nothing in it is changed: it is there to be read, and never runs.
    #[serde(default)]
    pub as_is: bool,
    /// Whether it is made to take its parent's place, see [`ResetTarget::Made`]; it is
    /// never published.
    #[serde(default)]
    pub aside: bool,
    /// What its maker masks it with before it is published.
    #[serde(default)]
    pub masks: Vec<Mask>,
}

/// A fork to put back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResetSpec {
    /// The fork.
    pub fork: String,
    /// What to.
    pub to: ResetTarget,
    /// Where that comes from, if from somewhere else than before.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// What a fork is put back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetTarget {
    /// What it was made from.
    Origin,
    /// What its parent is now.
    Parent,
    /// One of its snapshots.
    Snapshot(String),
    /// What that incomplete fork is.
    Made(String),
}

/// What a fork or a reset did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forked {
    /// The fork.
    pub row: ForkRow,
    /// From the call to its durable return.
    pub fork_ms: f64,
    /// For how long the parent's writes were held.
    pub stall_ms: f64,
    /// Bytes of map written because of it.
    pub map_bytes: u64,
    /// What its user should know.
    pub warnings: Vec<String>,
}

/// One snapshot, as the daemon knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// The fork that keeps it.
    pub fork: String,
    /// Its label.
    pub label: String,
    /// RFC 3339.
    pub created_at: String,
    /// Sum of its files' sizes.
    pub logical_bytes: u64,
    /// Bytes of the pages by which it differs from the one before.
    pub changed_bytes: u64,
    /// The forks that were made from it.
    pub forks: Vec<String>,
}

/// What a snapshot did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshotted {
    /// The snapshot.
    pub row: SnapshotRow,
    /// From the call to its durable return.
    pub snapshot_ms: f64,
    /// For how long the fork's writes were held.
    pub stall_ms: f64,
}

/// What to check.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InspectSpec {
    /// Read all pages, too.
    pub scrub: bool,
    /// Only this fork's.
    pub fork: Option<String>,
    /// Give the fork's base files their CRCs first.
    pub seal: bool,
    /// Look at pages as PostgreSQL does.
    pub pg: bool,
    /// At most.
    pub bytes_per_second: Option<u64>,
}

/// How far something long is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes read, or given back, since the last one.
    pub bytes: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// What was given back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Collected {
    /// Whether all of it is done.
    pub done: bool,
    /// Given back to the disk.
    pub reclaimed_bytes: u64,
    /// What could still be.
    pub reclaimable_bytes: u64,
    /// What the store takes on its disk.
    pub store_bytes: u64,
}

/// What an inspection found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Inspected {
    /// What is wrong.
    pub findings: Vec<FindingRow>,
    /// What only takes space.
    pub leftovers: Vec<LeftoverRow>,
    /// Forks.
    pub forks: u64,
    /// Layers.
    pub layers: u64,
    /// Files and directories, of each fork.
    pub files: u64,
    /// Records of the block map.
    pub records: u64,
    /// Pages that records refer to.
    pub pages: u64,
    /// Pages read.
    pub pages_read: u64,
    /// Blocks of WAL segments read.
    pub wal_blocks_read: u64,
    /// Blocks of base files read.
    pub base_blocks_read: u64,
    /// Blocks without a CRC: WAL being written, bases without a seal.
    pub unsealed_blocks: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes of base files that got their CRCs.
    pub sealed_bytes: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FindingRow {
    /// map, record, layer, name, count, file, page, wal, base or postgres.
    pub kind: String,
    /// In words.
    pub message: String,
    /// The forks that see it.
    pub forks: Vec<String>,
    /// The file in them.
    pub path: Option<String>,
    /// Its block.
    pub block: Option<u32>,
    /// What to do.
    pub next_step: String,
    /// Whether `check --repair` puts it right.
    pub repairable: bool,
}

/// Space that the next start gives back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftoverRow {
    /// What takes it.
    pub what: String,
    /// How much.
    pub bytes: u64,
}

impl Inspected {
    /// From what the core has seen.
    pub fn new(report: check::Report, progress: &check::scrub::Progress) -> Inspected {
        let findings = report.findings.into_iter().map(|f| FindingRow {
            kind: f.kind.name().to_string(),
            message: f.message,
            forks: f.forks,
            path: f.path,
            block: f.block,
            next_step: f.next_step,
            repairable: f.repairable,
        });
        let leftovers = report.leftovers.into_iter().map(|l| LeftoverRow { what: l.what, bytes: l.bytes });
        Inspected {
            findings: findings.collect(),
            leftovers: leftovers.collect(),
            forks: report.forks,
            layers: report.layers,
            files: report.files,
            records: report.records,
            pages: report.pages,
            pages_read: progress.pages,
            wal_blocks_read: progress.wal_blocks,
            base_blocks_read: progress.base_blocks,
            unsealed_blocks: progress.unsealed_blocks,
            bytes_read: progress.bytes,
            sealed_bytes: 0,
        }
    }
}

impl InspectSpec {
    /// For the core.
    pub fn options(&self) -> check::scrub::Options {
        check::scrub::Options {
            fork: self.fork.clone(),
            bytes_per_second: self.bytes_per_second,
            postgres: self.pg,
        }
    }
}

/// Runs `with` on a path of the control socket that is short enough for the
/// kernel, wherever the store is: sockets have at most 107 bytes of path.
pub fn at_control<T>(paths: &StorePaths, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = paths.control();
    if path.as_os_str().len() <= 107 {
        return with(&path);
    }
    let dir = File::open(&paths.dir)?;
    with(&PathBuf::from(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd())))
}
