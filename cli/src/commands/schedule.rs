//! `pgcowfs schedule`

use super::Context;
use crate::args::ScheduleArgs;
use crate::error::Result;
use crate::meta::Schedule;
use crate::protocol::{Request, ScheduleRow};
use crate::report::SchedulesReport;

/// Shows, sets or ends schedules of snapshots.
pub fn run(context: &Context, args: &ScheduleArgs) -> Result<()> {
    let schedule = match (args.every, args.keep) {
        // A clock that is looked at every second cannot do more.
        (Some(every), Some(keep)) => Some(Schedule { every_s: every.as_secs().max(1), keep }),
        _ => None,
    };
    let request = match &args.fork {
        Some(fork) if schedule.is_some() || args.off => Request::SetSchedule { fork: fork.clone(), schedule },
        fork => Request::Schedules { fork: fork.clone() },
    };
    let rows: Vec<ScheduleRow> = context.client()?.call(&request)?;
    if rows.is_empty() {
        let fork = args.fork.as_deref().unwrap_or("FORK");
        context.ui.note(format!(
            "there is no schedule; make one with `pgcowfs schedule {fork} --every 1h --keep 24`"
        ));
    }
    context.ui.print(&SchedulesReport(rows))
}
