//! PostgreSQL at work on a store that loses power: the oracle's clients on `main`, forks that come and go.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgcowfs::Options;

use super::cuts::Cut;
use super::rig::{Place, Recorded};
use crate::common::check::check_store;
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::store::Store;
use crate::harness::Settings;
use crate::oracle::{self, Attempt, Churn, Habits, History, Kind, LAZY, Load, verify, verify_one_of};

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

/// Runs so many commits, with forks coming and going.
pub fn record(place: &Place, disk: &Recorded, settings: Settings, commits: u64, seed: u64) -> Recording {
    let store = Store::at(&place.store());
    store.init();
    let at = settings.create(&store);
    let clock = disk.clock();

    // The control first: a server that flushes nothing.
    store.ok(["fork", "main", CARELESS, "--set", "fsync=off"]);
    store.configure(CARELESS, LAZY);
    let careless_at = settings.start(&store, CARELESS).unwrap_or_else(|why| panic!("{why}"));
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
        let fork = random.pick(&forks).map(|a| (a.name.clone(), a.windows(cut.at)));
        let main = ("main".to_owned(), vec![self.history.window(cut.at)]);
        for (name, windows) in fork.into_iter().chain([main]) {
            match self.settings.start(&store, &name) {
                Err(why) => wrong.push(why),
                Ok(at) => {
                    wrong.extend(verify_one_of(&at, &windows).err().map(|why| format!("{name}: {why}")));
                    wrong.extend(self.settings.stop_and_check_pages(&store, &name).err());
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
        let at = self.settings.start(&store, CARELESS)?;
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
