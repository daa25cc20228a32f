//! `pgcowfs fork`

use std::time::Duration;

use jiff::Timestamp;

use super::checkpoint::checkpoint;
use super::expire::expiry;
use super::{Context, address, mask, ms, start, state, user};
use crate::args::{CheckpointMode, CheckpointOptions, Fork, Place};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::meta::{Expiry, Mask};
use crate::postgres::cluster;
use crate::postgres::role::{HAS_DATA_ROLES, Role};
use crate::postgres::server::{self, StopHow};
use crate::protocol::{ForkRow, ForkSpec, Forked, Request, SnapshotRow};
use crate::report::{ForkedReport, MaskedReport};

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
    /// Whether it begins a new timeline.
    pub new_timeline: bool,
    /// Its quota in bytes.
    pub quota: Option<u64>,
    /// Whether it ends with the daemon.
    pub ephemeral: bool,
    /// Whether it ends with this program.
    pub leased: bool,
    /// When it is removed by itself.
    pub expiry: Option<Expiry>,
    /// Whether it is published later, if ever.
    pub incomplete: bool,
    /// Whether it is only there to be read.
    pub as_is: bool,
    /// Whether it is made to take its parent's place.
    pub aside: bool,
    /// What masks it before it is published.
    pub masks: Vec<Mask>,
}

impl<'a> Wanted<'a> {
    /// A fork of what `parent` is, with nothing special about it.
    pub fn of(place: &'a Place, parent: &ForkRow, child: String) -> Wanted<'a> {
        Wanted {
            parent: place,
            child,
            port: None,
            listen: parent.meta.listen.clone(),
            settings: Vec::new(),
            keep_identity: false,
            new_timeline: false,
            quota: None,
            ephemeral: false,
            leased: false,
            expiry: None,
            incomplete: false,
            as_is: false,
            aside: false,
            masks: parent.meta.mask_forks.clone(),
        }
    }
}

/// Forks a cluster.
pub fn run(context: &Context, args: &Fork) -> Result<()> {
    pgcowfs::check_fork_name(&args.child)?;
    let mut client = context.client()?;
    let place = at_time(&mut client, &args.parent)?;
    let parent = check_parent(&mut client, &place, &args.checkpoint)?;
    let role = match (&args.role.user, &args.role.password_file) {
        (Some(name), Some(file)) => Some(Role::new(name, file, args.role.restricted)?),
        _ => None,
    };
    if args.role.restricted && parent.meta.pg_version < HAS_DATA_ROLES {
        return Err(Error::new(Kind::Usage, "--restricted needs PostgreSQL 14 or newer")
            .cause(format!("{} is version {}", parent.name, parent.meta.pg_version))
            .hint("leave it away, and grant what the role needs"));
    }
    let masks = crate::meta::mask::all(&parent.meta.mask_forks, &mask::masks(&args.mask)?);
    refuse_taken(&mut client, &args.child)?;
    let checkpoint = checkpoint_first(context, &place, &parent, &args.checkpoint)?;
    if args.server.keep_identity && !masks.is_empty() {
        return Err(Error::new(Kind::Usage, "--mask does not go with --keep-identity")
            .cause("what replicates from a masked fork, or archives it, would have the data as it was"));
    }
    let wanted = Wanted {
        masks,
        port: args.server.port,
        listen: args.server.listen.clone(),
        settings: args.server.settings.clone(),
        keep_identity: args.server.keep_identity,
        new_timeline: args.new_timeline,
        quota: args.server.quota,
        ephemeral: args.ephemeral,
        expiry: expiry(&args.expiry, None)?,
        ..Wanted::of(&place, &parent, args.child.clone())
    };
    let Made { forked, masked } = fork(context, &mut client, wanted)?;
    let started = match args.start {
        true => Some(start::start(context, &mut client, &forked.row, &launch::default_options())?),
        false => None,
    };
    if let Some(role) = &role
        && let Err(error) = make_role(&mut client, role, &args.child)
    {
        // Half of what was asked for is nothing.
        undo(&mut client, &args.child)
            .map_err(|more| error.clone().cause(format!("the fork stays: {more}")))?;
        return Err(error);
    }
    let row = if args.start { client.info(&args.child)? } else { forked.row };
    context.ui.print(&ForkedReport {
        fork: context.report(&row),
        snapshot: place.label.clone(),
        fork_ms: forked.fork_ms,
        stall_ms: forked.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
        map_bytes: forked.map_bytes,
        start_ms: started.map(ms),
        user: args.role.user.clone(),
        masked,
        warnings: forked.warnings,
    })
}

fn make_role(client: &mut Client, role: &Role, fork: &str) -> Result<()> {
    let row = client.info(fork)?;
    role.make(&address(&row, &user(&row)?))
}

fn undo(client: &mut Client, fork: &str) -> Result<()> {
    let row = client.info(fork)?;
    if let Some(pid) = state(&row).pid() {
        server::stop(fork, &row.pgdata, pid, StopHow::Immediate, Duration::from_secs(60))?;
    }
    client.call(&Request::Remove { fork: fork.to_string() })
}

/// A place whose label is a time ago, such as `10 minutes ago`, is the newest snapshot
/// that is as old as that.
pub fn at_time(client: &mut Client, place: &Place) -> Result<Place> {
    let Some(label) = place.label.as_ref().filter(|label| label.ends_with(" ago")) else {
        return Ok(place.clone());
    };
    let Some(then) = time_ago(label) else {
        return Err(Error::new(Kind::Usage, format!("{label:?} is neither a label nor a time ago"))
            .hint("say how long ago, such as '10 minutes ago', '2h ago' or '1 day 2 hours ago'"));
    };
    let fork = &place.fork;
    let there: Vec<SnapshotRow> = client.call(&Request::Snapshots { fork: Some(fork.clone()) })?;
    let is_older = |row: &&SnapshotRow| row.created_at.parse::<Timestamp>().is_ok_and(|made| made <= then);
    match there.iter().rfind(is_older) {
        Some(row) => Ok(Place { fork: fork.clone(), label: Some(row.label.clone()) }),
        None => {
            let error = Error::new(Kind::NotFound, format!("fork {fork:?} has no snapshot from {label}"));
            Err(match there.first() {
                Some(oldest) => error.cause(format!("the oldest was made at {}", oldest.created_at)).hint(
                    format!("take that one: {fork}@{}; or see `pgcowfs snapshots {fork}`", oldest.label),
                ),
                None => error.hint(format!(
                    "it has none; have some made: pgcowfs schedule {fork} --every 1h --keep 24"
                )),
            })
        }
    }
}

/// The time that `10 minutes ago` is.
fn time_ago(text: &str) -> Option<Timestamp> {
    let span: jiff::Span = text.parse().ok()?;
    let time = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?;
    // With "ago" it is a negative one.
    if time.is_positive() { None } else { Timestamp::now().checked_add(time).ok() }
}

/// What is to be forked, unless it cannot be.
pub fn check_parent(client: &mut Client, place: &Place, options: &CheckpointOptions) -> Result<ForkRow> {
    let parent = client.info(&place.fork)?;
    if let Some(label) = &place.label {
        pgcowfs::check_label(label)?;
        if options.max_lag.is_some() {
            return Err(Error::new(Kind::Usage, "--max-lag does not go with a snapshot")
                .cause(format!("what {place} is was settled when it was made"))
                .hint("give it to `pgcowfs snapshot`"));
        }
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
pub fn fork(context: &Context, client: &mut Client, wanted: Wanted) -> Result<Made> {
    let masked = !wanted.masks.is_empty();
    let mut forked: Forked = client.call(&Request::Fork(ForkSpec {
        parent: wanted.parent.fork.clone(),
        snapshot: wanted.parent.label.clone(),
        child: wanted.child,
        port: wanted.port,
        listen: wanted.listen,
        settings: wanted.settings,
        keep_identity: wanted.keep_identity,
        new_timeline: wanted.new_timeline,
        quota: wanted.quota,
        ephemeral: wanted.ephemeral,
        leased: wanted.leased,
        expiry: wanted.expiry,
        incomplete: wanted.incomplete || masked,
        as_is: wanted.as_is,
        aside: wanted.aside,
        masks: wanted.masks,
    }))?;
    for warning in &forked.warnings {
        context.ui.warn(warning);
    }
    if !masked {
        return Ok(Made { forked, masked: None });
    }
    let name = forked.row.name.clone();
    let finished = mask::apply(context, client, &forked.row).and_then(|done| {
        if !wanted.incomplete {
            forked.row = client.call(&Request::Publish { fork: name.clone() })?;
        }
        Ok(done)
    });
    match finished {
        Ok(done) => Ok(Made { forked, masked: Some(done) }),
        Err(error) => {
            // If this fails, too, the daemon does it when the connection ends.
            match client.call::<()>(&Request::Remove { fork: name }) {
                Ok(()) => Err(error),
                Err(more) => Err(error.cause(format!("the fork is not removed yet: {more}"))),
            }
        }
    }
}

/// A fork that was made.
pub struct Made {
    /// What the daemon did.
    pub forked: Forked,
    /// What was masked, if anything was to be.
    pub masked: Option<MaskedReport>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_ago() {
        for text in ["10 minutes ago", "2h ago", "1 day 2 hours ago", "0s ago"] {
            assert!(time_ago(text).is_some_and(|then| then <= Timestamp::now()), "{text}");
        }
        for text in ["a while ago", " ago", "10 minutes", "-2h", "yesterday"] {
            assert!(
                time_ago(text).is_none_or(|then| !text.ends_with(" ago") || then > Timestamp::now()),
                "{text}"
            );
        }
    }
}
