//! `pgcowfs umount`

use std::time::Duration;

use super::{Context, state};
use crate::args::Umount;
use crate::client::Client;
use crate::config::StoreConfig;
use crate::daemon::mounts;
use crate::error::Result;
use crate::postgres::server::{self, State, StopHow};
use crate::proc;
use crate::protocol::{ForkRow, Request};
use crate::report::UmountReport;

/// How long a daemon that has closed its store may take to be gone. A slow
/// disk can hold a thread of it.
const LAST_BREATH: Duration = Duration::from_secs(30);

/// Unmounts the store.
pub fn run(context: &Context, args: &Umount) -> Result<()> {
    context.paths.check()?;
    let mountpoint = StoreConfig::load(&context.paths)?.mountpoint(&context.paths);
    let client = match Client::connect(&context.paths)? {
        Some(client) => client,
        None if mounts::mounted(&mountpoint)?.is_some() => {
            // A dead mount: a daemon knows how to clear it, and whom to kill.
            Client::open(&context.paths)?
        }
        None => {
            return context.ui.print(&UmountReport { mountpoint, was_mounted: false, stopped: Vec::new() });
        }
    };
    end(context, args, client)
}

fn end(context: &Context, args: &Umount, mut client: Client) -> Result<()> {
    let mountpoint = client.hello.mountpoint.clone();
    let mut stopped = Vec::new();
    if args.stop || args.force {
        let (how, timeout) = match args.force {
            true => (StopHow::Immediate, Duration::from_secs(30)),
            false => (StopHow::Fast, Duration::from_secs(120)),
        };
        let rows: Vec<ForkRow> = client.call(&Request::List)?;
        for row in rows {
            // The daemon ends its pools itself.
            if let (State::Running(pid), false) = (state(&row), row.pooled) {
                context.ui.note(format!("stopping {}", row.name));
                server::stop(&row.name, &row.pgdata, pid, how, timeout)?;
                stopped.push(row.name);
            }
        }
    }
    let daemon = client.hello.pid;
    client.call::<()>(&Request::Shutdown { force: args.force })?;
    // It replies when the store is closed, and then has its files open for a
    // moment more: the disk is to be free when this returns.
    if !proc::wait_until(LAST_BREATH, || !proc::alive(daemon)) {
        context.ui.warn(format!("the store is closed, but its daemon (process {daemon}) has not ended yet"));
    }
    context.ui.print(&UmountReport { mountpoint, was_mounted: true, stopped })
}
