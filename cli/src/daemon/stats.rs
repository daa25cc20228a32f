//! What the daemon has counted.

use pgcowfs::stats::{self, BUCKETS};

use super::Daemon;
use crate::error::Result;
use crate::protocol::{Stats, StatsRow, TimesRow};

impl Daemon {
    /// What was counted of one fork, or of each.
    pub(super) fn stats(&self, fork: Option<&str>) -> Result<Stats> {
        // One that nobody has used yet is there, too.
        let named = fork.map(|name| self.store.by_name(name)).transpose()?;
        let forks = named.map_or_else(|| self.store.counted(), |fork| vec![fork]);
        let nanos = |bucket| stats::bucket_end(bucket).map(|end| end.as_nanos() as u64);
        Ok(Stats {
            uptime_s: self.started.elapsed().as_secs_f64(),
            bucket_ends_ns: (0..BUCKETS).filter_map(nanos).collect(),
            all: row(None, self.store.stats()),
            forks: forks.iter().map(|fork| row(Some(fork.name()), fork.stats())).collect(),
        })
    }
}

/// How many requests of each kind there were, and the bytes read and written.
pub(super) fn requests(stats: &stats::Stats) -> Vec<(String, u64)> {
    let bytes = stats.amounts.snapshot().into_iter().filter(|(name, _)| name.ends_with("_bytes"));
    stats.requests().into_iter().chain(bytes).map(|(name, n)| (name.to_string(), n)).collect()
}

fn row(name: Option<String>, stats: &stats::Stats) -> StatsRow {
    let times = |times: &stats::Times| TimesRow {
        kind: times.kind.name().to_string(),
        buckets: times.buckets.to_vec(),
        total_ns: u64::try_from(times.total.as_nanos()).unwrap_or(u64::MAX),
    };
    StatsRow {
        name,
        requests: stats.times().iter().map(times).collect(),
        amounts: stats.amounts.snapshot().into_iter().map(|(name, n)| (name.to_string(), n)).collect(),
    }
}
