//! What commands report: typed values, made first and rendered last, as JSON
//! (field names are part of the interface, see `docs/CLI.md`) or for people.

mod branches;
mod diff;
mod doctor;
mod dumps;
mod expire;
mod export;
mod footprint;
mod mask;
mod pool;
mod refresh;
mod run;
mod schedule;
mod stats;
mod top;
mod tree;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::error::one_line;
use crate::meta::Mask;
use crate::postgres::follow::Following;
use crate::postgres::server::State;
use crate::protocol::{Collected, DumpRow, ForkRow, Inspected, PoolRow};
use crate::ui::{Cell, age_text, bytes_text, duration_text, pairs, table};

pub use self::branches::{
    PromoteReport, ProtectReport, RenameReport, ResetReport, SnapshotEntry, SnapshotReport, SnapshotsReport,
};

pub use self::diff::{
    Called, DiffReport, DuReport, FileDiff, Pages, RelationDiff, RelationUsage, SchemaDiff, SchemaReport,
};
pub use self::doctor::{Checked, DoctorReport, Finding};
use self::dumps::dumps_text;
pub use self::dumps::{DumpReport, DumpedDatabase, DumpsReport};
pub use self::expire::ExpireReport;
use self::expire::expiry_remarks;
pub use self::export::ExportReport;
pub use self::footprint::FootprintReport;
pub use self::mask::MaskedReport;
pub use self::pool::PoolsReport;
use self::pool::pools_text;
pub use self::refresh::RefreshReport;
pub use self::run::RunReport;
pub use self::schedule::SchedulesReport;
pub use self::stats::{StatsReport, prometheus};
pub use self::top::TopReport;
pub use self::tree::{TreeNode, TreeReport};

/// A command's result.
pub trait Report: Serialize {
    /// The result for people.
    fn human(&self, color: bool) -> String;
}

/// One fork.
#[derive(Clone, Debug, Serialize)]
pub struct ForkReport {
    /// Its name.
    pub name: String,
    /// The fork it was made from; null for a root.
    pub parent: Option<String>,
    /// running, stopped or crashed.
    pub state: &'static str,
    /// Its server's process, while running.
    pub pid: Option<i32>,
    /// Its port.
    pub port: u16,
    /// Its socket's directory.
    pub socket_dir: PathBuf,
    /// How to connect through the socket.
    pub url: String,
    /// How to connect over TCP, without the password; null if the server does not listen there.
    pub tcp_url: Option<String>,
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The major version.
    pub pg_version: String,
    /// RFC 3339.
    pub created_at: String,
    /// Bytes that only this fork holds.
    pub delta_bytes: u64,
    /// Those of them that are WAL segments.
    pub wal_bytes: u64,
    /// How much its own writes may take; null for no limit.
    pub quota_bytes: Option<u64>,
    /// What they take.
    pub used_bytes: u64,
    /// Sum of its files' sizes.
    pub logical_bytes: u64,
    /// Pages in delta files, of the first 32 GiB of them; only with `show`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<u64>,
    /// Pieces that they lie in: pages that follow each other in the file and on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pieces: Option<u64>,
    /// Layers from its head down to its root.
    pub depth: u32,
    /// Whether it ends with the daemon.
    pub ephemeral: bool,
    /// Whether it waits in a pool.
    pub pooled: bool,
    /// When it is removed by itself; null: at no certain time.
    pub expires_at: Option<String>,
    /// After how many seconds without a session it is removed; null: never.
    pub idle_s: Option<u64>,
    /// Where dumps of it are made by the clock; null: nowhere.
    pub dump_dir: Option<PathBuf>,
    /// When the last of them that is complete was begun; null: none is.
    pub dumped_at: Option<String>,
    /// What went wrong since; null: nothing.
    pub dump_failure: Option<String>,
    /// Whether rm, reset and rename refuse it.
    pub protected: bool,
    /// When that ends; null: when it is lifted.
    pub protected_until: Option<String>,
    /// What has masked it before it was there for others.
    pub masks: Vec<String>,
    /// What masks each fork of it.
    pub mask_forks: Vec<String>,
    /// The directory it uses in place.
    pub base: Option<PathBuf>,
    /// The user its server runs as.
    pub run_as: String,
    /// Its server's log.
    pub log: PathBuf,
    /// Why it accepts nothing any more.
    pub fault: Option<String>,
    /// The server that it follows as a standby, and how far it is; null: none.
    pub follows: Option<Following>,
    /// Whether `url` knows the password for TCP.
    #[serde(skip)]
    pub knows_password: bool,
}

impl ForkReport {
    /// From what the daemon knows and what /proc shows.
    pub fn new(row: &ForkRow, log: PathBuf) -> ForkReport {
        let state = State::of(row.pid_file.as_deref(), &row.pgdata);
        let dump = row.meta.upkeep.dump.as_ref();
        ForkReport {
            name: row.name.clone(),
            parent: row.parent.clone(),
            state: state.name(),
            pid: state.pid(),
            port: row.meta.port,
            socket_dir: row.meta.socket_dir.clone(),
            url: row.meta.socket_url("postgres"),
            tcp_url: row.meta.tcp_url("postgres", false),
            pgdata: row.pgdata.clone(),
            pg_version: row.meta.pg_version.to_string(),
            created_at: row.created_at.clone(),
            delta_bytes: row.delta_bytes,
            wal_bytes: row.wal_bytes,
            quota_bytes: row.quota_bytes,
            used_bytes: row.used_bytes,
            logical_bytes: row.logical_bytes,
            pages: row.layout.map(|(pages, _)| pages),
            pieces: row.layout.map(|(_, pieces)| pieces),
            depth: row.depth,
            ephemeral: row.ephemeral,
            pooled: row.pooled,
            expires_at: row.meta.upkeep.expiry.as_ref().and_then(|expiry| expiry.at.clone()),
            idle_s: row.meta.upkeep.expiry.as_ref().and_then(|expiry| expiry.idle_s),
            dump_dir: dump.map(|dump| dump.dir.clone()),
            dumped_at: dump.and_then(|dump| dump.last_at.clone()),
            dump_failure: dump.and_then(|dump| dump.failure.as_ref().map(|failure| failure.message.clone())),
            protected: row.meta.protection().is_some(),
            protected_until: row.meta.protection().and_then(|protection| protection.until.clone()),
            masks: row.meta.masks.iter().map(Mask::name).collect(),
            mask_forks: row.meta.mask_forks.iter().map(Mask::name).collect(),
            base: row.base.clone(),
            run_as: row.meta.run_as.clone(),
            log,
            fault: row.fault.clone(),
            follows: row.meta.follow.as_ref().map(Following::stopped),
            knows_password: row.meta.password.is_some(),
        }
    }

    /// What sets it apart, in a word each.
    fn remarks(&self) -> Vec<String> {
        let mut remarks: Vec<String> = self.follows.iter().map(ToString::to_string).collect();
        if self.ephemeral {
            remarks.push("ephemeral".to_string());
        }
        if self.pooled {
            remarks.push("in a pool".to_string());
        }
        remarks.extend(expiry_remarks(self.expires_at.as_deref(), self.idle_s));
        if self.protected {
            remarks.push("protected".to_string());
        }
        if !self.masks.is_empty() {
            remarks.push("masked".to_string());
        }
        remarks
    }

    /// What is used of the quota.
    fn quota_text(&self) -> String {
        match self.quota_bytes {
            Some(quota) => format!("{} of {}", bytes_text(self.used_bytes), bytes_text(quota)),
            None => "-".into(),
        }
    }

    /// How long the pieces are that its pages lie in.
    fn layout_text(&self) -> String {
        match (self.pages, self.pieces) {
            (Some(pages @ 1..), Some(pieces @ 1..)) => {
                let piece = pages * 8192 / pieces;
                format!("{pages} pages in {pieces} pieces of {} on average", bytes_text(piece))
            }
            _ => "no pages".into(),
        }
    }

    fn state_cell(&self, color: bool) -> Cell {
        let (text, paint) = match (&self.fault, self.state) {
            (Some(_), _) => ("fault", Some("31")),
            (None, "running") => ("running", Some("32")),
            (None, "crashed") => ("crashed", Some("31")),
            (None, other) => (other, None),
        };
        Cell::colored(text, paint.filter(|_| color))
    }
}

impl Report for ForkReport {
    fn human(&self, color: bool) -> String {
        let mut rows = vec![
            ("name", Cell::plain(&self.name)),
            ("parent", Cell::plain(self.parent.as_deref().unwrap_or("-"))),
            ("state", self.state_cell(color)),
        ];
        if let Some(fault) = &self.fault {
            rows.push(("fault", Cell::plain(fault)));
        }
        if let Some(pid) = self.pid {
            rows.push(("pid", Cell::plain(pid.to_string())));
        }
        rows.extend([
            ("url", Cell::plain(&self.url)),
            ("tcp", Cell::plain(self.tcp_url.as_deref().unwrap_or("-"))),
            ("port", Cell::plain(self.port.to_string())),
            ("sockets", Cell::plain(self.socket_dir.display().to_string())),
            ("pgdata", Cell::plain(self.pgdata.display().to_string())),
            ("log", Cell::plain(self.log.display().to_string())),
            ("version", Cell::plain(format!("PostgreSQL {}", self.pg_version))),
            ("runs as", Cell::plain(&self.run_as)),
        ]);
        if let Some(base) = &self.base {
            rows.push(("base", Cell::plain(base.display().to_string())));
        }
        if let Some(following) = &self.follows {
            rows.push(("server", Cell::plain(&following.url)));
            rows.push(("slot", Cell::plain(following.slot.as_deref().unwrap_or("-"))));
            rows.push(("standby", Cell::plain(following.to_string())));
        }
        if !self.masks.is_empty() {
            rows.push(("masked by", Cell::plain(self.masks.join(", "))));
        }
        if !self.mask_forks.is_empty() {
            rows.push(("its forks by", Cell::plain(self.mask_forks.join(", "))));
        }
        if self.ephemeral {
            rows.push(("ephemeral", Cell::plain("ends with the daemon, and makes nothing durable")));
        }
        let expiry = expiry_remarks(self.expires_at.as_deref(), self.idle_s);
        if !expiry.is_empty() {
            rows.push(("end", Cell::plain(expiry.join(", "))));
        }
        if let Some(dir) = &self.dump_dir {
            let last = self
                .dumped_at
                .as_deref()
                .map_or("none yet".into(), |at| format!("last {} ago", age_text(at)));
            let failure =
                self.dump_failure.as_ref().map_or(String::new(), |why| format!("; failed since: {why}"));
            rows.push(("dumps", Cell::plain(format!("{}, {last}{failure}", dir.display()))));
        }
        if self.protected {
            rows.push((
                "protected",
                Cell::plain(self.protected_until.as_deref().unwrap_or("until it is lifted")),
            ));
        }
        rows.extend([
            ("created", Cell::plain(&self.created_at)),
            ("own", Cell::plain(bytes_text(self.delta_bytes))),
            ("quota", Cell::plain(self.quota_text())),
            ("size", Cell::plain(bytes_text(self.logical_bytes))),
            ("depth", Cell::plain(self.depth.to_string())),
            ("layout", Cell::plain(self.layout_text())),
        ]);
        pairs(&rows)
    }
}

/// `list`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct ListReport(pub Vec<ForkReport>);

impl Report for ListReport {
    fn human(&self, color: bool) -> String {
        let row = |fork: &ForkReport| {
            let created = fork.created_at.get(..16).unwrap_or(&fork.created_at).replace('T', " ");
            vec![
                Cell::plain(&fork.name),
                Cell::plain(fork.parent.as_deref().unwrap_or("-")),
                fork.state_cell(color),
                Cell::plain(fork.port.to_string()),
                Cell::plain(&fork.pg_version),
                Cell::plain(bytes_text(fork.delta_bytes)),
                Cell::plain(fork.quota_text()),
                Cell::plain(bytes_text(fork.logical_bytes)),
                Cell::plain(fork.depth.to_string()),
                Cell::plain(created),
                Cell::plain(fork.remarks().join(", ")),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.0.iter().map(row).collect();
        let head =
            ["NAME", "PARENT", "STATE", "PORT", "PG", "OWN", "QUOTA", "SIZE", "DEPTH", "CREATED (UTC)", ""];
        table(&head, &[false, false, false, true, true, true, true, true, true, false, false], &rows)
    }
}

/// `init`
#[derive(Debug, Serialize)]
pub struct InitReport {
    /// The store.
    pub store: PathBuf,
    /// Where its forks will appear.
    pub mountpoint: PathBuf,
    /// The ports they are given.
    pub port_range: String,
}

impl Report for InitReport {
    fn human(&self, _color: bool) -> String {
        format!("made an empty store in {}\nnext: pgcowfs create NAME", self.store.display())
    }
}

/// `create`
#[derive(Debug, Serialize)]
pub struct CreateReport {
    /// The new fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// What its user should know.
    pub warnings: Vec<String>,
    /// What was masked; null if nothing was to be.
    pub masked: Option<MaskedReport>,
    /// How long it took.
    pub create_ms: f64,
}

impl Report for CreateReport {
    fn human(&self, _color: bool) -> String {
        let took = duration_text(Duration::from_secs_f64(self.create_ms / 1e3));
        let fork = &self.fork;
        let masked = self.masked.as_ref().map_or(String::new(), |masked| masked.text(&self.fork.name));
        let next = match &fork.follows {
            Some(following) => format!("it {following}\nnext: pgcowfs fork {} NEW --start", fork.name),
            None => format!("next: pgcowfs start {}", fork.name),
        };
        format!(
            "{masked}created {} in {took}: PostgreSQL {}, {}, port {}\n{next}",
            fork.name,
            fork.pg_version,
            bytes_text(fork.logical_bytes),
            fork.port,
        )
    }
}

/// `fork`
#[derive(Debug, Serialize)]
pub struct ForkedReport {
    /// The new fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// The snapshot it was made from.
    pub snapshot: Option<String>,
    /// From the request for the fork to its durable end.
    pub fork_ms: f64,
    /// For how long the parent's writes were held.
    pub stall_ms: f64,
    /// How long the parent's CHECKPOINT took; null if none was asked for.
    pub checkpoint_ms: Option<f64>,
    /// Bytes of the block map written because of the fork.
    pub map_bytes: u64,
    /// How long its server took to start; null if it was not to.
    pub start_ms: Option<f64>,
    /// The role that `--user` made.
    pub user: Option<String>,
    /// What was masked; null if nothing was to be.
    pub masked: Option<MaskedReport>,
    /// What its user should know.
    pub warnings: Vec<String>,
}

impl Report for ForkedReport {
    fn human(&self, _color: bool) -> String {
        let parent = self.fork.parent.as_deref().unwrap_or("-");
        let (name, fork_ms, stall_ms) = (&self.fork.name, self.fork_ms, self.stall_ms);
        let mut out = match &self.snapshot {
            Some(label) => format!("forked {parent}@{label} as {name} in {fork_ms:.1} ms\n"),
            None => format!(
                "forked {parent} as {name} in {fork_ms:.1} ms ({parent}'s writes were held for {stall_ms:.3} ms)\n"
            ),
        };
        if let Some(ms) = self.checkpoint_ms {
            out += &format!(
                "the CHECKPOINT before it took {}\n",
                duration_text(Duration::from_secs_f64(ms / 1e3))
            );
        }
        out += &self.masked.as_ref().map_or(String::new(), |masked| masked.text(name));
        match self.start_ms {
            Some(ms) => out += &connections(&self.fork, ms),
            None => out += &format!("next: pgcowfs start {}\n", self.fork.name),
        }
        if let Some(user) = &self.user {
            out += &format!("  role    {} (with the password that was given)\n", one_line(user));
        }
        out
    }
}

/// `start`, `restart`
#[derive(Debug, Serialize)]
pub struct StartReport {
    /// The fork.
    #[serde(flatten)]
    pub fork: ForkReport,
    /// How long it took until it accepted connections.
    pub start_ms: f64,
}

impl Report for StartReport {
    fn human(&self, _color: bool) -> String {
        connections(&self.fork, self.start_ms)
    }
}

fn connections(fork: &ForkReport, start_ms: f64) -> String {
    let took = duration_text(Duration::from_secs_f64(start_ms / 1e3));
    let mut out = format!("{} is running on port {} (started in {took})\n", fork.name, fork.port);
    out += &format!("  socket  {}\n", fork.url);
    if let Some(tcp) = &fork.tcp_url {
        let with_password = match fork.knows_password {
            true => format!("  (with the password: pgcowfs url {} --tcp)", fork.name),
            false => String::new(),
        };
        out += &format!("  tcp     {tcp}{with_password}\n");
    }
    out
}

/// `quota`
#[derive(Debug, Serialize)]
pub struct QuotaReport {
    /// The fork.
    pub name: String,
    /// How much its own writes may take; null for no limit.
    pub quota_bytes: Option<u64>,
    /// What they take.
    pub used_bytes: u64,
}

impl Report for QuotaReport {
    fn human(&self, _color: bool) -> String {
        let used = bytes_text(self.used_bytes);
        match self.quota_bytes {
            Some(quota) => format!("{} uses {used} of {}", self.name, bytes_text(quota)),
            None => format!("{} uses {used}, without a quota", self.name),
        }
    }
}

/// `stop`
#[derive(Debug, Serialize)]
pub struct StopReport {
    /// The fork.
    pub name: String,
    /// Its state now.
    pub state: &'static str,
    /// How long it took.
    pub stop_ms: f64,
}

impl Report for StopReport {
    fn human(&self, _color: bool) -> String {
        format!(
            "{} is stopped (took {})",
            self.name,
            duration_text(Duration::from_secs_f64(self.stop_ms / 1e3))
        )
    }
}

/// `url`
#[derive(Debug, Serialize)]
pub struct UrlReport {
    /// The fork.
    pub name: String,
    /// Connection string for the socket.
    pub socket_url: Option<String>,
    /// Connection string for TCP, with the password where it is known.
    pub tcp_url: Option<String>,
    /// Host for TCP.
    pub host: Option<String>,
    /// Socket directory.
    pub socket_dir: PathBuf,
    /// Port, also in the socket's name.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// The role's password for TCP, where `create` made it.
    pub password: Option<String>,
}

impl Report for UrlReport {
    fn human(&self, _color: bool) -> String {
        let lines: Vec<&str> =
            [&self.socket_url, &self.tcp_url].into_iter().flatten().map(String::as_str).collect();
        lines.join("\n")
    }
}

/// `path`
#[derive(Debug, Serialize)]
pub struct PathReport {
    /// The fork.
    pub name: String,
    /// Its data directory.
    pub pgdata: PathBuf,
}

impl Report for PathReport {
    fn human(&self, _color: bool) -> String {
        self.pgdata.display().to_string()
    }
}

/// `man`
#[derive(Debug, Serialize)]
pub struct ManReport {
    /// Where the pages are.
    pub dir: PathBuf,
    /// All of them.
    pub pages: Vec<PathBuf>,
}

impl Report for ManReport {
    fn human(&self, _color: bool) -> String {
        format!("wrote {} pages to {}", self.pages.len(), self.dir.display())
    }
}

/// `rm`
#[derive(Debug, Serialize)]
pub struct RmReport {
    /// The removed forks.
    pub removed: Vec<String>,
}

impl Report for RmReport {
    fn human(&self, _color: bool) -> String {
        format!("removed {}", self.removed.join(", "))
    }
}

/// `mount`
#[derive(Debug, Serialize)]
pub struct MountReport {
    /// The store.
    pub store: PathBuf,
    /// Where its forks are.
    pub mountpoint: PathBuf,
    /// The daemon.
    pub pid: i32,
    /// Whether this command started it.
    pub started: bool,
}

impl Report for MountReport {
    fn human(&self, _color: bool) -> String {
        let was = if self.started { "mounted" } else { "already mounted" };
        format!("{was} at {} (daemon: process {})", self.mountpoint.display(), self.pid)
    }
}

/// `umount`
#[derive(Debug, Serialize)]
pub struct UmountReport {
    /// Where the forks were.
    pub mountpoint: PathBuf,
    /// Whether there was anything to unmount.
    pub was_mounted: bool,
    /// The forks whose servers were stopped.
    pub stopped: Vec<String>,
}

impl Report for UmountReport {
    fn human(&self, _color: bool) -> String {
        let mountpoint = self.mountpoint.display();
        let mut out = match self.was_mounted {
            true => format!("unmounted {mountpoint}"),
            false => format!("nothing was mounted at {mountpoint}"),
        };
        if !self.stopped.is_empty() {
            out += &format!(", stopped {}", self.stopped.join(", "));
        }
        out
    }
}

/// `status`
#[derive(Debug, Serialize)]
pub struct StatusReport {
    /// This program's version, or the running daemon's.
    pub version: String,
    /// running, stopped, or dead (the daemon was killed and its mount is left over).
    pub state: &'static str,
    /// The daemon.
    pub pid: Option<i32>,
    /// Where the forks are, or will be.
    pub mountpoint: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// Number of forks; this and the following are null without a daemon.
    pub forks: Option<u64>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Entries of the block map in memory.
    pub map_entries: Option<u64>,
    /// Their memory.
    pub map_memory_bytes: Option<u64>,
    /// What the store takes on its disk.
    pub store_bytes: Option<u64>,
    /// What forks and snapshots refer to.
    pub used_bytes: Option<u64>,
    /// Pages that more than one fork or snapshot is built on.
    pub shared_bytes: Option<u64>,
    /// Layers that wait to be merged, or are being merged.
    pub layers_to_merge: Option<u64>,
    /// Pages that the merge under way has yet to move; null if there is none.
    pub merging_pages: Option<u64>,
    /// What nothing refers to and the disk still holds.
    pub reclaimable_bytes: Option<u64>,
    /// Given back since the daemon started.
    pub reclaimed_bytes: Option<u64>,
    /// Started forks that are kept ready.
    pub pools: Option<Vec<PoolRow>>,
    /// Dumps that are made by the clock.
    pub dumps: Option<Vec<DumpRow>>,
    /// For how long the daemon has run.
    pub uptime_s: Option<f64>,
    /// The way by which the kernel's requests come.
    pub transport: Option<String>,
    /// Requests of the kernel so far, by kind.
    pub requests: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Report for StatusReport {
    fn human(&self, color: bool) -> String {
        let paint = match self.state {
            "running" => Some("32"),
            "dead" => Some("31"),
            _ => None,
        };
        let text = match self.state {
            "dead" => "dead: the daemon was killed; the next command that needs it cleans up and goes on",
            "stopped" => "not mounted",
            other => other,
        };
        let mut rows = vec![
            ("store", Cell::plain(self.store.display().to_string())),
            ("mount point", Cell::plain(self.mountpoint.display().to_string())),
            ("daemon", Cell::colored(text, paint.filter(|_| color))),
            ("version", Cell::plain(&self.version)),
        ];
        if let Some(pid) = self.pid {
            rows.push(("pid", Cell::plain(pid.to_string())));
        }
        let number = |n: Option<u64>| n.map(|n| Cell::plain(n.to_string()));
        let bytes = |n: Option<u64>| n.map(|n| Cell::plain(bytes_text(n)));
        let rest = [
            ("requests by", self.transport.as_ref().map(Cell::plain)),
            ("uptime", self.uptime_s.map(|s| Cell::plain(duration_text(Duration::from_secs_f64(s))))),
            ("forks", number(self.forks)),
            ("layers", number(self.layers)),
            (
                "to be merged",
                self.layers_to_merge
                    .filter(|n| *n > 0)
                    .map(|n| Cell::plain(merging_text(n, self.merging_pages))),
            ),
            ("map entries", number(self.map_entries)),
            ("map memory", bytes(self.map_memory_bytes)),
            ("store size", bytes(self.store_bytes)),
            ("used", bytes(self.used_bytes)),
            ("shared", bytes(self.shared_bytes)),
            ("reclaimable", bytes(self.reclaimable_bytes)),
            ("given back", bytes(self.reclaimed_bytes)),
            (
                "pools",
                self.pools.as_ref().filter(|pools| !pools.is_empty()).map(|p| Cell::plain(pools_text(p))),
            ),
            (
                "dumps",
                self.dumps.as_ref().filter(|dumps| !dumps.is_empty()).map(|d| Cell::plain(dumps_text(d))),
            ),
        ];
        rows.extend(rest.into_iter().filter_map(|(name, cell)| Some((name, cell?))));
        pairs(&rows)
    }
}

/// "2 layers; 1234 pages of the next are left to move".
fn merging_text(layers: u64, pages: Option<u64>) -> String {
    let layers = format!("{layers} layer{}", if layers == 1 { "" } else { "s" });
    match pages {
        Some(pages) => format!("{layers}; {pages} pages of the next are left to move"),
        None => layers,
    }
}

/// `gc`
#[derive(Clone, Debug, Serialize)]
pub struct GcReport {
    /// What was given back, and what is left.
    #[serde(flatten)]
    pub collected: Collected,
    /// How long it took.
    pub took_ms: f64,
}

impl Report for GcReport {
    fn human(&self, _color: bool) -> String {
        let Collected { done, reclaimed_bytes, reclaimable_bytes, store_bytes } = self.collected;
        let takes = format!("the store takes {} on its disk", bytes_text(store_bytes));
        match done {
            true => format!(
                "gave {} back in {}; {takes}",
                bytes_text(reclaimed_bytes),
                duration_text(Duration::from_secs_f64(self.took_ms / 1e3))
            ),
            false => {
                format!("the daemon gives up to {} back from now on; {takes}", bytes_text(reclaimable_bytes))
            }
        }
    }
}

/// `check`, `scrub`
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Whether nothing was found.
    pub ok: bool,
    /// What was found.
    #[serde(flatten)]
    pub found: Inspected,
    /// How long it took.
    pub took_ms: f64,
    /// Records that `--repair` has changed; null without it.
    pub repaired: Option<u64>,
}

impl CheckReport {
    /// With how long it took.
    pub fn new(found: Inspected, took: Duration, repaired: Option<u64>) -> CheckReport {
        CheckReport { ok: found.findings.is_empty(), found, took_ms: took.as_secs_f64() * 1e3, repaired }
    }
}

impl Report for CheckReport {
    fn human(&self, color: bool) -> String {
        let found = &self.found;
        let mut out = String::new();
        if !found.findings.is_empty() {
            let rows: Vec<Vec<Cell>> = found
                .findings
                .iter()
                .map(|f| {
                    vec![
                        Cell::colored(&f.kind, color.then_some("31")),
                        Cell::plain(if f.forks.is_empty() { "-".into() } else { f.forks.join(",") }),
                        Cell::plain(f.path.as_deref().unwrap_or("-")),
                        Cell::plain(f.block.map_or("-".into(), |b| b.to_string())),
                    ]
                })
                .collect();
            out += &table(&["WHAT", "FORKS", "FILE", "BLOCK"], &[false, false, false, true], &rows);
            for f in &found.findings {
                out += &format!("\n{}\n  next: {}\n", one_line(&f.message), one_line(&f.next_step));
            }
            out.push('\n');
        }
        for leftover in &found.leftovers {
            out += &format!(
                "space that the next start gives back: {} ({})\n",
                leftover.what,
                bytes_text(leftover.bytes)
            );
        }
        if let Some(repaired) = self.repaired {
            out += &format!("{repaired} records counted anew\n");
        }
        if found.sealed_bytes > 0 {
            out += &format!("{} of its base have checksums now\n", bytes_text(found.sealed_bytes));
        }
        out += &format!(
            "{} forks, {} layers, {} files, {} records, {} pages\n",
            found.forks, found.layers, found.files, found.records, found.pages
        );
        let took = Duration::from_secs_f64(self.took_ms / 1e3);
        if found.bytes_read > 0 {
            let rate = found.bytes_read as f64 / took.as_secs_f64().max(1e-3);
            out += &format!(
                "{} pages, {} blocks of WAL and {} of bases read: {} in {} ({}/s)\n",
                found.pages_read,
                found.wal_blocks_read,
                found.base_blocks_read,
                bytes_text(found.bytes_read),
                duration_text(took),
                bytes_text(rate as u64)
            );
        }
        if found.unsealed_blocks > 0 {
            out += &format!(
                "{} blocks have no checksum: WAL being written, and bases without `scrub --seal`\n",
                found.unsealed_blocks
            );
        }
        out += match found.findings.len() {
            0 => "nothing is wrong\n",
            _ => "",
        };
        out
    }
}

/// `scrub --restore`
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The fork.
    pub fork: String,
    /// The file in it.
    pub path: String,
    /// The block.
    pub block: u32,
    /// Which version it is now.
    pub restored_from: String,
}

impl Report for RestoreReport {
    fn human(&self, _color: bool) -> String {
        format!("{} block {} of {} is restored: {}", self.path, self.block, self.fork, self.restored_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::tests::sample;

    fn row() -> ForkRow {
        ForkRow {
            name: "pr42".into(),
            parent: None,
            created_at: "2026-01-02T03:04:05.678Z".into(),
            depth: 2,
            delta_bytes: 8192,
            wal_bytes: 0,
            quota_bytes: None,
            used_bytes: 0,
            ephemeral: false,
            pooled: false,
            logical_bytes: 1 << 30,
            layout: None,
            base: None,
            fault: None,
            base_changed: false,
            pgdata: "/m/pr42".into(),
            meta: sample(),
            pid_file: None,
        }
    }

    #[test]
    fn json_has_the_documented_fields_and_no_secret() {
        let report = ForkReport::new(&row(), "/s/logs/pr42.log".into());
        let value = serde_json::to_value(ListReport(vec![report])).unwrap();
        let fork = &value.as_array().unwrap()[0];
        assert!(fork["parent"].is_null());
        assert_eq!(fork["state"], "stopped");
        assert_eq!(fork["pg_version"], "15");
        assert_eq!(fork["port"], 6001);
        let documentation = include_str!("../../docs/CLI.md");
        for field in fork.as_object().unwrap().keys() {
            assert!(documentation.contains(&format!("`{field}`")), "docs/CLI.md does not explain {field}");
        }
        assert!(!value.to_string().contains("p@ss"));
    }

    #[test]
    fn people_see_a_table() {
        let text = ListReport(vec![ForkReport::new(&row(), "/l".into())]).human(false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME  PARENT  STATE"));
        assert!(
            lines[1].contains("8.0 kB      -  1.0 GB") && lines[1].ends_with("2026-01-02 03:04"),
            "{text}"
        );
    }
}
