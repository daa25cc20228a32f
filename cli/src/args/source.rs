//! The command line about a running server that a root fork comes from.

use clap::{Args, ValueEnum};

use super::size;

/// The server, and how it is copied.
#[derive(Args, Debug)]
pub struct RunningServer {
    /// Copy this running server (a base backup); a connection string without a password, for a role that may replicate
    #[arg(long, value_name = "URL", conflicts_with_all = ["from", "base", "pg_version", "initdb_arg", "config_dir"])]
    pub from_server: Option<String>,
    /// With --from-server: read at most so much a second, from 32kB to 1GB
    #[arg(long, value_name = "SIZE", value_parser = rate, requires = "from_server")]
    pub max_rate: Option<u64>,
    /// With --from-server: the checkpoint that the server begins with, at once or spread over some minutes
    #[arg(long, value_name = "HOW", default_value = "fast", requires = "from_server")]
    pub checkpoint: ServerCheckpoint,
}

/// How the server makes its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ServerCheckpoint {
    /// As fast as it can.
    Fast,
    /// At its usual pace.
    Spread,
}

/// What pg_basebackup knows as a rate.
fn rate(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if (32 << 10..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err("a rate from 32kB to 1GB (a second) is needed".into()),
    }
}
