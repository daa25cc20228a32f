//! One round: load, forks that come and go, a sudden death, the verdict.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGKILL;

use super::args::Mode;
use crate::common::check::check_store;
use crate::common::pg::{Endpoint, children_with_title, kill_server};
use crate::common::process::{is_alive, run, signal, wait_until};
use crate::common::random::Random;
use crate::common::sql::Sql;
use crate::common::store::{Store, text};
use crate::harness::{Settings, word};
use crate::oracle::{
    self, Attempt, Churn, Clock, Counts, DATABASE, Fate, Load, Window, report as in_words, verify,
    verify_one_of,
};

/// Forks that are started and judged after a kill; all others only have to be there.
const JUDGED_MAX: usize = 3;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The daemon.
    Daemon,
    /// The daemon, and the next one while `start` is under way.
    DaemonTwice,
    /// The postmaster alone.
    Postmaster,
    /// All processes of the server.
    Server,
    /// One backend of the load.
    Backend,
    /// The checkpointer, the background writer or the WAL writer.
    Auxiliary,
    /// The server, and the daemon within milliseconds.
    Both,
}

impl Victim {
    /// One that the mode allows.
    pub fn choose(mode: Mode, random: &mut Random) -> Victim {
        let daemon = [Victim::Daemon, Victim::Daemon, Victim::DaemonTwice];
        let server = [Victim::Postmaster, Victim::Server, Victim::Backend, Victim::Auxiliary];
        let of: &[Victim] = match (mode, random.below(3)) {
            (Mode::Daemon, _) | (Mode::Both, 0) => &daemon,
            (Mode::Postgres, _) | (Mode::Both, 1) => &server,
            (Mode::Both, _) => &[Victim::Both],
        };
        *random.pick(of).expect("not empty")
    }

    fn takes_the_daemon(self) -> bool {
        matches!(self, Victim::Daemon | Victim::DaemonTwice | Victim::Both)
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Victim::Daemon => "daemon",
            Victim::DaemonTwice => "daemon twice",
            Victim::Postmaster => "postmaster",
            Victim::Server => "server",
            Victim::Backend => "backend",
            Victim::Auxiliary => "auxiliary",
            Victim::Both => "both",
        })
    }
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Report {
    /// Kills.
    pub kills: u64,
    /// Commits acknowledged in this round.
    pub commits: u64,
    /// Forks made.
    pub forks: u64,
    /// Snapshots asked for.
    pub snapshots: u64,
    /// Forks that were being made, put back or removed at the kill.
    pub in_doubt: u64,
    /// Forks, and forks of snapshots, started and judged.
    pub judged: u64,
    /// Runs of the store's check.
    pub checks: u64,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:5} commits, {:2} forks, {:2} snapshots, {} in doubt, {} judged, {} checks, {:4.1} s",
            self.commits, self.forks, self.snapshots, self.in_doubt, self.judged, self.checks, self.seconds
        )
    }
}

/// A store with a cluster under load.
pub struct Cluster {
    store: Store,
    settings: Settings,
    at: Endpoint,
    done: Option<Counts>,
}

impl Cluster {
    /// A new one, running.
    pub fn make(settings: Settings) -> Cluster {
        let store = Store::new();
        let at = settings.create(&store);
        assert_eq!(
            Sql::connect(&at, DATABASE).and_then(|sql| sql.value("SHOW full_page_writes")).expect("ask"),
            word(settings.full_page_writes)
        );
        Cluster { store, settings, at, done: None }
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        self.store.dir()
    }

    /// For controls: ends everything, runs `then` on the store at rest, and goes on.
    pub fn at_rest<T>(&mut self, then: impl FnOnce(&Path) -> T) -> T {
        self.store.ok(["stop", "main"]);
        self.store.ok(["umount"]);
        let result = then(self.store.dir());
        self.at = self.settings.start(&self.store, "main").unwrap_or_else(|why| panic!("{why}"));
        result
    }

    /// For controls: so many commits, then the daemon's sudden end.
    pub fn kill_after(&self, commits: u64) -> Window {
        let load = Load::start(&self.at, self.done.as_ref());
        assert!(load.advance(commits), "the clients met an error before the kill");
        self.store.kill_daemon();
        load.end().0
    }

    /// For controls: recovery and the oracle's verdict.
    pub fn verdict(&self, window: &Window) -> Result<Counts, String> {
        let at = self.settings.start(&self.store, "main")?;
        verify(&at, window).map_err(|v| in_words(&v))
    }

    /// Leaves everything as it is.
    pub fn keep(mut self) {
        self.store.keep();
    }

    /// One round. Err holds what is wrong.
    pub fn round(&mut self, number: u64, victim: Victim, random: &mut Random) -> Result<Report, Vec<String>> {
        let begin = Instant::now();
        let before: u64 = self.done.iter().flatten().sum();
        let (window, attempts) = self.kill_under_load(number, victim, random)?;
        let mut report = Report {
            kills: 1,
            commits: window.acked.iter().sum::<u64>() - before,
            forks: attempts.iter().filter(|a| !a.failed).count() as u64,
            in_doubt: attempts.iter().filter(|a| a.is_in_doubt(u64::MAX)).count() as u64,
            snapshots: attempts.iter().map(|a| a.snapshots.len() as u64).sum(),
            ..Report::default()
        };
        let dead = self.store.status()["state"] != "running";
        if victim.takes_the_daemon() && dead && random.percent(50) {
            // What the kill left, before any other program has touched it. (A command that came a moment after the
            // kill has brought up the next daemon.)
            self.check(&mut report)?;
        }
        if victim == Victim::DaemonTwice {
            self.kill_during_start(random);
            report.kills += 1;
        }
        self.recover(victim)?;
        let found = verify(&self.at, &window)
            .map_err(|v| vec![format!("main, window {window:?}:{}", in_words(&v))])?;
        self.done = Some(found);
        self.judge_forks(&attempts, victim, random, &mut report)?;
        self.judge_at_rest(&mut report)?;
        report.seconds = begin.elapsed().as_secs_f64();
        Ok(report)
    }

    fn kill_under_load(
        &self,
        number: u64,
        victim: Victim,
        random: &mut Random,
    ) -> Result<(Window, Vec<Attempt>), Vec<String>> {
        let ticks = Arc::new(AtomicU64::new(0));
        let clock: Clock = Arc::new(move || ticks.fetch_add(1, SeqCst));
        let load = Load::start(&self.at, self.done.as_ref());
        let stop = AtomicBool::new(false);
        let churn =
            Churn { store: &self.store, load: &load, clock, prefix: format!("r{number}"), pause_ms: 20 };
        let part = Random::new(random.number());
        let (went_well, attempts) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| churn.run(part, &stop));
            let went_well = load.advance(random.between(60, 700));
            std::thread::sleep(Duration::from_millis(random.below(150)));
            if went_well {
                self.kill(victim, random, &stop);
            }
            stop.store(true, SeqCst);
            (went_well, worker.join())
        });
        let (window, errors) = load.end();
        if !went_well {
            return Err(vec![format!("the clients met errors before the kill: {errors:?}")]);
        }
        if errors.is_empty() {
            return Err(vec!["the clients noticed nothing of the kill".to_owned()]);
        }
        let attempts = attempts.map_err(|_| vec!["a fork or its removal: see above".to_owned()])?;
        Ok((window, attempts))
    }

    fn kill(&self, victim: Victim, random: &mut Random, stop: &AtomicBool) {
        // Found out before, so that the moment of the kill is left to chance alone.
        let daemon = self.store.daemon_pid();
        let postmaster = self.store.postmaster("main").expect("a running server");
        let backends = children_with_title(postmaster, &format!(" {DATABASE} "));
        let auxiliaries: Vec<u32> = ["checkpointer", "background writer", "walwriter"]
            .iter()
            .flat_map(|title| children_with_title(postmaster, title))
            .collect();
        // A command after the kill would start the next daemon, and work.
        stop.store(true, SeqCst);
        std::thread::sleep(Duration::from_millis(random.below(25)));
        match victim {
            Victim::Daemon | Victim::DaemonTwice => kill_one(daemon),
            Victim::Postmaster => kill_server(postmaster, false),
            Victim::Server => kill_server(postmaster, true),
            Victim::Backend => kill_one(*random.pick(&backends).expect("a backend of the load")),
            Victim::Auxiliary => kill_one(*random.pick(&auxiliaries).expect("the server's own processes")),
            Victim::Both => {
                let children = children_with_title(postmaster, "");
                signal(postmaster, SIGKILL);
                std::thread::sleep(Duration::from_millis(random.below(10)));
                kill_one(daemon);
                std::thread::sleep(Duration::from_millis(random.below(100)));
                // Backends that wait for a lock of one that is dead would do so for ever, with a client each.
                children.iter().for_each(|pid| signal(*pid, SIGKILL));
            }
        }
    }

    /// Kills the daemon that `start` has just begun to recover with.
    fn kill_during_start(&self, random: &mut Random) {
        std::thread::scope(|scope| {
            scope.spawn(|| run(&mut self.store.command(["start", "main"])));
            std::thread::sleep(Duration::from_millis(random.between(20, 600)));
            if let Some(daemon) = self.store.status()["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
            {
                kill_one(daemon);
            }
        });
    }

    fn recover(&mut self, victim: Victim) -> Result<(), Vec<String>> {
        match victim {
            Victim::Backend | Victim::Auxiliary => {
                wait_until("the server's own recovery", || Sql::connect(&self.at, DATABASE).is_ok());
            }
            Victim::DaemonTwice if text(&self.store.show("main"), "state") == "running" => {
                // The second kill came before there was a daemon, or `start` ran once more.
                self.at = self.store.endpoint("main");
            }
            _ => self.at = self.settings.start(&self.store, "main").map_err(|why| vec![why])?,
        }
        Ok(())
    }

    fn judge_forks(
        &self,
        attempts: &[Attempt],
        victim: Victim,
        random: &mut Random,
        sums: &mut Report,
    ) -> Result<(), Vec<String>> {
        let there = self.store.names();
        let mut wrong = oracle::presence(attempts, u64::MAX, &there);
        let is_there = |a: &&Attempt| there.contains(&a.name);
        if !victim.takes_the_daemon() {
            // The daemon lived on: a command that failed has changed nothing.
            for attempt in attempts.iter().filter(|a| a.failed).filter(is_there) {
                wrong.push(format!("fork {} is there, and the command that made it failed", attempt.name));
            }
        }
        // Those in doubt first, then the youngest.
        let mut judged: Vec<&Attempt> = attempts.iter().filter(is_there).collect();
        judged.reverse();
        judged.sort_by_key(|a| !a.is_in_doubt(u64::MAX));
        // Before a server changes anything.
        let (snapshots, missing) = self.snapshots_of(&judged);
        wrong.extend(missing);
        for attempt in judged.into_iter().take(JUDGED_MAX) {
            wrong.extend(self.judge_fork(&attempt.name, &attempt.windows(u64::MAX)).err());
            sums.judged += 1;
        }
        // A snapshot is whole if a fork of it is.
        for (place, windows) in snapshots.into_iter().take(JUDGED_MAX) {
            let forked = run(&mut self.store.command(["fork", &place, "of-a-snapshot"]));
            match forked.ok() {
                true => wrong.extend(self.judge_fork("of-a-snapshot", &windows).err()),
                false => wrong.push(forked.report()),
            }
            run(&mut self.store.command(["rm", "--force", "of-a-snapshot"]));
            sums.judged += 1;
        }
        let mut left = there;
        while !left.is_empty() {
            let name = left.swap_remove(random.below(left.len() as u64) as usize);
            if name != "main" {
                let removed = run(&mut self.store.command(["rm", "--force", &name]));
                if !removed.ok() {
                    wrong.push(removed.report());
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The snapshots that are there of these forks, the youngest first, with what they may hold; and what is wrong with
    /// which of them there are.
    fn snapshots_of(&self, forks: &[&Attempt]) -> (Vec<(String, Vec<Window>)>, Vec<String>) {
        let list = self.store.json(["snapshots"]);
        let there: Vec<&str> = list.as_array().into_iter().flatten().map(|row| text(row, "name")).collect();
        let (mut found, mut wrong) = (Vec::new(), Vec::new());
        for fork in forks {
            for kept in fork.snapshots.iter().rev() {
                let place = format!("{}@{}", fork.name, kept.label);
                match (kept.fate(u64::MAX), there.contains(&place.as_str())) {
                    (Fate::There, false) => wrong.push(format!("snapshot {place} was made and is gone")),
                    (Fate::Absent, true) => wrong.push(format!("snapshot {place} is there, and was removed")),
                    (_, true) => found.push((place, kept.windows.clone())),
                    (_, false) => {}
                }
            }
        }
        (found, wrong)
    }

    fn judge_fork(&self, name: &str, windows: &[Window]) -> Result<(), String> {
        let at = match text(&self.store.show(name), "state") {
            "running" => self.store.endpoint(name),
            _ => self.settings.start(&self.store, name)?,
        };
        verify_one_of(&at, windows).map_err(|why| format!("fork {name}: {why}"))?;
        self.settings.stop_and_check_pages(&self.store, name)
    }

    /// Shuts everything down, and looks at the pages and the store.
    fn judge_at_rest(&mut self, report: &mut Report) -> Result<(), Vec<String>> {
        self.settings.stop_and_check_pages(&self.store, "main").map_err(|why| vec![why])?;
        let umount = run(&mut self.store.command(["umount"]));
        if !umount.ok() {
            return Err(vec![umount.report()]);
        }
        self.check(report)?;
        self.at = self.settings.start(&self.store, "main").map_err(|why| vec![why])?;
        Ok(())
    }

    fn check(&self, report: &mut Report) -> Result<(), Vec<String>> {
        report.checks += 1;
        let broken = check_store(self.store.dir());
        if broken.is_empty() { Ok(()) } else { Err(broken) }
    }
}

fn kill_one(pid: u32) {
    signal(pid, SIGKILL);
    wait_until("the end of what was killed", || !is_alive(pid));
}
