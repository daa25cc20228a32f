//! What `stats` reports.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::protocol::{Stats, StatsRow, TimesRow};
use crate::ui::{Cell, bytes_text, table};

/// `stats`
#[derive(Debug, Serialize)]
pub struct StatsReport {
    /// For how long the daemon has run.
    pub uptime_s: f64,
    /// What it was counted in; null: since the beginning.
    pub interval_s: Option<f64>,
    /// The ends of all buckets but the last.
    pub bucket_ends_us: Vec<f64>,
    /// All together; null where one fork was asked for.
    pub all: Option<Counted>,
    /// Each fork.
    pub forks: Vec<Counted>,
}

/// What was counted of a fork, or of all.
#[derive(Debug, Serialize)]
pub struct Counted {
    /// The fork; null: all together.
    pub name: Option<String>,
    /// By kind.
    pub requests: BTreeMap<String, Times>,
    /// All else.
    #[serde(flatten)]
    pub amounts: BTreeMap<String, u64>,
}

/// Requests of one kind.
#[derive(Debug, Serialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// How long all of them took.
    pub total_ms: f64,
    /// Half of them took less; null: more than the last bucket's beginning.
    pub p50_us: Option<f64>,
    /// 99 of 100 took less.
    pub p99_us: Option<f64>,
    /// How many by how long each took.
    pub buckets: Vec<u64>,
}

impl Times {
    fn new(row: &TimesRow, ends_us: &[f64]) -> Times {
        Times {
            count: row.count(),
            total_ms: row.total_ns as f64 / 1e6,
            p50_us: quantile(row, 0.5, ends_us),
            p99_us: quantile(row, 0.99, ends_us),
            buckets: row.buckets.clone(),
        }
    }
}

/// The end of the bucket in which that part of all requests is reached.
pub fn quantile(row: &TimesRow, part: f64, ends_us: &[f64]) -> Option<f64> {
    let wanted = (row.count() as f64 * part).ceil();
    let mut so_far = 0;
    let reached = row.buckets.iter().position(|n| {
        so_far += n;
        so_far as f64 >= wanted
    });
    reached.and_then(|bucket| ends_us.get(bucket)).copied()
}

impl Counted {
    fn new(row: &StatsRow, ends_us: &[f64]) -> Counted {
        let requests = row.requests.iter().map(|times| (times.kind.clone(), Times::new(times, ends_us)));
        Counted {
            name: row.name.clone(),
            requests: requests.collect(),
            amounts: row.amounts.iter().cloned().collect(),
        }
    }

    fn amount(&self, name: &str) -> u64 {
        self.amounts.get(name).copied().unwrap_or(0)
    }

    fn text(&self, seconds: Option<f64>) -> String {
        let mut kinds: Vec<_> = self.requests.iter().collect();
        kinds.sort_by_key(|(_, times)| std::cmp::Reverse(times.count));
        let rows: Vec<Vec<Cell>> = kinds
            .into_iter()
            .map(|(kind, times)| {
                let mean = times.total_ms * 1e3 / times.count.max(1) as f64;
                vec![
                    Cell::plain(kind),
                    Cell::plain(times.count.to_string()),
                    Cell::plain(seconds.map_or("-".into(), |s| format!("{:.1}", times.count as f64 / s))),
                    Cell::plain(us_text(Some(mean))),
                    Cell::plain(us_text(times.p50_us)),
                    Cell::plain(us_text(times.p99_us)),
                ]
            })
            .collect();
        let mut out = String::new();
        match &self.name {
            Some(name) => out += &format!("{name}\n"),
            None => out += "all forks\n",
        }
        out += &match rows.is_empty() {
            true => "no requests\n".to_string(),
            false => {
                let head = ["REQUEST", "COUNT", "PER SECOND", "MEAN", "P50 <", "P99 <"];
                table(&head, &[false, true, true, true, true, true], &rows)
            }
        };
        let bytes = |name| bytes_text(self.amount(name));
        out += &format!(
            "read {}, written {}; {} WAL flushes, {} map commits\n",
            bytes("read_bytes"),
            bytes("write_bytes"),
            self.amount("wal_flushes"),
            self.amount("map_commits")
        );
        out += &format!(
            "pages read: {} in memory, {} from delta files, {} from a base or in place\n",
            self.amount("memory_pages"),
            self.amount("delta_pages"),
            self.amount("other_blocks")
        );
        out
    }
}

/// Microseconds for people; None is beyond the last bucket.
pub fn us_text(us: Option<f64>) -> String {
    match us {
        None => "8 s or more".into(),
        Some(us) if us < 1e3 => format!("{us:.0} us"),
        Some(us) if us < 1e6 => format!("{:.1} ms", us / 1e3),
        Some(us) => format!("{:.1} s", us / 1e6),
    }
}

impl StatsReport {
    /// What was counted, in an interval or since the beginning; of all, or of one fork.
    pub fn new(stats: &Stats, interval: Option<Duration>, one: bool) -> StatsReport {
        let ends: Vec<f64> = stats.bucket_ends_ns.iter().map(|&ns| ns as f64 / 1e3).collect();
        StatsReport {
            uptime_s: stats.uptime_s,
            interval_s: interval.map(|interval| interval.as_secs_f64()),
            all: (!one).then(|| Counted::new(&stats.all, &ends)),
            forks: stats.forks.iter().map(|row| Counted::new(row, &ends)).collect(),
            bucket_ends_us: ends,
        }
    }
}

impl Report for StatsReport {
    fn human(&self, _color: bool) -> String {
        let texts = self.forks.iter().chain(&self.all).map(|counted| counted.text(self.interval_s));
        texts.collect::<Vec<_>>().join("\n")
    }
}

/// What was counted, as Prometheus reads it.
pub fn prometheus(stats: &Stats) -> String {
    let mut out = String::new();
    let groups = [("pgcowfs", std::slice::from_ref(&stats.all)), ("pgcowfs_fork", stats.forks.as_slice())];
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# TYPE pgcowfs_uptime_seconds gauge\npgcowfs_uptime_seconds {}", stats.uptime_s);
    for (prefix, rows) in groups {
        let name = format!("{prefix}_request_seconds");
        let _ = writeln!(out, "# HELP {name} Time that the daemon took for a request of the kernel.");
        let _ = writeln!(out, "# TYPE {name} histogram");
        for row in rows {
            for times in &row.requests {
                let label = match &row.name {
                    // Names of forks have no character that would need quoting.
                    Some(fork) => format!("fork=\"{fork}\",kind=\"{}\"", times.kind),
                    None => format!("kind=\"{}\"", times.kind),
                };
                let mut so_far = 0;
                for (i, n) in times.buckets.iter().enumerate() {
                    so_far += n;
                    let end = stats.bucket_ends_ns.get(i);
                    let end = end.map_or("+Inf".into(), |&ns| (ns as f64 / 1e9).to_string());
                    let _ = writeln!(out, "{name}_bucket{{{label},le=\"{end}\"}} {so_far}");
                }
                let _ = writeln!(out, "{name}_sum{{{label}}} {}", times.total_ns as f64 / 1e9);
                let _ = writeln!(out, "{name}_count{{{label}}} {}", times.count());
            }
        }
        for (amount, _) in &stats.all.amounts {
            let name = format!("{prefix}_{amount}_total");
            let _ = writeln!(out, "# TYPE {name} counter");
            for row in rows {
                let label = row.name.as_ref().map_or(String::new(), |fork| format!("{{fork=\"{fork}\"}}"));
                let _ = writeln!(out, "{name}{label} {}", row.amount(amount));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> Stats {
        let times = |buckets: [u64; 3]| TimesRow {
            kind: "read".into(),
            buckets: buckets.to_vec(),
            total_ns: 5_000_000,
        };
        let row = |name: Option<&str>, buckets| StatsRow {
            name: name.map(String::from),
            requests: vec![times(buckets)],
            amounts: vec![("read_bytes".into(), 8192)],
        };
        Stats {
            uptime_s: 1.5,
            bucket_ends_ns: vec![1024, 2048],
            all: row(None, [90, 9, 1]),
            forks: vec![row(Some("pr42"), [1, 0, 0])],
        }
    }

    #[test]
    fn quantiles_are_ends_of_buckets() {
        let report = StatsReport::new(&stats(), None, false);
        let read = &report.all.as_ref().expect("all").requests["read"];
        assert_eq!((read.count, read.p50_us, read.p99_us), (100, Some(1.024), Some(2.048)));
        let beyond = TimesRow { buckets: vec![0, 0, 7], ..stats().all.requests[0].clone() };
        assert_eq!(quantile(&beyond, 0.5, &report.bucket_ends_us), None);
        let text = report.human(false);
        assert!(text.starts_with("pr42\n") && text.contains("all forks\n"), "{text}");
    }

    #[test]
    fn prometheus_has_cumulative_buckets() {
        let text = prometheus(&stats());
        for line in [
            "pgcowfs_request_seconds_bucket{kind=\"read\",le=\"0.000002048\"} 99",
            "pgcowfs_request_seconds_bucket{kind=\"read\",le=\"+Inf\"} 100",
            "pgcowfs_fork_request_seconds_count{fork=\"pr42\",kind=\"read\"} 1",
            "pgcowfs_fork_request_seconds_sum{fork=\"pr42\",kind=\"read\"} 0.005",
            "pgcowfs_read_bytes_total 8192",
            "pgcowfs_fork_read_bytes_total{fork=\"pr42\"} 8192",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn an_interval_is_the_difference() {
        let mut now = stats();
        now.all.requests[0].buckets = vec![91, 9, 1];
        let since = now.since(&stats());
        assert_eq!(since.all.requests[0].buckets, [1, 0, 0]);
        assert!(since.forks[0].requests.is_empty());
        assert_eq!(since.all.amount("read_bytes"), 0);
    }
}
