//! What the daemon does by the clock: it ends forks that have had their time, and
//! makes the snapshots that are due.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgcowfs::ForkId;

use super::{Daemon, requests};
use crate::error::{Error, Kind, Result};
use crate::meta::{Expiry, ForkMeta};
use crate::postgres::connect::{self, Address};
use crate::postgres::follow::Slot;
use crate::postgres::tree::ForkTree;
use crate::postgres::user::OsUser;
use crate::protocol::ForkRow;
use crate::ui::duration_text;

/// How often the clock is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// So long before its end the log has a warning about a fork, if it lives that long.
const WARN_BEFORE: Duration = Duration::from_secs(60);

/// After a failure nothing is tried for that long.
const RETRY: Duration = Duration::from_secs(60);

/// Who is connected is asked so many times within the time that nobody may be.
const LOOKS_WITHIN: u32 = 20;
const SESSIONS_EVERY_MAX: Duration = Duration::from_secs(30);

/// What the clock has seen of a fork.
struct Seen {
    /// When somebody used it last, as far as that was looked at.
    used: Instant,
    looked: Instant,
    warned: bool,
    not_before: Option<Instant>,
}

/// How long a fork has still to live, and why no longer.
struct Left {
    time: Duration,
    why: String,
}

impl Daemon {
    /// Looks at the clock until the daemon ends.
    pub(super) fn keep_time(self: &Arc<Self>) {
        let mut seen: BTreeMap<ForkId, Seen> = BTreeMap::new();
        loop {
            std::thread::sleep(LOOK_INTERVAL);
            let closed = self.closed.read();
            if *closed || self.ending.load(Ordering::SeqCst) {
                return;
            }
            let entries = self.store.entries();
            self.follow_dumps(&entries);
            seen.retain(|id, _| entries.iter().any(|entry| entry.id == *id));
            for entry in entries {
                // What cannot be understood here has been told of at the start.
                let Ok(meta) = ForkMeta::decode(&entry.name, &entry.meta) else { continue };
                let (expiry, schedule) = (&meta.upkeep.expiry, &meta.upkeep.schedule);
                if expiry.is_none() && schedule.is_none() {
                    continue;
                }
                let now = Instant::now();
                let seen = seen.entry(entry.id).or_insert(Seen {
                    used: now,
                    looked: now,
                    warned: false,
                    not_before: None,
                });
                if seen.not_before.is_some_and(|time| now < time) {
                    continue;
                }
                let done = match (expiry, schedule) {
                    (Some(expiry), _) if self.has_expired(&entry.name, &meta, expiry, seen) => {
                        self.end_with_slot(&entry.name, &meta)
                    }
                    (_, Some(schedule)) => self.follow_schedule(&entry.name, schedule),
                    _ => Ok(()),
                };
                seen.not_before = done.err().map(|error| {
                    log::error!("{}: what its settings want is not done: {error}", entry.name);
                    now + RETRY
                });
            }
        }
    }

    /// Ends a fork whose time is over, and for a follower what the server keeps for it.
    fn end_with_slot(&self, fork: &str, meta: &ForkMeta) -> Result<()> {
        let slot = match &meta.follow {
            Some(follow) => {
                let opened = self.store.by_name(fork)?;
                Slot::of(follow, &ForkTree(&opened), &OsUser::numbered(meta.uid)?)?
            }
            None => None,
        };
        self.end_fork(fork)?;
        if let Some(slot) = slot {
            // The server may be far away, and others wait for the clock.
            std::thread::spawn(move || slot.drop().iter().for_each(|left| log::warn!("{left}")));
        }
        Ok(())
    }

    /// Whether a fork's time is over; the log tells of it before.
    fn has_expired(&self, fork: &str, meta: &ForkMeta, expiry: &Expiry, seen: &mut Seen) -> bool {
        let of_idle = expiry.idle_s.map(|idle| {
            let idle = Duration::from_secs(idle);
            if seen.looked.elapsed() >= (idle / LOOKS_WITHIN).min(SESSIONS_EVERY_MAX) {
                seen.looked = Instant::now();
                if self.is_used(fork, meta) {
                    seen.used = seen.looked;
                }
            }
            let why = format!("nobody has been connected to it for {}", duration_text(idle));
            Left { time: idle.saturating_sub(seen.used.elapsed()), why }
        });
        let of_ttl = expiry.left().map(|time| Left { time, why: "its time is over".into() });
        let Some(left) = of_idle.into_iter().chain(of_ttl).min_by_key(|left| left.time) else { return false };
        // Not before the log has told of it, also where its time was over when this began.
        if left.time.is_zero() && seen.warned {
            log::warn!("removing {fork}: {}", left.why);
            return true;
        }
        if left.time > WARN_BEFORE {
            // It was used again, or given more time.
            seen.warned = false;
        } else if !seen.warned {
            seen.warned = true;
            log::warn!(
                "{fork} will be removed in {}, unless that changes",
                duration_text(left.time.max(LOOK_INTERVAL))
            );
        }
        false
    }

    /// Whether somebody is connected to a fork's server. One that does not answer may
    /// be starting.
    fn is_used(&self, fork: &str, meta: &ForkMeta) -> bool {
        if requests::state(&self.store, &self.mountpoint, fork).pid().is_none() {
            return false;
        }
        let sessions =
            OsUser::numbered(meta.uid).and_then(|user| connect::sessions(&Address::new(meta, &user)));
        match sessions {
            Ok(sessions) => !sessions.is_empty(),
            Err(error) => {
                log::info!("cannot tell whether somebody is connected to {fork}: {error}");
                true
            }
        }
    }

    /// Sets or lifts the end of a fork's time.
    pub(super) fn set_expiry(&self, fork: &str, expiry: Option<Expiry>) -> Result<ForkRow> {
        self.change_meta(fork, |row| {
            if expiry.is_some() {
                let why = "it cannot be both protected and removed when its time is over";
                row.meta.refuse_while_protected(fork, why)?;
            }
            log::info!("the end of {fork} is {expiry:?}");
            row.meta.upkeep.expiry = expiry;
            Ok(())
        })
    }
}

/// Refuses to protect a fork that is to be removed.
pub(super) fn refuse_expiring(row: &ForkRow) -> Result<()> {
    let name = &row.name;
    match row.meta.upkeep.expiry {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::State, format!("fork {name:?} is removed when its time is over"))
            .cause("it cannot be protected as well")
            .hint(format!("give it time without end first: pgcowfs expire {name} --off"))),
    }
}

impl Expiry {
    /// How long there is still until its end, if that is a time.
    fn left(&self) -> Option<Duration> {
        let at = self.at.as_ref()?.parse::<Timestamp>().ok()?;
        // Negative when it is over.
        Some(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default())
    }
}
