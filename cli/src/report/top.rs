//! What `top` reports.

use std::time::Duration;

use serde::Serialize;

use super::Report;
use super::stats::{quantile, us_text};
use crate::commands::state;
use crate::protocol::{ForkRow, Stats, StatsRow, TimesRow};
use crate::ui::{Cell, bytes_text, table};

/// `top`
#[derive(Debug, Serialize)]
pub struct TopReport {
    /// What it is about.
    pub interval_s: f64,
    /// All together, the mount's top included.
    pub all: Load,
    /// Each fork, the busiest first.
    pub forks: Vec<Load>,
}

/// What a fork has asked for, each second.
#[derive(Debug, Serialize)]
pub struct Load {
    /// The fork; null: all.
    pub name: Option<String>,
    /// running, stopped or crashed; null: all.
    pub state: Option<&'static str>,
    /// Requests.
    pub requests_per_s: f64,
    /// Of them, to read.
    pub reads_per_s: f64,
    /// Of them, to write.
    pub writes_per_s: f64,
    /// Of them, to make something durable.
    pub fsyncs_per_s: f64,
    /// Bytes read.
    pub read_bytes_per_s: f64,
    /// Bytes written.
    pub write_bytes_per_s: f64,
    /// How long a request took on average; null if there was none.
    pub mean_us: Option<f64>,
    /// 99 of 100 requests took less; null if there was none, or if it is beyond the last bucket.
    pub p99_us: Option<f64>,
    /// Bytes that only this fork holds; of all, their sum.
    pub delta_bytes: u64,
}

impl Load {
    fn new(row: &StatsRow, interval: Duration, ends_us: &[f64]) -> Load {
        let seconds = interval.as_secs_f64().max(1e-3);
        let count = |kind: &str| {
            let of = row.requests.iter().filter(|times| times.kind == kind);
            of.map(TimesRow::count).sum::<u64>() as f64 / seconds
        };
        let mut all = TimesRow { kind: String::new(), buckets: vec![0; ends_us.len() + 1], total_ns: 0 };
        for times in &row.requests {
            all.total_ns += times.total_ns;
            all.buckets.iter_mut().zip(&times.buckets).for_each(|(sum, n)| *sum += n);
        }
        let n = all.count();
        Load {
            name: row.name.clone(),
            state: None,
            requests_per_s: n as f64 / seconds,
            reads_per_s: count("read"),
            writes_per_s: count("write"),
            fsyncs_per_s: count("fsync") + count("fsyncdir"),
            read_bytes_per_s: row.amount("read_bytes") as f64 / seconds,
            write_bytes_per_s: row.amount("write_bytes") as f64 / seconds,
            mean_us: (n > 0).then(|| all.total_ns as f64 / 1e3 / n as f64),
            p99_us: if n > 0 { quantile(&all, 0.99, ends_us) } else { None },
            delta_bytes: 0,
        }
    }

    fn cells(&self, color: bool) -> Vec<Cell> {
        let rate = |n: f64| Cell::plain(format!("{n:.0}"));
        let bytes = |n: f64| Cell::plain(format!("{}/s", bytes_text(n as u64)));
        let idle = self.mean_us.is_none();
        let time = |us: Option<f64>| Cell::plain(if idle { "-".into() } else { us_text(us) });
        vec![
            Cell::plain(self.name.as_deref().unwrap_or("all")),
            Cell::colored(
                self.state.unwrap_or("-"),
                Some("32").filter(|_| color && self.state == Some("running")),
            ),
            rate(self.requests_per_s),
            rate(self.reads_per_s),
            rate(self.writes_per_s),
            rate(self.fsyncs_per_s),
            bytes(self.read_bytes_per_s),
            bytes(self.write_bytes_per_s),
            time(self.mean_us),
            time(self.p99_us),
            Cell::plain(bytes_text(self.delta_bytes)),
        ]
    }
}

impl TopReport {
    /// What was counted in an interval, with what there is of forks.
    pub fn new(stats: &Stats, forks: &[ForkRow], interval: Duration) -> TopReport {
        let ends: Vec<f64> = stats.bucket_ends_ns.iter().map(|&ns| ns as f64 / 1e3).collect();
        let load = |fork: &ForkRow| {
            // One that nobody has used yet was not counted.
            let none = StatsRow { name: Some(fork.name.clone()), ..StatsRow::default() };
            let row = stats.forks.iter().find(|row| row.name.as_ref() == Some(&fork.name));
            Load {
                state: Some(state(fork).name()),
                delta_bytes: fork.delta_bytes,
                ..Load::new(row.unwrap_or(&none), interval, &ends)
            }
        };
        let mut loads: Vec<Load> = forks.iter().map(load).collect();
        loads.sort_by(|a, b| b.requests_per_s.total_cmp(&a.requests_per_s));
        let delta_bytes = forks.iter().map(|fork| fork.delta_bytes).sum();
        TopReport {
            interval_s: interval.as_secs_f64(),
            all: Load { delta_bytes, ..Load::new(&stats.all, interval, &ends) },
            forks: loads,
        }
    }
}

impl Report for TopReport {
    fn human(&self, color: bool) -> String {
        let rows: Vec<Vec<Cell>> =
            [&self.all].into_iter().chain(&self.forks).map(|l| l.cells(color)).collect();
        let head =
            ["FORK", "STATE", "REQ/S", "READS", "WRITES", "SYNCS", "READ", "WRITTEN", "MEAN", "P99 <", "OWN"];
        let right = [false, false, true, true, true, true, true, true, true, true, true];
        table(&head, &right, &rows)
    }
}
