//! Where the records of a layer are.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::{ColdFile, PageTable};
use crate::block::BlockNo;
use crate::ids::{FileId, LayerId};

/// The layers of the block map that hold the records of one layer: itself, until
/// it is merged with the one above or below it. What is in memory and not loaded
/// refers to this, so that merging has nothing to search for there.
pub struct Origin {
    layers: Mutex<Vec<LayerId>>,
    joined: OnceLock<Arc<Origin>>,
    /// The files of this layer whose page tables several forks share.
    files: Mutex<HashMap<FileId, Weak<ColdFile>>>,
}

impl Origin {
    /// A layer by itself.
    pub fn new(layer: LayerId) -> Arc<Self> {
        Arc::new(Origin { layers: Mutex::new(vec![layer]), joined: OnceLock::new(), files: Mutex::default() })
    }

    /// The one that stands for all layers that were merged with this one.
    pub fn root(self: &Arc<Self>) -> Arc<Origin> {
        let mut at = self;
        while let Some(next) = at.joined.get() {
            at = next;
        }
        at.clone()
    }

    /// The layers to look in, lowest first: an upper one's record comes over a
    /// lower one's.
    pub fn layers(self: &Arc<Self>) -> Vec<LayerId> {
        self.root().layers.lock().clone()
    }

    /// From now on the records of both are in both layers. Returns what stands
    /// for the two.
    pub fn join(lower: &Arc<Self>, upper: &Arc<Self>) -> Arc<Self> {
        let (lower, upper) = (lower.root(), upper.root());
        if !Arc::ptr_eq(&lower, &upper) {
            let above = upper.layers.lock().clone();
            lower.layers.lock().extend(above);
            // What the lower one showed of a file is nobody's view any more if the
            // upper one has the file, too, which only the map can tell.
            let files = std::mem::take(&mut *upper.files.lock());
            *lower.files.lock() = files;
            // A root is joined to nothing yet.
            let _ = upper.joined.set(lower.clone());
        }
        lower
    }

    /// A file as this layer shows it, for all who begin with it. The layer must be
    /// settled: what it shows never changes then, except that the one below it and
    /// the one above it become one. A table that is in memory and not `wanted`
    /// stays with those who have it.
    pub fn share(
        self: &Arc<Self>,
        file: FileId,
        base_blocks: BlockNo,
        wanted: &dyn Fn(&PageTable) -> bool,
    ) -> Arc<ColdFile> {
        let root = self.root();
        if let Some(shared) = root.shared(file)
            && shared.table.get().is_none_or(wanted)
        {
            return shared;
        }
        let fresh = Arc::new(ColdFile::new(root.clone(), file, base_blocks));
        root.files.lock().insert(file, Arc::downgrade(&fresh));
        fresh
    }

    /// The page table of a file of this layer, if it is in memory and shared.
    pub fn loaded(self: &Arc<Self>, file: FileId) -> Option<PageTable> {
        self.root().shared(file)?.table.get().cloned()
    }

    fn shared(&self, file: FileId) -> Option<Arc<ColdFile>> {
        // The lock must be free before the last reference can go: see `forget`.
        let shared = self.files.lock().get(&file).cloned();
        shared?.upgrade()
    }

    /// Nobody shares this one any more.
    pub fn forget(self: &Arc<Self>, cold: &ColdFile) {
        let root = self.root();
        let mut files = root.files.lock();
        if files.get(&cold.file).is_some_and(|known| std::ptr::eq(known.as_ptr(), cold)) {
            files.remove(&cold.file);
        }
        if files.is_empty() {
            files.shrink_to_fit();
        }
    }

    /// All records are in one layer again.
    pub fn settle(self: &Arc<Self>, layer: LayerId) {
        *self.root().layers.lock() = vec![layer];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_know_a_layer_find_what_it_was_merged_with() {
        let all: Vec<_> = (1..5).map(|n| Origin::new(LayerId(n))).collect();
        let joined = Origin::join(&all[0], &all[1]);
        assert_eq!(all[1].layers(), [LayerId(1), LayerId(2)]);
        joined.settle(LayerId(2));
        assert_eq!(all[0].layers(), [LayerId(2)]);
        Origin::join(&all[2], &all[3]).settle(LayerId(3));
        Origin::join(&all[1], &all[3]);
        for origin in &all {
            assert_eq!(origin.layers(), [LayerId(2), LayerId(3)]);
            assert!(Arc::ptr_eq(&origin.root(), &all[0]));
        }
    }
}
