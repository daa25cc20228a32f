//! `pgcowfs show` and `path`

use super::Context;
use crate::args::Show;
use crate::error::Result;
use crate::protocol::{ForkRow, Request};
use crate::report::PathReport;

/// Shows everything about one fork.
pub fn run(context: &Context, args: &Show) -> Result<()> {
    let row: ForkRow = context.client()?.call(&Request::Info { fork: args.fork.clone(), layout: true })?;
    context.ui.print(&context.report(&row))
}

/// Prints the path of a fork's data directory.
pub fn path(context: &Context, args: &Show) -> Result<()> {
    let row = context.client()?.info(&args.fork)?;
    context.ui.print(&PathReport { name: row.name, pgdata: row.pgdata })
}
