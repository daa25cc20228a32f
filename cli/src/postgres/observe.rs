//! What a server does while a command works with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::connect::{Address, connect, refused, wait};
use crate::error::Result;

/// How often it is looked who waits for a lock.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The first major version that says since when somebody waits.
pub const SAYS_SINCE_WHEN: u32 = 14;

/// Where the server's WAL ends.
pub fn wal_position(address: &Address) -> Result<u64> {
    let query = "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8";
    let failed = |e| refused("cannot ask for the position of the WAL", &e);
    wait(address, async || {
        let row = connect(address).await?.query_one(query, &[]).await.map_err(failed)?;
        let bytes: i64 = row.try_get(0).map_err(failed)?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    })
}

/// The longest wait for a lock that was seen.
#[derive(Clone, Debug, Serialize)]
pub struct LockWait {
    /// How long it had lasted then.
    pub wait_ms: f64,
    /// The lock's mode, such as AccessExclusiveLock.
    pub mode: String,
    /// What it is on: relation, transactionid, ...
    pub on: String,
    /// What the one who waited was doing.
    pub query: String,
}

/// What was seen of locks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Waits {
    /// How often it was looked.
    pub samples: u64,
    /// The longest wait; null if nobody was seen waiting.
    pub longest: Option<LockWait>,
}

/// Looks who waits for a lock, again and again until `stop`.
pub fn lock_waits(address: &Address, stop: &AtomicBool) -> Result<Waits> {
    let query = "SELECT (extract(epoch FROM clock_timestamp() - l.waitstart) * 1000)::float8, l.mode, l.locktype, \
                 coalesce(a.query, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
                 WHERE NOT l.granted AND l.waitstart IS NOT NULL ORDER BY l.waitstart LIMIT 1";
    let failed = |e| refused("cannot ask who waits for a lock", &e);
    wait(address, async || {
        let client = connect(address).await?;
        let look = client.prepare(query).await.map_err(failed)?;
        let mut waits = Waits::default();
        while !stop.load(Ordering::SeqCst) {
            if let Some(row) = client.query_opt(&look, &[]).await.map_err(failed)? {
                let wait_ms: f64 = row.try_get(0).map_err(failed)?;
                if waits.longest.as_ref().is_none_or(|longest| longest.wait_ms < wait_ms) {
                    waits.longest = Some(LockWait {
                        wait_ms,
                        mode: row.try_get(1).map_err(failed)?,
                        on: row.try_get(2).map_err(failed)?,
                        query: row.try_get(3).map_err(failed)?,
                    });
                }
            }
            waits.samples += 1;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(waits)
    })
}
