//! `export`'s command line.

use std::path::PathBuf;

use clap::Args;

use super::{CheckpointOptions, Place};

/// `export`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs export main /srv/pg/main                 then: pg_ctl -D /srv/pg/main start
  pgcowfs export main@seeded /mnt/usb/seeded
  pgcowfs create back --from /srv/pg/main          the way back

The fork may be running, and busy: what is written is the fork at one instant, and starts as after a crash at that instant \
(stop the fork first for one that was shut down). DIR has its final name only when everything is on the disk; if it is \
interrupted, or the disk is full, nothing is left.

Its configuration is the fork's, without what names the store: it has the port and socket directory that its own \
postgresql.conf says, or PostgreSQL's defaults. Archiving, replication and the like are as they are in the fork.")]
pub struct Export {
    /// The fork, or a snapshot of one
    #[arg(value_name = "FORK[@LABEL]")]
    pub fork: Place,
    /// The data directory to make: a name that is free, or an empty directory
    pub dir: PathBuf,
    /// About the fork's server.
    #[command(flatten)]
    pub checkpoint: CheckpointOptions,
}
