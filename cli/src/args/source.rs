//! The command line about a running server that a root fork comes from.

use clap::{Args, ValueEnum};

use super::size;

/// The server, and how it is copied.
#[derive(Args, Debug, Default)]
pub struct RunningServer {
    /// Copy this running server (a base backup); a connection string without a password, for a role that may replicate
    #[arg(long, value_name = "URL", conflicts_with_all = ["from", "base", "pg_version", "initdb_arg", "config_dir"])]
    pub from_server: Option<String>,
    /// The same, and then follow the server as a streaming standby, which is started
    #[arg(long, value_name = "URL", conflicts_with_all = ["from_server", "from", "base", "pg_version", "initdb_arg", "config_dir"])]
    pub follow: Option<String>,
    /// With --follow: the slot that is made on the server and keeps the WAL for the standby [default: pgcowfs_NAME]
    #[arg(long, value_name = "NAME", requires = "follow", conflicts_with = "from_server", value_parser = slot)]
    pub slot: Option<String>,
    /// With --follow: no slot; a standby that is away for long may find that WAL it needs is gone
    #[arg(long, requires = "follow", conflicts_with_all = ["slot", "from_server"])]
    pub no_slot: bool,
    /// With a running server: read at most so much a second, from 32kB to 1GB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    pub max_rate: Option<u64>,
    /// With a running server: the checkpoint that it begins with, at once or spread over some minutes
    #[arg(long, value_name = "HOW", default_value = "fast")]
    pub checkpoint: ServerCheckpoint,
}

/// How the server makes its checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ServerCheckpoint {
    /// As fast as it can.
    #[default]
    Fast,
    /// At its usual pace.
    Spread,
}

impl RunningServer {
    /// The server's connection string, if there is one.
    pub fn url(&self) -> Option<&str> {
        self.from_server.as_deref().or(self.follow.as_deref())
    }

    /// Whether something is said about a server, and none is named.
    pub fn lacks_url(&self) -> bool {
        self.url().is_none() && (self.max_rate.is_some() || self.checkpoint != ServerCheckpoint::Fast)
    }
}

/// A name that PostgreSQL takes for a slot.
fn slot(text: &str) -> Result<String, String> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    match !text.is_empty() && text.len() <= 63 && text.bytes().all(is_plain) {
        true => Ok(text.to_string()),
        false => Err("a slot's name has 1 to 63 of a-z, 0-9 and _".into()),
    }
}

/// The name of a follower's slot, if none is chosen.
pub fn slot_of(fork: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    format!("pgcowfs_{}", fork.chars().map(plain).take(55).collect::<String>())
}

/// What pg_basebackup knows as a rate.
pub fn rate(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if (32 << 10..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("a rate from 32kB to 1GB (a second) is needed".into()),
    }
}
