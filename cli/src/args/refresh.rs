//! `refresh`'s command line.

use std::path::PathBuf;

use clap::Args;

use super::source::rate;
use super::{ServerCheckpoint, StartOptions};

/// `refresh`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs refresh prod                          from the directory, or the server, that it was copied from
  pgcowfs refresh prod --from /srv/backup/prod
  pgcowfs refresh prod --force                  whoever is connected

The root becomes what the stopped cluster, or the running server, is now; only pages that differ take new space, and forks that were made before keep \
all they have. Name, port, sockets, URL, settings, snapshots and masks stay. What the root has become by itself is thrown away. Its \
server runs on until the new state is ready, masked if the root is, and is then stopped and started, as `reset` does it. If anything \
fails, the root is as it was.")]
pub struct Refresh {
    /// The root fork
    pub fork: String,
    /// The stopped cluster [default: what the fork was copied from]
    #[arg(long, value_name = "PGDATA")]
    pub from: Option<PathBuf>,
    /// Where that cluster's postgresql.conf is, if not in its data directory [default: found as Debian lays it out]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// From a running server: read at most so much a second, from 32kB to 1GB
    #[arg(long, value_name = "SIZE", value_parser = rate)]
    pub max_rate: Option<u64>,
    /// From a running server: the checkpoint that it begins with, at once or spread over some minutes
    #[arg(long, value_name = "HOW", default_value = "fast")]
    pub checkpoint: ServerCheckpoint,
    /// Disconnect whoever is connected
    #[arg(long, short)]
    pub force: bool,
    /// How to start it again, if it runs.
    #[command(flatten)]
    pub options: StartOptions,
}
