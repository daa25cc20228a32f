//! What the daemon tells those who only look.

use serde::{Deserialize, Serialize};

/// What the daemon has counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Since the daemon started.
    pub uptime_s: f64,
    /// The ends of the buckets of all histograms, but for the last one, which has none.
    pub bucket_ends_ns: Vec<u64>,
    /// Of all forks together, those that are gone included, and of the mount's top.
    pub all: StatsRow,
    /// Of each fork that has been used, by name.
    pub forks: Vec<StatsRow>,
}

/// What was counted of a fork, or of all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StatsRow {
    /// The fork; null: all.
    pub name: Option<String>,
    /// Requests, of each kind that there was.
    pub requests: Vec<TimesRow>,
    /// All else, by name.
    pub amounts: Vec<(String, u64)>,
}

/// Requests of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimesRow {
    /// Its name in the FUSE protocol, in lower case.
    pub kind: String,
    /// How many there were, by how long each took.
    pub buckets: Vec<u64>,
    /// How long all of them took together.
    pub total_ns: u64,
}

impl TimesRow {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl StatsRow {
    /// An amount by its name; 0 from a daemon that does not count it.
    pub fn amount(&self, name: &str) -> u64 {
        self.amounts.iter().find(|(of, _)| of == name).map_or(0, |(_, n)| *n)
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &StatsRow) -> StatsRow {
        let times = |now: &TimesRow| {
            let old = before.requests.iter().find(|old| old.kind == now.kind);
            let old_bucket = |i: usize| old.and_then(|old| old.buckets.get(i)).copied().unwrap_or(0);
            let buckets = now.buckets.iter().enumerate();
            TimesRow {
                kind: now.kind.clone(),
                // What was reset meanwhile begins anew, as less than there was.
                buckets: buckets.map(|(i, n)| n.saturating_sub(old_bucket(i))).collect(),
                total_ns: now.total_ns.saturating_sub(old.map_or(0, |old| old.total_ns)),
            }
        };
        StatsRow {
            name: self.name.clone(),
            requests: self.requests.iter().map(times).filter(|times| times.count() > 0).collect(),
            amounts: self
                .amounts
                .iter()
                .map(|(name, n)| (name.clone(), n.saturating_sub(before.amount(name))))
                .collect(),
        }
    }
}

impl Stats {
    /// What was counted since `before`.
    pub fn since(&self, before: &Stats) -> Stats {
        let none = StatsRow::default();
        let of = |row: &StatsRow| before.forks.iter().find(|old| old.name == row.name).unwrap_or(&none);
        Stats {
            uptime_s: self.uptime_s,
            bucket_ends_ns: self.bucket_ends_ns.clone(),
            all: self.all.since(&before.all),
            forks: self.forks.iter().map(|row| row.since(of(row))).collect(),
        }
    }
}

/// A fork as it is, or a snapshot of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Side {
    /// The fork.
    pub fork: String,
    /// The snapshot's label.
    pub label: Option<String>,
}

/// A file that differs between two sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileChangeRow {
    /// Its path in the data directory.
    pub path: String,
    /// Its size on the first side; null: it is not there.
    pub before: Option<u64>,
    /// Its size on the second side.
    pub after: Option<u64>,
    /// Pages that only the second side has.
    pub added: u64,
    /// Pages that only the first side has.
    pub removed: u64,
    /// Pages with other contents.
    pub changed: u64,
    /// Pages in other places, with the same contents.
    pub rewritten: u64,
}

/// What a file takes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileUsageRow {
    /// Its path in the data directory.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of pages that only its fork has.
    pub exclusive_bytes: u64,
    /// Bytes of pages that lie in layers which others are built on, too.
    pub shared_bytes: u64,
    /// Bytes that its base shows.
    pub base_bytes: u64,
}
