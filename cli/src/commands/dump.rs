//! `pgcowfs dump`: pg_dump on a fork that is made for it.
//!
//! The fork belongs to this program's connection to the daemon, so it goes whatever
//! happens here. What is written has another name until it is complete.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::fork::{self, Wanted};
use super::{Context, address, ms, start, user};
use crate::args::{CheckpointMode, CheckpointOptions, Dump, DumpsArgs};
use crate::client::Client;
use crate::daemon::dumps::dump_fork;
use crate::dumps::make::{self, Making};
use crate::dumps::manifest::Database;
use crate::dumps::staging::{self, Staging};
use crate::error::{Context as _, Error, Kind, Result};
use crate::launch;
use crate::meta::{DumpSchedule, DumpWhat};
use crate::postgres::binaries;
use crate::postgres::dump::{self, What};
use crate::postgres::tools::{Server, refuse_interrupted};
use crate::protocol::{DumpRow, ForkRow, Request};
use crate::report::{DumpReport, DumpedDatabase, DumpsReport};
use crate::ui::Ui;

/// Nobody works on the fork. What holds a lock there is a transaction that was
/// prepared, whose end will never come.
const LOCK_WAIT_S: u32 = 60;

/// Every cluster has it; `postgres` may have been dropped.
const THROUGH: &str = "template1";

/// However long its recovery takes: whoever waits can end it.
const START_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// The fork's server reads everything once.
const SETTINGS: [(&str, &str); 4] = [
    ("autovacuum", "off"),
    ("shared_buffers", "128MB"),
    ("huge_pages", "off"),
    ("max_locks_per_transaction", "1024"),
];

/// Dumps a fork.
pub fn run(context: &Context, args: &Dump) -> Result<()> {
    let began = Instant::now();
    let output = std::path::absolute(&args.output).at("make absolute", &args.output)?;
    if let (Some(every), Some(keep)) = (args.every, args.keep) {
        return set_schedule(context, args, output, every, keep);
    }
    let one_file = output.extension().is_some_and(|extension| extension == "dump");
    check(args, one_file)?;
    staging::check_target(&output, args.force)?;
    let interrupts = Interrupts::watch(context.ui)?;
    let mut client = context.client()?;
    // All that this program starts inherits it: the fork's server, and pg_dump. If it
    // cannot be, they are like all others.
    if let Err(e) = rustix::process::setpriority_process(None, args.nice) {
        context.ui.note(format!("cannot lower the priority: {e}"));
    }
    let place = fork::at_time(&mut client, &args.fork)?;
    // A checkpoint would be work for the fork's own server.
    let unasked = CheckpointOptions { checkpoint: CheckpointMode::Never, checkpoint_wal: 0, max_lag: None };
    let parent = fork::check_parent(&mut client, &place, &unasked)?;
    let name = dump_fork(&launch::stem(&parent.name), std::process::id());
    let (listen, ephemeral, leased) = (String::new(), true, true);
    let wanted = Wanted { listen, ephemeral, leased, ..Wanted::of(&place, &parent, name) };
    let forked = fork::fork(context, &mut client, wanted)?.forked;
    let result = carry_out(context, args, &mut client, &forked.row, &output, one_file, &interrupts);
    // Whoever reads the report is to find nothing. What went wrong first is what matters.
    let removed = client.call::<()>(&Request::EndLeases);
    let made = result?;
    removed?;
    context.ui.print(&DumpReport {
        path: output,
        format: if one_file { "file" } else { "directory" },
        fork: parent.name,
        snapshot: place.label,
        pg_version: parent.meta.pg_version.to_string(),
        databases: made.databases.into_iter().map(DumpedDatabase::from).collect(),
        bytes: made.bytes,
        fork_ms: forked.fork_ms,
        stall_ms: forked.stall_ms,
        start_ms: made.start_ms,
        dump_ms: ms(began.elapsed()),
    })
}

/// Has the daemon make dumps by the clock.
fn set_schedule(context: &Context, args: &Dump, dir: PathBuf, every: Duration, keep: u32) -> Result<()> {
    make::check_choice(&args.choice.database, &args.choice.table)?;
    if args.fork.label.is_some() {
        return Err(Error::new(Kind::Usage, "a snapshot does not change, and is dumped once")
            .cause(format!("{} is one", args.fork))
            .hint("leave --every and --keep away, or name the fork"));
    }
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).at("make the directory", &dir);
        }
        _ => {}
    }
    // What would refuse the first one.
    staging::check_target(&dir.join("dump"), true)?;
    let schedule = DumpSchedule {
        dir,
        // A clock that is looked at every second cannot do more.
        every_s: every.as_secs().max(1),
        keep,
        what: DumpWhat {
            jobs: args.jobs,
            databases: args.choice.database.clone(),
            tables: args.choice.table.clone(),
            schema_only: args.schema_only,
            compress: args.compress.clone(),
            nice: args.nice,
        },
        made: Vec::new(),
        last_at: None,
        failure: None,
    };
    let request = Request::SetDumps { fork: args.fork.fork.clone(), schedule: Some(schedule) };
    let rows: Vec<DumpRow> = context.client()?.call(&request)?;
    context.ui.print(&DumpsReport(rows))
}

/// Shows or ends schedules of dumps, or a dump that one has begun.
pub fn schedules(context: &Context, args: &DumpsArgs) -> Result<()> {
    let request = match &args.fork {
        Some(fork) if args.off => Request::SetDumps { fork: fork.clone(), schedule: None },
        Some(fork) if args.cancel => Request::CancelDump { fork: fork.clone() },
        fork => Request::Dumps { fork: fork.clone() },
    };
    let rows: Vec<DumpRow> = context.client()?.call(&request)?;
    if rows.is_empty() {
        let fork = args.fork.as_deref().unwrap_or("FORK");
        context.ui.note(format!(
            "there is no schedule; make one with `pgcowfs dump {fork} -o DIR --every 24h --keep 7`"
        ));
    }
    context.ui.print(&DumpsReport(rows))
}

/// What the command line says that does not go together.
fn check(args: &Dump, one_file: bool) -> Result<()> {
    let databases = args.choice.database.len();
    if one_file && databases != 1 {
        return Err(Error::new(Kind::Usage, "a file holds one database")
            .cause(format!("{} ends in .dump, and so is a file", args.output.display()))
            .hint("choose it with --database NAME, or name a directory, which holds them all"));
    }
    if one_file && args.jobs.is_some_and(|jobs| jobs > 1) {
        return Err(Error::new(Kind::Usage, "a file is written by one job")
            .cause("pg_dump writes tables at once only into a directory")
            .hint("leave --jobs away, or name a directory"));
    }
    make::check_choice(&args.choice.database, &args.choice.table)
}

/// Whether somebody wants an end. While nothing of the dump is there it comes at once;
/// else whoever works looks here.
struct Interrupts {
    seen: Arc<AtomicBool>,
    writing: Arc<AtomicBool>,
}

impl Interrupts {
    fn watch(ui: &Ui) -> Result<Interrupts> {
        let interrupts = Interrupts { seen: Arc::default(), writing: Arc::default() };
        let (seen, writing, ui) = (interrupts.seen.clone(), interrupts.writing.clone(), ui.clone());
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "cannot watch for signals")?;
        thread::spawn(move || {
            for _ in signals.forever() {
                seen.store(true, Ordering::SeqCst);
                if !writing.load(Ordering::SeqCst) {
                    let error = Error::new(Kind::Failed, "interrupted").hint("nothing of it is left");
                    ui.error(&error);
                    // The daemon removes the fork.
                    std::process::exit(error.kind.exit_code().into());
                }
            }
        });
        Ok(interrupts)
    }
}

/// What was written.
struct Made {
    databases: Vec<Database>,
    bytes: u64,
    start_ms: f64,
}

fn carry_out(
    context: &Context,
    args: &Dump,
    client: &mut Client,
    fork: &ForkRow,
    output: &Path,
    one_file: bool,
    interrupts: &Interrupts,
) -> Result<Made> {
    let pg_bin = args.binaries.pg_bin.as_deref().or(fork.meta.pg_bin.as_deref());
    let own = binaries::find(pg_bin, Some(fork.meta.pg_version))?;
    let mut options = launch::default_options();
    options.timeout = START_TIMEOUT;
    options.binaries.pg_bin = Some(own.dir.clone());
    options.settings.extend(SETTINGS.map(|(name, value)| (name.to_string(), value.to_string())));
    options.settings.extend_from_slice(&args.settings);
    let started = start::start(context, client, fork, &options)?;
    interrupts.writing.store(true, Ordering::SeqCst);
    refuse_interrupted(&interrupts.seen)?;
    let user = user(fork)?;
    let address = address(fork, &user);
    let server = Server::Fork(&address);
    let what = What {
        tables: args.choice.table.clone(),
        schema_only: args.schema_only,
        compress: args.compress.clone(),
        lock_wait_s: Some(LOCK_WAIT_S),
    };
    let about = dump::about(&server, &own, THROUGH)?;
    let making = Making {
        server: &server,
        source: format!("fork {}", args.fork),
        through: THROUGH,
        binaries: &own,
        user: &user,
        about: &about,
        found: &dump::choose(&about, &args.choice.database)?,
        what: &what,
        jobs: args.jobs.unwrap_or_else(make::default_jobs),
        interrupted: &interrupts.seen,
    };
    let staging = Staging::begin(output)?;
    let (databases, bytes) = if one_file {
        let databases = making.file(context.ui, &staging.content())?;
        (databases, staging.settle()?.iter().map(|file| file.size).sum())
    } else {
        let mut warnings = Vec::new();
        let manifest = making.directory(context.ui, &staging.content(), &mut warnings)?;
        warnings.iter().for_each(|warning| context.ui.warn(warning));
        (manifest.databases.clone(), make::seal(&staging, manifest)?)
    };
    refuse_interrupted(&interrupts.seen)?;
    staging.publish(args.force)?;
    Ok(Made { databases, bytes, start_ms: ms(started) })
}
