//! `pgcowfs fork`

use std::time::Duration;

use super::checkpoint::checkpoint;
use super::{Context, ms, start};
use crate::args::{BinaryOptions, CheckpointMode, Fork, StartOptions, Switch};
use crate::error::{Error, Kind, Result};
use crate::postgres::cluster;
use crate::protocol::{ForkSpec, Forked, Request};
use crate::report::ForkedReport;

/// Forks a cluster.
pub fn run(context: &Context, args: &Fork) -> Result<()> {
    pgcowfs::check_fork_name(&args.child)?;
    let mut client = context.client()?;
    let parent = client.info(&args.parent.fork)?;
    if let Some(label) = &args.parent.label {
        pgcowfs::check_label(label)?;
        if args.checkpoint.checkpoint == CheckpointMode::Always {
            return Err(Error::new(Kind::Usage, "--checkpoint always does not go with a snapshot")
                .cause(format!("what {} is was settled when it was made", args.parent))
                .hint("give it to `pgcowfs snapshot`"));
        }
    }
    // A name that is taken should not cost a checkpoint.
    if client.info(&args.child).is_ok() {
        return Err(pgcowfs::Error::ForkExists(args.child.clone()).into());
    }
    if let Some(base) = &parent.base {
        cluster::check_base(&parent.name, base, parent.meta.base_mark)?;
    }
    let checkpoint = match &args.parent.label {
        None => checkpoint(context, &args.checkpoint, &parent)?,
        Some(_) => None,
    };
    let forked: Forked = client.call(&Request::Fork(ForkSpec {
        parent: args.parent.fork.clone(),
        snapshot: args.parent.label.clone(),
        child: args.child.clone(),
        port: args.server.port,
        listen: args.server.listen.clone(),
        settings: args.server.settings.clone(),
        keep_identity: args.server.keep_identity,
        quota: args.server.quota,
        ephemeral: args.ephemeral,
    }))?;
    for warning in &forked.warnings {
        context.ui.warn(warning);
    }
    let started = match args.start {
        true => Some(start::start(context, &mut client, &forked.row, &start_options())?),
        false => None,
    };
    let row = if args.start { client.info(&args.child)? } else { forked.row };
    context.ui.print(&ForkedReport {
        fork: context.report(&row),
        snapshot: args.parent.label.clone(),
        fork_ms: forked.fork_ms,
        stall_ms: forked.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
        map_bytes: forked.map_bytes,
        start_ms: started.map(ms),
        warnings: forked.warnings,
    })
}

/// `start`'s defaults.
fn start_options() -> StartOptions {
    StartOptions {
        timeout: Duration::from_secs(60),
        full_page_writes: Switch::On,
        binaries: BinaryOptions { pg_bin: None },
        settings: Vec::new(),
    }
}
