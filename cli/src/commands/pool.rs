//! `pgcowfs pool`

use super::Context;
use crate::args::PoolArgs;
use crate::error::Result;
use crate::meta::Pool;
use crate::protocol::{PoolRow, Request};
use crate::report::PoolsReport;

/// Shows, sets or ends pools.
pub fn run(context: &Context, args: &PoolArgs) -> Result<()> {
    let request = match (&args.fork, args.size) {
        (Some(fork), Some(size)) => {
            let max_age_s = args.max_age.unwrap_or_default().as_secs();
            let pool = (size > 0).then_some(Pool { size, max_age_s });
            Request::SetPool { fork: fork.clone(), pool }
        }
        (fork, _) => Request::Pools { fork: fork.clone() },
    };
    let rows: Vec<PoolRow> = context.client()?.call(&request)?;
    if rows.is_empty() {
        let fork = args.fork.as_deref().unwrap_or("FORK");
        context.ui.note(format!("there is no pool; keep forks ready with `pgcowfs pool {fork} --size N`"));
    }
    context.ui.print(&PoolsReport(rows))
}
