//! The memory of page tables is bounded: tables that nobody has used for a while
//! are dropped, and loaded again when they are needed.
//!
//! Only what the durable map has can be dropped: a table without anything pending,
//! of a fork that makes no commit at that moment. To drop one, all states that have
//! it get another [`ColdFile`] that is not loaded; whoever looks at a state, or has
//! a clone of one, keeps what is in it. So reads need no lock for this. All they do
//! is to mark what they use with the tick of a clock that goes on with each sweep:
//! what was used since the last one stays (second chance), and of the others those
//! go first that were used last the longest time ago.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::block::BlockNo;
use crate::error::{Error, Result};
use crate::ids::{FileId, LayerId};
use crate::layer::{Body, ColdFile, Inode, Origin, PageTable, State, Table, load, tree};
use crate::map::schema::InodeRecord;

use super::core::Core;
use super::fork::Fork;
use super::store::Store;

/// A sweep goes on until so many sixteenths of the limit are left.
const KEEP_SIXTEENTHS: u64 = 12;
/// Trees share nodes, so that dropping one may give less than it takes: a sweep
/// looks so many times.
const ROUNDS: usize = 8;
/// A fork that makes a commit for longer than this is left out of a sweep.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the sweeps know.
#[derive(Default)]
pub struct Tables {
    /// Counts sweeps.
    clock: AtomicU32,
    /// One sweep at a time.
    turn: Mutex<()>,
    /// The forks in memory. All that they stand on is durable.
    forks: Mutex<Vec<Weak<Fork>>>,
}

impl Tables {
    /// The tick to mark what is used with.
    pub(super) fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    /// A fork is in memory, and durable.
    pub(super) fn enter(&self, fork: &Arc<Fork>) {
        let mut forks = self.forks.lock();
        forks.retain(|fork| fork.strong_count() > 0);
        forks.push(Arc::downgrade(fork));
    }

    fn forks(&self) -> Vec<Arc<Fork>> {
        self.forks.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

/// Tables to be dropped, by [`tree::Tree::identity`].
type Chosen = HashSet<usize>;

/// Inodes whose table is dropped, by their address, each with the one that takes
/// its place: what several states share they go on to share.
type Replaced = HashMap<usize, (Arc<Inode>, Arc<Inode>)>;

impl Core {
    /// Builds the page table of a file; the caller holds `moves`.
    pub(super) fn load_table(&self, cold: &ColdFile) -> Result<PageTable> {
        let below = self.origins_below(&cold.origin)?;
        load::page_table(cold, &below, &*self.map)
    }

    /// The layers that a layer stands on, the nearest first.
    fn origins_below(&self, origin: &Arc<Origin>) -> Result<Vec<Arc<Origin>>> {
        let layers = self.layers.lock();
        let lowest = origin.layers().first().copied();
        let info = lowest.and_then(|lowest| layers.get(&lowest));
        // It goes when no fork stands on it any more.
        let mut at = info.ok_or(Error::Stale)?.record.parent;
        let mut below: Vec<Arc<Origin>> = Vec::new();
        while let Some(info) = layers.get(&at) {
            let origin = info.origin.root();
            if below.last().is_none_or(|above| !Arc::ptr_eq(above, &origin)) {
                below.push(origin);
            }
            at = info.record.parent;
        }
        Ok(below)
    }

    /// Drops page tables if there are too many in memory. Whoever loads one calls
    /// this before, and holds no lock.
    pub(super) fn drop_idle_tables(&self) {
        let limit = self.options.map_memory_bytes;
        if tree::memory().bytes <= limit {
            return;
        }
        let _turn = self.tables.turn.lock();
        if tree::memory().bytes <= limit {
            return;
        }
        let last = self.tables.clock.fetch_add(1, Ordering::Relaxed);
        for _ in 0..ROUNDS {
            let over = tree::memory().bytes.saturating_sub(limit / 16 * KEEP_SIXTEENTHS);
            if over == 0 || self.drop_tables(&|used| used != last && used != last.wrapping_add(1), over) == 0
            {
                return;
            }
        }
    }

    /// Drops tables of which `idle` says so, given their last use, of `bytes` bytes
    /// or a little more. Returns how many places had one.
    fn drop_tables(&self, idle: &dyn Fn(u32) -> bool, bytes: u64) -> u64 {
        let chosen = self.choose_tables(idle, bytes);
        let mut replaced = Replaced::new();
        let mut dropped = 0;
        for fork in self.tables.forks() {
            match self.drop_tables_of(&fork, &chosen, &mut replaced) {
                Ok(tables) => dropped += tables,
                // They stay in memory.
                Err(e) => log::debug!("fork {:?}: page tables are not dropped: {e}", fork.name()),
            }
        }
        match self.drop_frozen_tables(&chosen, &mut replaced) {
            Ok(tables) => dropped += tables,
            Err(e) => log::debug!("page tables of frozen layers are not dropped: {e}"),
        }
        dropped
    }

    fn choose_tables(&self, idle: &dyn Fn(u32) -> bool, bytes: u64) -> Chosen {
        // By identity: the last use by any fork.
        let mut found: HashMap<usize, (u32, PageTable)> = HashMap::new();
        let mut look = |state: State| {
            for table in state.inodes.values().filter_map(|inode| table_of(inode)) {
                let Some(identity) = table.tree.identity() else { continue };
                let used = table.used.tick();
                let (last, _) = found.entry(identity).or_insert_with(|| (used, table.clone()));
                *last = used.max(*last);
            }
        };
        for fork in self.tables.forks() {
            let (state, below) = {
                let head = fork.head.lock();
                (head.state.clone(), head.below.clone())
            };
            look(state);
            look(below);
        }
        let frozen: Vec<State> = self.states.lock().values().cloned().collect();
        frozen.into_iter().for_each(look);
        let mut candidates: Vec<(u32, usize)> =
            found.iter().filter(|(_, (used, _))| idle(*used)).map(|(id, (used, _))| (*used, *id)).collect();
        candidates.sort_unstable();
        let mut sum = 0;
        let enough = candidates.iter().take_while(|(_, id)| {
            let more = sum < bytes;
            sum += found[id].1.tree.bytes();
            more
        });
        enough.map(|(_, id)| *id).collect()
    }

    fn drop_tables_of(&self, fork: &Fork, chosen: &Chosen, replaced: &mut Replaced) -> Result<u64> {
        // What is pending has not been taken for a commit then.
        let Some(backlog) = fork.commit.try_lock_for(PATIENCE) else { return Ok(0) };
        if !backlog.units.is_empty() || fork.fault().is_some() {
            return Ok(0);
        }
        let _still = self.moves.read();
        let (state, below, layer) = {
            let Ok(head) = fork.head() else { return Ok(0) };
            let mut state = head.state.clone();
            for file in head.pending.files.keys() {
                state.inodes.remove(file);
            }
            (state, head.below.clone(), head.layer)
        };
        let parent = self.layers.lock().get(&layer).map(|info| info.record.parent);
        let above = self.replace_tables(&state, layer, chosen, replaced)?;
        let below = self.replace_tables(&below, parent.unwrap_or(LayerId(0)), chosen, replaced)?;
        let Ok(mut head) = fork.head() else { return Ok(0) };
        let head = &mut *head;
        let mut dropped = 0;
        for file in above {
            // One that was written to since then has another inode.
            let staged = head.staged.range((file, 0)..=(file, BlockNo::MAX)).next().is_some();
            if !staged {
                dropped += put_replaced(&mut head.state, file, replaced);
            }
        }
        for file in below {
            dropped += put_replaced(&mut head.below, file, replaced);
        }
        Ok(dropped)
    }

    fn drop_frozen_tables(&self, chosen: &Chosen, replaced: &mut Replaced) -> Result<u64> {
        let _still = self.moves.read();
        let frozen: Vec<(LayerId, State)> =
            self.states.lock().iter().map(|(layer, state)| (*layer, state.clone())).collect();
        let mut dropped = 0;
        for (layer, state) in frozen {
            let files = self.replace_tables(&state, layer, chosen, replaced)?;
            if let Some(state) = self.states.lock().get_mut(&layer) {
                dropped += files.into_iter().map(|file| put_replaced(state, file, replaced)).sum::<u64>();
            }
        }
        Ok(dropped)
    }

    /// Makes a new inode for each file in `state`, as `layer` shows it, whose table
    /// is to be dropped. Returns the files.
    fn replace_tables(
        &self,
        state: &State,
        layer: LayerId,
        chosen: &Chosen,
        replaced: &mut Replaced,
    ) -> Result<Vec<FileId>> {
        let is_chosen = |table: &PageTable| table.tree.identity().is_some_and(|id| chosen.contains(&id));
        let mut files = Vec::new();
        for (&file, inode) in state.inodes.iter() {
            let Body::Pages(pages) = &inode.body else { continue };
            if !pages.loaded().is_some_and(is_chosen) {
                continue;
            }
            files.push(file);
            if replaced.contains_key(&address(inode)) {
                continue;
            }
            let base_blocks = pages.base.as_ref().map_or(0, |base| base.blocks());
            let cold = self.cold_file(layer, file, base_blocks, &|table| !is_chosen(table))?;
            let mut fresh = Inode::clone(inode);
            if let Body::Pages(pages) = &mut fresh.body {
                pages.table = Table::Cold(cold);
            }
            replaced.insert(address(inode), (inode.clone(), Arc::new(fresh)));
        }
        Ok(files)
    }

    /// A file as `layer` shows it, to be loaded from the newest layer that has a
    /// record of it.
    fn cold_file(
        &self,
        layer: LayerId,
        file: FileId,
        base_blocks: BlockNo,
        wanted: &dyn Fn(&PageTable) -> bool,
    ) -> Result<Arc<ColdFile>> {
        let mut at = layer;
        loop {
            let known = {
                let layers = self.layers.lock();
                layers.get(&at).map(|info| (info.origin.clone(), info.settled, info.record.parent))
            };
            let Some((origin, settled, parent)) = known else {
                return Err(Error::Damaged(format!("no layer below {layer} has a record of file {file}")));
            };
            if self.map.get(&InodeRecord::key(at, file))?.is_some() {
                return Ok(match settled {
                    true => origin.share(file, base_blocks, wanted),
                    // What a head shows changes: nobody else can begin with it.
                    false => Arc::new(ColdFile::new(origin, file, base_blocks)),
                });
            }
            at = parent;
        }
    }
}

impl Store {
    /// Drops all page tables that can be dropped. Returns from how many places.
    pub fn drop_page_tables(&self) -> u64 {
        let _turn = self.core.tables.turn.lock();
        self.core.drop_tables(&|_| true, u64::MAX)
    }
}

fn address(inode: &Arc<Inode>) -> usize {
    Arc::as_ptr(inode) as usize
}

fn table_of(inode: &Inode) -> Option<&PageTable> {
    match &inode.body {
        Body::Pages(pages) => pages.loaded(),
        _ => None,
    }
}

/// Puts a new inode in the place of one that is the same as it was; whether it is.
fn put_replaced(state: &mut State, file: FileId, replaced: &Replaced) -> u64 {
    let Some(inode) = state.inodes.get(&file) else { return 0 };
    let Some((_, fresh)) = replaced.get(&address(inode)) else { return 0 };
    state.inodes.insert(file, fresh.clone());
    1
}
