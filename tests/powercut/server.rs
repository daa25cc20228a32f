//! PostgreSQL at work on a store that loses power: the oracle's clients on `main`, forks that come and go.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgcowfs::Options;

use super::cuts::Cut;
use super::rig::{Place, Recorded};
use crate::common::check::check_store;
use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::store::{AGGRESSIVE, Store};
use crate::harness::word;
use crate::oracle::{self, Attempt, Churn, Habits, History, Kind, LAZY, Load, report, verify};

/// How a cluster is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether the first change of a page after a checkpoint puts all of it into the WAL.
    pub full_page_writes: bool,
    /// PostgreSQL's own page checksums.
    pub checksums: bool,
}

/// What happened, and when by the log.
pub struct Recording {
    settings: Settings,
    history: History,
    attempts: Vec<Attempt>,
    /// Where the log of the work begins and ends.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// The same of the control, which runs with fsync=off.
    careless: History,
    /// When the control began.
    pub careless_from: u64,
    /// When it had ended.
    pub careless_to: u64,
}

/// The fork that the control runs on.
const CARELESS: &str = "careless";

fn start(store: &Store, settings: Settings, name: &str) -> Result<Endpoint, String> {
    let pages = word(settings.full_page_writes);
    let done = run(&mut store.command(["start", name, "--full-page-writes", pages]));
    if done.ok() { Ok(store.endpoint(name)) } else { Err(done.report()) }
}

/// Runs so many commits, with forks coming and going.
pub fn record(place: &Place, disk: &Recorded, settings: Settings, commits: u64, seed: u64) -> Recording {
    let store = Store::at(&place.store());
    store.init();
    if settings.checksums {
        store.create("main", AGGRESSIVE);
    } else {
        store.create_without_checksums("main", AGGRESSIVE);
    }
    let at = start(&store, settings, "main").unwrap_or_else(|why| panic!("{why}"));
    oracle::install(&at);
    let clock = disk.clock();

    // The control first: a server that flushes nothing.
    store.ok(["fork", "main", CARELESS, "--set", "fsync=off"]);
    store.configure(CARELESS, LAZY);
    let careless_at = start(&store, settings, CARELESS).unwrap_or_else(|why| panic!("{why}"));
    let careless_from = clock();
    let habits = Habits { clock: Some(clock.clone()), without_checkpoints: true, ..Habits::default() };
    let load = Load::start_with(&careless_at, None, &habits);
    assert!(load.advance(300), "the clients met an error");
    let careless = load.history();
    let careless_to = clock();
    load.stop();
    store.ok(["rm", "--force", CARELESS]);

    let from = clock();
    let habits = Habits { clock: Some(clock.clone()), ..Habits::default() };
    let load = Load::start_with(&at, None, &habits);
    let stop = AtomicBool::new(false);
    let churn =
        Churn { store: &store, load: &load, clock: clock.clone(), prefix: "f".to_owned(), pause_ms: 150 };
    let attempts = std::thread::scope(|scope| {
        let worker = scope.spawn(|| churn.run(Random::new(seed), &stop));
        let went_well = load.advance(commits);
        stop.store(true, SeqCst);
        let attempts = worker.join().expect("forks come and go");
        assert!(went_well, "the clients met an error");
        attempts
    });
    assert!(!attempts.iter().any(|a| a.failed), "a fork could not be made: {attempts:?}");
    let history = load.history();
    let to = clock();
    load.stop();
    Recording { settings, history, attempts, from, to, careless, careless_from, careless_to }
}

impl Recording {
    /// What is wrong after a cut, without a server.
    pub fn judge(&self, place: &Place, cut: &Cut) -> Vec<String> {
        let names = match forks(place) {
            Ok(names) => names,
            Err(why) => return vec![why],
        };
        let mut wrong = oracle::presence(&self.attempts, cut.at, &names);
        wrong.extend(check_store(&place.store()));
        wrong
    }

    /// What is wrong after a cut, by a server that recovers and everything that the oracle knows.
    pub fn judge_with_server(&self, place: &Place, cut: &Cut) -> Vec<String> {
        let names = match forks(place) {
            Ok(names) => names,
            Err(why) => return vec![why],
        };
        let mut wrong = oracle::presence(&self.attempts, cut.at, &names);
        let store = Store::at(&place.store());
        let mut random = Random::new(cut.seed);
        let forks: Vec<&Attempt> = self.attempts.iter().filter(|a| names.contains(&a.name)).collect();
        let fork = random.pick(&forks).map(|a| (a.name.clone(), a.window.clone()));
        let main = ("main".to_owned(), self.history.window(cut.at));
        for (name, window) in fork.into_iter().chain([main]) {
            match start(&store, self.settings, &name) {
                Err(why) => wrong.push(why),
                Ok(at) => {
                    if let Err(violations) = verify(&at, &window) {
                        wrong.push(format!("{name}, window {window:?}:{}", report(&violations)));
                    }
                    let stop = run(&mut store.command(["stop", &name]));
                    if !stop.ok() {
                        wrong.push(stop.report());
                    } else if self.settings.checksums {
                        let pages = Postgres::get().checksums(&store.path(&name));
                        if !pages.ok() {
                            wrong.push(pages.report());
                        }
                    }
                }
            }
        }
        let umount = run(&mut store.command(["umount"]));
        if !umount.ok() {
            wrong.push(umount.report());
        }
        drop(store);
        wrong.extend(check_store(&place.store()));
        wrong
    }

    /// How many clients of the control miss commits after a cut, as they must.
    pub fn careless_lost(&self, place: &Place, cut: &Cut) -> Result<usize, String> {
        let store = Store::at(&place.store());
        let at = start(&store, self.settings, CARELESS)?;
        let violations = verify(&at, &self.careless.window(cut.at)).err().unwrap_or_default();
        Ok(violations.iter().filter(|violation| violation.kind == Kind::Lost).count())
    }
}

fn forks(place: &Place) -> Result<Vec<String>, String> {
    let store = pgcowfs::Store::open(&place.store(), Options::default())
        .map_err(|error| format!("the store does not open: {error}"))?;
    let names = store.forks().into_iter().map(|fork| fork.name).collect();
    store.close().map_err(|error| format!("the store does not close: {error}"))?;
    Ok(names)
}
