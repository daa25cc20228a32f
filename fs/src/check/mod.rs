//! The invariants of a store, as functions: what holds between the records of
//! the block map, between them and the host files, and between pages and CRCs.
//!
//! [`check`] looks at records only; [`scrub::scrub`] reads every page. Both work
//! on a store that is in use, and on one that cannot be opened: they need a map
//! and two devices, no store. All conclusions about records are drawn from one
//! view of the map ([`view`]), so that writers need not be held.

mod locate;
mod names;
pub mod pg;
pub mod repair;
pub mod scrub;
mod space;
mod view;

use std::collections::BTreeSet;

use crate::block::BlockNo;
use crate::device::Device;
use crate::error::Result;
use crate::ids::LayerId;
use crate::map::Map;

pub use locate::{Locator, Older, page_of};
use view::View;

/// What is checked.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// The block map.
    pub map: &'a dyn Map,
    /// Delta files.
    pub delta: &'a dyn Device,
    /// In-place files.
    pub inplace: &'a dyn Device,
    /// Files that are in use although no record knows them (yet, or any more).
    pub in_use: &'a dyn Fn(HostName) -> bool,
}

/// A host file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostName {
    /// The delta file of that number.
    Delta(u32),
    /// The in-place file of that number.
    InPlace(u64),
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// RocksDB's own checksums.
    Map,
    /// A record that cannot be read or belongs to nothing.
    Record,
    /// Forks and layers that do not fit together.
    Layer,
    /// Names and files that do not fit together.
    Name,
    /// A number that can be counted anew.
    Count,
    /// A host file that is missing or too short.
    HostFile,
    /// A page whose CRC does not match.
    Page,
    /// A block of a WAL segment whose CRC does not match.
    Wal,
    /// A block of a base that does not match, or a base that changed.
    Base,
    /// A page that is whole for pgcowfs and not for PostgreSQL.
    Postgres,
}

impl Kind {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Map => "map",
            Kind::Record => "record",
            Kind::Layer => "layer",
            Kind::Name => "name",
            Kind::Count => "count",
            Kind::HostFile => "file",
            Kind::Page => "page",
            Kind::Wal => "wal",
            Kind::Base => "base",
            Kind::Postgres => "postgres",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What sort of thing.
    pub kind: Kind,
    /// In words.
    pub message: String,
    /// The forks that see it, where that can be told.
    pub forks: Vec<String>,
    /// The file in those forks.
    pub path: Option<String>,
    /// The block of that file.
    pub block: Option<BlockNo>,
    /// What can be done about it.
    pub next_step: String,
    /// Whether [`repair`] can put it right.
    pub repairable: bool,
}

impl Finding {
    /// A finding about records.
    fn new(kind: Kind, message: impl Into<String>) -> Finding {
        let next_step = match kind {
            Kind::Map | Kind::Record => {
                "the block map itself is damaged: look at the kernel's log for errors of the disk, save what \
                 the forks still give (pg_dump), and bring the store back from a copy"
            }
            Kind::Layer | Kind::Name => {
                "save what the fork still gives (pg_dump), make it anew, and report a defect"
            }
            Kind::Count => "pgcowfs check --repair counts it anew",
            Kind::HostFile => {
                "bring the file back from a copy of the store, or remove the forks that need it"
            }
            Kind::Page | Kind::Wal | Kind::Base | Kind::Postgres => "",
        };
        Finding {
            kind,
            message: message.into(),
            forks: Vec::new(),
            path: None,
            block: None,
            next_step: next_step.into(),
            repairable: kind == Kind::Count,
        }
    }
}

/// Space that nothing refers to any more, and that the next start gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// What it is.
    pub what: String,
    /// Bytes, as far as they can be told.
    pub bytes: u64,
}

/// What a check has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong; empty for a sound store.
    pub findings: Vec<Finding>,
    /// What only takes space.
    pub leftovers: Vec<Leftover>,
    /// Records of the block map.
    pub records: u64,
    /// Forks.
    pub forks: u64,
    /// Layers that a fork reaches.
    pub layers: u64,
    /// Files and directories, each once for each fork.
    pub files: u64,
    /// Pages that records refer to, shared ones once for each record.
    pub pages: u64,
}

/// Checks everything but the contents of pages. `alive` is asked now and then;
/// when it says no, the check ends with what it has.
pub fn check(stored: &Stored<'_>, alive: &mut dyn FnMut() -> bool) -> Result<Report> {
    let mut report = Report::default();
    for text in stored.map.verify(alive)? {
        report.findings.push(Finding::new(Kind::Map, text));
    }
    let view = View::collect(stored.map, &mut report)?;
    let reached = view.reached(&mut report);
    names::check(&view, &reached, &mut report);
    space::check(stored, &view, &reached, &mut report)?;
    report.forks = view.forks.len() as u64;
    report.layers = reached.len() as u64;
    report.findings.sort_by(|a, b| (a.kind, &a.message).cmp(&(b.kind, &b.message)));
    Ok(report)
}

/// Layers that some fork reaches.
type Reached = BTreeSet<LayerId>;
