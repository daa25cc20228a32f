//! `pgcowfs stop`

use super::{Context, ms, state};
use crate::args::{Stop, StopMode};
use crate::error::Result;
use crate::postgres::server::{self, State, StopHow};
use crate::report::StopReport;

/// Stops a fork's server.
pub fn run(context: &Context, args: &Stop) -> Result<()> {
    let row = context.client()?.info(&args.fork)?;
    let pid = match state(&row) {
        State::Running(pid) => pid,
        other => {
            let hint = "there is nothing to stop; `pgcowfs list` shows which forks run";
            return Err(server::not_running(&row.name, other).hint(hint));
        }
    };
    let took = server::stop(&row.name, &row.pgdata, pid, how(args.options.mode), args.options.timeout)?;
    context.ui.print(&StopReport { name: row.name, state: State::Stopped.name(), stop_ms: ms(took) })
}

/// The way that an option names.
pub fn how(mode: StopMode) -> StopHow {
    match mode {
        StopMode::Smart => StopHow::Smart,
        StopMode::Fast => StopHow::Fast,
        StopMode::Immediate => StopHow::Immediate,
    }
}
