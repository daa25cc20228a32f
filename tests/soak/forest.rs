//! The forks that live, and what a cycle does to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::Args;
use super::control::Control;
use super::layers::Layers;
use super::tree::{Tree, Versions};
use crate::common::pg::owner;
use crate::common::random::Random;

/// The parent of all.
pub const MAIN: &str = "main";
/// Of so many hundred forks one is made of another fork, not of `main`.
const OF_A_FORK_PERCENT: u64 = 20;
/// Of so many hundred forks one is made of a snapshot.
const OF_A_SNAPSHOT_PERCENT: u64 = 10;
/// One in so many cycles makes a snapshot of `main`.
const SNAPSHOT_EVERY: u64 = 10;
/// Snapshots there are at a time.
const SNAPSHOTS: usize = 5;
/// Of so many hundred removals one takes the oldest, and the others any.
const OLDEST_PERCENT: u64 = 50;
/// Pages that are compared in each cycle.
const COMPARED: u64 = 8;
/// Small tables are numbered from here on.
const FIRST_SMALL: u32 = 20_000;

/// How long the parts of the cycles since the last sample took.
#[derive(Default)]
pub struct Times {
    /// The fork itself, by the daemon's word.
    pub forks: Vec<Duration>,
    /// For how long the parent's writes were held.
    pub stalls: Vec<Duration>,
    /// The request for a fork, as its client sees it.
    pub fork_calls: Vec<Duration>,
    /// The request for a removal.
    pub removals: Vec<Duration>,
    /// Whole cycles.
    pub cycles: Vec<Duration>,
}

/// All forks, with what they must hold.
pub struct Forest {
    mount: PathBuf,
    trees: BTreeMap<String, Tree>,
    /// Living forks but `main`, the oldest first.
    living: Vec<String>,
    /// Snapshots of `main` with what they must hold, the oldest first.
    snapshots: Vec<(String, Tree)>,
    layers: Layers,
    versions: Versions,
    made: u64,
    /// Since the last sample.
    pub times: Times,
}

impl Forest {
    /// `main` alone, with its files.
    pub fn make(mount: &Path, args: &Args) -> Forest {
        let mut versions = Versions::default();
        let pgdata = mount.join(MAIN);
        let main = Tree::make(&pgdata, args.table_pages, &mut versions).expect("make the tables");
        if let Some((uid, gid)) = owner() {
            // A server looks through all directories when it starts.
            let dir = pgdata.join(super::tree::DIRECTORY);
            std::os::unix::fs::chown(dir, Some(uid), Some(gid)).expect("give the tables' directory away");
        }
        Forest {
            mount: mount.to_owned(),
            trees: BTreeMap::from([(MAIN.to_owned(), main)]),
            living: Vec::new(),
            snapshots: Vec::new(),
            layers: Layers::new(MAIN),
            versions,
            made: 0,
            times: Times::default(),
        }
    }

    /// The tables of `main`.
    pub fn main(&self) -> &Tree {
        &self.trees[MAIN]
    }

    /// Layers that the living forks need.
    pub fn layers_needed(&self) -> u64 {
        self.layers.count()
    }

    /// One cycle: a fork, writes on both sides, comparisons, and removals until there are not too many; now and then a
    /// snapshot.
    pub fn cycle(&mut self, control: &mut Control, args: &Args, random: &mut Random) -> Result<(), String> {
        let begin = Instant::now();
        let parent = match random.pick(&self.living) {
            Some(one) if random.percent(OF_A_FORK_PERCENT) => one.clone(),
            _ => MAIN.to_owned(),
        };
        if self.made.is_multiple_of(SNAPSHOT_EVERY) {
            self.snapshot(control, random)?;
        }
        let (parent, child) = match random.pick(&self.snapshots) {
            Some((label, _)) if random.percent(OF_A_SNAPSHOT_PERCENT) => {
                let label = label.clone();
                (MAIN.to_owned(), self.fork_snapshot(control, &label)?)
            }
            _ => {
                let child = self.fork(control, &parent)?;
                (parent, child)
            }
        };
        let name = FIRST_SMALL + self.made as u32;
        for fork in [&parent, &child] {
            let tree = self.trees.get_mut(fork).expect("it lives");
            tree.change_small_tables(name, random, &mut self.versions)
                .and_then(|()| tree.write_pages(args.pages, random, &mut self.versions))
                .map_err(|e| format!("writing to {fork}: {e}"))?;
        }
        let names: Vec<&String> = self.trees.keys().collect();
        let any = *random.pick(&names).expect("main lives");
        self.trees[any].verify_some(COMPARED, random)?;
        while self.living.len() > args.living {
            let which = match random.percent(OLDEST_PERCENT) {
                true => 0,
                false => random.below(self.living.len() as u64) as usize,
            };
            self.remove(control, which)?;
        }
        self.times.cycles.push(begin.elapsed());
        Ok(())
    }

    fn fork(&mut self, control: &mut Control, parent: &str) -> Result<String, String> {
        let child = self.next_name();
        let begin = Instant::now();
        let cost = control.fork(parent, None, &child)?;
        self.times.fork_calls.push(begin.elapsed());
        self.times.forks.push(cost.fork);
        self.times.stalls.push(cost.stall);
        let tree = self.trees[parent].forked(&self.mount.join(&child));
        self.layers.fork(parent, &child);
        Ok(self.born(child, tree))
    }

    /// Not among the times: nobody's writes are held.
    fn fork_snapshot(&mut self, control: &mut Control, label: &str) -> Result<String, String> {
        let child = self.next_name();
        control.fork(MAIN, Some(label), &child)?;
        let (_, tree) = self.snapshots.iter().find(|(of, _)| of == label).expect("it is there");
        let tree = tree.forked(&self.mount.join(&child));
        self.layers.fork_snapshot(label, &child);
        Ok(self.born(child, tree))
    }

    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("f{}", self.made)
    }

    fn born(&mut self, child: String, tree: Tree) -> String {
        self.trees.insert(child.clone(), tree);
        self.living.push(child.clone());
        child
    }

    /// A snapshot more, and one less if there are enough: the oldest, or any.
    fn snapshot(&mut self, control: &mut Control, random: &mut Random) -> Result<(), String> {
        let label = format!("s{}", self.made);
        control.snapshot(MAIN, &label)?;
        self.layers.snapshot(MAIN, &label);
        let tree = self.trees[MAIN].forked(&self.mount.join(MAIN));
        self.snapshots.push((label, tree));
        if self.snapshots.len() > SNAPSHOTS {
            let which = match random.percent(OLDEST_PERCENT) {
                true => 0,
                false => random.below(self.snapshots.len() as u64) as usize,
            };
            let (label, _) = self.snapshots.remove(which);
            control.remove_snapshot(MAIN, &label)?;
            self.layers.remove_snapshot(&label);
        }
        Ok(())
    }

    fn remove(&mut self, control: &mut Control, which: usize) -> Result<(), String> {
        let fork = self.living.remove(which);
        let begin = Instant::now();
        control.remove(&fork)?;
        self.times.removals.push(begin.elapsed());
        self.trees.remove(&fork);
        self.layers.remove(&fork);
        Ok(())
    }

    /// A fork of `main` for as long as `with` takes.
    pub fn with_fresh_fork<T>(
        &mut self,
        control: &mut Control,
        with: impl FnOnce(&Path, &Tree) -> Result<T, String>,
    ) -> Result<T, String> {
        let fork = self.fork(control, MAIN)?;
        let result = with(&self.mount.join(&fork), &self.trees[&fork]);
        self.remove(control, self.living.len() - 1)?;
        result
    }

    /// Compares everything in all forks. Err has what is wrong in each.
    pub fn verify_all(&self) -> Result<(), Vec<String>> {
        let wrong: Vec<String> = self.trees.values().filter_map(|tree| tree.verify().err()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The oldest and the youngest fork.
    pub fn ends(&self) -> Vec<&str> {
        [self.living.first(), self.living.last()].into_iter().flatten().map(String::as_str).collect()
    }

    /// The names of all forks, sorted.
    pub fn names(&self) -> Vec<String> {
        self.trees.keys().cloned().collect()
    }
}
