//! `pgcowfs reset`

use std::time::Duration;

use super::checkpoint::checkpoint;
use super::fork::{self, Wanted};
use super::{Context, address, ms, start, state, user};
use crate::args::{Place, Reset, StartOptions};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::postgres::cluster;
use crate::postgres::connect::{self, Session};
use crate::postgres::server::{self, StopHow};
use crate::protocol::{ForkRow, Forked, Request, ResetSpec, ResetTarget};
use crate::report::ResetReport;

/// So many sessions are named in an error.
const NAMED_MAX: usize = 5;

/// Puts a fork back. Its server, if it runs, is stopped before and started after.
pub fn run(context: &Context, args: &Reset) -> Result<()> {
    let mut client = context.client()?;
    let row = client.info(&args.fork)?;
    let to = match args.to.as_deref() {
        None => ResetTarget::Origin,
        Some("parent") => ResetTarget::Parent,
        Some(label) => {
            pgcowfs::check_label(label)?;
            ResetTarget::Snapshot(label.to_string())
        }
    };
    if args.checkpoint.max_lag.is_some() && to != ResetTarget::Parent {
        return Err(Error::new(Kind::Usage, "--max-lag goes with --to parent"));
    }
    let aside = aside(&mut client, &row, &to)?;
    let mut spec = ResetSpec { fork: args.fork.clone(), to: to.clone(), origin: None };
    if aside.is_some() {
        spec.to = ResetTarget::Made(aside_name());
    }
    // Whatever stands in its way is found before anybody is disconnected.
    client.call::<()>(&Request::CheckReset(spec.clone()))?;
    if let Some(base) = &row.base {
        cluster::check_base(&row.name, base, row.meta.base_mark)?;
    }
    if !args.force && state(&row).pid().is_some() {
        refuse_sessions(&row, &force_hint(&row))?;
    }
    let checkpoint = match (&to, &row.parent) {
        (ResetTarget::Parent, Some(parent)) => checkpoint(context, &args.checkpoint, &client.info(parent)?)?,
        _ => None,
    };
    if let Some(parent) = &aside {
        // Its server runs on meanwhile.
        make_aside(context, &mut client, &row, parent)?;
    }
    let again = force_hint(&row);
    let swap =
        Swap { row: &row, spec, options: &args.options, unless_connected: (!args.force).then_some(&again) };
    let Swapped { done, stopped, started } = swap.run(context, &mut client)?;
    if aside.is_some()
        && let Err(error) = client.call::<()>(&Request::Remove { fork: aside_name() })
    {
        context.ui.warn(format!("what was made aside is not removed yet: {error}"));
    }
    for warning in &done.warnings {
        context.ui.warn(warning);
    }
    let row = if started.is_some() { client.info(&args.fork)? } else { done.row };
    context.ui.print(&ResetReport {
        fork: context.report(&row),
        reset_to: match to {
            ResetTarget::Origin => None,
            ResetTarget::Parent | ResetTarget::Made(_) => Some("parent".to_string()),
            ResetTarget::Snapshot(label) => Some(label),
        },
        reset_ms: done.fork_ms,
        stall_ms: done.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
        stop_ms: stopped.map(ms),
        start_ms: started.map(ms),
        warnings: done.warnings,
    })
}

fn force_hint(row: &ForkRow) -> String {
    format!("pgcowfs reset --force {}", row.name)
}

/// A fork that becomes something else, with its server, if that runs.
pub struct Swap<'a> {
    /// The fork.
    pub row: &'a ForkRow,
    /// What it becomes.
    pub spec: ResetSpec,
    /// How to start its server again.
    pub options: &'a StartOptions,
    /// Somebody who is connected stands in its way; a command that throws them out.
    pub unless_connected: Option<&'a String>,
}

/// What was done.
pub struct Swapped {
    /// By the daemon.
    pub done: Forked,
    /// How long its server took to stop, if it ran.
    pub stopped: Option<Duration>,
    /// And to start.
    pub started: Option<Duration>,
}

impl Swap<'_> {
    /// Stops the server, puts the fork back, and starts the server again.
    pub fn run(self, context: &Context, client: &mut Client) -> Result<Swapped> {
        let Swap { row, spec, options, unless_connected } = self;
        let now = client.info(&row.name)?;
        let running = state(&now).pid();
        // What was made aside may have taken a while.
        if let (Some(force), Some(_)) = (unless_connected, running) {
            refuse_sessions(&now, force)?;
        }
        let stopped = match running {
            // What it would still write is thrown away.
            Some(pid) => {
                Some(server::stop(&row.name, &row.pgdata, pid, StopHow::Immediate, options.timeout)?)
            }
            None => None,
        };
        let done = match client.call::<Forked>(&Request::Reset(spec)) {
            Ok(done) => done,
            Err(error) => {
                if running.is_some()
                    && let Err(error) = start::start(context, client, row, options)
                {
                    context.ui.warn(format!("{} was stopped, and does not start again: {error}", row.name));
                }
                return Err(error);
            }
        };
        let started = match running {
            Some(_) => Some(start::start(context, client, &done.row, options)?),
            None => None,
        };
        Ok(Swapped { done, stopped, started })
    }
}

/// As `dropdb` does: whoever is connected is not thrown out unasked.
pub fn refuse_sessions(row: &ForkRow, force: &str) -> Result<()> {
    let sessions = connect::sessions(&address(row, &user(row)?)).map_err(|error| {
        // It may have ended meanwhile.
        error
            .within(format!("cannot tell who is connected to fork {:?}", row.name))
            .hint(format!("try again, or disconnect whoever it is: {force}"))
    })?;
    if sessions.is_empty() {
        return Ok(());
    }
    let number = sessions.len();
    let plural = if number == 1 { "session" } else { "sessions" };
    let mut error = Error::new(Kind::State, format!("fork {:?} has {number} open {plural}", row.name));
    for Session { application, database, role, pid } in sessions.iter().take(NAMED_MAX) {
        error = error.cause(format!("{application} is connected to {database} as {role} (process {pid})"));
    }
    if number > NAMED_MAX {
        error = error.cause(format!("and {} more", number - NAMED_MAX));
    }
    Err(error.hint(format!("end them, or have them disconnected: {force}")))
}

/// The parent, if what the fork becomes is to be masked before it is seen.
fn aside(client: &mut Client, row: &ForkRow, to: &ResetTarget) -> Result<Option<ForkRow>> {
    let (ResetTarget::Parent, Some(parent)) = (to, &row.parent) else { return Ok(None) };
    // One that is gone is refused later.
    let Ok(parent) = client.info(parent) else { return Ok(None) };
    let masked = !row.meta.masks.is_empty() || !parent.meta.mask_forks.is_empty();
    Ok(masked.then_some(parent))
}

/// The name of what is made aside, which nobody sees.
fn aside_name() -> String {
    format!("reset-{}", std::process::id())
}

/// A fork of the parent, masked as the fork was.
fn make_aside(context: &Context, client: &mut Client, row: &ForkRow, parent: &ForkRow) -> Result<()> {
    let place = Place { fork: parent.name.clone(), label: None };
    let masks = crate::meta::mask::all(&parent.meta.mask_forks, &row.meta.masks);
    let wanted = Wanted { incomplete: true, masks, ..Wanted::of(&place, parent, aside_name()) };
    fork::fork(context, client, wanted).map(|_| ())
}
