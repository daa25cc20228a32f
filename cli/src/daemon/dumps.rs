//! Dumps that are made by the clock. This same program makes them, as a child of the
//! daemon's, so that there is one way to make one: a client like any other.
//!
//! What a schedule has made is kept with it, by name: nothing else is ever removed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use pgcowfs::{ForkEntry, ForkId};

use super::Daemon;
use crate::dumps::{manifest, staging};
use crate::error::{Context, Error, Kind, Result};
use crate::meta::{DumpFailure, DumpSchedule, ForkMeta};
use crate::proc;
use crate::protocol::DumpRow;

/// The name of a dump, behind the fork's.
const STAMP: &str = "%Y%m%d-%H%M%S";

/// After a failure the next one is tried when that much time has passed, or the
/// schedule's if that is less.
const RETRY: Duration = Duration::from_secs(600);

/// What a dump may take to end when it is told to.
const PATIENCE: Duration = Duration::from_secs(30);

/// So much of what a child says is read.
const SAID_MAX: u64 = 64 << 10;

/// The dump under way, and when others are not to be tried yet.
#[derive(Default)]
pub struct Dumps(Mutex<State>);

#[derive(Default)]
struct State {
    running: Option<Running>,
    not_before: BTreeMap<ForkId, Instant>,
    /// No new one is begun.
    paused: bool,
}

struct Running {
    fork: ForkId,
    pid: i32,
    since: Timestamp,
}

impl Dumps {
    /// New ones may begin again.
    pub fn resume(&self) {
        self.0.lock().paused = false;
    }

    /// Begins no new one, and ends the one under way: its process, which has gone then.
    fn end(&self) -> Option<i32> {
        let pid = {
            let mut state = self.0.lock();
            state.paused = true;
            state.running.as_ref().map(|running| running.pid)
        };
        let pid = pid?;
        log::info!("ending a dump under way");
        proc::signal(pid, Signal::SIGTERM);
        if !proc::wait_until(PATIENCE, || self.0.lock().running.is_none()) {
            log::error!("killing a dump that has not ended after {PATIENCE:?}");
            proc::signal(pid, Signal::SIGKILL);
            proc::wait_until(PATIENCE, || self.0.lock().running.is_none());
        }
        Some(pid)
    }

    /// Has the dump of a fork end, if one is under way.
    fn cancel(&self, fork: ForkId) -> bool {
        let state = self.0.lock();
        let running = state.running.as_ref().filter(|running| running.fork == fork);
        // It is not reaped before it is taken out of here.
        running.inspect(|running| proc::signal(running.pid, Signal::SIGTERM)).is_some()
    }

    fn since(&self, fork: ForkId) -> Option<Timestamp> {
        let state = self.0.lock();
        state.running.as_ref().filter(|running| running.fork == fork).map(|running| running.since)
    }
}

/// The name of the fork that a process dumps.
pub fn dump_fork(of: &str, pid: impl Display) -> String {
    format!("{of}-dump-{pid}")
}

/// Whether the next dump is due. A clock that was set back is no reason to wait for as
/// long as it takes to come there again.
fn is_due(schedule: &DumpSchedule, now: Timestamp) -> bool {
    let last = schedule.last_at.as_ref().and_then(|last| last.parse::<Timestamp>().ok());
    let age = last.map(|last| Duration::try_from(now.duration_since(last)));
    !age.is_some_and(|age| age.is_ok_and(|age| age < Duration::from_secs(schedule.every_s)))
}

impl Daemon {
    /// Ends the dump under way, and its fork with it.
    pub(super) fn end_dumps(&self) {
        if let Some(pid) = self.dumps.end() {
            // It may have left that to the end of its connection.
            let of_it = dump_fork("", pid);
            let gone = || !self.store.entries().iter().any(|entry| entry.name.ends_with(&of_it));
            proc::wait_until(PATIENCE, gone);
        }
    }

    /// Begins a dump that is due, unless one is under way: one at a time is enough of a
    /// burden.
    pub(super) fn follow_dumps(self: &Arc<Self>, entries: &[ForkEntry]) {
        {
            let mut state = self.dumps.0.lock();
            state.not_before.retain(|id, _| entries.iter().any(|entry| entry.id == *id));
            if state.paused || state.running.is_some() {
                return;
            }
        }
        for entry in entries {
            let Ok(meta) = ForkMeta::decode(&entry.name, &entry.meta) else { continue };
            let Some(schedule) = &meta.upkeep.dump else { continue };
            let waits =
                self.dumps.0.lock().not_before.get(&entry.id).is_some_and(|time| Instant::now() < *time);
            if waits || !is_due(schedule, Timestamp::now()) {
                continue;
            }
            if let Err(error) = self.begin_dump(entry, schedule) {
                self.note_dump(entry.id, Timestamp::now(), Err(error));
            } else {
                return;
            }
        }
    }

    fn begin_dump(self: &Arc<Self>, entry: &ForkEntry, schedule: &DumpSchedule) -> Result<()> {
        // What a killed one has left: each dump has another name, and so would not see it.
        staging::sweep(&schedule.dir)?;
        let since = Timestamp::now();
        let name = format!("{}-{}", entry.name, since.strftime(STAMP));
        let mut command = Command::new("/proc/self/exe");
        command.arg("--store").arg(&self.paths.dir).args(["--quiet", "--json", "dump"]);
        command.args(arguments(&entry.name, schedule, &name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
        let mut state = self.dumps.0.lock();
        if state.paused {
            return Ok(());
        }
        let child = command.spawn().context(|| "cannot start a dump")?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        state.running = Some(Running { fork: entry.id, pid, since });
        drop(state);
        log::info!("dumping {} to {}", entry.name, schedule.dir.join(&name).display());
        let (daemon, fork) = (self.clone(), entry.id);
        std::thread::spawn(move || {
            let mut child = child;
            let made = watch(&mut child, pid).map(|()| name);
            daemon.note_dump(fork, since, made);
            daemon.dumps.0.lock().running = None;
            // Only now may its number become another's.
            if let Err(e) = child.wait() {
                log::warn!("cannot wait for a dump: {e}");
            }
        });
        Ok(())
    }

    /// Keeps what has become of a dump, and after a success removes what is too much.
    fn note_dump(&self, fork: ForkId, since: Timestamp, made: Result<String>) {
        let closed = self.closed.read();
        let name = self.store.entries().into_iter().find(|entry| entry.id == fork).map(|entry| entry.name);
        let (Some(name), false) = (name, *closed) else { return };
        if let Err(error) = &made {
            log::error!("{name}: its dump is not made: {}", in_a_line(error));
        }
        let (mut retry, mut too_many) = (RETRY, None);
        let noted = self.change_meta(&name, |row| {
            // The schedule may have been ended meanwhile.
            let Some(schedule) = &mut row.meta.upkeep.dump else { return Ok(()) };
            retry = retry.min(Duration::from_secs(schedule.every_s));
            match &made {
                Ok(dump) => {
                    log::info!("dumped {name} to {}", schedule.dir.join(dump).display());
                    schedule.last_at = Some(since.to_string());
                    schedule.failure = None;
                    schedule.made.push(dump.clone());
                    let more = schedule.made.len().saturating_sub(schedule.keep as usize);
                    too_many = Some((schedule.dir.clone(), schedule.made[..more].to_vec()));
                }
                Err(error) => {
                    let failure = DumpFailure { at: Timestamp::now().to_string(), message: in_a_line(error) };
                    schedule.failure = Some(failure);
                }
            }
            Ok(())
        });
        if let Err(error) = noted {
            log::error!("{name}: what has become of its dump is not noted: {error}");
        }
        let Some((dir, too_many)) = too_many else {
            self.dumps.0.lock().not_before.insert(fork, Instant::now() + retry);
            return;
        };
        // It knows them until they are gone.
        let gone = prune(&dir, too_many);
        let forgotten = self.change_meta(&name, |row| {
            if let Some(schedule) = row.meta.upkeep.dump.as_mut().filter(|schedule| schedule.dir == dir) {
                schedule.made.retain(|name| !gone.contains(name));
            }
            Ok(())
        });
        if let Err(error) = forgotten {
            log::error!("{name}: that its old dumps are gone is not noted: {error}");
        }
    }

    pub(super) fn set_dumps(&self, fork: &str, wanted: Option<DumpSchedule>) -> Result<Vec<DumpRow>> {
        self.change_meta(fork, |row| {
            log::info!("the schedule of {fork}'s dumps is {wanted:?}");
            let before = row.meta.upkeep.dump.take();
            row.meta.upkeep.dump = wanted.map(|wanted| match before {
                // What it has made stays its own.
                Some(before) if before.dir == wanted.dir => DumpSchedule {
                    made: before.made,
                    last_at: before.last_at,
                    failure: before.failure,
                    ..wanted
                },
                _ => wanted,
            });
            Ok(())
        })?;
        // Whatever was wrong, it may be what was changed.
        let id = self.store.info(fork)?.id;
        self.dumps.0.lock().not_before.remove(&id);
        self.dump_rows(Some(fork))
    }

    pub(super) fn cancel_dump(&self, fork: &str) -> Result<Vec<DumpRow>> {
        self.info(fork)?;
        match self.dumps.cancel(self.store.info(fork)?.id) {
            true => self.dump_rows(Some(fork)),
            false => Err(Error::new(Kind::State, format!("no dump of {fork:?} is under way by a schedule"))
                .hint("`pgcowfs dumps` shows what is; Ctrl-C ends one that was begun by hand")),
        }
    }

    pub(super) fn dump_rows(&self, fork: Option<&str>) -> Result<Vec<DumpRow>> {
        let mut rows = Vec::new();
        for (entry, meta) in self.metas(fork)? {
            let Some(schedule) = meta.upkeep.dump else { continue };
            rows.push(DumpRow {
                dir: schedule.dir,
                every_s: schedule.every_s,
                keep: schedule.keep,
                dumps: schedule.made,
                last_at: schedule.last_at,
                failure: schedule.failure,
                running_since: self.dumps.since(entry.id).map(|since| since.to_string()),
                fork: entry.name,
            });
        }
        Ok(rows)
    }
}

/// Waits for a dump's end, and leaves it to be reaped.
fn watch(child: &mut Child, pid: i32) -> Result<()> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut limited = stderr.take(SAID_MAX);
        limited.read_to_end(&mut said).context(|| "cannot read what a dump says")?;
        // More than that is not wanted, but must not make it wait.
        let rest = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
        rest.context(|| "cannot read what a dump says")?;
    }
    let status = loop {
        match waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(Errno::EINTR) => {}
            other => break other.context(|| "cannot wait for a dump")?,
        }
    };
    match status {
        WaitStatus::Exited(_, 0) => Ok(()),
        other => Err(told(&String::from_utf8_lossy(&said))
            .unwrap_or_else(|| Error::new(Kind::Failed, "the dump has ended").cause(format!("{other:?}")))),
    }
}

/// The command line of a dump, behind the command.
fn arguments(fork: &str, schedule: &DumpSchedule, name: &str) -> Vec<OsString> {
    let what = &schedule.what;
    let mut args: Vec<OsString> = vec![fork.into(), "--output".into(), schedule.dir.join(name).into()];
    let mut add = |option: &str, value: &str| args.push(format!("--{option}={value}").into());
    add("nice", &what.nice.to_string());
    what.jobs.iter().for_each(|jobs| add("jobs", &jobs.to_string()));
    what.databases.iter().for_each(|database| add("database", database));
    what.tables.iter().for_each(|table| add("table", table));
    what.compress.iter().for_each(|compress| add("compress", compress));
    if what.schema_only {
        args.push("--schema-only".into());
    }
    args
}

/// An error with the beginning of what a program has said of it.
fn in_a_line(error: &Error) -> String {
    let said = error.detail.as_ref().and_then(|detail| detail.lines().next());
    said.map_or(error.to_string(), |said| format!("{error}: {said}"))
}

/// The error that a program has told as JSON, in its last line.
fn told(said: &str) -> Option<Error> {
    let mut value: serde_json::Value = serde_json::from_str(said.lines().last()?).ok()?;
    serde_json::from_value(value["error"].take()).ok()
}

/// Removes dumps; those that are gone then.
fn prune(dir: &Path, mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| match remove(dir, name) {
        Ok(removed) => {
            if removed {
                log::info!("removed {}, as its schedule wants", dir.join(name).display());
            }
            true
        }
        Err(error) => {
            log::error!("a dump that is too much is still there: {error}");
            false
        }
    });
    names
}

/// Removes a dump; whether there was one. What has come into its place meanwhile stays.
fn remove(dir: &Path, name: &str) -> Result<bool> {
    let path = dir.join(name);
    if !path.join(manifest::NAME).is_file() {
        return Ok(false);
    }
    // It goes under a name that is no dump's, and that `sweep` knows.
    let going = staging::partial(&path)?;
    fs::rename(&path, &going).at("remove", &path)?;
    staging::remove(&going).at("remove", &going)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::DumpWhat;

    fn sample(dir: &Path) -> DumpSchedule {
        DumpSchedule {
            dir: dir.to_path_buf(),
            every_s: 60,
            keep: 2,
            what: DumpWhat::default(),
            made: Vec::new(),
            last_at: None,
            failure: None,
        }
    }

    #[test]
    fn when_one_is_due() {
        let now = Timestamp::now();
        let mut schedule = sample(Path::new("/x"));
        assert!(is_due(&schedule, now));
        for (s, due) in [(-59, false), (-60, true), (7, true)] {
            schedule.last_at = Some((now + jiff::SignedDuration::from_secs(s)).to_string());
            assert_eq!(is_due(&schedule, now), due, "{s}");
        }
        schedule.last_at = Some("soon".into());
        assert!(is_due(&schedule, now));
    }

    #[test]
    fn only_its_own_dumps_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a-1", "a-2", "a-3", "a-4", "b-1"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            if name != "a-2" {
                fs::write(dir.path().join(name).join(manifest::NAME), "{}").unwrap();
            }
        }
        let gone = prune(dir.path(), ["a-0", "a-1", "a-2"].map(String::from).to_vec());
        assert_eq!(gone, ["a-0", "a-1", "a-2"]);
        let there = |name: &str| dir.path().join(name).exists();
        assert!(!there("a-1") && ["a-2", "a-3", "a-4", "b-1"].into_iter().all(there));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn what_a_child_is_told_and_tells() {
        let mut schedule = sample(Path::new("/b"));
        schedule.what =
            DumpWhat { jobs: Some(2), databases: vec!["-x".into()], nice: 19, ..DumpWhat::default() };
        let args = arguments("main", &schedule, "main-1");
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(args, ["main", "--output", "/b/main-1", "--nice=19", "--jobs=2", "--database=-x"]);
        let said = "warning: x\n{\"error\":{\"kind\":\"storage\",\"message\":\"full\",\"exit_code\":8}}\n";
        assert_eq!(told(said).unwrap().kind, Kind::Storage);
        assert_eq!(told("killed"), None);
    }
}
