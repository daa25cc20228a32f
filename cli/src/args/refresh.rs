//! `refresh`'s command line.

use std::path::PathBuf;

use clap::Args;

use super::StartOptions;

/// `refresh`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs refresh prod                          from the directory that it was copied from
  pgcowfs refresh prod --from /srv/backup/prod
  pgcowfs refresh prod --force                  whoever is connected

The root becomes what the stopped cluster is now; only pages that differ take new space, and forks that were made before keep \
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
    /// Disconnect whoever is connected
    #[arg(long, short)]
    pub force: bool,
    /// How to start it again, if it runs.
    #[command(flatten)]
    pub options: StartOptions,
}
