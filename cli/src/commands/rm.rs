//! `pgcowfs rm`

use std::time::Duration;

use super::{Context, state};
use crate::args::Rm;
use crate::error::{Error, Kind, Result};
use crate::postgres::server::{self, State, StopHow};
use crate::protocol::{ForkRow, Request};
use crate::report::RmReport;

/// Removes forks: all of them, or none if one of them cannot be.
pub fn run(context: &Context, args: &Rm) -> Result<()> {
    let mut client = context.client()?;
    let mut rows: Vec<ForkRow> = Vec::new();
    for fork in &args.forks {
        if rows.iter().any(|row| row.name == *fork) {
            return Err(Error::new(Kind::Usage, format!("fork {fork:?} is named twice")));
        }
        let row = client.info(fork)?;
        if let (State::Running(pid), false) = (state(&row), args.force) {
            return Err(Error::new(Kind::State, format!("fork {fork:?} is running"))
                .cause(format!("process {pid} serves it"))
                .hint(format!("stop it first, or let rm do so: pgcowfs rm --force {fork}")));
        }
        rows.push(row);
    }
    for row in &rows {
        if let State::Running(pid) = state(row) {
            server::stop(&row.name, &row.pgdata, pid, StopHow::Immediate, Duration::from_secs(60))?;
        }
        client.call::<()>(&Request::Remove { fork: row.name.clone() })?;
    }
    context.ui.print(&RmReport { removed: args.forks.clone() })
}
