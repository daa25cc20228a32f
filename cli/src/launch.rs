//! Starting a fork's server, which commands do, and the daemon for its pools.

use std::time::Duration;

use crate::args::{BinaryOptions, StartOptions, Switch};
use crate::config::StorePaths;
use crate::daemon::{ports, sockets};
use crate::error::{Error, Kind, Result};
use crate::postgres::server;
use crate::postgres::user::OsUser;
use crate::postgres::{binaries, cluster};
use crate::protocol::ForkRow;
use crate::ui::Ui;

/// `start`'s defaults.
pub fn default_options() -> StartOptions {
    StartOptions {
        timeout: Duration::from_secs(60),
        full_page_writes: Switch::On,
        binaries: BinaryOptions { pg_bin: None },
        settings: Vec::new(),
    }
}

/// What a name that is made up for a fork begins with: its parent's, as far as there is
/// room.
pub fn stem(parent: &str) -> String {
    parent.chars().take(40).collect()
}

/// From PostgreSQL 14 on, its server may leave out its fsync of every file before a
/// recovery, if the whole fork is durable. An ephemeral one does no fsync at all.
pub fn needs_sync(row: &ForkRow) -> bool {
    !row.ephemeral && row.meta.pg_version >= 14
}

/// What to do about a fork that is at fault.
pub fn after_fault(row: &ForkRow) -> &'static str {
    match row.base_changed {
        true => "restore the base as it was and mount anew (pgcowfs umount), or remove the fork",
        false => "its files cannot be trusted; remove it, and fork its parent anew",
    }
}

/// Refuses a fork whose files cannot be relied on.
pub fn check_files(row: &ForkRow) -> Result<()> {
    let name = &row.name;
    if let Some(fault) = &row.fault {
        let (kind, what) = match row.base_changed {
            true => (Kind::BadInput, format!("the base of fork {name:?} has changed")),
            false => (Kind::Storage, format!("fork {name:?} accepts nothing any more")),
        };
        return Err(Error::new(kind, what).cause(fault.clone()).hint(after_fault(row)));
    }
    if let Some(base) = &row.base {
        cluster::check_base(name, base, row.meta.base_mark)?;
    }
    Ok(())
}

/// Starts the server of a fork that is durable as far as that needs it.
pub fn launch(paths: &StorePaths, ui: &Ui, row: &ForkRow, options: &StartOptions) -> Result<Duration> {
    let name = &row.name;
    check_files(row)?;
    let user = OsUser::numbered(row.meta.uid)?;
    if user.uid == 0 {
        // PostgreSQL refuses root; what else the store names as its program does not.
        return Err(Error::new(Kind::BadInput, format!("fork {name:?} would run as root"))
            .cause("PostgreSQL never does")
            .hint("make it anew with --run-as USER"));
    }
    let pg_bin = options.binaries.pg_bin.as_deref().or(row.meta.pg_bin.as_deref());
    let binaries = binaries::find(pg_bin, Some(row.meta.pg_version))?;
    if ports::busy(row.meta.port, &row.meta.listen) {
        return Err(ports::in_use(row.meta.port, Some(name)));
    }
    sockets::ensure(paths, name, &row.meta.socket_dir, row.meta.uid, row.meta.gid)?;
    let mut settings = vec![
        // As the fork's own configuration says, unless it was edited since:
        // what is printed and tested for is what holds.
        ("port".to_string(), row.meta.port.to_string()),
        ("unix_socket_directories".to_string(), row.meta.socket_dir.display().to_string()),
    ];
    let full_page_writes = options.full_page_writes == Switch::On && !row.ephemeral;
    let full_page_writes = if full_page_writes { "on" } else { "off" };
    settings.push(("full_page_writes".to_string(), full_page_writes.to_string()));
    if row.ephemeral {
        // Nothing of it survives what these are there for.
        settings.extend(["fsync", "synchronous_commit"].map(|s| (s.into(), "off".into())));
    }
    if needs_sync(row) {
        settings.push(("recovery_init_sync_method".to_string(), "syncfs".to_string()));
    }
    if row.meta.follow.is_some() {
        // What keeps it from following is looked for in its log (`follow`).
        let log = [("logging_collector", "off"), ("log_destination", "stderr"), ("lc_messages", "C")];
        settings.extend(log.map(|(name, value)| (name.to_string(), value.to_string())));
    }
    settings.extend_from_slice(&options.settings);
    let start = server::Start {
        fork: name,
        binaries: &binaries,
        user: &user,
        pgdata: &row.pgdata,
        socket_dir: &row.meta.socket_dir,
        log: &paths.server_log(name),
        settings,
        timeout: options.timeout,
    };
    server::start(&start, ui)
}
