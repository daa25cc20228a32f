//! `pgcowfs fork`

use std::time::Duration;

use super::checkpoint::checkpoint;
use super::expire::expiry;
use super::{Context, ms, start};
use crate::args::{CheckpointMode, CheckpointOptions, Fork, Place};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::meta::Expiry;
use crate::postgres::cluster;
use crate::protocol::{ForkRow, ForkSpec, Forked, Request};
use crate::report::ForkedReport;

/// A fork to make.
pub struct Wanted<'a> {
    /// What to fork.
    pub parent: &'a Place,
    /// The new fork's name.
    pub child: String,
    /// Its port, if not the first free one.
    pub port: Option<u16>,
    /// `listen_addresses`.
    pub listen: String,
    /// Settings for its configuration.
    pub settings: Vec<(String, String)>,
    /// Whether it may act as its parent.
    pub keep_identity: bool,
    /// Its quota in bytes.
    pub quota: Option<u64>,
    /// Whether it ends with the daemon.
    pub ephemeral: bool,
    /// Whether it ends with this program.
    pub leased: bool,
    /// When it is removed by itself.
    pub expiry: Option<Expiry>,
}

/// Forks a cluster.
pub fn run(context: &Context, args: &Fork) -> Result<()> {
    pgcowfs::check_fork_name(&args.child)?;
    let mut client = context.client()?;
    let parent = check_parent(&mut client, &args.parent, &args.checkpoint)?;
    refuse_taken(&mut client, &args.child)?;
    let checkpoint = checkpoint_first(context, &args.parent, &parent, &args.checkpoint)?;
    let wanted = Wanted {
        parent: &args.parent,
        child: args.child.clone(),
        port: args.server.port,
        listen: args.server.listen.clone(),
        settings: args.server.settings.clone(),
        keep_identity: args.server.keep_identity,
        quota: args.server.quota,
        ephemeral: args.ephemeral,
        leased: false,
        expiry: expiry(&args.expiry, None)?,
    };
    let forked = fork(context, &mut client, wanted)?;
    let started = match args.start {
        true => Some(start::start(context, &mut client, &forked.row, &launch::default_options())?),
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

/// What is to be forked, unless it cannot be.
pub fn check_parent(client: &mut Client, place: &Place, options: &CheckpointOptions) -> Result<ForkRow> {
    let parent = client.info(&place.fork)?;
    if let Some(label) = &place.label {
        pgcowfs::check_label(label)?;
        if options.checkpoint == CheckpointMode::Always {
            return Err(Error::new(Kind::Usage, "--checkpoint always does not go with a snapshot")
                .cause(format!("what {place} is was settled when it was made"))
                .hint("give it to `pgcowfs snapshot`"));
        }
    }
    if let Some(base) = &parent.base {
        cluster::check_base(&parent.name, base, parent.meta.base_mark)?;
    }
    Ok(parent)
}

/// A name that is taken should not cost a checkpoint.
pub fn refuse_taken(client: &mut Client, name: &str) -> Result<()> {
    match client.info(name).is_ok() {
        true => Err(pgcowfs::Error::ForkExists(name.to_string()).into()),
        false => Ok(()),
    }
}

/// Shortens the recovery of what is made from a running fork.
pub fn checkpoint_first(
    context: &Context,
    place: &Place,
    parent: &ForkRow,
    options: &CheckpointOptions,
) -> Result<Option<Duration>> {
    match place.label {
        None => checkpoint(context, options, parent),
        Some(_) => Ok(None),
    }
}

/// Has the daemon make a fork.
pub fn fork(context: &Context, client: &mut Client, wanted: Wanted) -> Result<Forked> {
    let forked: Forked = client.call(&Request::Fork(ForkSpec {
        parent: wanted.parent.fork.clone(),
        snapshot: wanted.parent.label.clone(),
        child: wanted.child,
        port: wanted.port,
        listen: wanted.listen,
        settings: wanted.settings,
        keep_identity: wanted.keep_identity,
        quota: wanted.quota,
        ephemeral: wanted.ephemeral,
        leased: wanted.leased,
        expiry: wanted.expiry,
    }))?;
    for warning in &forked.warnings {
        context.ui.warn(warning);
    }
    Ok(forked)
}
