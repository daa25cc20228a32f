//! What the daemon does about snapshots, and with whole forks.

use pgcowfs::{Fork, ForkReport, ResetTo, SnapshotInfo};

use super::{Daemon, refuse_running, requests, sockets};
use crate::error::{Error, Kind, Result};
use crate::meta::{ForkMeta, Origin};
use crate::postgres::identity::{self, Identity, Source};
use crate::postgres::tree::ForkTree;
use crate::protocol::{ForkRow, ForkSpec, Forked, ResetSpec, ResetTarget, SnapshotRow, Snapshotted};

/// What is made of a fork's files before its name is visible.
struct Change<'a> {
    fork: &'a str,
    /// Whose files these were.
    source: &'a str,
    meta: &'a ForkMeta,
    settings: &'a [(String, String)],
    /// Whether it ends with the daemon; after a reset it is what it was.
    ephemeral: bool,
    /// Whether it is published later.
    incomplete: bool,
    /// Whether its files stay as they are.
    as_is: bool,
}

/// No snapshot has this label: `reset --to` means something else by it.
const PARENT: &str = "parent";

impl Daemon {
    /// Has `make` make a fork or replace one, with an edit that gives it its identity.
    fn identified(
        &self,
        change: &Change,
        quota: Option<u64>,
        make: &mut dyn FnMut(&mut pgcowfs::Edit<'_>) -> pgcowfs::Result<ForkReport>,
    ) -> Result<Forked> {
        let Change { fork, source, meta, settings, ephemeral, incomplete, as_is } = *change;
        let identity = Identity {
            fork,
            pgdata: &self.mountpoint.join(fork),
            port: meta.port,
            socket_dir: &meta.socket_dir,
            listen: &meta.listen,
            major: meta.pg_version,
            keep: meta.keep_identity,
            follows: meta.follow.is_some(),
            new_timeline: meta.new_timeline,
            settings,
            source: Some(Source { fork: source, mountpoint: &self.mountpoint }),
        };
        // The core knows only its own errors, so those of the rules go around it.
        let mut outcome: Result<Vec<String>> = Ok(Vec::new());
        let mut edit = |fork: &Fork| {
            fork.set_first_quota(quota);
            if incomplete {
                fork.set_incomplete();
            } else if ephemeral {
                fork.set_ephemeral();
            }
            outcome = match as_is {
                true => identity::check_contained(&ForkTree(fork), source).map(|()| Vec::new()),
                false => identity::apply(&ForkTree(fork), &identity),
            };
            match outcome.is_ok() {
                true => Ok(()),
                false => Err(pgcowfs::Error::Invalid("the rules of a fork's identity refuse it")),
            }
        };
        let report = make(&mut edit);
        let warnings = outcome?;
        let report = report?;
        Ok(Forked {
            row: self.row(&self.store.info(fork)?)?,
            fork_ms: report.total.as_secs_f64() * 1e3,
            stall_ms: report.stall.as_secs_f64() * 1e3,
            map_bytes: report.map_bytes,
            warnings,
        })
    }

    pub(super) fn fork_as(&self, spec: &ForkSpec, meta: &ForkMeta) -> Result<Forked> {
        let (parent, child, bytes) = (&spec.parent, &spec.child, meta.encode()?);
        let change = Change {
            fork: child,
            source: parent,
            meta,
            settings: &spec.settings,
            ephemeral: spec.ephemeral,
            incomplete: spec.incomplete,
            as_is: spec.as_is,
        };
        let forked = self.identified(&change, spec.quota, &mut |edit| match &spec.snapshot {
            None => self.store.fork(parent, child, &bytes, edit),
            Some(label) => self.store.fork_snapshot(parent, label, child, &bytes, edit),
        })?;
        log::info!(
            "forked {parent} as {child} in {:.3} ms, stall {:.3} ms, {} bytes of map",
            forked.fork_ms,
            forked.stall_ms,
            forked.map_bytes
        );
        Ok(forked)
    }

    /// Refuses a reset that cannot be; the fork, and the settings it will have.
    pub(super) fn check_reset(&self, spec: &ResetSpec) -> Result<(ForkRow, ForkMeta)> {
        let fork = &spec.fork;
        let row = self.info(fork)?;
        row.meta.refuse_protected(fork)?;
        let own = row.meta.clone();
        match &spec.to {
            ResetTarget::Snapshot(label) => {
                if !self.store.snapshots(fork)?.iter().any(|snapshot| snapshot.label == *label) {
                    return Err(pgcowfs::Error::NoSuchSnapshot(fork.clone(), label.clone()).into());
                }
            }
            ResetTarget::Origin | ResetTarget::Parent if row.parent.is_none() => {
                return Err(pgcowfs::Error::NoOrigin(fork.clone()).into());
            }
            ResetTarget::Origin => {}
            ResetTarget::Parent => {
                let parent = row.parent.as_deref().filter(|parent| parent != fork);
                let Some(parent) = parent.and_then(|parent| self.info(parent).ok()) else {
                    return Err(Error::new(Kind::NotFound, format!("the parent of fork {fork:?} is gone"))
                        .cause(format!("it was made from {:?}", row.parent.unwrap_or_default()))
                        .hint(format!("put it back to what it was made from: pgcowfs reset {fork}")));
                };
                if !own.masks.is_empty() || !parent.meta.mask_forks.is_empty() {
                    return Err(Error::new(
                        Kind::State,
                        format!("what fork {fork:?} becomes is to be masked"),
                    )
                    .cause("only who makes it can do that"));
                }
                // It may be another one by now, under the same name.
                let meta = ForkMeta { follow: None, origin: Origin::Fork, ..in_place_of(own, parent.meta) };
                check_user(&row, &parent.name, &meta)?;
                return Ok((row, meta));
            }
            ResetTarget::Made(made) => {
                let known = self.incomplete.lock().get(made).map(|making| making.meta.clone());
                // It is asked for before that is made, too.
                let known = known.unwrap_or_else(|| own.clone());
                check_user(&row, row.parent.as_deref().unwrap_or(fork), &known)?;
                let origin = spec.origin.clone().unwrap_or(own.origin.clone());
                let masks = if known.masks.is_empty() { &own.masks } else { &known.masks }.clone();
                return Ok((row, ForkMeta { origin, masks, ..in_place_of(own, known) }));
            }
        }
        Ok((row, own))
    }

    pub(super) fn reset(&self, spec: &ResetSpec) -> Result<Forked> {
        let _changes = self.changes.lock();
        let fork = &spec.fork;
        let (row, meta) = self.check_reset(spec)?;
        let state = requests::state(&self.store, &self.mountpoint, fork);
        refuse_running(fork, state, format!("stop it first, or let reset do so: pgcowfs reset {fork}"))?;
        let (to, source, settings) = match &spec.to {
            ResetTarget::Origin => (ResetTo::Origin, row.parent.as_deref(), meta.settings.as_slice()),
            ResetTarget::Parent => (ResetTo::Parent, row.parent.as_deref(), meta.settings.as_slice()),
            ResetTarget::Made(made) => {
                (ResetTo::Fork(made.clone()), Some(made.as_str()), meta.settings.as_slice())
            }
            // It has them, or others by then.
            ResetTarget::Snapshot(label) => (ResetTo::Snapshot(label.clone()), None, &[][..]),
        };
        let change = Change {
            fork,
            source: source.unwrap_or(fork),
            meta: &meta,
            settings,
            ephemeral: false,
            incomplete: false,
            as_is: false,
        };
        let bytes = meta.encode()?;
        let done =
            self.identified(&change, None, &mut |edit| self.store.reset(fork, &to, Some(&bytes), edit))?;
        log::info!("put {fork} back to {to:?} in {:.3} ms", done.fork_ms);
        Ok(done)
    }

    pub(super) fn promote(&self, fork: &str) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        let before = self.info(fork)?;
        if before.parent.is_none() {
            return Err(Error::new(Kind::State, format!("fork {fork:?} is a root already"))
                .hint("there is nothing to do; `pgcowfs tree` shows what was made from what"));
        }
        refuse_ephemeral(&before, "it would be no root for long")?;
        self.store.promote(fork)?;
        log::info!("promoted {fork}");
        Ok(before)
    }

    /// Renames a fork in the store, and then in its configuration. A daemon that dies
    /// in between finds at its next start that the socket directory is not where the
    /// new name has it, and does the rest.
    pub(super) fn rename(&self, old: &str, new: &str) -> Result<ForkRow> {
        let _changes = self.changes.lock();
        let mut meta = self.info(old)?.meta;
        meta.refuse_protected(old)?;
        let state = requests::state(&self.store, &self.mountpoint, old);
        let hint = "its server knows its directory and its sockets by the name; stop it first";
        refuse_running(old, state, format!("{hint}: pgcowfs stop {old}"))?;
        self.check_new(new)?;
        meta.socket_dir = sockets::choose(&self.paths, new);
        sockets::ensure(&self.paths, new, &meta.socket_dir, meta.uid, meta.gid)?;
        let renamed = self.store.rename(old, new).map_err(Error::from);
        let done = renamed.and_then(|()| {
            self.readdress(new, old, &meta).inspect_err(|_| {
                if let Err(error) = self.store.rename(new, old) {
                    log::error!("{new} keeps that name, and has its sockets elsewhere: {error}");
                }
            })
        });
        if let Err(error) = done {
            sockets::remove(&self.paths, new);
            return Err(error);
        }
        sockets::remove(&self.paths, old);
        self.leases.rename(old, new);
        self.pools.forget(old);
        let logs = (self.paths.server_log(old), self.paths.server_log(new));
        if let Err(e) = std::fs::rename(&logs.0, &logs.1)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("cannot rename {}: {e}", logs.0.display());
        }
        log::info!("renamed {old} to {new}");
        self.info(new)
    }

    pub(super) fn snapshots(&self, fork: Option<&str>) -> Result<Vec<SnapshotRow>> {
        let found = match fork {
            Some(fork) => self.store.snapshots(fork)?,
            None => self.store.all_snapshots(),
        };
        found.into_iter().map(snapshot_row).collect()
    }

    pub(super) fn snapshot(&self, fork: &str, label: Option<&str>) -> Result<Snapshotted> {
        let _changes = self.changes.lock();
        self.info(fork)?;
        let label = match label {
            Some(PARENT) => {
                return Err(Error::new(Kind::Usage, format!("{PARENT:?} cannot be a snapshot's label"))
                    .cause("`reset --to parent` means the fork that a fork was made from")
                    .hint("choose another label"));
            }
            Some(label) => label.to_string(),
            None => self.label_of_now(fork)?,
        };
        // Nothing could be made of it.
        identity::check_contained(&ForkTree(&*self.store.by_name(fork)?), fork)?;
        let report = self.store.snapshot(fork, &label)?;
        log::info!("kept {fork} as {fork}@{label} in {:?}, stall {:?}", report.total, report.stall);
        let made = self.snapshots(Some(fork))?.into_iter().find(|snapshot| snapshot.label == label);
        Ok(Snapshotted {
            row: made.ok_or_else(|| Error::from(pgcowfs::Error::NoSuchSnapshot(fork.into(), label)))?,
            snapshot_ms: report.total.as_secs_f64() * 1e3,
            stall_ms: report.stall.as_secs_f64() * 1e3,
        })
    }

    /// The time, and a number if there was a snapshot in this second already.
    fn label_of_now(&self, fork: &str) -> Result<String> {
        let taken: Vec<String> = self.store.snapshots(fork)?.into_iter().map(|s| s.label).collect();
        let now = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let labels = std::iter::once(now.clone()).chain((2..).map(|n| format!("{now}-{n}")));
        let free = labels.into_iter().find(|label| !taken.contains(label));
        Ok(free.unwrap_or(now))
    }

    pub(super) fn remove_snapshot(&self, fork: &str, label: &str) -> Result<()> {
        let _changes = self.changes.lock();
        pgcowfs::check_label(label)?;
        self.info(fork)?.meta.refuse_protected(fork)?;
        self.store.remove_snapshot(fork, label)?;
        log::info!("removed {fork}@{label}");
        Ok(())
    }
}

/// What is kept about the fork `own` when it has become what `new` is.
fn in_place_of(own: ForkMeta, new: ForkMeta) -> ForkMeta {
    ForkMeta {
        port: own.port,
        socket_dir: own.socket_dir,
        listen: own.listen,
        keep_identity: own.keep_identity,
        new_timeline: own.new_timeline,
        settings: own.settings,
        protection: None,
        upkeep: own.upkeep,
        masks: own.masks,
        mask_forks: own.mask_forks,
        ..new
    }
}

/// Refuses what makes no sense for a fork that ends with the daemon.
pub(super) fn refuse_ephemeral(row: &ForkRow, why: &str) -> Result<()> {
    let name = &row.name;
    match row.ephemeral {
        false => Ok(()),
        true => Err(Error::new(Kind::State, format!("fork {name:?} is ephemeral"))
            .cause(format!("it ends with the daemon, so {why}"))
            .hint(format!("keep what it is now in a fork that lasts: pgcowfs fork {name} NEW"))),
    }
}

/// Refuses to make a fork what belongs to another user.
fn check_user(row: &ForkRow, source: &str, meta: &ForkMeta) -> Result<()> {
    let (fork, own) = (&row.name, &row.meta);
    if (meta.uid, meta.gid) == (own.uid, own.gid) {
        return Ok(());
    }
    let who = format!("{source:?} runs as {}, and fork {fork:?} as {}", meta.run_as, own.run_as);
    Err(Error::new(Kind::State, who)
        .hint(format!("fork it anew: pgcowfs rm {fork}; pgcowfs fork {source} {fork}")))
}

fn snapshot_row(info: SnapshotInfo) -> Result<SnapshotRow> {
    Ok(SnapshotRow {
        created_at: super::requests::rfc3339(info.created_at)?,
        fork: info.fork,
        label: info.label,
        logical_bytes: info.logical_bytes,
        changed_bytes: info.changed_bytes,
        forks: info.forks,
    })
}
