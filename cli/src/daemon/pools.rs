//! Pools: started forks of a fork that are kept ready, for whoever wants one at once.
//!
//! They are ephemeral forks like any others, and a restart of the daemon makes them
//! anew; only how many there should be is kept, with the fork that they are made of.
//! One is *stale* when that fork's server has written WAL since (whatever it commits
//! goes there first), or when the fork was put back, which makes it another one under
//! the same name. A stale one is replaced when the fork has been quiet for a moment:
//! else a busy fork would be forked again and again, for nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pgcowfs::ForkId;

use super::{Daemon, requests};
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::meta::{ForkMeta, Pool};
use crate::protocol::{ForkRow, ForkSpec, PoolRow};
use crate::ui::Ui;

/// How often somebody looks, if nobody asks for it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A fork that has written no WAL for that long is quiet.
const QUIET: Duration = Duration::from_millis(1500);

/// After a failure nothing is tried for that long.
const RETRY: Duration = Duration::from_secs(30);

/// All pools.
#[derive(Default)]
pub struct Pools {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// The forks that are ready, by name.
    members: BTreeMap<String, Member>,
    /// What was last seen of each fork that has a pool.
    seen: BTreeMap<ForkId, Seen>,
    /// Number of the next member.
    next: u64,
    /// One is being made or ended.
    busy: bool,
    paused: bool,
}

/// A fork that is ready.
struct Member {
    /// What it was made of.
    parent: ForkId,
    /// That one's writes of WAL before it was made.
    wal_writes: u64,
    made: Instant,
}

/// What a pool's fork did.
struct Seen {
    wal_writes: u64,
    since: Instant,
    /// Why no member could be made, and when.
    failure: Option<(String, Instant)>,
}

/// A fork that has a pool, as it is now.
struct Parent {
    name: String,
    id: ForkId,
    pool: Pool,
    wal_writes: u64,
}

impl Parent {
    fn is_stale(&self, member: &Member) -> bool {
        member.wal_writes != self.wal_writes && member.made.elapsed() > self.pool.max_age()
    }
}

/// What is to be done about pools.
enum Step {
    Make(Parent),
    End(String),
}

impl Pools {
    /// Whether that fork waits in a pool.
    pub fn has(&self, fork: &str) -> bool {
        self.state.lock().members.contains_key(fork)
    }

    /// That fork waits no more.
    pub fn forget(&self, fork: &str) {
        self.state.lock().members.remove(fork);
    }

    fn look(&self) {
        self.wake.notify_all();
    }

    /// Nothing is made or ended from here on.
    pub fn pause(&self) {
        let mut state = self.state.lock();
        state.paused = true;
        while state.busy {
            self.wake.wait(&mut state);
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        self.state.lock().paused = false;
        self.look();
    }

    /// Begins a step, unless there is to be none.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        state.busy = !state.paused;
        state.busy
    }

    fn end(&self) {
        self.state.lock().busy = false;
        self.look();
    }
}

impl Daemon {
    /// Keeps pools as they should be, until the daemon ends.
    pub(super) fn keep_pools(&self) {
        loop {
            let done = self.pools.begin() && {
                let closed = self.closed.read();
                if *closed {
                    return self.pools.end();
                }
                let step = self.next_step();
                let is_some = step.is_some();
                match step {
                    Some(Step::Make(parent)) => self.make_member(&parent),
                    Some(Step::End(name)) => self.end_member(&name),
                    None => {}
                }
                drop(closed);
                self.pools.end();
                is_some
            };
            if !done {
                let mut state = self.pools.state.lock();
                self.pools.wake.wait_for(&mut state, LOOK_INTERVAL);
            }
        }
    }

    /// The forks that have pools.
    fn pool_parents(&self) -> Vec<Parent> {
        let parent = |entry: pgcowfs::ForkEntry| {
            let pool = ForkMeta::decode(&entry.name, &entry.meta).ok()?.upkeep.pool?;
            // One whose files cannot be read has no forks.
            let wal_writes = self.store.by_name(&entry.name).ok()?.wal_writes();
            Some(Parent { name: entry.name, id: entry.id, pool, wal_writes })
        };
        self.store.entries().into_iter().filter_map(parent).collect()
    }

    fn next_step(&self) -> Option<Step> {
        let parents = self.pool_parents();
        let runs = |name: &str| requests::state(&self.store, &self.mountpoint, name).pid().is_some();
        let mut state = self.pools.state.lock();
        let State { members, seen, .. } = &mut *state;
        seen.retain(|id, _| parents.iter().any(|parent| parent.id == *id));
        for (name, member) in members.iter() {
            let of = parents.iter().find(|parent| parent.id == member.parent);
            let wanted = of.is_some_and(|parent| {
                let others = members.values().filter(|other| other.parent == parent.id).count();
                others <= usize::from(parent.pool.size) && !parent.is_stale(member)
            });
            if !wanted || !runs(name) {
                return Some(Step::End(name.clone()));
            }
        }
        let now = Instant::now();
        for parent in parents {
            let wal_writes = parent.wal_writes;
            let seen =
                seen.entry(parent.id).or_insert_with(|| Seen { wal_writes, since: now, failure: None });
            if seen.wal_writes != wal_writes {
                (seen.wal_writes, seen.since) = (wal_writes, now);
            }
            let due = seen.failure.as_ref().is_none_or(|(_, at)| at.elapsed() >= RETRY);
            let quiet = seen.since.elapsed() >= QUIET || parent.pool.max_age_s > 0;
            let have = members.values().filter(|member| member.parent == parent.id).count();
            if due && quiet && have < usize::from(parent.pool.size) {
                return Some(Step::Make(parent));
            }
        }
        None
    }

    fn make_member(&self, parent: &Parent) {
        let made = self.try_make_member(parent);
        let mut state = self.pools.state.lock();
        let Some(seen) = state.seen.get_mut(&parent.id) else { return };
        seen.failure = made.err().map(|error| {
            log::warn!("no fork of {} is made ready: {error}", parent.name);
            (error.to_string(), Instant::now())
        });
    }

    fn try_make_member(&self, parent: &Parent) -> Result<()> {
        let stem = launch::stem(&parent.name);
        let name = loop {
            let number = {
                let mut state = self.pools.state.lock();
                state.next += 1;
                state.next
            };
            let name = format!("{stem}-pool-{number}");
            if self.check_new(&name).is_ok() {
                break name;
            }
        };
        let made = Instant::now();
        let forked = self.fork(&ForkSpec {
            parent: parent.name.clone(),
            snapshot: None,
            child: name.clone(),
            port: None,
            listen: self.info(&parent.name)?.meta.listen,
            settings: Vec::new(),
            keep_identity: false,
            new_timeline: false,
            quota: None,
            ephemeral: true,
            leased: false,
            expiry: None,
            incomplete: false,
            as_is: false,
            aside: false,
            masks: Vec::new(),
        })?;
        let ui = Ui::new(false, true);
        if let Err(error) = launch::launch(&self.paths, &ui, &forked.row, &launch::default_options()) {
            self.end_member(&name);
            return Err(error);
        }
        let member = Member { parent: parent.id, wal_writes: parent.wal_writes, made };
        self.pools.state.lock().members.insert(name, member);
        Ok(())
    }

    fn end_member(&self, name: &str) {
        self.pools.forget(name);
        // Somebody may have removed it.
        if self.store.info(name).is_ok()
            && let Err(error) = self.end_fork(name)
        {
            log::error!("{name}, which is in no pool any more, is still there: {error}");
        }
    }

    /// Ends all that wait in pools, and makes no more until [`Pools::resume`].
    pub(super) fn end_pools(&self) {
        self.pools.pause();
        let names: Vec<String> = self.pools.state.lock().members.keys().cloned().collect();
        names.iter().for_each(|name| self.end_member(name));
    }

    /// Hands out a started fork, the youngest there is, if there is one that is not
    /// stale.
    pub(super) fn take(&self, parent: &str, client: u64) -> Result<Option<ForkRow>> {
        let row = self.info(parent)?;
        let Some(pool) = row.meta.upkeep.pool else { return Ok(None) };
        let fork = self.store.by_name(parent)?;
        let parent = Parent { name: row.name, id: fork.id(), pool, wal_writes: fork.wal_writes() };
        loop {
            let mut state = self.pools.state.lock();
            let members = state.members.iter().filter(|(_, m)| m.parent == parent.id && !parent.is_stale(m));
            let Some(name) = members.max_by_key(|(_, member)| member.made).map(|(name, _)| name.clone())
            else {
                return Ok(None);
            };
            state.members.remove(&name);
            drop(state);
            // It is replaced at the next look: now that would only take time from the client.
            self.leases.enter(&name, client);
            if requests::state(&self.store, &self.mountpoint, &name).pid().is_some() {
                log::info!("{name} is handed out");
                return Ok(Some(self.info(&name)?));
            }
            // Its server has ended; so it goes with its client.
        }
    }

    pub(super) fn set_pool(&self, fork: &str, pool: Option<Pool>) -> Result<Vec<PoolRow>> {
        self.change_meta(fork, |row| {
            if pool.is_some() && !row.meta.mask_forks.is_empty() {
                return Err(Error::new(
                    Kind::State,
                    format!("the forks of {fork:?} are masked when they are made"),
                )
                .cause("a pool makes its forks by itself")
                .hint(format!("fork it, and give the fork a pool: pgcowfs fork {fork} MASKED")));
            }
            log::info!("the pool of {fork} is {pool:?}");
            row.meta.upkeep.pool = pool;
            Ok(())
        })?;
        self.pools.look();
        self.pool_rows(Some(fork))
    }

    pub(super) fn pool_rows(&self, fork: Option<&str>) -> Result<Vec<PoolRow>> {
        if let Some(fork) = fork {
            self.info(fork)?;
        }
        let parents = self.pool_parents();
        let state = self.pools.state.lock();
        let row = |parent: Parent| {
            let of = state.members.iter().filter(|(_, member)| member.parent == parent.id);
            let (stale, ready): (Vec<_>, Vec<_>) = of.partition(|(_, member)| parent.is_stale(member));
            let names = |of: Vec<(&String, &Member)>| of.into_iter().map(|(name, _)| name.clone()).collect();
            let failure = state.seen.get(&parent.id).and_then(|seen| seen.failure.as_ref());
            PoolRow {
                ready: names(ready),
                stale: names(stale),
                failure: failure.map(|(why, _)| why.clone()),
                size: parent.pool.size,
                max_age_s: parent.pool.max_age_s,
                fork: parent.name,
            }
        };
        let wanted = |parent: &Parent| fork.is_none_or(|fork| parent.name == fork);
        Ok(parents.into_iter().filter(wanted).map(row).collect())
    }
}
