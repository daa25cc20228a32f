//! `pgcowfs top`

use std::thread;
use std::time::Instant;

use super::Context;
use crate::args::Top;
use crate::error::Result;
use crate::protocol::{ForkRow, Request, Stats};
use crate::report::TopReport;

/// Shows what each fork asks of the daemon, again and again.
pub fn run(context: &Context, args: &Top) -> Result<()> {
    let mut client = context.client()?;
    // On one connection: a daemon that has ended is not started again.
    let mut look = || -> Result<(Stats, Instant, Vec<ForkRow>)> {
        let stats = client.call(&Request::Stats { fork: None })?;
        let at = Instant::now();
        Ok((stats, at, client.call(&Request::List)?))
    };
    let (mut before, mut since, _) = look()?;
    loop {
        thread::sleep(args.interval);
        let (now, at, forks) = look()?;
        let report = TopReport::new(&now.since(&before), &forks, at - since);
        if args.once {
            return context.ui.print(&report);
        }
        if !context.ui.print_next(&report)? {
            return Ok(());
        }
        (before, since) = (now, at);
    }
}
