//! Forks and snapshots that come and go beside a load, and which of them must be there, as what, after a sudden end.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use super::{Clock, Load, Window, report, verify};
use crate::common::pg::Endpoint;
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::store::Store;

/// No more forks than this at a time.
const FORKS_MAX: usize = 6;

/// A fork that was asked for. Times are by the load's clock.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Its name.
    pub name: String,
    /// What it was, one after the other: what it was made as, and what it was put back to.
    states: Vec<State>,
    /// Its snapshots.
    pub snapshots: Vec<Kept>,
    /// It is no fork of `main` (any more).
    promoted: bool,
    asked: u64,
    made: Option<u64>,
    /// The command ended with an error.
    pub failed: bool,
    removal_asked: Option<u64>,
    removed: Option<u64>,
}

/// What a fork is from a moment on.
#[derive(Clone, Debug)]
struct State {
    asked: u64,
    /// None: it is not known whether that was done.
    done: Option<u64>,
    window: Window,
}

/// A snapshot that was asked for.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its label.
    pub label: String,
    /// What it may hold: one of these.
    pub windows: Vec<Window>,
    asked: u64,
    made: Option<u64>,
    removal_asked: Option<u64>,
    removed: Option<u64>,
}

impl Kept {
    /// What must be so in a state of that moment.
    pub fn fate(&self, moment: u64) -> Fate {
        fate(moment, self.asked, self.made, self.removal_asked, self.removed)
    }
}

/// Whether a fork must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was made, for certain.
    There,
    /// It was never asked for, or removed for certain.
    Absent,
    /// The end came while it was being made or removed.
    InDoubt,
}

impl Attempt {
    /// What must be so in a state of that moment.
    pub fn fate(&self, moment: u64) -> Fate {
        fate(moment, self.asked, self.made, self.removal_asked, self.removed)
    }

    /// What it may hold in a state of that moment: one of these. There are several if it was just being put back.
    pub fn windows(&self, moment: u64) -> Vec<Window> {
        let done = |state: &State| state.done.is_some_and(|done| done <= moment);
        let last = self.states.iter().rposition(done).unwrap_or(0);
        let possible = self.states[last..].iter().enumerate();
        possible
            .filter(|(i, state)| *i == 0 || state.asked <= moment)
            .map(|(_, s)| s.window.clone())
            .collect()
    }

    /// Whether it was being put back at that moment.
    #[allow(dead_code)] // Only the torture asks.
    pub fn is_in_doubt(&self, moment: u64) -> bool {
        self.fate(moment) == Fate::InDoubt || self.windows(moment).len() > 1
    }
}

fn fate(
    moment: u64,
    asked: u64,
    made: Option<u64>,
    removal_asked: Option<u64>,
    removed: Option<u64>,
) -> Fate {
    let by = |time: Option<u64>| time.is_some_and(|time| time <= moment);
    if asked > moment || by(removed) {
        Fate::Absent
    } else if by(made) && !by(removal_asked) {
        Fate::There
    } else {
        Fate::InDoubt
    }
}

/// Verifies a server against windows of which one must fit; Err holds what is wrong by the last one.
pub fn verify_one_of(at: &Endpoint, windows: &[Window]) -> Result<(), String> {
    let mut wrong = String::new();
    for window in windows {
        match verify(at, window) {
            Ok(_) => return Ok(()),
            Err(violations) => wrong = format!("window {window:?}:{}", report(&violations)),
        }
    }
    Err(format!("none of {} windows fits; {wrong}", windows.len()))
}

/// Makes forks and snapshots of `main` and of forks, puts some back, starts and stops some, and removes some, until told
/// to stop.
pub struct Churn<'a> {
    /// Where.
    pub store: &'a Store,
    /// What goes on meanwhile.
    pub load: &'a Load,
    /// Tells the times.
    pub clock: Clock,
    /// Begins all names.
    pub prefix: String,
    /// Milliseconds between two commands, at most.
    pub pause_ms: u64,
}

impl Churn<'_> {
    /// Runs until `stop`; everything that was tried. A command that fails is an error of the end under test or of the
    /// program: the caller can tell.
    pub fn run(&self, mut random: Random, stop: &AtomicBool) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> = Vec::new();
        while !stop.load(SeqCst) {
            let there: Vec<usize> = (0..attempts.len())
                .filter(|i| attempts[*i].fate(u64::MAX) == Fate::There && !attempts[*i].failed)
                .collect();
            let one = random.pick(&there).copied();
            match (one, random.below(16)) {
                (Some(i), 0..3) => self.remove(&mut attempts[i]),
                (Some(i), _) if there.len() >= FORKS_MAX => self.remove(&mut attempts[i]),
                (Some(i), 3) => {
                    // Its server writes as well: recovery, then a shutdown or the sudden end.
                    let name = attempts[i].name.clone();
                    run(&mut self.store.command(["start", &name]));
                    if random.percent(50) && !stop.load(SeqCst) {
                        run(&mut self.store.command(["stop", &name]));
                    }
                }
                (Some(i), 4) => {
                    let (parent, windows) = (attempts[i].name.clone(), attempts[i].windows(u64::MAX));
                    // What is not certain is not made more uncertain.
                    if let [window] = windows.as_slice() {
                        let mut attempt = self.fork(&parent, attempts.len(), &mut random);
                        attempt.states[0].window = window.clone();
                        attempts.push(attempt);
                    }
                }
                (Some(i), 5..7) => self.snapshot(&mut attempts[i]),
                (Some(i), 7..10) => self.reset(&mut attempts[i], &mut random),
                (Some(i), 10) => self.remove_snapshot(&mut attempts[i]),
                (Some(i), 11) => self.promote(&mut attempts[i]),
                _ => {
                    let attempt = self.fork("main", attempts.len(), &mut random);
                    attempts.push(attempt);
                }
            }
            std::thread::sleep(Duration::from_millis(random.below(self.pause_ms)));
        }
        attempts
    }

    fn fork(&self, parent: &str, n: usize, random: &mut Random) -> Attempt {
        let name = format!("{}n{n}", self.prefix);
        let checkpoint = if random.percent(30) { "auto" } else { "never" };
        let asked = (self.clock)();
        let (done, window) = self
            .load
            .around(|| run(&mut self.store.command(["fork", parent, &name, "--checkpoint", checkpoint])));
        let made = done.ok().then(|| (self.clock)());
        let failed = made.is_none();
        let states = vec![State { asked, done: made, window }];
        Attempt {
            name,
            states,
            snapshots: Vec::new(),
            promoted: parent != "main",
            asked,
            made,
            failed,
            removal_asked: None,
            removed: None,
        }
    }

    fn snapshot(&self, attempt: &mut Attempt) {
        let label = format!("s{}", attempt.snapshots.len());
        let asked = (self.clock)();
        let done = run(&mut self.store.command(["snapshot", &attempt.name, &label, "--checkpoint", "never"]));
        attempt.snapshots.push(Kept {
            label,
            windows: attempt.windows(u64::MAX),
            asked,
            made: done.ok().then(|| (self.clock)()),
            removal_asked: None,
            removed: None,
        });
    }

    fn remove_snapshot(&self, attempt: &mut Attempt) {
        let place = |kept: &Kept| format!("{}@{}", attempt.name, kept.label);
        let there = attempt.snapshots.iter().position(|kept| kept.fate(u64::MAX) == Fate::There);
        let Some(i) = there else { return };
        let place = place(&attempt.snapshots[i]);
        attempt.snapshots[i].removal_asked = Some((self.clock)());
        let done = run(&mut self.store.command(["rm", &place]));
        attempt.snapshots[i].removed = done.ok().then(|| (self.clock)());
    }

    /// Puts a fork back to what main is now, or to a snapshot.
    fn reset(&self, attempt: &mut Attempt, random: &mut Random) {
        let certain = |kept: &&Kept| kept.fate(u64::MAX) == Fate::There && kept.windows.len() == 1;
        let kept: Vec<Kept> = attempt.snapshots.iter().filter(certain).cloned().collect();
        let to = random.pick(&kept).filter(|_| attempt.promoted || random.percent(50));
        if to.is_none() && attempt.promoted {
            return;
        }
        let label = to.map_or("parent", |kept| kept.label.as_str());
        let asked = (self.clock)();
        let command = ["reset", &attempt.name, "--force", "--to", label, "--checkpoint", "never"];
        let (done, now) = self.load.around(|| run(&mut self.store.command(command)));
        let window = to.map_or(now, |kept| kept.windows[0].clone());
        attempt.states.push(State { asked, done: done.ok().then(|| (self.clock)()), window });
    }

    /// Nothing but its parent changes.
    fn promote(&self, attempt: &mut Attempt) {
        attempt.promoted = true;
        run(&mut self.store.command(["promote", &attempt.name]));
    }

    fn remove(&self, attempt: &mut Attempt) {
        attempt.removal_asked = Some((self.clock)());
        let done = run(&mut self.store.command(["rm", "--force", &attempt.name]));
        attempt.removed = done.ok().then(|| (self.clock)());
    }
}

/// Compares the forks that are there with those that must be, and must not be.
pub fn presence(attempts: &[Attempt], moment: u64, there: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for attempt in attempts {
        match (attempt.fate(moment), there.contains(&attempt.name)) {
            (Fate::There, false) => wrong.push(format!("fork {} was made and is gone", attempt.name)),
            (Fate::Absent, true) => {
                wrong.push(format!("fork {} is there: never asked for by then, or removed", attempt.name));
            }
            _ => {}
        }
    }
    for name in there.iter().filter(|name| *name != "main") {
        if !attempts.iter().any(|attempt| attempt.name == *name) {
            wrong.push(format!("fork {name} is there, and nobody made it"));
        }
    }
    wrong
}
