//! Where forks are found: the names, ports and socket directories in their
//! configuration, and what they have beside the store.

use std::path::{Path, PathBuf};

use pgcowfs::Store;

use super::{Daemon, ports, refuse_running, requests, sockets};
use crate::config::StorePaths;
use crate::error::Result;
use crate::meta::ForkMeta;
use crate::postgres::identity::{self, Identity, Source};
use crate::postgres::tree::ForkTree;
use crate::protocol::ForkRow;

impl Daemon {
    pub(super) fn set_port(&self, fork: &str, port: u16) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        let mut meta = self.info(fork)?.meta;
        let state = requests::state(&self.store, &self.mountpoint, fork);
        refuse_running(fork, state, format!("stop it first: pgcowfs stop {fork}"))?;
        let owners = self.owners();
        let owner = |port| owners.get(&port).filter(|owner| *owner != fork).cloned();
        let busy = |port| ports::busy(port, &meta.listen);
        meta.port = ports::choose(self.config.port_range, Some(port), owner, busy)?;
        self.readdress(fork, fork, &meta)?;
        self.info(fork)
    }

    /// Makes a fork known by its name, port and socket directory.
    pub(super) fn readdress(&self, fork: &str, old_name: &str, meta: &ForkMeta) -> Result<()> {
        let changed = readdress(&self.store, &self.mountpoint, fork, old_name, meta)?;
        let fork = self.store.by_name(fork)?;
        // The kernel may hold their old contents.
        changed.iter().try_for_each(|path| Ok(self.mount.changed(&fork, path)?))
    }
}

/// Writes a fork's name, port and socket directory into its configuration and
/// settings; returns the files that have changed.
fn readdress(
    store: &Store,
    mountpoint: &Path,
    fork: &str,
    old_name: &str,
    meta: &ForkMeta,
) -> Result<Vec<String>> {
    let opened = store.by_name(fork)?;
    let identity = Identity {
        fork,
        pgdata: &mountpoint.join(fork),
        port: meta.port,
        socket_dir: &meta.socket_dir,
        listen: &meta.listen,
        major: meta.pg_version,
        keep: meta.keep_identity,
        follows: meta.follow.is_some(),
        new_timeline: false,
        settings: &[],
        source: Some(Source { fork: old_name, mountpoint }),
    };
    let changed = identity::readdress(&ForkTree(&opened), &identity)?;
    opened.sync_all()?;
    store.set_meta(fork, &meta.encode()?)?;
    Ok(changed)
}

/// Makes the socket directories of all forks, as a server may be started by
/// hand; gives a fork another one where the store has moved, or where a daemon died
/// in the middle of a rename.
pub fn refresh(paths: &StorePaths, store: &Store, mountpoint: &Path) {
    for info in store.entries() {
        let refresh = || {
            let mut meta = ForkMeta::decode(&info.name, &info.meta)?;
            let place = sockets::choose(paths, &info.name);
            if place != meta.socket_dir {
                log::info!("the sockets of {} move to {}", info.name, place.display());
                let old = std::mem::replace(&mut meta.socket_dir, place);
                let old_name = old.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                readdress(store, mountpoint, &info.name, old_name, &meta)?;
            }
            sockets::ensure(paths, &info.name, &meta.socket_dir, meta.uid, meta.gid)
        };
        // The others are not to suffer; its own start will tell.
        if let Err(error) = refresh() {
            log::warn!("fork {}: {error}", info.name);
        }
    }
}

/// Removes what forks that have ended with the last daemon left beside the store.
pub fn sweep(paths: &StorePaths, store: &Store) {
    for ended in store.ended() {
        remove_leavings(paths, &ended.name);
    }
}

/// What a fork has beside its files.
pub fn remove_leavings(paths: &StorePaths, fork: &str) {
    sockets::remove(paths, fork);
    let server_log = paths.server_log(fork);
    if let Err(e) = std::fs::remove_file(&server_log)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        log::warn!("cannot remove {}: {e}", server_log.display());
    }
}

/// The lock files of all forks' sockets, those included that have ended with the
/// last daemon: their servers may have outlived it.
pub fn socket_locks(store: &Store) -> Vec<PathBuf> {
    let entries = store.entries().into_iter().chain(store.ended());
    let metas = entries.filter_map(|info| ForkMeta::decode(&info.name, &info.meta).ok());
    metas.map(|meta| meta.socket_dir.join(format!(".s.PGSQL.{}.lock", meta.port))).collect()
}
