//! What `pool` reports.

use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::protocol::PoolRow;
use crate::ui::{Cell, duration_text, table};

/// `pool`
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct PoolsReport(pub Vec<PoolRow>);

impl Report for PoolsReport {
    fn human(&self, _color: bool) -> String {
        let row = |pool: &PoolRow| {
            vec![
                Cell::plain(&pool.fork),
                Cell::plain(pool.size.to_string()),
                Cell::plain(pool.ready.len().to_string()),
                Cell::plain(pool.stale.len().to_string()),
                // None that the parent has changed since is handed out.
                Cell::plain(match pool.max_age_s {
                    0 => "-".into(),
                    s => duration_text(Duration::from_secs(s)),
                }),
                Cell::plain(pool.failure.as_deref().unwrap_or_default()),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.0.iter().map(row).collect();
        let head = ["FORK", "SIZE", "READY", "STALE", "MAX AGE", ""];
        table(&head, &[false, true, true, true, true, false], &rows)
    }
}

/// "main: 2 of 4 ready".
pub fn pools_text(pools: &[PoolRow]) -> String {
    let text = |pool: &PoolRow| format!("{}: {} of {} ready", pool.fork, pool.ready.len(), pool.size);
    pools.iter().map(text).collect::<Vec<_>>().join(", ")
}
