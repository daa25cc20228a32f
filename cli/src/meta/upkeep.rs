//! What the daemon does about a fork by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Set by commands of their own. What is made from a fork has none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// Forks of it that are kept ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// When it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Expiry>,
    /// Snapshots that are made by the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
}

/// Started forks that are kept ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// How many.
    pub size: u16,
    /// For how long one may be handed out although its parent has changed since.
    pub max_age_s: u64,
}

/// When a fork is removed by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// At that time, RFC 3339.
    pub at: Option<String>,
    /// When nobody has been connected to it for so many seconds.
    pub idle_s: Option<u64>,
}

/// Snapshots that are made by the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// How often, in seconds.
    pub every_s: u64,
    /// How many are kept.
    pub keep: u32,
}

impl Pool {
    /// The same as a duration.
    pub fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_s)
    }
}
