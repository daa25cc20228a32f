//! What the daemon does for its clients.

use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use pgcowfs::base::{self, Scanned};
use pgcowfs::check::scrub;
use pgcowfs::{Fork, ForkEntry, ForkInfo, Store};
use serde::Serialize;

use super::clients::{self, NoRequest};
use super::{Daemon, Event, Making, addresses, ports, refuse_running, sockets, stats};
use crate::error::{Context, Error, Kind, Result};
use crate::meta::{ForkMeta, Origin, Protection, Upkeep};
use crate::postgres::cluster::PID_FILE_MAX;
use crate::postgres::server::State;
use crate::postgres::user::OsUser;
use crate::protocol::{
    Collected, CreateSpec, Created, DaemonStatus, ForkRow, ForkSpec, Forked, InspectSpec, Inspected,
    Progress, Reply, Request,
};

/// How often a client hears how far something is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// A result as it goes over the wire.
pub fn reply<T: Serialize>(result: Result<T>) -> Reply {
    let encode = |value: T| {
        serde_json::to_value(value)
            .map_err(|e| Error::new(Kind::Failed, "cannot write the daemon's reply").cause(e.to_string()))
    };
    match result.and_then(encode) {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(error),
    }
}

fn ending() -> Error {
    Error::new(Kind::State, "the daemon is ending").hint("try again in a moment")
}

/// Sends a reply; false if the client has gone.
pub fn send(client: &mut UnixStream, reply: &Reply) -> bool {
    let sent = serde_json::to_string(reply).map_err(std::io::Error::from).and_then(|mut text| {
        text.push('\n');
        client.write_all(text.as_bytes())
    });
    if let Err(e) = &sent {
        log::debug!("a client left before its reply: {e}");
    }
    sent.is_ok()
}

impl Daemon {
    /// Serves one client until it leaves.
    pub(super) fn serve(self: Arc<Self>, mut client: UnixStream) {
        if let Err(error) = check_peer(&client) {
            log::warn!("refused a client: {error}");
            send(&mut client, &Reply::Error(error));
            return;
        }
        let Ok(read_half) = client.try_clone() else {
            return log::warn!("cannot read from a client: too many open files");
        };
        // The forks that this client is making.
        let mut own: Vec<String> = Vec::new();
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        let mut reader = BufReader::new(read_half);
        let mut first = true;
        loop {
            let line = match clients::read_request(&mut reader, first, clients::PATIENCE) {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(NoRequest::Gone(e)) => {
                    log::info!("a client is gone or too slow: {e}");
                    break;
                }
                Err(NoRequest::TooLong) => {
                    let most = clients::REQUEST_MAX;
                    let error = Error::new(Kind::Failed, format!("a request is longer than {most} bytes"))
                        .hint("give fewer or shorter settings");
                    send(&mut client, &Reply::Error(error));
                    break;
                }
            };
            first = false;
            let request = match serde_json::from_str(&line) {
                Ok(Request::Shutdown { force }) => {
                    let event = Event::Shutdown { force, client };
                    if self.events.lock().send(event).is_err() {
                        log::debug!("a client asks for an end that has come already");
                    }
                    return self.abandon(own);
                }
                Ok(Request::Inspect(spec)) => {
                    let reply = reply(self.inspect(&spec, &mut client));
                    send(&mut client, &reply);
                    continue;
                }
                Ok(Request::Collect { wait }) => {
                    let reply = reply(self.collect(wait, &mut client));
                    send(&mut client, &reply);
                    continue;
                }
                Ok(request) => request,
                Err(e) => {
                    let error = Error::new(Kind::Failed, "the daemon does not understand the request")
                        .cause(e.to_string())
                        .hint("the daemon is of another version; end it with `pgcowfs umount`");
                    send(&mut client, &Reply::Error(error));
                    continue;
                }
            };
            let reply = self.answer(request, number, &mut own);
            send(&mut client, &reply);
        }
        self.abandon(own);
        self.end_leases_of_gone(number);
    }

    /// Removes forks whose maker left before they were complete, servers and all.
    fn abandon(&self, forks: Vec<String>) {
        for fork in forks {
            let closed = self.closed.read();
            if *closed {
                // The store removes incomplete forks itself when it is opened.
                return;
            }
            if self.incomplete.lock().contains_key(&fork) {
                log::info!("removing {fork}, whose creation was abandoned");
                // A dump is loaded by a server that runs on it.
                if let Err(error) = self.end_fork(&fork) {
                    log::error!("cannot remove {fork}: {error}");
                }
            }
        }
    }

    fn answer(&self, request: Request, client: u64, own: &mut Vec<String>) -> Reply {
        let closed = self.closed.read();
        if *closed {
            return Reply::Error(ending());
        }
        log::debug!("{request:?}");
        match request {
            Request::Hello => reply(Ok(self.hello())),
            Request::Status => reply(self.status()),
            Request::List => reply(self.list()),
            Request::Diff { a, b } => reply(self.diff(&a, &b)),
            Request::Usage { fork } => reply(self.usage(&fork)),
            Request::Stats { fork } => reply(self.stats(fork.as_deref())),
            Request::Info { fork, .. } if own.contains(&fork) => reply(self.info_of_any(&fork)),
            Request::Info { fork, layout } => {
                reply(self.info(&fork).map(|row| if layout { self.with_layout(row) } else { row }))
            }
            Request::Create(spec) => {
                let result = self.create(&spec);
                if result.is_ok() {
                    own.push(spec.fork);
                }
                reply(result)
            }
            Request::Publish { fork } => {
                let leased = self.incomplete.lock().get(&fork).is_some_and(|making| making.leased);
                let result = self.publish(&fork);
                if result.is_ok() && leased {
                    self.leases.enter(&fork, client);
                }
                reply(result)
            }
            Request::Fork(spec) => {
                let result = self.fork(&spec);
                match (result.is_ok(), spec.incomplete) {
                    (true, true) => own.push(spec.child),
                    (true, false) if spec.leased => self.leases.enter(&spec.child, client),
                    _ => {}
                }
                reply(result)
            }
            Request::Keep { fork } => reply(self.keep(&fork, client)),
            Request::Take { parent } => reply(self.take(&parent, client)),
            Request::Pools { fork } => reply(self.pool_rows(fork.as_deref())),
            Request::SetPool { fork, pool } => reply(self.set_pool(&fork, pool)),
            Request::EndLeases => reply(self.end_leases(client)),
            Request::Remove { fork } if own.contains(&fork) => reply(self.remove_own(&fork)),
            Request::Remove { fork } => reply(self.remove(&fork)),
            Request::Promote { fork } => reply(self.promote(&fork)),
            Request::Rename { fork, to } => reply(self.rename(&fork, &to)),
            Request::Protect { fork, protection } => reply(self.set_protection(&fork, protection)),
            Request::SetExpiry { fork, expiry } => reply(self.set_expiry(&fork, expiry)),
            Request::CheckReset(spec) => reply(self.check_reset(&spec).map(|_| ())),
            Request::Reset(spec) => reply(self.reset(&spec)),
            Request::Snapshot { fork, label } => reply(self.snapshot(&fork, label.as_deref())),
            Request::Snapshots { fork } => reply(self.snapshots(fork.as_deref())),
            Request::Schedules { fork } => reply(self.schedule_rows(fork.as_deref())),
            Request::SetSchedule { fork, schedule } => reply(self.set_schedule(&fork, schedule)),
            Request::Dumps { fork } => reply(self.dump_rows(fork.as_deref())),
            Request::SetDumps { fork, schedule } => reply(self.set_dumps(&fork, schedule)),
            Request::CancelDump { fork } => reply(self.cancel_dump(&fork)),
            Request::RemoveSnapshot { fork, label } => reply(self.remove_snapshot(&fork, &label)),
            Request::Sync { fork } => reply(self.sync(&fork)),
            Request::SetPort { fork, port } => reply(self.set_port(&fork, port)),
            Request::SetQuota { fork, bytes } => reply(self.set_quota(&fork, bytes)),
            Request::Restore { fork, path, block } => reply(self.restore(&fork, &path, block)),
            // Taken out by `serve`, which has the client to hand over.
            Request::Shutdown { .. } | Request::Inspect(_) | Request::Collect { .. } => {
                reply::<()>(Err(Error::new(Kind::Failed, "a request came the wrong way")))
            }
        }
    }

    /// Checks or scrubs while everything goes on; ends early when the client has
    /// gone or the daemon ends.
    fn inspect(&self, spec: &InspectSpec, client: &mut UnixStream) -> Result<Inspected> {
        let closed = self.closed.read();
        if *closed {
            return Err(ending());
        }
        let mut said = Instant::now();
        let (mut before, mut left) = (0, false);
        let mut tell = |now: &scrub::Progress| {
            if said.elapsed() >= TELL_EVERY || now.bytes < before {
                let bytes = now.bytes.saturating_sub(before);
                let progress = Reply::Progress(serde_json::json!(Progress { bytes, total: now.total }));
                said = Instant::now();
                before = now.bytes;
                left = left || !send(client, &progress);
            }
            !left && !self.ending.load(Ordering::SeqCst)
        };
        let mut sealed_bytes = 0;
        if let (true, Some(fork)) = (spec.seal, &spec.fork) {
            sealed_bytes = self.store.seal_base(fork, &mut tell)?;
        }
        let mut report = self.store.check_records(&mut || !self.ending.load(Ordering::SeqCst))?;
        let mut progress = scrub::Progress::default();
        if spec.scrub {
            let (findings, done) = self.store.scrub(&spec.options(), &mut tell)?;
            report.findings.extend(findings);
            progress = done;
        }
        if self.ending.load(Ordering::SeqCst) {
            return Err(ending());
        }
        let found = Inspected { sealed_bytes, ..Inspected::new(report, &progress) };
        match found.findings.len() {
            0 => log::info!("checked: {} pages read, nothing found", found.pages_read),
            n => log::error!("checked: {} pages read, {n} findings", found.pages_read),
        }
        Ok(found)
    }

    /// Gives all free space back while everything goes on; ends early when the
    /// client has gone or the daemon ends.
    fn collect(&self, wait: bool, client: &mut UnixStream) -> Result<Collected> {
        let closed = self.closed.read();
        if *closed {
            return Err(ending());
        }
        let before = self.store.status()?;
        if !wait {
            self.store.collect_soon();
            return Ok(Collected {
                done: false,
                reclaimed_bytes: 0,
                reclaimable_bytes: before.reclaimable_bytes,
                store_bytes: before.store_bytes,
            });
        }
        let mut said = Instant::now();
        let (mut told, mut left) = (0, false);
        let mut tell = |so_far: u64| {
            if said.elapsed() >= TELL_EVERY {
                let progress = Progress { bytes: so_far - told, total: before.reclaimable_bytes };
                said = Instant::now();
                told = so_far;
                left = left || !send(client, &Reply::Progress(serde_json::json!(progress)));
            }
            !left && !self.ending.load(Ordering::SeqCst)
        };
        let done = self.store.collect_all(&mut tell)?;
        if self.ending.load(Ordering::SeqCst) {
            return Err(ending());
        }
        let after = self.store.status()?;
        let reclaimed_bytes = after.reclaimed_bytes - before.reclaimed_bytes;
        log::info!("gave {reclaimed_bytes} bytes back");
        Ok(Collected {
            done,
            reclaimed_bytes,
            reclaimable_bytes: after.reclaimable_bytes,
            store_bytes: after.store_bytes,
        })
    }

    fn restore(&self, fork: &str, path: &str, block: u32) -> Result<String> {
        let _changes = self.changes.lock();
        let state = state(&self.store, &self.mountpoint, fork);
        refuse_running(fork, state, format!("stop it first: pgcowfs stop {fork}"))?;
        let what = self.store.restore_page(fork, path, block).map_err(|e| match e {
            pgcowfs::Error::NotFound => {
                Error::new(Kind::NotFound, format!("fork {fork:?} has no file {path}"))
                    .hint("a path is relative to the fork's data directory, as `pgcowfs scrub` shows it")
            }
            other => other.into(),
        })?;
        // The kernel may hold what it read before.
        self.mount.changed(&*self.store.by_name(fork)?, path)?;
        Ok(what)
    }

    fn status(&self) -> Result<DaemonStatus> {
        let status = self.store.status()?;
        Ok(DaemonStatus {
            forks: status.forks,
            layers: status.layers,
            map_entries: status.map_entries,
            map_memory_bytes: status.map_memory_bytes,
            store_bytes: status.store_bytes,
            used_bytes: status.used_bytes,
            shared_bytes: status.shared_bytes,
            layers_to_merge: status.layers_to_merge,
            merging_pages: status.merging_pages,
            reclaimable_bytes: status.reclaimable_bytes,
            reclaimed_bytes: status.reclaimed_bytes,
            pools: self.pool_rows(None)?,
            dumps: self.dump_rows(None)?,
            uptime_s: self.started.elapsed().as_secs_f64(),
            transport: self.mount.transport().to_string(),
            requests: stats::requests(self.store.stats()),
        })
    }

    fn list(&self) -> Result<Vec<ForkRow>> {
        let forks = self.store.forks();
        forks.iter().filter(|info| !info.incomplete).map(|info| self.row(info)).collect()
    }

    pub(super) fn info(&self, fork: &str) -> Result<ForkRow> {
        let info = self.store.info(fork)?;
        if info.incomplete {
            return Err(Error::new(Kind::State, format!("fork {fork:?} is still being made"))
                .hint("wait for the command that makes it"));
        }
        self.row(&info)
    }

    /// The same for whoever makes it.
    fn info_of_any(&self, fork: &str) -> Result<ForkRow> {
        self.row(&self.store.info(fork)?)
    }

    /// Removes a fork for its maker: an incomplete one with its server.
    fn remove_own(&self, fork: &str) -> Result<()> {
        let incomplete = self.incomplete.lock().contains_key(fork);
        if incomplete { self.end_fork(fork) } else { self.remove(fork) }
    }

    fn with_layout(&self, row: ForkRow) -> ForkRow {
        // One whose block map is damaged is shown as well.
        let layout = self.store.layout(&row.name).ok();
        ForkRow { layout: layout.map(|layout| (layout.pages, layout.pieces)), ..row }
    }

    pub(super) fn row(&self, info: &ForkInfo) -> Result<ForkRow> {
        Ok(ForkRow {
            name: info.name.clone(),
            parent: info.parent.clone(),
            created_at: rfc3339(info.created_at)?,
            depth: info.depth,
            delta_bytes: info.delta_bytes,
            wal_bytes: info.wal_bytes,
            quota_bytes: info.quota_bytes,
            used_bytes: info.used_bytes,
            ephemeral: info.ephemeral,
            pooled: self.pools.has(&info.name),
            logical_bytes: info.logical_bytes,
            layout: None,
            base: info.base.clone(),
            fault: info.fault.clone(),
            base_changed: info.base_changed,
            pgdata: self.mountpoint.join(&info.name),
            meta: ForkMeta::decode(&info.name, &info.meta)?,
            pid_file: pid_file(&self.store, &info.name),
        })
    }

    /// The forks that have a port already. One that is asked about every port of the
    /// range must not look at all forks each time.
    pub(super) fn owners(&self) -> HashMap<u16, String> {
        let mut owners = HashMap::new();
        for entry in self.store.entries() {
            if let Ok(meta) = ForkMeta::decode(&entry.name, &entry.meta) {
                owners.entry(meta.port).or_insert(entry.name);
            }
        }
        owners.extend(self.incomplete.lock().iter().map(|(name, making)| (making.meta.port, name.clone())));
        owners
    }

    /// Gives new settings their port and socket directory.
    fn place(&self, fork: &str, wanted: Option<u16>, meta: &mut ForkMeta) -> Result<()> {
        let busy = |port| ports::busy(port, &meta.listen);
        let owners = self.owners();
        meta.port = ports::choose(self.config.port_range, wanted, |port| owners.get(&port).cloned(), busy)?;
        meta.socket_dir = sockets::choose(&self.paths, fork);
        sockets::ensure(&self.paths, fork, &meta.socket_dir, meta.uid, meta.gid)
    }

    /// Refuses a name before anything is made for it.
    pub(super) fn check_new(&self, fork: &str) -> Result<()> {
        pgcowfs::check_fork_name(fork)?;
        match self.store.info(fork).is_ok() || self.incomplete.lock().contains_key(fork) {
            true => Err(pgcowfs::Error::ForkExists(fork.to_string()).into()),
            false => Ok(()),
        }
    }

    fn create(&self, spec: &CreateSpec) -> Result<Created> {
        let _changes = self.changes.lock();
        self.check_new(&spec.fork)?;
        let mut meta = spec.meta.clone();
        self.place(&spec.fork, spec.port, &mut meta)?;
        let bytes = meta.encode()?;
        let made = match spec.base() {
            Some(base) => self
                .scan_base(base, meta.uid)
                .and_then(|base| Ok(self.store.create_on_base(&spec.fork, base, &bytes)?)),
            None => self.store.create(&spec.fork, meta.uid, meta.gid, &bytes).map_err(Error::from),
        };
        // Before the first file of it is made.
        let made = made.and_then(|_| match spec.quota {
            Some(quota) => Ok(self.store.set_quota(&spec.fork, Some(quota))?),
            None => Ok(()),
        });
        if let Err(error) = made {
            if let Err(error) = self.store.remove(&spec.fork) {
                log::debug!("nothing of {} to remove: {error}", spec.fork);
            }
            sockets::remove(&self.paths, &spec.fork);
            return Err(error);
        }
        let making = Making { meta: meta.clone(), ephemeral: false, leased: false, aside: false };
        self.incomplete.lock().insert(spec.fork.clone(), making);
        Ok(Created { pgdata: self.mountpoint.join(&spec.fork), meta })
    }

    /// Looks at a base as the user whose fork it becomes: root's daemon shows
    /// nobody what they cannot read themselves.
    fn scan_base(&self, dir: &Path, uid: u32) -> Result<Scanned> {
        let mount = std::fs::metadata(&self.mountpoint).at("look at", &self.mountpoint)?.dev();
        let user = OsUser::numbered(uid)?;
        let scanned = user.run(|| Ok(base::scan(dir, Some(mount))?));
        scanned.map_err(|error| match error.kind {
            Kind::Environment => {
                error.hint(format!("all of a base must be readable for user {}, who runs it", user.name))
            }
            _ => error,
        })
    }

    fn publish(&self, fork: &str) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        let making = |what: fn(&Making) -> bool| self.incomplete.lock().get(fork).is_some_and(what);
        if making(|making| making.aside) {
            return Err(Error::new(
                Kind::State,
                format!("fork {fork:?} was made to take its parent's place"),
            ));
        }
        let ephemeral = making(|making| making.ephemeral);
        match ephemeral {
            true => self.store.publish_ephemeral(fork)?,
            false => self.store.publish(fork)?,
        }
        self.incomplete.lock().remove(fork);
        log::info!("created {fork}");
        self.info(fork)
    }

    pub(super) fn fork(&self, spec: &ForkSpec) -> Result<Forked> {
        let _changes = self.changes.lock();
        self.check_new(&spec.child)?;
        let mut meta = self.info(&spec.parent)?.meta;
        check_masks(spec, &meta)?;
        meta.masks = spec.masks.clone();
        meta.mask_forks = Vec::new();
        meta.listen = spec.listen.clone();
        meta.origin = Origin::Fork;
        meta.keep_identity = spec.keep_identity;
        meta.new_timeline = spec.new_timeline;
        meta.follow = None;
        meta.settings = spec.settings.clone();
        meta.protection = None;
        meta.upkeep = Upkeep { expiry: spec.expiry.clone(), ..Upkeep::default() };
        self.place(&spec.child, spec.port, &mut meta)?;
        let result = self.fork_as(spec, &meta);
        match &result {
            Ok(_) if spec.incomplete => {
                let making =
                    Making { meta, ephemeral: spec.ephemeral, leased: spec.leased, aside: spec.aside };
                self.incomplete.lock().insert(spec.child.clone(), making);
            }
            Ok(_) => {}
            Err(_) => sockets::remove(&self.paths, &spec.child),
        }
        result
    }

    pub(super) fn remove(&self, fork: &str) -> Result<()> {
        let _changes = self.changes.lock();
        if !self.incomplete.lock().contains_key(fork) {
            if let Ok(row) = self.info(fork) {
                row.meta.refuse_protected(fork)?;
            }
            let state = state(&self.store, &self.mountpoint, fork);
            let hint = format!("stop it first, or let rm do so: pgcowfs rm --force {fork}");
            refuse_running(fork, state, hint)?;
        }
        self.store.remove(fork)?;
        self.incomplete.lock().remove(fork);
        self.leases.forget(fork);
        self.pools.forget(fork);
        addresses::remove_leavings(&self.paths, fork);
        log::info!("removed {fork}");
        Ok(())
    }

    pub(super) fn set_protection(&self, fork: &str, protection: Option<Protection>) -> Result<ForkRow> {
        self.change_meta(fork, |row| {
            if protection.is_some() {
                super::branches::refuse_ephemeral(row, "nothing protects it from going")?;
                super::keeper::refuse_expiring(row)?;
            }
            log::info!("the protection of {fork} is {protection:?}");
            row.meta.protection = protection;
            Ok(())
        })
    }

    /// What is kept about a fork, or about each; what cannot be understood is left out.
    pub(super) fn metas(&self, fork: Option<&str>) -> Result<Vec<(ForkEntry, ForkMeta)>> {
        if let Some(fork) = fork {
            self.info(fork)?;
        }
        let mut entries = self.store.entries();
        entries.retain(|entry| fork.is_none_or(|fork| fork == entry.name));
        let known =
            |entry: ForkEntry| ForkMeta::decode(&entry.name, &entry.meta).ok().map(|meta| (entry, meta));
        Ok(entries.into_iter().filter_map(known).collect())
    }

    /// Changes what is kept about a fork, unless `change` refuses.
    pub(super) fn change_meta(
        &self,
        fork: &str,
        change: impl FnOnce(&mut ForkRow) -> Result<()>,
    ) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        let mut row = self.info(fork)?;
        change(&mut row)?;
        self.store.set_meta(fork, &row.meta.encode()?)?;
        Ok(row)
    }

    fn sync(&self, fork: &str) -> Result<()> {
        Ok(self.store.by_name(fork)?.sync_all()?)
    }

    fn set_quota(&self, fork: &str, bytes: Option<u64>) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        self.info(fork)?;
        self.store.set_quota(fork, bytes)?;
        log::info!("the quota of {fork} is {bytes:?}");
        self.info(fork)
    }
}

/// Forks of one whose forks are masked are, and are not seen before.
fn check_masks(spec: &ForkSpec, parent: &ForkMeta) -> Result<()> {
    let name = &spec.parent;
    let forced = spec.aside || spec.masks.starts_with(&parent.mask_forks);
    match forced && (spec.incomplete || spec.masks.is_empty()) {
        true => Ok(()),
        false => Err(Error::new(Kind::State, format!("the forks of {name:?} are masked when they are made"))
            .cause("this one would have the data as it is")
            .hint(format!("fork it first: pgcowfs fork {name} MASKED"))),
    }
}

/// A time as reports have it.
pub fn rfc3339(time: SystemTime) -> Result<String> {
    let time = jiff::Timestamp::try_from(time)
        .map_err(|e| Error::new(Kind::Failed, "a time of creation is out of range").cause(e.to_string()))?;
    Ok(format!("{time:.3}"))
}

/// Whether a fork's server runs.
pub fn state(store: &Store, mountpoint: &Path, fork: &str) -> State {
    State::of(pid_file(store, fork).as_deref(), &mountpoint.join(fork))
}

fn pid_file(store: &Store, fork: &str) -> Option<String> {
    let read = |fork: Arc<Fork>| fork.read_file_up_to("postmaster.pid", PID_FILE_MAX);
    let bytes = store.by_name(fork).and_then(read).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Only the store's user and root may ask.
fn check_peer(client: &UnixStream) -> Result<()> {
    let peer = getsockopt(client, PeerCredentials).context(|| "cannot tell who the client is")?;
    if peer.uid() == 0 || peer.uid() == Uid::effective().as_raw() {
        return Ok(());
    }
    Err(Error::new(Kind::Environment, format!("user {} may not use this store", peer.uid()))
        .hint("a store is used by the user who made it"))
}
