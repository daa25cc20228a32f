//! One sample: all that could grow, and all that could slow down.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The names of the figures are those in `soak.jsonl`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// Cycles done.
    pub cycle: u64,
    /// Seconds since the first.
    pub seconds: f64,
    /// Taken with the background work at its end and the load held.
    pub settled: bool,

    /// Host bytes of the block map's directory.
    pub map_bytes: u64,
    /// Those of them that are RocksDB's write-ahead logs.
    pub map_log_bytes: u64,
    /// Host bytes of delta files.
    pub delta_bytes: u64,
    /// Host bytes of in-place files.
    pub inplace_bytes: u64,
    /// All of these.
    pub store_bytes: u64,
    /// Files of the block map.
    pub map_files: u64,
    /// Delta files.
    pub delta_files: u64,
    /// In-place files.
    pub inplace_files: u64,
    /// Bytes of the daemon's own log.
    pub log_bytes: u64,

    /// Forks, `main` among them.
    pub forks: u64,
    /// Layers.
    pub layers: u64,
    /// Layers more than the forks need: what is still to be dropped or merged.
    pub backlog: u64,
    /// Entries of the page tables in memory.
    pub map_entries: u64,
    /// Their bytes.
    pub page_table_bytes: u64,
    /// Records of the block map, where a check has counted them.
    pub records: Option<u64>,
    /// Pages that they refer to.
    pub pages: Option<u64>,

    /// Memory of the daemon: resident.
    pub rss_bytes: u64,
    /// The part of it that no file backs.
    pub anon_bytes: u64,
    /// Its threads.
    pub threads: u64,
    /// Files that it has open.
    pub open_files: u64,

    /// A cycle, since the last sample: median.
    pub cycle_ms: f64,
    /// A fork, by the daemon's word: median.
    pub fork_ms: f64,
    /// The same: of a hundred, the slowest but one.
    pub fork_p99_ms: f64,
    /// The longest that a parent's writes were held.
    pub stall_max_ms: f64,
    /// A fork, as the client of the daemon sees it: median.
    pub fork_call_ms: f64,
    /// A removal, likewise: median.
    pub remove_ms: f64,
    /// The same: of a hundred, the slowest but one.
    pub remove_p99_ms: f64,
    /// Opening one of many files in a fresh fork: median.
    pub open_us: f64,
    /// Reading a random page in a fresh fork, cold: nothing of it is in any cache.
    pub read_fork_cold_us: f64,
    /// The same again: it is in the kernel's cache.
    pub read_fork_warm_us: f64,
    /// The same in `main`, cold.
    pub read_main_cold_us: f64,
    /// The same in `main`, warm.
    pub read_main_warm_us: f64,
    /// Reading all of the table in `main`, cold.
    pub scan_cold_mb_s: f64,
    /// The same again, warm.
    pub scan_warm_mb_s: f64,

    /// A flush of the host's disk, without pgcowfs: median. What else the machine does slows this down as well.
    pub disk_ms: f64,
    /// Transactions of the load so far.
    pub transactions: u64,
}

/// Of sorted times the one with so many hundredths of them below it.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = sorted.len() * percent / 100;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// In milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// In microseconds.
pub fn us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What the columns of the table are.
pub const HEADER: &str = "   cycle      s |   map MB delta MB inpl. MB | layers backlog entries | rss MB  pt MB thr fds | \
    cycle  fork   p99 call    rm ms disk | open read: fork cold main cold warm us | scan MB/s";

/// A line of the table.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "{}{:7} {:6.0} | {:8.1} {:8.1} {:8.1} | {:6} {:7} {:7} | {:6.1} {:6.2} {:3} {:3} | ",
            if self.settled { '*' } else { ' ' },
            self.cycle,
            self.seconds,
            mb(self.map_bytes),
            mb(self.delta_bytes),
            mb(self.inplace_bytes),
            self.layers,
            self.backlog,
            self.map_entries,
            mb(self.rss_bytes),
            mb(self.page_table_bytes),
            self.threads,
            self.open_files,
        )?;
        write!(
            f,
            "{:5.0} {:5.1} {:5.1} {:5.1} {:5.1} {:4.1} | {:4.0} {:10.0} {:9.1} {:9.0} {:7.1} | {:4.0} {:4.0}",
            self.cycle_ms,
            self.fork_ms,
            self.fork_p99_ms,
            self.fork_call_ms,
            self.remove_ms,
            self.disk_ms,
            self.open_us,
            self.read_fork_cold_us,
            self.read_fork_warm_us,
            self.read_main_cold_us,
            self.read_main_warm_us,
            self.scan_cold_mb_s,
            self.scan_warm_mb_s,
        )
    }
}
