//! `pgcowfs stats`

use std::thread;

use super::Context;
use crate::args::Stats as Args;
use crate::error::Result;
use crate::protocol::{Request, Stats};
use crate::report::{StatsReport, prometheus};

/// Shows what the daemon has counted.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let mut client = context.client()?;
    let mut ask = || client.call::<Stats>(&Request::Stats { fork: args.fork.clone() });
    if args.prometheus {
        return context.ui.print_text(prometheus(&ask()?));
    }
    let Some(interval) = args.watch else {
        return context.ui.print(&StatsReport::new(&ask()?, None, args.fork.is_some()));
    };
    let mut before = ask()?;
    loop {
        thread::sleep(interval);
        let now = ask()?;
        let report = StatsReport::new(&now.since(&before), Some(interval), args.fork.is_some());
        if !context.ui.print_next(&report)? {
            return Ok(());
        }
        before = now;
    }
}
