//! `pgcowfs footprint`

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::diff::{compare, resolve, running_names, write_out};
use super::fork::{self, Wanted};
use super::run::variables;
use super::{Context, address, ms, start, state, user};
use crate::args::{CheckpointMode, CheckpointOptions, Footprint, Place};
use crate::client::Client;
use crate::error::{Context as _, Error, Kind, Result};
use crate::launch;
use crate::postgres::observe::{self, SAYS_SINCE_WHEN, Waits};
use crate::proc;
use crate::protocol::{ForkRow, Request, Snapshotted};
use crate::report::{FootprintReport, Pages};

/// How often it is looked whether to stop the command.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What a command is given to end by itself when it is told to.
const PATIENCE: Duration = Duration::from_secs(5);
/// The label of what the fork was before the command.
const BEFORE: &str = "before";

/// Runs a command on a throwaway fork, and shows what it has written.
pub fn run(context: &Context, args: &Footprint) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone()).context(|| "cannot watch for signals")?;
    }
    let mut client = context.client()?;
    let place = fork::at_time(&mut client, &args.fork)?;
    // What its server has not written is settled before the command is measured.
    let unasked = CheckpointOptions { checkpoint: CheckpointMode::Never, checkpoint_wal: 0, max_lag: None };
    let parent = fork::check_parent(&mut client, &place, &unasked)?;
    if args.max_lock_wait.is_some() && parent.meta.pg_version < SAYS_SINCE_WHEN {
        return Err(Error::new(Kind::Usage, "--max-lock-wait needs PostgreSQL 14 or newer")
            .cause(format!("{} is version {}", parent.name, parent.meta.pg_version))
            .hint("leave it away"));
    }
    let name = format!("footprint-{}", std::process::id());
    // It goes whatever becomes of this program.
    let wanted = Wanted { leased: true, ..Wanted::of(&place, &parent, name) };
    let forked = fork::fork(context, &mut client, wanted)?.forked;
    let report = measure(context, args, &mut client, &forked.row, &interrupted);
    // Whoever reads the report is to find nothing. What went wrong first is what matters.
    let removed = client.call::<()>(&Request::EndLeases);
    let report = report?;
    removed?;
    context.ui.print(&report)?;
    verdict(args, &report)
}

fn measure(
    context: &Context,
    args: &Footprint,
    client: &mut Client,
    fork: &ForkRow,
    interrupted: &AtomicBool,
) -> Result<FootprintReport> {
    let mut options = launch::default_options();
    options.settings.push(("autovacuum".into(), "off".into()));
    options.settings.extend_from_slice(&args.settings);
    start::start(context, client, fork, &options)?;
    let row = client.info(&fork.name)?;
    let names_before = running_names(context, &row)?;
    // What its recovery has changed is not the command's.
    write_out(&row)?;
    let before = Request::Snapshot { fork: row.name.clone(), label: Some(BEFORE.into()) };
    client.call::<Snapshotted>(&before)?;
    let user = user(&row)?;
    let server = address(&row, &user);
    let wal = observe::wal_position(&server)?;

    let (stop, began) = (AtomicBool::new(false), Instant::now());
    let look = row.meta.pg_version >= SAYS_SINCE_WHEN;
    let (ended, waits, time) = thread::scope(|scope| {
        let watching = scope.spawn(|| match look {
            true => observe::lock_waits(&server, &stop).map(Some),
            false => Ok(None),
        });
        let ended = run_command(context, args, &row, interrupted);
        let time = began.elapsed();
        stop.store(true, Ordering::SeqCst);
        let waits = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (ended, waits, time)
    });
    let (status, stopped) = ended?;
    if interrupted.load(Ordering::SeqCst) {
        return Err(
            Error::new(Kind::Failed, "interrupted").hint("the fork is removed; nothing is left to do")
        );
    }
    if state(&row).pid().is_none() {
        return Err(Error::new(Kind::Postgres, "the fork's server has ended while the command ran")
            .hint(format!("its log tells why: {}", context.paths.server_log(&row.name).display())));
    }
    let waits: Option<Waits> = waits?;
    let wal_bytes = observe::wal_position(&server)?.saturating_sub(wal);
    write_out(&row)?;
    let names_after = running_names(context, &row)?;
    let side = |label: Option<&str>| Place { fork: row.name.clone(), label: label.map(String::from) };
    let changes = compare(client, &side(Some(BEFORE)), &side(None))?;
    let (relations, _) = resolve(&changes, [names_before.as_ref(), names_after.as_ref()]);
    let mut pages = Pages::default();
    relations.iter().for_each(|relation| pages.add(&relation.pages));
    let mut report = FootprintReport {
        fork: args.fork.to_string(),
        command: args.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        exit_status: status.code(),
        stopped,
        time_ms: ms(time),
        wal_bytes,
        pages_written: pages.changed + pages.added,
        pages,
        relations,
        lock_waits: waits,
        exceeded: Vec::new(),
    };
    report.exceeded = exceeded(args, &report);
    Ok(report)
}

/// Runs the command; whether it was stopped because it took too long.
fn run_command(
    context: &Context,
    args: &Footprint,
    row: &ForkRow,
    interrupted: &AtomicBool,
) -> Result<(ExitStatus, bool)> {
    let (program, rest) = args.command.split_first().ok_or_else(|| Error::new(Kind::Usage, "no command"))?;
    let mut command = Command::new(program);
    command.args(rest).envs(variables(row, "postgres"));
    if context.ui.is_json() {
        command.stdout(std::io::stderr());
    }
    let mut child = command.spawn().map_err(|e| {
        Error::io(format!("cannot run {}", program.to_string_lossy()), &e)
            .hint("give a program, and its arguments after it")
    })?;
    let pid =
        i32::try_from(child.id()).map_err(|_| Error::new(Kind::Failed, "a process number is too large"))?;
    let began = Instant::now();
    let (tell, told) = mpsc::channel();
    let waiting = thread::spawn(move || {
        // Whoever listens waits until this is said.
        let _ = tell.send(child.wait());
    });
    let (mut asked, mut stopped) = (None, false);
    let status = loop {
        match told.recv_timeout(LOOK_EVERY) {
            Ok(status) => break status,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(e) => break Err(std::io::Error::other(e)),
        }
        stopped |= args.max_time.is_some_and(|most| began.elapsed() > most);
        if !stopped && !interrupted.load(Ordering::SeqCst) {
            continue;
        }
        match asked {
            None => {
                asked = Some(Instant::now());
                proc::signal(pid, Signal::SIGTERM);
            }
            Some(since) if since.elapsed() > PATIENCE => proc::signal(pid, Signal::SIGKILL),
            Some(_) => {}
        }
    };
    // It has said all that it had to say.
    let _ = waiting.join();
    Ok((status.context(|| "cannot wait for the command")?, stopped))
}

/// The budgets that are exceeded, in words.
fn exceeded(args: &Footprint, report: &FootprintReport) -> Vec<String> {
    let waited = report.lock_waits.as_ref().and_then(|waits| waits.longest.as_ref());
    let waited = waited.map_or(0.0, |longest| longest.wait_ms);
    let pages = args.max_pages.filter(|&most| report.pages_written > most);
    let wal = args.max_wal.filter(|&most| report.wal_bytes > most);
    let lock = args.max_lock_wait.filter(|&most| waited > ms(most));
    let time = args.max_time.filter(|&most| report.stopped || report.time_ms > ms(most));
    [
        pages.map(|most| format!("{} pages written, of {most} allowed", report.pages_written)),
        wal.map(|most| format!("{} bytes of WAL, of {most} allowed", report.wal_bytes)),
        lock.map(|most| format!("{waited:.0} ms of waiting for a lock, of {:.0} ms allowed", ms(most))),
        time.map(|most| format!("{:.0} ms of time, of {:.0} ms allowed", report.time_ms, ms(most))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How the command ends, once it has reported.
fn verdict(args: &Footprint, report: &FootprintReport) -> Result<()> {
    if let Some((first, rest)) = report.exceeded.split_first() {
        let error = Error::new(Kind::Budget, format!("a budget is exceeded: {first}"));
        return Err(rest.iter().fold(error, |error, more| error.cause(more.clone())));
    }
    match report.exit_status {
        Some(0) => Ok(()),
        status => {
            let how = status.map_or("it was killed".into(), |code| format!("its exit status is {code}"));
            let program = args.command.first().map(|word| word.to_string_lossy().into_owned());
            Err(Error::new(Kind::Failed, format!("{} has failed", program.unwrap_or_default())).cause(how))
        }
    }
}
