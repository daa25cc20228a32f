//! `pgcowfs start` and `restart`

use std::time::Duration;

use super::{Context, ms, state, user};
use crate::args::{Restart, Start, StartOptions, Switch};
use crate::client::Client;
use crate::daemon::{ports, sockets};
use crate::error::{Error, Kind, Result};
use crate::postgres::server::{self, State};
use crate::postgres::{binaries, cluster};
use crate::protocol::{ForkRow, Request};
use crate::report::StartReport;

/// Starts a fork's server.
pub fn run(context: &Context, args: &Start) -> Result<()> {
    let mut client = context.client()?;
    let row = client.info(&args.fork)?;
    refuse_running(&row)?;
    let row = match args.port {
        Some(port) if port != row.meta.port => {
            client.call(&Request::SetPort { fork: args.fork.clone(), port })?
        }
        _ => row,
    };
    start_and_print(context, &mut client, &row, &args.options)
}

/// Stops a fork's server if it runs, and starts it.
pub fn restart(context: &Context, args: &Restart) -> Result<()> {
    let mut client = context.client()?;
    let row = client.info(&args.fork)?;
    if let State::Running(pid) = state(&row) {
        server::stop(&row.name, &row.pgdata, pid, super::stop::how(args.mode), args.options.timeout)?;
    }
    start_and_print(context, &mut client, &row, &args.options)
}

fn start_and_print(
    context: &Context,
    client: &mut Client,
    row: &ForkRow,
    options: &StartOptions,
) -> Result<()> {
    let took = start(context, client, row, options)?;
    let row = client.info(&row.name)?;
    context.ui.print(&StartReport { fork: context.report(&row), start_ms: ms(took) })
}

fn refuse_running(row: &ForkRow) -> Result<()> {
    match state(row) {
        State::Running(pid) => {
            Err(Error::new(Kind::State, format!("fork {:?} is running already", row.name))
                .cause(format!("process {pid} serves it on port {}", row.meta.port))
                .hint(format!("connect: pgcowfs psql {0}; or restart it: pgcowfs restart {0}", row.name)))
        }
        State::Stopped | State::Crashed => Ok(()),
    }
}

/// Starts the server of a fork that does not run.
pub fn start(
    context: &Context,
    client: &mut Client,
    row: &ForkRow,
    options: &StartOptions,
) -> Result<Duration> {
    settle(client, row)?;
    launch(context, row, options)
}

/// From PostgreSQL 14 on, its server may leave out its fsync of every file before a
/// recovery, if the whole fork is durable. An ephemeral one does no fsync at all.
fn needs_sync(row: &ForkRow) -> bool {
    !row.ephemeral && row.meta.pg_version >= 14
}

/// Makes a fork durable, as far as its server will rely on that.
pub fn settle(client: &mut Client, row: &ForkRow) -> Result<()> {
    match needs_sync(row) {
        true => client.call(&Request::Sync { fork: row.name.clone() }),
        false => Ok(()),
    }
}

/// Starts the server of a fork that has been settled.
pub fn launch(context: &Context, row: &ForkRow, options: &StartOptions) -> Result<Duration> {
    let name = &row.name;
    if let (Some(fault), true) = (&row.fault, row.base_changed) {
        return Err(Error::new(Kind::BadInput, format!("the base of fork {name:?} has changed"))
            .cause(fault.clone())
            .hint("restore the base as it was and mount anew (pgcowfs umount), or remove the fork"));
    }
    if let Some(fault) = &row.fault {
        return Err(Error::new(Kind::Storage, format!("fork {name:?} accepts nothing any more"))
            .cause(fault.clone())
            .hint("its files cannot be trusted; remove it, and fork its parent anew"));
    }
    if let Some(base) = &row.base {
        cluster::check_base(name, base, row.meta.base_mark)?;
    }
    let user = user(row)?;
    if user.uid == 0 {
        // PostgreSQL refuses root; what else the store names as its program does not.
        return Err(Error::new(Kind::BadInput, format!("fork {name:?} would run as root"))
            .cause("PostgreSQL never does")
            .hint("make it anew with --run-as USER"));
    }
    let pg_bin = options.binaries.pg_bin.as_deref().or(row.meta.pg_bin.as_deref());
    let binaries = binaries::find(pg_bin, Some(row.meta.pg_version))?;
    if ports::busy(row.meta.port, &row.meta.listen) {
        return Err(ports::in_use(row.meta.port, Some(name)));
    }
    sockets::ensure(&context.paths, name, &row.meta.socket_dir, row.meta.uid, row.meta.gid)?;
    let mut settings = vec![
        // As the fork's own configuration says, unless it was edited since:
        // what is printed and tested for is what holds.
        ("port".to_string(), row.meta.port.to_string()),
        ("unix_socket_directories".to_string(), row.meta.socket_dir.display().to_string()),
    ];
    let full_page_writes = if options.full_page_writes == Switch::On { "on" } else { "off" };
    settings.push(("full_page_writes".to_string(), full_page_writes.to_string()));
    if row.ephemeral {
        // Nothing of it survives what these are there for.
        settings
            .extend(["fsync", "synchronous_commit", "full_page_writes"].map(|s| (s.into(), "off".into())));
    }
    if needs_sync(row) {
        settings.push(("recovery_init_sync_method".to_string(), "syncfs".to_string()));
    }
    settings.extend_from_slice(&options.settings);
    let start = server::Start {
        fork: name,
        binaries: &binaries,
        user: &user,
        pgdata: &row.pgdata,
        socket_dir: &row.meta.socket_dir,
        log: &context.paths.server_log(name),
        settings,
        timeout: options.timeout,
    };
    server::start(&start, context.ui)
}
