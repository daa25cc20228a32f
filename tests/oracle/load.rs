//! The clients.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Counts, DATABASE, SCRATCH_EVERY, formula};
use crate::common::pg::Endpoint;
use crate::common::process::wait_until;
use crate::common::sql::{Sql, SqlError};

/// How many clients write.
pub const CLIENTS: usize = 8;

/// Settings of a server that writes WAL only when a commit waits for it: an evicted page would take its WAL along.
pub const LAZY: &str = "shared_buffers = 128MB\n\
    wal_buffers = 16MB\n\
    wal_writer_delay = 10s\n\
    wal_writer_flush_after = 0\n\
    bgwriter_lru_maxpages = 0\n\
    checkpoint_timeout = 1h\n\
    autovacuum = off";

/// What may be found: at least `acked`, at most `sent`, per client.
#[derive(Clone, Debug)]
pub struct Window {
    /// Acknowledged before the instant in question could have been.
    pub acked: Counts,
    /// Sent before the instant in question must have been.
    pub sent: Counts,
}

/// Says how far the world has come, as a number that only grows: where a loss of power is rehearsed, the length of the
/// disk's log.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How clients work, other than as usual.
#[derive(Clone, Default)]
pub struct Habits {
    /// Sent by each client first.
    pub session: &'static str,
    /// Nobody orders checkpoints.
    pub without_checkpoints: bool,
    /// Notes when each transaction was sent and acknowledged.
    pub clock: Option<Clock>,
}

// Only where the power goes is there a clock; the end-to-end tests use none of the following.
/// When each transaction of one client was sent, and when it was acknowledged, by the clock.
#[derive(Clone, Debug, Default)]
#[allow(dead_code)]
struct Times {
    /// The last transaction before the first one here.
    before: u64,
    sent: Vec<u64>,
    acked: Vec<u64>,
}

/// The times of all clients.
#[derive(Clone, Debug, Default)]
#[allow(dead_code)]
pub struct History(Vec<Times>);

#[allow(dead_code)]
impl History {
    /// What a state of that moment may hold: at least what had been acknowledged by then, at most what had been sent.
    pub fn window(&self, moment: u64) -> Window {
        let until =
            |of: &Times, times: &[u64]| of.before + times.partition_point(|time| *time <= moment) as u64;
        Window {
            acked: self.0.iter().map(|of| until(of, &of.acked)).collect(),
            sent: self.0.iter().map(|of| until(of, &of.sent)).collect(),
        }
    }
}

/// The clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    sent: Vec<AtomicU64>,
    acked: Vec<AtomicU64>,
    errors: Mutex<Vec<SqlError>>,
    clock: Option<Clock>,
    times: Vec<Mutex<Times>>,
}

impl Shared {
    fn note(&self, client: usize, which: impl FnOnce(&mut Times) -> &mut Vec<u64>) {
        if let Some(clock) = &self.clock {
            which(&mut self.times[client].lock().expect("no client panics")).push(clock());
        }
    }
}

impl Load {
    /// Starts all clients, each going on after the transaction that `done` names (none: from the beginning), and
    /// one more connection that orders a checkpoint every 0.2 s.
    #[track_caller]
    pub fn start(at: &Endpoint, done: Option<&Counts>) -> Load {
        Load::start_with(at, done, &Habits::default())
    }

    /// For controls: commits are acknowledged before they are written, and nobody orders a checkpoint. A sudden death
    /// then loses some, given a server that is [`LAZY`].
    #[track_caller]
    pub fn start_acknowledged_early(at: &Endpoint, done: Option<&Counts>) -> Load {
        let habits = Habits {
            session: "SET synchronous_commit = off",
            without_checkpoints: true,
            ..Habits::default()
        };
        Load::start_with(at, done, &habits)
    }

    /// Starts the clients with habits of their own.
    #[track_caller]
    pub fn start_with(at: &Endpoint, done: Option<&Counts>, habits: &Habits) -> Load {
        let fresh = vec![0; CLIENTS];
        let done = done.unwrap_or(&fresh);
        assert_eq!(done.len(), CLIENTS, "counts for every client");
        let counters = || done.iter().map(|n| AtomicU64::new(*n)).collect::<Vec<_>>();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: counters(),
            acked: counters(),
            errors: Mutex::new(Vec::new()),
            clock: habits.clock.clone(),
            times: done.iter().map(|n| Mutex::new(Times { before: *n, ..Times::default() })).collect(),
        });
        let mut threads = Vec::new();
        for index in 0..CLIENTS {
            let (shared, at, session) = (Arc::clone(&shared), at.clone(), habits.session);
            threads.push(std::thread::spawn(move || {
                if let Err(error) = client(&shared, &at, index, session) {
                    shared.errors.lock().expect("no client panics").push(error);
                }
            }));
        }
        if !habits.without_checkpoints {
            let (shared, at) = (Arc::clone(&shared), at.clone());
            threads.push(std::thread::spawn(move || {
                if let Err(error) = checkpoints(&shared, &at) {
                    shared.errors.lock().expect("no client panics").push(error);
                }
            }));
        }
        Load { shared, threads }
    }

    /// Numbers acknowledged so far.
    pub fn acked(&self) -> Counts {
        self.shared.acked.iter().map(|n| n.load(SeqCst)).collect()
    }

    /// Numbers sent so far.
    pub fn sent(&self) -> Counts {
        self.shared.sent.iter().map(|n| n.load(SeqCst)).collect()
    }

    /// Waits until `more` further transactions have been acknowledged, all clients together; false when the clients
    /// have met an error instead.
    pub fn advance(&self, more: u64) -> bool {
        let goal = self.acked().iter().sum::<u64>() + more;
        let broken = || !self.shared.errors.lock().expect("no client panics").is_empty();
        wait_until("further commits", || self.acked().iter().sum::<u64>() >= goal || broken());
        !broken()
    }

    /// Runs `act` (a fork, a kill) and says what a state taken at one instant during it may hold.
    pub fn around<T>(&self, act: impl FnOnce() -> T) -> (T, Window) {
        let acked = self.acked();
        let result = act();
        (result, Window { acked, sent: self.sent() })
    }

    /// Ends the clients after their current transaction. Fails the test when one of them met an error.
    #[track_caller]
    pub fn stop(self) -> Window {
        let (window, errors) = self.end();
        assert!(errors.is_empty(), "clients met errors: {errors:?}");
        window
    }

    /// What was sent and acknowledged when, so far. Needs a clock.
    #[allow(dead_code)]
    pub fn history(&self) -> History {
        let times = self.shared.times.iter();
        History(times.map(|times| times.lock().expect("no client panics").clone()).collect())
    }

    /// Ends the clients, whatever they met; their errors.
    pub fn end(self) -> (Window, Vec<SqlError>) {
        self.shared.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().expect("no client panics");
        }
        let collect = |counters: &[AtomicU64]| counters.iter().map(|n| n.load(SeqCst)).collect();
        let window = Window { acked: collect(&self.shared.acked), sent: collect(&self.shared.sent) };
        let errors = std::mem::take(&mut *self.shared.errors.lock().expect("no client panics"));
        (window, errors)
    }
}

/// One client: transaction after transaction until told to stop. At the first error it ends, because then it is
/// unknown whether the transaction was committed: only the server can tell, later.
fn client(shared: &Shared, at: &Endpoint, index: usize, session: &str) -> Result<(), SqlError> {
    let sql = Sql::connect(at, DATABASE)?;
    sql.run(session)?;
    let mut seq = shared.acked[index].load(SeqCst);
    while !shared.stop.load(SeqCst) {
        seq += 1;
        // Before the first byte goes out: a fork may hold whatever had been sent when it returned.
        shared.sent[index].store(seq, SeqCst);
        shared.note(index, |times| &mut times.sent);
        sql.run(&transaction(index, seq))?;
        shared.acked[index].store(seq, SeqCst);
        shared.note(index, |times| &mut times.acked);
    }
    Ok(())
}

/// One transaction, sent as one message.
fn transaction(index: usize, seq: u64) -> String {
    let client = (index + 1).to_string();
    // A different neighbour each time.
    let other = 1 + (index as u64 + 1 + seq % (CLIENTS as u64 - 1)) % CLIENTS as u64;
    let number = seq.to_string();
    let (payload, source) = (formula::payload(&client, &number), formula::source(&client, &number));
    let (target, amount) = (formula::target(&client, &number), formula::amount(&client, &number));
    let scratch = scratch_work(&client, seq);
    // Accounts are locked in the order of their ids, so that transfers cannot wait for each other in a circle.
    format!(
        "BEGIN;
         INSERT INTO txn SELECT {client}, {seq}, {payload}, {source}, {target}, {amount}, {other},
             coalesce((SELECT max(seq) FROM txn WHERE client = {other}), 0);
         UPDATE account SET balance = balance + CASE id WHEN {source} THEN -{amount} ELSE {amount} END
             WHERE id = least({source}, {target});
         UPDATE account SET balance = balance + CASE id WHEN {source} THEN -{amount} ELSE {amount} END
             WHERE id = greatest({source}, {target});
         {scratch}
         COMMIT;"
    )
}

/// Files come and go: each client has one scratch table at a time, dropped, made and truncated as its numbers go by.
fn scratch_work(client: &str, seq: u64) -> String {
    let generation = seq / SCRATCH_EVERY;
    if seq.is_multiple_of(SCRATCH_EVERY) {
        let old = generation.saturating_sub(1);
        format!(
            "DROP TABLE IF EXISTS scratch_{client}_{old};
             CREATE TABLE scratch_{client}_{generation} AS SELECT n, repeat('s', 200) AS filler FROM generate_series(1, 100) n;"
        )
    } else if generation > 0 && seq % SCRATCH_EVERY == SCRATCH_EVERY / 2 {
        format!(
            "TRUNCATE scratch_{client}_{generation};
             INSERT INTO scratch_{client}_{generation} SELECT n, repeat('t', 200) FROM generate_series(1, 40) n;"
        )
    } else {
        String::new()
    }
}

/// Checkpoints, far more often than any server has them: pages and `pg_control` are in motion all the time.
fn checkpoints(shared: &Shared, at: &Endpoint) -> Result<(), SqlError> {
    let sql = Sql::connect(at, DATABASE)?;
    while !shared.stop.load(SeqCst) {
        sql.run("CHECKPOINT")?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
