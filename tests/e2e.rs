//! End-to-end tests: a real PostgreSQL on a real mount, driven through the `pgcowfs` program.
//!
//! They need PostgreSQL 15, /dev/fuse and, as an ordinary user, `fusermount3`; a test that cannot run says
//! `SKIPPED: why`. As root the servers run as user `postgres`. `PGCOWFS_TEST_DIR` names a directory on a disk for the
//! stores (default /var/tmp), `PGCOWFS_TEST_PG_BIN` another PostgreSQL, `PGCOWFS_BIN` another
//! program than the one just built.
//! `PGCOWFS_TEST_ROUNDS` repeats what is left to chance more often; `PGCOWFS_TEST_KEEP` leaves the store of a test that
//! failed where it is, with its daemon.

mod common;
mod oracle;

/// The tests.
mod e2e {
    mod bad_input;
    mod compare;
    mod copies;
    mod counts;
    mod crash;
    mod damage;
    mod debian;
    mod disk_full;
    mod doctor;
    mod dump;
    mod dumps;
    mod ephemeral;
    mod examples;
    mod expire;
    mod export;
    mod follow;
    mod footprint;
    mod fork_load;
    mod from_server;
    mod generated;
    mod hostile_dirs;
    mod identity;
    mod lifecycle;
    mod masking;
    mod names;
    mod oracle_controls;
    mod pool;
    mod refresh;
    mod restore;
    mod roles;
    mod run;
    mod schedule;
    mod security;
    mod snapshots;
    mod space;
    mod stats;
}
