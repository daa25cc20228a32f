//! A store in memory beside its model.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgcowfs::device::mem::MemDevice;
use pgcowfs::device::power::Power;
use pgcowfs::forks::Parts;
use pgcowfs::map::mem::MemMap;
use pgcowfs::{Error, Fork, Make, Options, ResetTo, Store};

use super::files::{B, DIRS, Files, Moments, NAMES, find, moment_of};
pub use super::ops::Op;
use super::ops::{apply_to_files, split};

/// One fork in the model: now, and all it was since it was last durable.
#[derive(Clone, Default)]
pub struct ModelFork {
    pub now: Files,
    pub since_sync: Moments,
    /// By label.
    pub snapshots: BTreeMap<u8, Files>,
    /// What it was made from, and the name of the fork that was.
    pub origin: Option<(Files, String)>,
    /// It has reported a failure, and accepts nothing any more.
    pub stopped: bool,
    /// It is gone when the store is opened again.
    pub ephemeral: bool,
}

impl ModelFork {
    /// Durable, and just so.
    fn at(now: Files) -> Self {
        ModelFork { since_sync: vec![now.clone()], now, ..ModelFork::default() }
    }

    /// A fork of one that is like this.
    fn child(now: &Files, parent: &str) -> Self {
        ModelFork { origin: Some((now.clone(), parent.to_string())), ..ModelFork::at(now.clone()) }
    }

    /// Becomes what `now` says, and keeps what a fork keeps then.
    fn go_to(&mut self, now: Files) {
        *self = ModelFork {
            snapshots: std::mem::take(&mut self.snapshots),
            origin: self.origin.take(),
            ephemeral: self.ephemeral,
            ..ModelFork::at(now)
        };
    }

    /// After an error the fork is as it was, or at one of the steps that the
    /// operation consists of; or it has stopped, and nobody knows.
    fn after_error(&mut self, fork: &Fork, steps: &[Files]) {
        if fork.fault().is_some() {
            self.stopped = true;
            self.since_sync.extend_from_slice(steps);
            return;
        }
        let possible: Moments = steps.iter().chain([&self.now]).cloned().collect();
        self.now = moment_of(fork, &possible).unwrap_or_else(|why| panic!("after an error: {why}"));
        steps.iter().for_each(|step| self.now.note_failed(step));
    }

    /// Durable as it is now.
    fn settle(&mut self) {
        self.since_sync = vec![self.now.clone()];
    }
}

/// The forks of the model by name.
pub type ModelForks = BTreeMap<String, ModelFork>;

/// Those that are there when the store is opened again.
pub fn lasting(forks: &ModelForks) -> ModelForks {
    forks
        .iter()
        .filter(|(_, model)| !model.ephemeral)
        .map(|(name, model)| (name.clone(), model.clone()))
        .collect()
}

/// What holds a store in memory: all of it loses power at once.
#[derive(Clone)]
pub struct Rig {
    pub power: Power,
    pub map: MemMap,
    pub delta: MemDevice,
    pub inplace: MemDevice,
}

impl Rig {
    fn new() -> Rig {
        let power = Power::default();
        let (map, delta, inplace) = (MemMap::on(&power), MemDevice::on(&power), MemDevice::on(&power));
        Rig { power, map, delta, inplace }
    }

    /// Everything at this instant, durable and not.
    pub fn frozen(&self) -> Rig {
        let _still = self.power.still();
        Rig {
            power: Power::default(),
            map: self.map.crash_image(),
            delta: self.delta.frozen(),
            inplace: self.inplace.frozen(),
        }
    }

    /// What a crash leaves on a disk with such sectors.
    pub fn crash(&self, sector: usize, coin: &mut dyn FnMut() -> bool) -> Rig {
        let _still = self.power.still();
        let power = Power::default();
        let map = self.map.crash_image_on(&power);
        let delta = self.delta.crash_image_on(&power, sector, coin);
        let inplace = self.inplace.crash_image_on(&power, sector, coin);
        Rig { power, map, delta, inplace }
    }

    pub fn open(&self) -> Result<Arc<Store>, Error> {
        let parts = Parts {
            dir: "/nowhere".into(),
            // Unlike anything that is written: a sector like it counts as unwritten.
            id: *b"0123456789abcdef",
            map: Arc::new(self.map.clone()),
            delta: Arc::new(self.delta.clone()),
            inplace: Arc::new(self.inplace.clone()),
        };
        let options = Options {
            dirty_limit_bytes: 64 << 10,
            // Only when it is asked for, and in many steps.
            merge: false,
            scattered_max: 2,
            merge_step_records: 2,
            sort_pages_min: 2,
            // Whenever a page table is loaded, others are dropped.
            map_memory_bytes: 0,
            // Each free page makes a hole.
            punch_min_bytes: B,
            ..Options::default()
        };
        Store::open_parts(parts, options, None)
    }
}

/// A repeatable coin: xorshift.
pub fn coin(seed: &mut u64) -> bool {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed & 1 == 1
}

pub struct World {
    pub rig: Rig,
    pub store: Arc<Store>,
    pub forks: ModelForks,
    made: u32,
    pub seed: u64,
}

impl World {
    pub fn new() -> World {
        let rig = Rig::new();
        let store = rig.open().unwrap();
        let main = store.create("main", 0, 0, b"").unwrap();
        for path in DIRS {
            let (dir, name) = split(&main, path);
            main.make(dir, name, Make::Directory, 0o700, 0, 0).unwrap();
        }
        store.publish("main").unwrap();
        let model = ModelFork::at(Files::default());
        World { rig, store, forks: [("main".to_string(), model)].into(), made: 0, seed: 1 }
    }

    fn pick(&self, n: u8) -> Option<String> {
        let names: Vec<_> = self.forks.keys().collect();
        (!names.is_empty()).then(|| names[n as usize % names.len()].clone())
    }

    fn pick_snapshot(&self, fork: u8, label: u8) -> Option<(String, Files)> {
        let name = self.pick(fork)?;
        let files = self.forks[&name].snapshots.get(&label)?.clone();
        Some((name, files))
    }

    /// Does it in the store and in the model. An error is the store's; what the
    /// operation would have done is then one more moment that may be true.
    pub fn apply(&mut self, op: &Op) -> Result<(), Error> {
        match *op {
            Op::Seal => {
                self.store.seal_at_rest(std::time::Duration::ZERO)?;
            }
            Op::Collect => {
                self.store.collect_all(&mut |_| true)?;
            }
            Op::Sort => {
                self.store.sort_all()?;
            }
            Op::DropTables => {
                self.store.drop_page_tables();
            }
            Op::Restart => return self.restart(),
            Op::Kill => self.recover(self.rig.crash(512, &mut || true)),
            Op::Crash => {
                let mut seed = self.seed;
                let rig = self.rig.crash(512, &mut || coin(&mut seed));
                self.seed = seed;
                self.recover(rig);
            }
            Op::Fork { parent } | Op::ForkEphemeral { parent } => {
                let ephemeral = matches!(op, Op::ForkEphemeral { .. });
                let Some(parent) = self.pick(parent) else { return Ok(()) };
                self.made += 1;
                let child = format!("f{}", self.made);
                let mut edit = |fork: &Fork| {
                    if ephemeral {
                        fork.set_ephemeral();
                    }
                    Ok(())
                };
                self.store.fork(&parent, &child, b"", &mut edit)?;
                let model = self.forks.get_mut(&parent).expect("picked");
                model.settle();
                let copy = ModelFork { ephemeral, ..ModelFork::child(&model.now, &parent) };
                self.forks.insert(child, copy);
            }
            Op::Snapshot { fork, label } => {
                let Some(name) = self.pick(fork).filter(|n| !self.forks[n].snapshots.contains_key(&label))
                else {
                    return Ok(());
                };
                self.store.snapshot(&name, &label_of(label))?;
                let model = self.forks.get_mut(&name).expect("picked");
                model.settle();
                model.snapshots.insert(label, model.now.clone());
            }
            Op::ForkSnapshot { fork, label } => {
                let Some((name, files)) = self.pick_snapshot(fork, label) else { return Ok(()) };
                self.made += 1;
                let child = format!("f{}", self.made);
                self.store.fork_snapshot(&name, &label_of(label), &child, b"", &mut |_| Ok(()))?;
                self.forks.insert(child, ModelFork::child(&files, &name));
            }
            Op::Reset { fork, label } => {
                let Some((name, files)) = self.pick_snapshot(fork, label) else { return Ok(()) };
                self.store.reset(&name, &ResetTo::Snapshot(label_of(label)), None, &mut |_| Ok(()))?;
                self.forks.get_mut(&name).expect("picked").go_to(files);
            }
            Op::ResetToOrigin { fork } => {
                let Some(name) = self.pick(fork) else { return Ok(()) };
                let Some((files, _)) = self.forks[&name].origin.clone() else { return Ok(()) };
                self.store.reset(&name, &ResetTo::Origin, None, &mut |_| Ok(()))?;
                self.forks.get_mut(&name).expect("picked").go_to(files);
            }
            Op::ResetToParent { fork } => {
                let Some(name) = self.pick(fork) else { return Ok(()) };
                let Some((_, parent)) = self.forks[&name].origin.clone() else { return Ok(()) };
                if !self.forks.contains_key(&parent) {
                    return Ok(());
                }
                self.store.reset(&name, &ResetTo::Parent, None, &mut |_| Ok(()))?;
                let model = self.forks.get_mut(&parent).expect("it is there");
                model.settle();
                let files = model.now.clone();
                let model = self.forks.get_mut(&name).expect("picked");
                model.origin = Some((files.clone(), parent));
                model.go_to(files);
            }
            Op::ResetToFork { fork, other } => {
                let (Some(name), Some(other)) = (self.pick(fork), self.pick(other)) else { return Ok(()) };
                if name == other {
                    return Ok(());
                }
                self.store.reset(&name, &ResetTo::Fork(other.clone()), None, &mut |_| Ok(()))?;
                let model = self.forks.get_mut(&other).expect("picked");
                model.settle();
                let files = model.now.clone();
                let model = self.forks.get_mut(&name).expect("picked");
                if let Some((origin, _)) = &mut model.origin {
                    *origin = files.clone();
                }
                model.go_to(files);
            }
            Op::ForkInSteps { parent, byte } => {
                let Some(parent) = self.pick(parent) else { return Ok(()) };
                self.made += 1;
                let child = format!("f{}", self.made);
                self.store.fork(&parent, &child, b"", &mut |fork| {
                    fork.set_incomplete();
                    Ok(())
                })?;
                let model = self.forks.get_mut(&parent).expect("picked");
                model.settle();
                let mut now = model.now.clone();
                let mut finish = || {
                    let fork = self.store.by_name(&child)?;
                    for name in 0..NAMES.len() as u8 {
                        let write = Op::Write { fork: 0, name, offset: 0, len: B, byte };
                        apply_to_files(&write, &fork, &mut now, &mut Moments::new())?;
                    }
                    self.store.publish(&child)
                };
                let finished = finish();
                if let Err(error) = finished {
                    // As its maker does.
                    self.store.remove(&child)?;
                    return Err(error);
                }
                self.forks.insert(child, ModelFork::child(&now, &parent));
            }
            Op::RemoveSnapshot { fork, label } => {
                let Some((name, _)) = self.pick_snapshot(fork, label) else { return Ok(()) };
                self.store.remove_snapshot(&name, &label_of(label))?;
                self.forks.get_mut(&name).expect("picked").snapshots.remove(&label);
            }
            Op::Promote { fork } => {
                let Some(name) = self.pick(fork).filter(|n| self.forks[n].origin.is_some()) else {
                    return Ok(());
                };
                self.store.promote(&name)?;
                let model = self.forks.get_mut(&name).expect("picked");
                model.origin = None;
                model.settle();
            }
            Op::RenameFork { fork } => {
                let Some(name) = self.pick(fork) else { return Ok(()) };
                self.made += 1;
                let new = format!("f{}", self.made);
                self.store.rename(&name, &new)?;
                let mut model = self.forks.remove(&name).expect("picked");
                model.settle();
                self.forks.insert(new.clone(), model);
                for model in self.forks.values_mut() {
                    if let Some((_, parent)) = model.origin.as_mut().filter(|(_, parent)| *parent == name) {
                        parent.clone_from(&new);
                    }
                }
            }
            Op::Remove { fork } => {
                let Some(name) = self.pick(fork).filter(|_| self.forks.len() > 1) else { return Ok(()) };
                self.store.remove(&name)?;
                self.forks.remove(&name);
            }
            Op::Write { fork, .. }
            | Op::Truncate { fork, .. }
            | Op::Allocate { fork, .. }
            | Op::Punch { fork, .. }
            | Op::Copy { fork, .. }
            | Op::Unlink { fork, .. }
            | Op::Rename { fork, .. }
            | Op::Link { fork, .. }
            | Op::SyncFile { fork, .. }
            | Op::Sync { fork } => {
                let Some(name) = self.pick(fork) else { return Ok(()) };
                let fork = self.store.by_name(&name)?;
                let model = self.forks.get_mut(&name).expect("picked");
                let mut moments = Moments::new();
                let mut now = model.now.clone();
                let done = match *op {
                    Op::Sync { .. } => fork.sync_all().map(|()| model.settle()),
                    Op::SyncFile { name, data_only, .. } => sync_file(&fork, model, name as usize, data_only),
                    _ => apply_to_files(op, &fork, &mut now, &mut moments),
                };
                if done.is_ok() {
                    model.now = now.clone();
                } else {
                    moments.push(now.clone());
                    moments.iter_mut().for_each(|moment| moment.attempted = true);
                    model.after_error(&fork, &moments);
                    model.now.attempted = false;
                }
                if model.now != *model.since_sync.last().expect("never empty") {
                    model.since_sync.append(&mut moments);
                    model.since_sync.push(model.now.clone());
                }
                return done;
            }
        }
        Ok(())
    }

    /// A clean end and a new start. If the end fails, or the first try of the
    /// start, it is like a crash in which nothing is lost that was written.
    fn restart(&mut self) -> Result<(), Error> {
        let closed = self.store.close();
        for (name, model) in &mut self.forks {
            model.stopped |= self.store.by_name(name).is_ok_and(|fork| fork.fault().is_some());
        }
        let opened = self.rig.open();
        let failed = closed.as_ref().err().or(opened.as_ref().err()).is_some();
        self.store = match opened {
            Ok(store) => store,
            Err(_) => self.rig.open()?,
        };
        self.forks = lasting(&self.forks);
        assert_eq!(family_in(&self.store), family_of(&self.forks));
        for (name, model) in &mut self.forks {
            let uncertain = failed || model.stopped;
            let moments =
                if uncertain { model.since_sync.as_slice() } else { std::slice::from_ref(&model.now) };
            let fork = self.store.by_name(name)?;
            let mut found = moment_of(&fork, moments).unwrap_or_else(|why| panic!("restart: {why}"));
            // What was read from the map is durable; without a clean end the
            // sectors of WAL files are not.
            if uncertain {
                model.since_sync.iter().for_each(|moment| found.note_failed(moment));
            }
            model.go_to(found);
        }
        closed
    }

    /// Goes on from what a crash has left.
    pub fn recover(&mut self, rig: Rig) {
        // The old store must not write to the new images: it is closed first.
        let _ = self.store.close();
        self.rig = rig;
        self.store = self.rig.open().unwrap();
        self.forks = lasting(&self.forks);
        let names: Vec<String> = self.store.forks().into_iter().map(|f| f.name).collect();
        assert_eq!(names, self.forks.keys().cloned().collect::<Vec<_>>());
        for (name, model) in &mut self.forks {
            let fork = self.store.by_name(name).unwrap();
            let found = moment_of(&fork, &model.since_sync).unwrap_or_else(|why| panic!("{why}"));
            model.go_to(found);
        }
        assert_eq!(family_in(&self.store), family_of(&self.forks));
        compare_snapshots(&self.store, &self.forks, &self.forks).unwrap_or_else(|why| panic!("{why}"));
        self.check();
    }

    /// Every fork is what it is in the model.
    pub fn compare(&self) {
        for (name, model) in &self.forks {
            let fork = self.store.by_name(name).unwrap();
            moment_of(&fork, std::slice::from_ref(&model.now)).unwrap_or_else(|why| panic!("{why}"));
        }
        assert_eq!(family_in(&self.store), family_of(&self.forks));
        compare_snapshots(&self.store, &self.forks, &self.forks).unwrap_or_else(|why| panic!("{why}"));
    }

    /// All invariants hold.
    pub fn check(&self) {
        let broken = self.store.check(true).unwrap();
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

/// The forks of a store and those they were made from, by name.
pub type Family = BTreeMap<String, Option<String>>;

pub fn family_in(store: &Store) -> Family {
    store.forks().into_iter().map(|info| (info.name, info.parent)).collect()
}

pub fn family_of(forks: &ModelForks) -> Family {
    let parent = |model: &ModelFork| model.origin.as_ref().map(|(_, parent)| parent.clone());
    forks.iter().map(|(name, model)| (name.clone(), parent(model))).collect()
}

fn label_of(label: u8) -> String {
    format!("s{label}")
}

/// Looks at each snapshot, through a fork of it. Those that are in both models
/// must be there, and no others than those of one of them.
pub fn compare_snapshots(store: &Store, before: &ModelForks, after: &ModelForks) -> Result<(), String> {
    let none = BTreeMap::new();
    let wanted = |forks: &ModelForks, name: &str| forks.get(name).map(|model| model.snapshots.clone());
    for info in store.forks() {
        let (before, after) = (wanted(before, &info.name), wanted(after, &info.name));
        let there = store.snapshots(&info.name).map_err(|e| format!("snapshots of {}: {e}", info.name))?;
        let there: Vec<String> = there.into_iter().map(|snapshot| snapshot.label).collect();
        for label in 0..3 {
            let text = label_of(label);
            let choices: Vec<&Files> = [&before, &after]
                .into_iter()
                .filter_map(|model| model.as_ref().unwrap_or(&none).get(&label))
                .collect();
            let which = format!("snapshot {text} of {}", info.name);
            match (there.contains(&text), choices.as_slice()) {
                (false, []) => {}
                (false, [_, _]) => return Err(format!("{which} is gone")),
                (false, _) => {}
                (true, []) => return Err(format!("nobody made {which}")),
                (true, choices) => {
                    let probe = |what: &str, e| format!("{what} a fork of {which}: {e}");
                    store
                        .fork_snapshot(&info.name, &text, "probe", b"", &mut |_| Ok(()))
                        .map_err(|e| probe("making", e))?;
                    let fork = store.by_name("probe").map_err(|e| probe("finding", e))?;
                    let moments: Moments = choices.iter().map(|files| (*files).clone()).collect();
                    moment_of(&fork, &moments).map_err(|why| format!("{which}: {why}"))?;
                    store.remove("probe").map_err(|e| probe("removing", e))?;
                }
            }
        }
    }
    Ok(())
}

/// Syncs one file: all of the fork, except that `fdatasync` of a WAL file whose
/// size and name are durable may leave the rest.
fn sync_file(fork: &Fork, model: &mut ModelFork, name: usize, data_only: bool) -> Result<(), Error> {
    let Some(file) = find(fork, NAMES[name]) else { return Ok(()) };
    fork.sync(file, data_only)?;
    let now = model.now.clone();
    let settled = model.since_sync.iter().all(|moment| moment.attempted || now.has_as(name, moment));
    if data_only && now.in_place(name) && settled {
        for moment in &mut model.since_sync {
            moment.take_contents(name, &now);
        }
    } else {
        model.settle();
    }
    Ok(())
}
