//! `pgcowfs expire`

use super::Context;
use crate::args::{Expire, ExpiryOptions};
use crate::error::{Error, Kind, Result};
use crate::meta::Expiry;
use crate::protocol::{ForkRow, Request};
use crate::report::ExpireReport;

/// Shows or changes when a fork is removed by itself.
pub fn run(context: &Context, args: &Expire) -> Result<()> {
    let mut client = context.client()?;
    let before = client.info(&args.fork)?;
    let change = args.off || args.expiry.ttl.is_some() || args.expiry.idle.is_some();
    let row: ForkRow = match change {
        false => before,
        true => {
            let old = before.meta.upkeep.expiry.filter(|_| !args.off);
            let expiry = expiry(&args.expiry, old)?;
            client.call(&Request::SetExpiry { fork: args.fork.clone(), expiry })?
        }
    };
    let expiry = row.meta.upkeep.expiry.unwrap_or_default();
    context.ui.print(&ExpireReport { name: row.name, expires_at: expiry.at, idle_s: expiry.idle_s })
}

/// What options say, from now on; the rest as it was.
pub fn expiry(options: &ExpiryOptions, old: Option<Expiry>) -> Result<Option<Expiry>> {
    let mut expiry = old.unwrap_or_default();
    if let Some(ttl) = options.ttl {
        let at = jiff::Timestamp::now().checked_add(ttl);
        let at = at.map_err(|e| Error::new(Kind::Usage, "--ttl is too long").cause(e.to_string()))?;
        expiry.at = Some(format!("{at:.0}"));
    }
    if let Some(idle) = options.idle {
        expiry.idle_s = Some(idle.as_secs().max(1));
    }
    Ok((expiry != Expiry::default()).then_some(expiry))
}
