//! Snapshots that are made by the clock, and removed by number.
//!
//! Which snapshots these are is in their labels, and when one is due in the time of
//! the newest: so there is nothing to keep but the schedule itself.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use pgcowfs::SnapshotInfo;

use super::{Daemon, requests};
use crate::error::Result;
use crate::meta::Schedule;
use crate::protocol::ScheduleRow;

/// The label of a snapshot of this kind.
const LABEL: &str = "auto-%Y%m%d-%H%M%S";

/// Whether a label is one of a schedule's.
fn is_scheduled(label: &str) -> bool {
    jiff::civil::DateTime::strptime(LABEL, label).is_ok()
}

/// Whether the next snapshot is due. A clock that was set back is no reason to wait for
/// as long as it takes to come there again.
fn is_due(schedule: &Schedule, last: Option<SystemTime>, now: SystemTime) -> bool {
    let age = last.map(|last| now.duration_since(last));
    !age.is_some_and(|age| age.is_ok_and(|age| age < Duration::from_secs(schedule.every_s)))
}

impl Daemon {
    /// Those of a fork, the oldest first.
    fn scheduled(&self, fork: &str) -> Result<Vec<SnapshotInfo>> {
        let mut snapshots = self.store.snapshots(fork)?;
        snapshots.retain(|snapshot| is_scheduled(&snapshot.label));
        Ok(snapshots)
    }

    /// Does what a fork's schedule wants done by now.
    pub(super) fn follow_schedule(&self, fork: &str, schedule: &Schedule) -> Result<()> {
        let last = self.scheduled(fork)?.last().map(|snapshot| snapshot.created_at);
        if is_due(schedule, last, SystemTime::now()) {
            self.snapshot(fork, Some(&Timestamp::now().strftime(LABEL).to_string()))?;
        }
        let there = self.scheduled(fork)?;
        let more = there.len().saturating_sub(schedule.keep as usize);
        for snapshot in &there[..more] {
            // Not what `rm` does: that the fork is protected is no reason to keep all.
            self.store.remove_snapshot(fork, &snapshot.label)?;
            log::info!("removed {fork}@{}, as its schedule wants", snapshot.label);
        }
        Ok(())
    }

    pub(super) fn set_schedule(&self, fork: &str, schedule: Option<Schedule>) -> Result<Vec<ScheduleRow>> {
        self.change_meta(fork, |row| {
            log::info!("the schedule of {fork} is {schedule:?}");
            row.meta.upkeep.schedule = schedule;
            Ok(())
        })?;
        self.schedule_rows(Some(fork))
    }

    pub(super) fn schedule_rows(&self, fork: Option<&str>) -> Result<Vec<ScheduleRow>> {
        let mut rows = Vec::new();
        for (entry, meta) in self.metas(fork)? {
            let Some(schedule) = meta.upkeep.schedule else { continue };
            let there = self.scheduled(&entry.name)?;
            rows.push(ScheduleRow {
                every_s: schedule.every_s,
                keep: schedule.keep,
                snapshots: there.len(),
                last_at: there.last().map(|last| requests::rfc3339(last.created_at)).transpose()?,
                fork: entry.name,
            });
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        assert!(is_scheduled("auto-20260102-030405"));
        assert!(is_scheduled(&Timestamp::now().strftime(LABEL).to_string()));
        for other in ["", "auto", "auto-", "auto-2026", "20260102-030405", "auto-20260102-030405-2", "auto-x"]
        {
            assert!(!is_scheduled(other), "{other}");
        }
    }

    #[test]
    fn when_one_is_due() {
        let schedule = Schedule { every_s: 60, keep: 1 };
        let now = SystemTime::now();
        let ago = |s| Some(now - Duration::from_secs(s));
        assert!(is_due(&schedule, None, now) && is_due(&schedule, ago(60), now));
        assert!(!is_due(&schedule, ago(59), now));
        assert!(is_due(&schedule, Some(now + Duration::from_secs(7)), now), "the clock was set back");
    }
}
