//! What was done, added up.

use std::collections::BTreeMap;
use std::fmt;

use super::round::{Report, Victim};
use crate::harness::Settings;

/// Sums, for each kind of settings and victim.
#[derive(Default)]
pub struct Table(BTreeMap<(String, String), Sums>);

#[derive(Default)]
struct Sums {
    rounds: u64,
    kills: u64,
    commits: u64,
    forks: u64,
    snapshots: u64,
    in_doubt: u64,
    judged: u64,
    checks: u64,
}

impl Table {
    /// Adds one round.
    pub fn add(&mut self, settings: Settings, victim: Victim, report: &Report) {
        let sums = self.0.entry((settings.to_string(), victim.to_string())).or_default();
        sums.rounds += 1;
        sums.kills += report.kills;
        sums.commits += report.commits;
        sums.forks += report.forks;
        sums.snapshots += report.snapshots;
        sums.in_doubt += report.in_doubt;
        sums.judged += report.judged;
        sums.checks += report.checks;
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "-".repeat(122);
        writeln!(f, "{line}")?;
        writeln!(
            f,
            "{:<36} {:<12} {:>6} {:>6} {:>9} {:>7} {:>9} {:>9} {:>13} {:>6}",
            "settings",
            "victim",
            "rounds",
            "kills",
            "commits",
            "forks",
            "snapshots",
            "in doubt",
            "forks judged",
            "checks"
        )?;
        for ((settings, victim), s) in &self.0 {
            writeln!(
                f,
                "{settings:<36} {victim:<12} {:>6} {:>6} {:>9} {:>7} {:>9} {:>9} {:>13} {:>6}",
                s.rounds, s.kills, s.commits, s.forks, s.snapshots, s.in_doubt, s.judged, s.checks
            )?;
        }
        write!(f, "{line}")
    }
}
