//! `pgcowfs promote`, `rename` and `protect`

use super::Context;
use crate::args::{Promote, Protect, Rename};
use crate::error::{Error, Kind, Result};
use crate::meta::Protection;
use crate::protocol::{ForkRow, Request};
use crate::report::{PromoteReport, ProtectReport, RenameReport};

/// Makes a fork a root of its own.
pub fn promote(context: &Context, args: &Promote) -> Result<()> {
    let before: ForkRow = context.client()?.call(&Request::Promote { fork: args.fork.clone() })?;
    context.ui.print(&PromoteReport { name: before.name, promoted_from: before.parent })
}

/// Gives a fork another name.
pub fn rename(context: &Context, args: &Rename) -> Result<()> {
    pgcowfs::check_fork_name(&args.new)?;
    let request = Request::Rename { fork: args.fork.clone(), to: args.new.clone() };
    let row: ForkRow = context.client()?.call(&request)?;
    context.ui.print(&RenameReport { fork: context.report(&row), renamed_from: args.fork.clone() })
}

/// Protects a fork, or lifts its protection.
pub fn protect(context: &Context, args: &Protect) -> Result<()> {
    let until = match args.period.map(|period| jiff::Timestamp::now().checked_add(period)) {
        None => None,
        Some(Ok(until)) => Some(format!("{until:.0}")),
        Some(Err(e)) => return Err(Error::new(Kind::Usage, "--for is too long").cause(e.to_string())),
    };
    let protection = (!args.off).then_some(Protection { until });
    let request = Request::Protect { fork: args.fork.clone(), protection };
    let row: ForkRow = context.client()?.call(&request)?;
    let protection = row.meta.protection();
    context.ui.print(&ProtectReport {
        protected: protection.is_some(),
        protected_until: protection.and_then(|protection| protection.until.clone()),
        name: row.name,
    })
}
