//! How many layers a store needs: what is left when nothing more can be dropped or merged.

use std::collections::BTreeMap;

/// The tree of layers, as forks and removals make it.
#[derive(Default)]
pub struct Layers {
    layers: BTreeMap<u64, Layer>,
    forks: BTreeMap<String, Fork>,
    /// By label; all of forks that are not removed.
    snapshots: BTreeMap<String, u64>,
    next: u64,
}

struct Layer {
    below: Option<u64>,
    /// Layers on it.
    above: u64,
    /// Forks that write to it, or can be put back to it, and snapshots that it is.
    forks: u64,
    is_head: bool,
}

struct Fork {
    head: u64,
    /// What it was made from is kept as long as it lives.
    origin: Option<u64>,
}

impl Layers {
    /// A store with one fork.
    pub fn new(root: &str) -> Layers {
        let mut layers = Layers::default();
        let head = layers.add_head(None);
        layers.forks.insert(root.to_owned(), Fork { head, origin: None });
        layers
    }

    fn layer(&mut self, id: u64) -> &mut Layer {
        self.layers.get_mut(&id).expect("a layer that is referred to is there")
    }

    fn add_head(&mut self, below: Option<u64>) -> u64 {
        self.next += 1;
        self.layers.insert(self.next, Layer { below, above: 0, forks: 1, is_head: true });
        if let Some(below) = below {
            self.layer(below).above += 1;
        }
        self.next
    }

    /// The head of a fork is frozen; who counted for it now counts for what is kept of it.
    fn freeze(&mut self, fork: &str) -> u64 {
        let frozen = self.forks[fork].head;
        self.layer(frozen).is_head = false;
        let head = self.add_head(Some(frozen));
        self.forks.get_mut(fork).expect("it lives").head = head;
        frozen
    }

    /// `child` is forked from `parent`.
    pub fn fork(&mut self, parent: &str, child: &str) {
        // The parent leaves it, and the child has it as its origin.
        let frozen = self.freeze(parent);
        let head = self.add_head(Some(frozen));
        self.forks.insert(child.to_owned(), Fork { head, origin: Some(frozen) });
    }

    /// `child` is forked from a snapshot.
    pub fn fork_snapshot(&mut self, label: &str, child: &str) {
        let frozen = self.snapshots[label];
        self.layer(frozen).forks += 1;
        let head = self.add_head(Some(frozen));
        self.forks.insert(child.to_owned(), Fork { head, origin: Some(frozen) });
    }

    /// A snapshot of `fork` is made.
    pub fn snapshot(&mut self, fork: &str, label: &str) {
        let frozen = self.freeze(fork);
        self.snapshots.insert(label.to_owned(), frozen);
    }

    /// A snapshot is removed.
    pub fn remove_snapshot(&mut self, label: &str) {
        let gone = self.snapshots.remove(label).expect("it is there");
        self.layer(gone).forks -= 1;
        self.drop_from(gone);
    }

    /// A fork is removed, and the layers that only it needed.
    pub fn remove(&mut self, fork: &str) {
        let gone = self.forks.remove(fork).expect("it lives");
        for layer in [Some(gone.head), gone.origin].into_iter().flatten() {
            self.layer(layer).forks -= 1;
        }
        self.drop_from(gone.head);
    }

    /// Drops a layer that nobody needs, and those below that only it needed.
    fn drop_from(&mut self, layer: u64) {
        let mut at = Some(layer);
        while let Some(id) = at.filter(|&id| self.layer(id).above + self.layer(id).forks == 0) {
            at = self.layers.remove(&id).and_then(|layer| layer.below);
            if let Some(below) = at {
                self.layer(below).above -= 1;
            }
        }
        self.merge();
    }

    /// Joins each frozen layer that no fork is put back to with the one on it, if that is the only one and frozen too.
    fn merge(&mut self) {
        let pair = |layers: &BTreeMap<u64, Layer>| {
            layers.iter().find_map(|(&upper, layer)| {
                let lower = layer.below?;
                let alone = layers[&lower].above == 1 && layers[&lower].forks == 0;
                (alone && !layer.is_head).then_some((lower, upper))
            })
        };
        while let Some((lower, upper)) = pair(&self.layers) {
            let below = self.layers.remove(&lower).and_then(|layer| layer.below);
            self.layer(upper).below = below;
        }
    }

    /// How many there are when all is done.
    pub fn count(&self) -> u64 {
        self.layers.len() as u64
    }
}
