//! `pgcowfs list`

use super::Context;
use crate::error::Result;
use crate::protocol::{ForkRow, Request};
use crate::report::ListReport;

/// Lists the forks.
pub fn run(context: &Context) -> Result<()> {
    let rows: Vec<ForkRow> = context.client()?.call(&Request::List)?;
    if rows.is_empty() {
        context.ui.note("the store has no forks; make one with `pgcowfs create NAME`");
    }
    context.ui.print(&ListReport(rows.iter().map(|row| context.report(row)).collect()))
}
