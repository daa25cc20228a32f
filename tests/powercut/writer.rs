//! The library at work without PostgreSQL: random operations on forks by several threads, with everything noted that is
//! needed to judge the store after a loss of power at any moment.
//!
//! What must hold for each fork after a cut, by the contract in docs/SEMANTICS.md:
//! - if it was made it is there, if it was removed it is not;
//! - its files are as they were at one moment, not before its last sync that had returned;
//! - each sector of its WAL file is of the last write that was synced there, or of a later one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use pgcowfs::{FileId, Fork, Make, Options, Store};

use crate::common::random::Random;
use crate::files::{self, B, DIRS, Files, NAMES, WAL_NAMES};
use crate::ops::{self, Op};
use crate::oracle::Clock;

const WORKERS: usize = 3;
/// Forks of one worker at a time.
const FORKS_MAX: usize = 4;
/// The files that are written out of place.
const FILES: usize = WAL_NAMES.start as usize;
/// One of those in place, which has a model of its own here.
const WAL: &str = NAMES[FILES];
const WAL_BLOCKS: usize = 64;
const SECTOR: usize = super::cuts::SECTOR;

/// Size and hash of each file that is there.
type Shape = [Option<(u64, u64)>; FILES];

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn shape(files: &Files) -> Shape {
    let mut shape = Shape::default();
    for (i, slot) in shape.iter_mut().enumerate() {
        *slot = files.get(i).map(|contents| (contents.len() as u64, hash(contents)));
    }
    shape
}

/// All that one fork was, and when. Times are positions in the log.
pub struct History {
    name: String,
    asked: u64,
    made: Option<u64>,
    removal_asked: Option<u64>,
    removed: Option<u64>,
    /// When the operation began that led there, and the files after it.
    moments: Vec<(u64, Shape)>,
    /// Syncs: when they had returned, the moment, and for each WAL block the version that were durable then.
    synced: Vec<(u64, usize, Vec<usize>)>,
    /// The same for `fdatasync` of the WAL file alone.
    wal_synced: Vec<(u64, Vec<usize>)>,
    /// For each WAL block: when a write began, and what it wrote.
    wal: Vec<Vec<(u64, u64)>>,
}

/// A fork at work.
struct Live {
    fork: Arc<Fork>,
    files: Files,
    wal_file: FileId,
    history: History,
}

impl Live {
    fn wal_versions(&self) -> Vec<usize> {
        self.history.wal.iter().map(|versions| versions.len() - 1).collect()
    }

    fn note_sync(&mut self, at: u64) {
        let durable = (at, self.history.moments.len() - 1, self.wal_versions());
        self.history.synced.push(durable);
    }
}

struct Worker {
    store: Arc<Store>,
    clock: Clock,
    random: Random,
    prefix: String,
    made: u32,
    version: u64,
    live: Vec<Live>,
    gone: Vec<History>,
}

/// What happened, and when by the log.
pub struct Recording {
    /// The store had been made.
    pub made: u64,
    /// The work began.
    pub from: u64,
    /// The work had ended.
    pub to: u64,
    /// All forks.
    pub histories: Vec<History>,
}

/// Makes a store and runs so many operations with each worker.
pub fn record(dir: &Path, clock: &Clock, operations: u64, seed: u64) -> Recording {
    Store::init(dir).expect("make a store");
    let made = clock();
    // A small limit: pages reach the disk in many writes, at many moments.
    let store =
        Store::open(dir, Options { dirty_limit_bytes: 1 << 20, punch_min_bytes: B, ..Options::default() })
            .expect("open it");
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|n| Worker {
            store: store.clone(),
            clock: clock.clone(),
            random: Random::part(seed, n as u64),
            prefix: format!("w{n}"),
            made: 0,
            version: 0,
            live: Vec::new(),
            gone: Vec::new(),
        })
        .collect();
    workers.iter_mut().for_each(Worker::make_root);
    let from = clock();
    let histories = std::thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(|| worker.run(operations))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a worker")).collect()
    });
    let to = clock();
    store.close().expect("close the store");
    Recording { made, from, to, histories }
}

impl Worker {
    fn make_root(&mut self) {
        let name = self.prefix.clone();
        let asked = (self.clock)();
        let fork = self.store.create(&name, 0, 0, b"").expect("make a root fork");
        for path in DIRS {
            let (dir, name) = ops::split(&fork, path);
            fork.make(dir, name, Make::Directory, 0o700, 0, 0).expect("make a directory");
        }
        let (dir, entry) = ops::split(&fork, WAL);
        let wal_file = fork.make(dir, entry, Make::File, 0o600, 0, 0).expect("make a WAL file").file;
        fork.write(wal_file, 0, &vec![0; WAL_BLOCKS * B as usize]).expect("fill it");
        self.store.publish(&name).expect("publish the root fork");
        let files = Files::default();
        let history = History {
            name,
            asked,
            made: Some((self.clock)()),
            removal_asked: None,
            removed: None,
            moments: vec![(asked, shape(&files))],
            synced: Vec::new(),
            wal_synced: Vec::new(),
            wal: vec![vec![(asked, 0)]; WAL_BLOCKS],
        };
        let mut live = Live { fork, files, wal_file, history };
        live.note_sync((self.clock)());
        self.live.push(live);
    }

    fn run(mut self, operations: u64) -> Vec<History> {
        for _ in 0..operations {
            self.step();
        }
        self.gone.extend(self.live.into_iter().map(|live| live.history));
        self.gone
    }

    fn step(&mut self) {
        let i = self.random.below(self.live.len() as u64) as usize;
        match self.random.below(100) {
            0..55 => self.change(i),
            // Whatever is free becomes a hole, or is cut off.
            55 => drop(self.store.reclaim_all(&mut |_| true).expect("give space back")),
            56..74 => self.write_wal(i),
            74..84 => {
                let live = &mut self.live[i];
                live.fork.sync(live.wal_file, true).expect("fdatasync of the WAL file");
                let durable = ((self.clock)(), live.wal_versions());
                live.history.wal_synced.push(durable);
            }
            84..92 => {
                let live = &mut self.live[i];
                live.fork.sync_all().expect("sync");
                live.note_sync((self.clock)());
            }
            92..96 if self.live.len() < FORKS_MAX => self.fork(i),
            _ if self.live.len() > 1 => self.remove(i),
            _ => {}
        }
    }

    fn change(&mut self, i: usize) {
        let random = &mut self.random;
        let names = FILES as u64;
        let (name, other) = (random.below(names) as u8, random.below(names) as u8);
        let offset = if random.percent(50) { random.below(12) * B } else { random.below(12 * B) };
        let len = match random.below(3) {
            0 => random.between(1, 40) * B,
            1 => random.between(1, 3 * B),
            _ => random.between(1, 600),
        };
        let op = match random.below(20) {
            0..12 => Op::Write { fork: 0, name, offset, len, byte: random.between(1, 255) as u8 },
            12 => Op::Truncate { fork: 0, name, size: offset },
            13 => Op::Allocate { fork: 0, name, offset, len },
            14 => Op::Punch { fork: 0, name, offset, len },
            15 | 16 => Op::Copy {
                fork: 0,
                from: name,
                to: other,
                from_block: random.below(8),
                to_block: random.below(8),
                len: len.min(4 * B),
            },
            17 => Op::Unlink { fork: 0, name },
            18 => Op::Rename { fork: 0, from: name, to: other },
            _ => Op::Link { fork: 0, from: name, to: other },
        };
        let began = (self.clock)();
        let live = &mut self.live[i];
        let mut steps = Vec::new();
        ops::apply_to_files(&op, &live.fork, &mut live.files, &mut steps).expect("an operation");
        for step in &steps {
            live.history.moments.push((began, shape(step)));
        }
        let shape = shape(&live.files);
        if live.history.moments.last().is_none_or(|(_, last)| *last != shape) {
            live.history.moments.push((began, shape));
        }
    }

    fn write_wal(&mut self, i: usize) {
        let live = &mut self.live[i];
        let first = self.random.below(WAL_BLOCKS as u64) as usize;
        let count = (self.random.between(1, 4) as usize).min(WAL_BLOCKS - first);
        self.version += 1;
        let began = (self.clock)();
        for block in first..first + count {
            live.history.wal[block].push((began, self.version));
        }
        let page: Vec<u8> = self.version.to_le_bytes().into_iter().cycle().take(count * B as usize).collect();
        live.fork.write(live.wal_file, first as u64 * B, &page).expect("write WAL");
    }

    fn fork(&mut self, i: usize) {
        self.made += 1;
        let name = format!("{}f{}", self.prefix, self.made);
        let asked = (self.clock)();
        let parent = self.live[i].fork.name();
        self.store.fork(&parent, &name, b"", &mut |_| Ok(())).expect("fork");
        let made = (self.clock)();
        let parent = &mut self.live[i];
        // A fork makes its parent durable as well.
        parent.note_sync(made);
        let last = |versions: &Vec<(u64, u64)>| vec![(asked, versions.last().map_or(0, |(_, v)| *v))];
        let history = History {
            name: name.clone(),
            asked,
            made: Some(made),
            removal_asked: None,
            removed: None,
            moments: vec![(asked, shape(&parent.files))],
            synced: Vec::new(),
            wal_synced: Vec::new(),
            wal: parent.history.wal.iter().map(last).collect(),
        };
        let fork = self.store.by_name(&name).expect("the fork just made");
        let files = parent.files.clone();
        let wal_file = fork.resolve(WAL).expect("its WAL file").file;
        self.live.push(Live { fork, files, wal_file, history });
    }

    fn remove(&mut self, i: usize) {
        let mut live = self.live.swap_remove(i);
        live.history.removal_asked = Some((self.clock)());
        self.store.remove(&live.history.name).expect("remove a fork");
        live.history.removed = Some((self.clock)());
        self.gone.push(live.history);
    }
}

/// What is wrong with the store that a cut at that position has left.
pub fn judge(dir: &Path, histories: &[History], at: u64) -> Vec<String> {
    let store = match Store::open(dir, Options::default()) {
        Ok(store) => store,
        Err(error) => return vec![format!("the store does not open: {error}")],
    };
    let mut wrong = Vec::new();
    let there: Vec<String> = store.forks().into_iter().map(|fork| fork.name).collect();
    for history in histories {
        let is_there = there.contains(&history.name);
        let by = |time: Option<u64>| time.is_some_and(|time| time <= at);
        if is_there && (history.asked > at || by(history.removed)) {
            wrong.push(format!("fork {} is there: never asked for by then, or removed", history.name));
        } else if !is_there && by(history.made) && !by(history.removal_asked) {
            wrong.push(format!("fork {} was made and is gone", history.name));
        } else if is_there {
            wrong.extend(judge_fork(&store, history, at));
        }
    }
    match store.check(true) {
        Ok(broken) => wrong.extend(broken),
        Err(error) => wrong.push(format!("the check ends: {error}")),
    }
    if let Err(error) = store.close() {
        wrong.push(format!("the store does not close: {error}"));
    }
    wrong
}

fn judge_fork(store: &Store, history: &History, at: u64) -> Vec<String> {
    let name = &history.name;
    let fork = match store.by_name(name) {
        Ok(fork) => fork,
        Err(error) => return vec![format!("fork {name} does not load: {error}")],
    };
    let mut wrong = Vec::new();
    let durable = history.synced.iter().rev().find(|(returned, ..)| *returned <= at);
    let first = durable.map_or(0, |(_, moment, _)| *moment);
    let end = history.moments.partition_point(|(began, _)| *began <= at).max(first + 1);
    match shape_of(&fork) {
        Err(error) => wrong.push(format!("fork {name}: {error}")),
        Ok(found) => {
            if !history.moments[first..end].iter().any(|(_, shape)| *shape == found) {
                let when = history.moments.iter().rposition(|(_, shape)| *shape == found);
                let when = when.map_or("at no moment at all".to_owned(), |m| format!("at moment {m}"));
                let last = &history.moments[end - 1].1;
                let differ = (0..FILES).filter(|i| found[*i] != last[*i]);
                let differ: Vec<String> =
                    differ.map(|i| format!("{} {:?}, not {:?}", NAMES[i], found[i], last[i])).collect();
                wrong.push(format!(
                    "fork {name} is {when}, not at one of {first} to {}; from the last differ (size, hash): {}",
                    end - 1,
                    differ.join("; ")
                ));
            }
        }
    }
    let wal = history.wal_synced.iter().rev().find(|(returned, _)| *returned <= at);
    let bytes = match fork.read_file(WAL) {
        Ok(bytes) if bytes.len() == WAL_BLOCKS * B as usize => bytes,
        Ok(bytes) => {
            wrong.push(format!("fork {name}: its WAL file has {} bytes", bytes.len()));
            return wrong;
        }
        Err(error) => {
            wrong.push(format!("fork {name}: its WAL file: {error}"));
            return wrong;
        }
    };
    for (block, versions) in history.wal.iter().enumerate() {
        let floor = [durable.map(|(.., versions)| versions[block]), wal.map(|(_, versions)| versions[block])];
        let floor = floor.into_iter().flatten().max().unwrap_or(0);
        let end = versions.partition_point(|(began, _)| *began <= at).max(floor + 1);
        let page = &bytes[block * B as usize..][..B as usize];
        for (i, sector) in page.chunks_exact(SECTOR).enumerate() {
            let fits = versions[floor..end]
                .iter()
                .any(|(_, version)| sector.chunks_exact(8).all(|word| word == version.to_le_bytes()));
            if !fits {
                let found = u64::from_le_bytes(*sector.first_chunk().expect("a sector has eight bytes"));
                wrong.push(format!(
                    "fork {name}: WAL block {block}, sector {i} begins with {found}, none of {:?}",
                    &versions[floor..end]
                ));
                break;
            }
        }
    }
    wrong
}

fn shape_of(fork: &Fork) -> Result<Shape, String> {
    let mut shape = Shape::default();
    for (slot, path) in shape.iter_mut().zip(NAMES) {
        if files::find(fork, path).is_some() {
            let bytes = fork.read_file(path).map_err(|error| format!("{path}: {error}"))?;
            *slot = Some((bytes.len() as u64, hash(&bytes)));
        }
    }
    Ok(shape)
}

/// Goes on with a store that has lost power, and looks again: what a recovery leaves must also bear what follows.
pub fn go_on(dir: &Path) -> Vec<String> {
    let work = || -> pgcowfs::Result<()> {
        let store = Store::open(dir, Options::default())?;
        if let Some(info) = store.forks().first() {
            let fork = store.by_name(&info.name)?;
            fork.write_file("base/5/99999", &[7; 5 * B as usize])?;
            fork.sync_all()?;
            store.fork(&info.name, "later", b"", &mut |_| Ok(()))?;
            store.remove(&info.name)?;
        }
        store.close()
    };
    match work() {
        Ok(()) => crate::common::check::check_store(dir),
        Err(error) => vec![format!("going on: {error}")],
    }
}
