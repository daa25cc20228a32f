//! What `schedule` reports.

use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::protocol::ScheduleRow;
use crate::ui::{Cell, age_text, duration_text, table};

/// `schedule`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct SchedulesReport(pub Vec<ScheduleRow>);

impl Report for SchedulesReport {
    fn human(&self, _color: bool) -> String {
        let row = |schedule: &ScheduleRow| {
            vec![
                Cell::plain(&schedule.fork),
                Cell::plain(duration_text(Duration::from_secs(schedule.every_s))),
                Cell::plain(schedule.keep.to_string()),
                Cell::plain(schedule.snapshots.to_string()),
                Cell::plain(schedule.last_at.as_deref().map_or("-".into(), age_text)),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.0.iter().map(row).collect();
        table(&["FORK", "EVERY", "KEEP", "THERE", "LAST"], &[false, true, true, true, true], &rows)
    }
}
