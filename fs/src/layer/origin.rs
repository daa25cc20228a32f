//! Where the records of a layer are.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::ids::LayerId;

/// The layers of the block map that hold the records of one layer: itself, until
/// it is merged with the one above or below it. What is in memory and not loaded
/// yet refers to this, so that merging has nothing to search for there.
pub struct Origin {
    layers: Mutex<Vec<LayerId>>,
    joined: OnceLock<Arc<Origin>>,
}

impl Origin {
    /// A layer by itself.
    pub fn new(layer: LayerId) -> Arc<Self> {
        Arc::new(Origin { layers: Mutex::new(vec![layer]), joined: OnceLock::new() })
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
            // A root is joined to nothing yet.
            let _ = upper.joined.set(lower.clone());
        }
        lower
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
