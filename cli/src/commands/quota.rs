//! `pgcowfs quota`

use super::Context;
use crate::args::{Quota, QuotaChange};
use crate::error::Result;
use crate::protocol::{ForkRow, Request};
use crate::report::QuotaReport;

/// Shows or changes a fork's quota.
pub fn run(context: &Context, args: &Quota) -> Result<()> {
    let mut client = context.client()?;
    let row: ForkRow = match args.size {
        None => client.info(&args.fork)?,
        Some(change) => {
            let bytes = match change {
                QuotaChange::Bytes(bytes) => Some(bytes),
                QuotaChange::Lift => None,
            };
            client.call(&Request::SetQuota { fork: args.fork.clone(), bytes })?
        }
    };
    context.ui.print(&QuotaReport {
        name: row.name,
        quota_bytes: row.quota_bytes,
        used_bytes: row.used_bytes,
    })
}
