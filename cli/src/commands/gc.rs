//! `pgcowfs gc`

use std::time::Instant;

use super::{Context, ms};
use crate::args::Gc;
use crate::error::Result;
use crate::protocol::{Progress, Request};
use crate::report::GcReport;

/// Gives the space that nothing needs back to the disk.
pub fn run(context: &Context, args: &Gc) -> Result<()> {
    let started = Instant::now();
    let mut bar = None;
    let mut tell = |p: Progress| {
        let bar = bar.get_or_insert_with(|| context.ui.progress("giving back", p.total));
        bar.add(p.bytes);
    };
    let collected = context.client()?.call_long(&Request::Collect { wait: args.wait }, &mut tell)?;
    if let Some(bar) = bar {
        bar.finish();
    }
    context.ui.print(&GcReport { collected, took_ms: ms(started.elapsed()) })
}
