//! `pgcowfs run`: forks for one command.
//!
//! The forks belong to this program's connection to the daemon, which ends them when
//! that ends. So they go whatever happens to this program, and whatever goes wrong in
//! here needs no cleaning up.

use std::ffi::OsString;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Instant;

use super::fork::{self, Wanted};
use super::{Context, ms, relay::Relay, start};
use crate::args::{CheckpointMode, Run};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::protocol::{ForkRow, Request};
use crate::report::RunReport;

/// Runs a command with forks of its own; the command's exit code.
pub fn run(context: &Context, args: &Run) -> Result<ExitCode> {
    let began = Instant::now();
    // From here on a signal ends this program, and the daemon removes what is there.
    let relay = Relay::start()?;
    let mut client = context.client()?;
    let (rows, pooled) = ready(context, &mut client, args).inspect_err(|_| {
        // Whoever reads the error is to find nothing. If this fails, too, the daemon
        // does it when this program ends.
        let _ = client.call::<()>(&Request::EndLeases);
    })?;
    let ready_ms = ms(began.elapsed());
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]);
    for (number, row) in rows.iter().enumerate() {
        for (name, value) in variables(row, &args.database) {
            command.env(format!("{name}_{}", number + 1), &value);
            if number == 0 {
                command.env(name, &value);
            }
        }
    }
    let code = match relay.run(&mut command) {
        Ok(status) => exit_code(status),
        Err(e) => {
            let (kind, code) = match e.kind() {
                std::io::ErrorKind::NotFound => (Kind::NotFound, 127),
                _ => (Kind::Environment, 126),
            };
            let program = args.command[0].to_string_lossy();
            let error = Error::new(kind, format!("cannot run {program:?}")).cause(e.to_string());
            context.ui.error(&error.hint("give a command that can be run after `--`"));
            code
        }
    };
    let mut kept = Vec::new();
    if code != 0 && args.keep_on_failure {
        for row in &rows {
            client.call::<()>(&Request::Keep { fork: row.name.clone() })?;
            kept.push(row.name.clone());
        }
    }
    if client.call::<()>(&Request::EndLeases).is_err()
        && let Err(error) = remove_left(context, args, &rows)
    {
        context.ui.warn(format!("cannot tell whether the forks are removed: {error}"));
    }
    context.ui.aside(&RunReport {
        forks: rows.iter().map(|row| row.name.clone()).collect(),
        ephemeral: !args.durable,
        pooled,
        ready_ms,
        exit_code: code,
        kept,
    })?;
    Ok(ExitCode::from(code))
}

/// Removes what the daemon has left that had the forks, and has ended: ephemeral ones
/// have ended with it, and their servers, too.
fn remove_left(context: &Context, args: &Run, rows: &[ForkRow]) -> Result<()> {
    if !args.durable {
        return Ok(());
    }
    let mut client = context.client()?;
    for row in rows {
        match client.call::<()>(&Request::Remove { fork: row.name.clone() }) {
            Err(error) if error.kind != Kind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Forks with servers that run, and how many of them came from a pool: the others are
/// made, and started.
fn ready(context: &Context, client: &mut Client, args: &Run) -> Result<(Vec<ForkRow>, usize)> {
    let mut rows = from_pool(client, args)?;
    let pooled = rows.len();
    let names = names(args).split_off(pooled);
    if names.is_empty() {
        return Ok((rows, pooled));
    }
    for name in &names {
        pgcowfs::check_fork_name(name)?;
    }
    let place = fork::at_time(client, &args.parent)?;
    let parent = fork::check_parent(client, &place, &args.checkpoint)?;
    for name in &names {
        fork::refuse_taken(client, name)?;
    }
    fork::checkpoint_first(context, &place, &parent, &args.checkpoint)?;
    for child in names {
        let wanted = Wanted { ephemeral: !args.durable, leased: true, ..Wanted::of(&place, &parent, child) };
        rows.push(fork::fork(context, client, wanted)?.forked.row);
    }
    let made = &rows[pooled..];
    for row in made {
        start::settle(client, row)?;
    }
    let start = |row: &ForkRow| launch::launch(&context.paths, context.ui, row, &args.options);
    let started: Vec<Result<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = made.iter().map(|row| scope.spawn(|| start(row))).collect();
        let gone = || Err(Error::new(Kind::Failed, "a thread of this program has ended"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    started.into_iter().collect::<Result<Vec<_>>>()?;
    Ok((rows, pooled))
}

/// Takes as many forks as are wanted, and ready; none if something is wanted that they
/// do not have.
fn from_pool(client: &mut Client, args: &Run) -> Result<Vec<ForkRow>> {
    let special = args.durable
        || args.name.is_some()
        || args.parent.label.is_some()
        || args.checkpoint.checkpoint == CheckpointMode::Always
        || args.options.binaries.pg_bin.is_some()
        || !args.options.settings.is_empty();
    let mut rows = Vec::new();
    while !special && rows.len() < usize::from(args.count) {
        let Some(row) = client.call(&Request::Take { parent: args.parent.fork.clone() })? else { break };
        rows.push(row);
    }
    Ok(rows)
}

/// The forks' names, which are nobody else's at the same time on this machine.
fn names(args: &Run) -> Vec<String> {
    let made_up = || format!("{}-run-{}", launch::stem(&args.parent.fork), std::process::id());
    let stem = args.name.clone().unwrap_or_else(made_up);
    match args.count {
        1 => vec![stem],
        count => (1..=count).map(|number| format!("{stem}-{number}")).collect(),
    }
}

/// What tells a program how to reach a fork.
pub fn variables(row: &ForkRow, database: &str) -> [(&'static str, OsString); 6] {
    let meta = &row.meta;
    // Not every driver knows Unix sockets in a URL.
    let tcp = meta.tcp_url(database, true).filter(|_| meta.password.is_some());
    [
        ("PGHOST", meta.socket_dir.clone().into()),
        ("PGPORT", meta.port.to_string().into()),
        ("PGUSER", meta.superuser.clone().into()),
        ("PGDATABASE", database.into()),
        ("DATABASE_URL", tcp.unwrap_or_else(|| meta.socket_url(database)).into()),
        ("PGCOWFS_FORK", row.name.clone().into()),
    ]
}

/// As shells have it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        // The raw status of wait(2): a code in the upper byte, a signal in the lower.
        for (raw, code) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (2, 130), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}
