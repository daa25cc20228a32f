//! What the daemon does about a fork by itself.

use std::path::PathBuf;
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
    /// Dumps that are made by the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<DumpSchedule>,
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

/// Dumps that are made by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpSchedule {
    /// The directory that they are made in.
    pub dir: PathBuf,
    /// How often, in seconds.
    pub every_s: u64,
    /// How many are kept.
    pub keep: u32,
    /// What is dumped, and how.
    pub what: DumpWhat,
    /// Names of those that it has made and not removed, the oldest first.
    #[serde(default)]
    pub made: Vec<String>,
    /// When the last one that is complete was begun, RFC 3339.
    #[serde(default)]
    pub last_at: Option<String>,
    /// What went wrong since.
    #[serde(default)]
    pub failure: Option<DumpFailure>,
}

/// The options of a dump that is made by the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpWhat {
    /// Tables at once.
    #[serde(default)]
    pub jobs: Option<u16>,
    /// Databases; none: all.
    #[serde(default)]
    pub databases: Vec<String>,
    /// Patterns of tables; none: all.
    #[serde(default)]
    pub tables: Vec<String>,
    /// Definitions only.
    #[serde(default)]
    pub schema_only: bool,
    /// pg_dump's --compress.
    #[serde(default)]
    pub compress: Option<String>,
    /// How far it stands back.
    #[serde(default)]
    pub nice: i32,
}

/// A dump that was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFailure {
    /// When that was known, RFC 3339.
    pub at: String,
    /// Why.
    pub message: String,
}

impl Pool {
    /// The same as a duration.
    pub fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age_s)
    }
}
