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
    let mut look =
        || -> Result<(Stats, Instant)> { Ok((client.call(&Request::Stats { fork: None })?, Instant::now())) };
    let (mut before, mut since) = look()?;
    loop {
        thread::sleep(args.interval);
        let (now, at) = look()?;
        let forks: Vec<ForkRow> = context.client()?.call(&Request::List)?;
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
