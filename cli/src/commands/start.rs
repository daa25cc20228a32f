//! `pgcowfs start` and `restart`

use std::time::Duration;

use super::{Context, ms, state};
use crate::args::{Restart, Start, StartOptions};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::postgres::server::{self, State};
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
    launch::launch(&context.paths, context.ui, row, options)
}

/// Makes a fork durable, as far as its server will rely on that.
pub fn settle(client: &mut Client, row: &ForkRow) -> Result<()> {
    launch::check_files(row)?;
    match launch::needs_sync(row) {
        true => client.call(&Request::Sync { fork: row.name.clone() }),
        false => Ok(()),
    }
}
