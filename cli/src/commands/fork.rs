//! `pgcowfs fork`

use std::time::Duration;

use super::{Context, ms, start, state, user};
use crate::args::{BinaryOptions, CheckpointMode, Fork, StartOptions, Switch};
use crate::error::Result;
use crate::postgres::cluster;
use crate::postgres::connect::{self, Address, When};
use crate::postgres::server::State;
use crate::protocol::{ForkRow, ForkSpec, Forked, Request};
use crate::report::ForkedReport;

/// Forks a cluster.
pub fn run(context: &Context, args: &Fork) -> Result<()> {
    pgcowfs::check_fork_name(&args.child)?;
    let mut client = context.client()?;
    let parent = client.info(&args.parent)?;
    // A name that is taken should not cost a checkpoint.
    if client.info(&args.child).is_ok() {
        return Err(pgcowfs::Error::ForkExists(args.child.clone()).into());
    }
    if let Some(base) = &parent.base {
        cluster::check_base(&parent.name, base, parent.meta.base_mark)?;
    }
    let checkpoint = checkpoint(context, args, &parent)?;
    let forked: Forked = client.call(&Request::Fork(ForkSpec {
        parent: args.parent.clone(),
        child: args.child.clone(),
        port: args.server.port,
        listen: args.server.listen.clone(),
        settings: args.server.settings.clone(),
        keep_identity: args.server.keep_identity,
        quota: args.server.quota,
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
        fork_ms: forked.fork_ms,
        stall_ms: forked.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
        map_bytes: forked.map_bytes,
        start_ms: started.map(ms),
        warnings: forked.warnings,
    })
}

/// Shortens the recovery that the fork will begin with.
fn checkpoint(context: &Context, args: &Fork, parent: &ForkRow) -> Result<Option<Duration>> {
    let when = match args.checkpoint {
        CheckpointMode::Never => return Ok(None),
        CheckpointMode::Auto => When::AboveWal(args.checkpoint_wal),
        CheckpointMode::Always => When::Always,
    };
    let State::Running(_) = state(parent) else {
        return Ok(None);
    };
    let user = user(parent)?;
    let address = Address {
        socket_dir: &parent.meta.socket_dir,
        port: parent.meta.port,
        role: &parent.meta.superuser,
        password: parent.meta.password.as_deref(),
        user: &user,
    };
    match connect::checkpoint(&address, when) {
        Ok(took) => Ok(took),
        // The fork is as good without it, it only recovers for longer.
        Err(error) if args.checkpoint == CheckpointMode::Auto => {
            context.ui.warn(format!("forking without a CHECKPOINT before: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.hint(
            "fork without it: --checkpoint never (the fork then recovers for longer at its first start)",
        )),
    }
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
