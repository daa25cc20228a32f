//! The page table of one file: a path-copied tree from block numbers to pages.
//!
//! A clone is one reference count and shares every node; a change copies the
//! nodes on its path that are shared, and no others. That is what makes a fork
//! cost the same for any number of pages, and a lookup cost the same for any
//! number of ancestors.
//!
//! Invariants:
//! - a leaf holds 16 blocks, an inner node 32 children; a tree of height `h`
//!   spans `16 * 32^h` blocks;
//! - a leaf's `own` bits tell which of its entries the layer `layer` made; all
//!   other entries belong to layers below. An entry is *owned* by a layer only
//!   if both agree, so freezing a layer needs no visit to any leaf.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::block::BlockNo;
use crate::ids::LayerId;
use crate::map::schema::Slot;

const LEAF_BITS: u32 = 4;
const LEAF_BLOCKS: usize = 1 << LEAF_BITS;
const INNER_BITS: u32 = 5;
const FANOUT: usize = 1 << INNER_BITS;
/// Nothing here; a base shows through, if there is one.
const NONE: Slot = Slot(0);

/// Two reference counts stand before each node.
const NODE_BYTES: u64 = size_of::<Node>() as u64 + 16;

static LEAVES: AtomicU64 = AtomicU64::new(0);
static INNERS: AtomicU64 = AtomicU64::new(0);
static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// Memory of all page tables of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeMemory {
    /// Nodes of both kinds.
    pub nodes: u64,
    /// Entries in leaves, those of shared leaves counted once.
    pub entries: u64,
    /// Bytes of the nodes.
    pub bytes: u64,
}

/// Counts all page tables of this process.
pub fn memory() -> TreeMemory {
    let (leaves, inners) = (LEAVES.load(Relaxed), INNERS.load(Relaxed));
    TreeMemory {
        nodes: leaves + inners,
        entries: ENTRIES.load(Relaxed),
        bytes: (leaves + inners) * NODE_BYTES,
    }
}

/// Where one block's page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The page; [`Slot::HOLE`] hides a base.
    pub slot: Slot,
    /// Its CRC-32.
    pub crc: u32,
}

/// An entry that a change has put out of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its block.
    pub block: BlockNo,
    /// Its page.
    pub slot: Slot,
    /// Whether the changing layer had made it.
    pub owned: bool,
}

/// The page table of one file.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    root: Option<Arc<Node>>,
    height: u32,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Inner(Inner),
}

#[derive(Debug)]
struct Leaf {
    layer: LayerId,
    own: u16,
    slots: [Slot; LEAF_BLOCKS],
    crcs: [u32; LEAF_BLOCKS],
}

#[derive(Debug)]
struct Inner {
    children: [Option<Arc<Node>>; FANOUT],
}

impl Leaf {
    fn new(layer: LayerId) -> Self {
        LEAVES.fetch_add(1, Relaxed);
        Leaf { layer, own: 0, slots: [NONE; LEAF_BLOCKS], crcs: [0; LEAF_BLOCKS] }
    }

    fn count(&self) -> u64 {
        self.slots.iter().filter(|&&s| s != NONE).count() as u64
    }

    fn owns(&self, i: usize, layer: LayerId) -> bool {
        self.layer == layer && self.own & (1 << i) != 0
    }

    /// Puts `entry` in place `i` for `layer`; `NONE` empties the place.
    fn put(&mut self, i: usize, entry: Entry, layer: LayerId) {
        if self.layer != layer {
            self.layer = layer;
            self.own = 0;
        }
        match (self.slots[i] == NONE, entry.slot == NONE) {
            (true, false) => ENTRIES.fetch_add(1, Relaxed),
            (false, true) => ENTRIES.fetch_sub(1, Relaxed),
            _ => 0,
        };
        self.slots[i] = entry.slot;
        self.crcs[i] = entry.crc;
        if entry.slot == NONE || entry.slot == Slot::HOLE {
            self.own &= !(1 << i);
        } else {
            self.own |= 1 << i;
        }
    }
}

impl Clone for Leaf {
    fn clone(&self) -> Self {
        LEAVES.fetch_add(1, Relaxed);
        ENTRIES.fetch_add(self.count(), Relaxed);
        Leaf { layer: self.layer, own: self.own, slots: self.slots, crcs: self.crcs }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        LEAVES.fetch_sub(1, Relaxed);
        ENTRIES.fetch_sub(self.count(), Relaxed);
    }
}

impl Inner {
    fn new() -> Self {
        INNERS.fetch_add(1, Relaxed);
        Inner { children: Default::default() }
    }
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        INNERS.fetch_add(1, Relaxed);
        Inner { children: self.children.clone() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        INNERS.fetch_sub(1, Relaxed);
    }
}

/// Blocks spanned by a node of height `height`.
fn span(height: u32) -> u64 {
    1 << (LEAF_BITS + INNER_BITS * height)
}

impl Tree {
    /// An empty page table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it has no entry at all.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Tells it from all other trees that are in memory, but for its clones.
    pub fn identity(&self) -> Option<usize> {
        self.root.as_ref().map(|root| Arc::as_ptr(root) as usize)
    }

    /// Bytes of its nodes, those included that it shares with others.
    pub fn bytes(&self) -> u64 {
        fn nodes(node: &Node) -> u64 {
            1 + match node {
                Node::Leaf(_) => 0,
                Node::Inner(inner) => inner.children.iter().flatten().map(|child| nodes(child)).sum(),
            }
        }
        self.root.iter().map(|root| nodes(root)).sum::<u64>() * NODE_BYTES
    }

    /// The entry of `block`.
    pub fn get(&self, block: BlockNo) -> Option<Entry> {
        let mut at = u64::from(block);
        let mut height = self.height;
        let mut node = self.root.as_deref()?;
        if at >= span(height) {
            return None;
        }
        loop {
            match node {
                Node::Leaf(leaf) => {
                    let i = at as usize;
                    let slot = leaf.slots[i];
                    return (slot != NONE).then_some(Entry { slot, crc: leaf.crcs[i] });
                }
                Node::Inner(inner) => {
                    height -= 1;
                    node = inner.children[(at / span(height)) as usize].as_deref()?;
                    at %= span(height);
                }
            }
        }
    }

    /// Sets the entry of `block` on behalf of `layer`; returns the one it
    /// replaces.
    pub fn set(&mut self, block: BlockNo, entry: Entry, layer: LayerId) -> Option<Removed> {
        while u64::from(block) >= span(self.height) {
            if let Some(root) = self.root.take() {
                let mut inner = Inner::new();
                inner.children[0] = Some(root);
                self.root = Some(Arc::new(Node::Inner(inner)));
            }
            self.height += 1;
        }
        let mut at = u64::from(block);
        let mut height = self.height;
        let mut link = &mut self.root;
        loop {
            let node = link.get_or_insert_with(|| {
                Arc::new(if height == 0 { Node::Leaf(Leaf::new(layer)) } else { Node::Inner(Inner::new()) })
            });
            match Arc::make_mut(node) {
                Node::Leaf(leaf) => {
                    let i = at as usize;
                    let slot = leaf.slots[i];
                    let owned = leaf.owns(i, layer);
                    leaf.put(i, entry, layer);
                    return (slot != NONE && slot != Slot::HOLE).then_some(Removed { block, slot, owned });
                }
                Node::Inner(inner) => {
                    height -= 1;
                    link = &mut inner.children[(at / span(height)) as usize];
                    at %= span(height);
                }
            }
        }
    }

    /// Empties the blocks `start..end` on behalf of `layer` and hands each
    /// entry that was there to `removed`. With `hide`, holes are left behind,
    /// so that a base does not show; the caller bounds `end` by the base's
    /// length then.
    pub fn clear(
        &mut self,
        start: BlockNo,
        end: u64,
        hide: bool,
        layer: LayerId,
        removed: &mut dyn FnMut(Removed),
    ) {
        let end = end.min(1 << 32);
        if u64::from(start) >= end {
            return;
        }
        if hide {
            for block in u64::from(start)..end {
                let hole = Entry { slot: Slot::HOLE, crc: 0 };
                if let Some(gone) = self.set(block as BlockNo, hole, layer) {
                    removed(gone);
                }
            }
        } else if let Some(root) = &mut self.root {
            let emptied = clear_node(root, self.height, 0, u64::from(start)..end, layer, removed);
            if emptied {
                *self = Tree::new();
            }
        }
    }

    /// Visits the entries of `start..end` in order, holes included, with
    /// whether `layer` owns each; stops when `visit` returns false.
    pub fn visit(
        &self,
        start: BlockNo,
        end: u64,
        layer: LayerId,
        visit: &mut dyn FnMut(BlockNo, Entry, bool) -> bool,
    ) {
        if let Some(root) = &self.root {
            visit_node(root, self.height, 0, u64::from(start)..end.min(1 << 32), layer, visit);
        }
    }

    /// Visits the blocks below `end` whose entries differ, with both. What the two
    /// trees share is not looked at, so that the cost follows the difference.
    pub fn diff(&self, other: &Tree, end: u64, visit: &mut dyn FnMut(BlockNo, Option<Entry>, Option<Entry>)) {
        let mut diff = Diff { end: end.min(1 << 32), visit };
        diff.trees((self.root.as_ref(), self.height), (other.root.as_ref(), other.height), 0);
    }

    /// Number of nodes that this tree does not share with any other.
    #[cfg(test)]
    fn own_nodes(&self) -> usize {
        fn walk(node: &Arc<Node>) -> usize {
            if Arc::strong_count(node) > 1 {
                return 0;
            }
            1 + match &**node {
                Node::Leaf(_) => 0,
                Node::Inner(inner) => inner.children.iter().flatten().map(walk).sum(),
            }
        }
        self.root.iter().map(walk).sum()
    }
}

/// Whether the blocks `first..first + span` and `range` have none in common.
fn apart(first: u64, height: u32, range: &std::ops::Range<u64>) -> bool {
    first >= range.end || first + span(height) <= range.start
}

/// Returns whether the node is empty now and can go.
fn clear_node(
    node: &mut Arc<Node>,
    height: u32,
    first: u64,
    range: std::ops::Range<u64>,
    layer: LayerId,
    removed: &mut dyn FnMut(Removed),
) -> bool {
    if apart(first, height, &range) {
        return false;
    }
    match Arc::make_mut(node) {
        Node::Leaf(leaf) => {
            for i in 0..LEAF_BLOCKS {
                let block = first + i as u64;
                let slot = leaf.slots[i];
                if !range.contains(&block) || slot == NONE {
                    continue;
                }
                if slot != Slot::HOLE {
                    removed(Removed { block: block as BlockNo, slot, owned: leaf.owns(i, layer) });
                }
                leaf.put(i, Entry { slot: NONE, crc: 0 }, layer);
            }
            leaf.slots.iter().all(|&s| s == NONE)
        }
        Node::Inner(inner) => {
            for (i, link) in inner.children.iter_mut().enumerate() {
                let child_first = first + i as u64 * span(height - 1);
                if let Some(child) = link
                    && clear_node(child, height - 1, child_first, range.clone(), layer, removed)
                {
                    *link = None;
                }
            }
            inner.children.iter().all(Option::is_none)
        }
    }
}

/// A node with its height.
type Rooted<'a> = (Option<&'a Arc<Node>>, u32);

/// The comparison of two trees.
struct Diff<'a> {
    end: u64,
    visit: &'a mut dyn FnMut(BlockNo, Option<Entry>, Option<Entry>),
}

impl Diff<'_> {
    /// Two nodes that begin at the same block. The lower one is what would be the first
    /// child of one as high as the other.
    fn trees(&mut self, a: Rooted<'_>, b: Rooted<'_>, first: u64) {
        let shared = match (a.0, b.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if shared || first >= self.end {
            return;
        }
        let height = a.1.max(b.1);
        if height == 0 {
            return self.leaves(a.0, b.0, first);
        }
        let below = |(node, of): Rooted<'_>, i: usize| match node.map(|node| (node, &**node)) {
            Some((_, Node::Inner(inner))) if of == height => inner.children[i].clone(),
            Some((node, _)) if of < height && i == 0 => Some(node.clone()),
            _ => None,
        };
        let height_of = |of: u32| of.min(height - 1);
        for i in 0..FANOUT {
            let (a_child, b_child) = (below(a, i), below(b, i));
            self.trees(
                (a_child.as_ref(), height_of(a.1)),
                (b_child.as_ref(), height_of(b.1)),
                first + i as u64 * span(height - 1),
            );
        }
    }

    fn leaves(&mut self, a: Option<&Arc<Node>>, b: Option<&Arc<Node>>, first: u64) {
        let entry = |node: Option<&Arc<Node>>, i: usize| match node.map(|node| &**node) {
            Some(Node::Leaf(leaf)) if leaf.slots[i] != NONE => {
                Some(Entry { slot: leaf.slots[i], crc: leaf.crcs[i] })
            }
            _ => None,
        };
        for i in 0..LEAF_BLOCKS {
            let block = first + i as u64;
            let (a, b) = (entry(a, i), entry(b, i));
            if a != b && block < self.end {
                (self.visit)(block as BlockNo, a, b);
            }
        }
    }
}

/// Returns false to stop the visit.
fn visit_node(
    node: &Node,
    height: u32,
    first: u64,
    range: std::ops::Range<u64>,
    layer: LayerId,
    visit: &mut dyn FnMut(BlockNo, Entry, bool) -> bool,
) -> bool {
    if apart(first, height, &range) {
        return true;
    }
    match node {
        Node::Leaf(leaf) => (0..LEAF_BLOCKS).all(|i| {
            let block = first + i as u64;
            let entry = Entry { slot: leaf.slots[i], crc: leaf.crcs[i] };
            !range.contains(&block)
                || entry.slot == NONE
                || visit(block as BlockNo, entry, leaf.owns(i, layer))
        }),
        Node::Inner(inner) => inner.children.iter().enumerate().all(|(i, child)| {
            let child_first = first + i as u64 * span(height - 1);
            child
                .as_ref()
                .is_none_or(|child| visit_node(child, height - 1, child_first, range.clone(), layer, visit))
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const L1: LayerId = LayerId(1);
    const L2: LayerId = LayerId(2);

    fn entry(n: u32) -> Entry {
        Entry { slot: Slot::new(1, n), crc: n }
    }

    #[test]
    fn a_node_is_small() {
        // One random change in a fresh fork copies a path of at most four
        // nodes in a 1 GiB segment (2^17 blocks).
        assert!(4 * (size_of::<Node>() + 16) <= 1536, "{}", size_of::<Node>());
    }

    #[test]
    fn a_change_copies_one_path() {
        let mut parent = Tree::new();
        for block in 0..1 << 17 {
            parent.set(block, entry(block), L1);
        }
        let mut child = parent.clone();
        assert_eq!(child.own_nodes(), 0);
        let gone = child.set(70_000, entry(1), L2);
        assert_eq!(gone, Some(Removed { block: 70_000, slot: entry(70_000).slot, owned: false }));
        assert_eq!(child.own_nodes(), 4);
        assert_eq!(parent.get(70_000), Some(entry(70_000)));
        assert_eq!(child.get(70_000), Some(entry(1)));
        // A second change in the same leaf copies nothing more.
        child.set(70_001, entry(2), L2);
        assert_eq!(child.own_nodes(), 4);
        assert!(child.set(70_001, entry(3), L2).unwrap().owned);
    }

    #[test]
    fn a_difference_is_found_without_looking_at_what_is_shared() {
        let mut parent = Tree::new();
        for block in 0..1 << 17 {
            parent.set(block, entry(block), L1);
        }
        let mut child = parent.clone();
        let differing = |a: &Tree, b: &Tree| {
            let mut blocks = Vec::new();
            a.diff(b, 1 << 32, &mut |block, _, _| blocks.push(block));
            blocks
        };
        assert_eq!(differing(&parent, &child), []);
        child.set(70_000, entry(1), L2);
        child.set(1 << 30, entry(2), L2);
        assert_eq!(differing(&parent, &child), [70_000, 1 << 30]);
        assert_eq!(differing(&child, &parent), [70_000, 1 << 30]);
        assert_eq!(differing(&Tree::new(), &child).len(), (1 << 17) + 1);
    }

    #[test]
    fn holes_hide_and_own_nothing() {
        let mut tree = Tree::new();
        tree.set(3, entry(3), L1);
        let mut gone = Vec::new();
        tree.clear(2, 5, true, L1, &mut |r| gone.push(r));
        assert_eq!(gone, [Removed { block: 3, slot: entry(3).slot, owned: true }]);
        assert_eq!(tree.get(2), Some(Entry { slot: Slot::HOLE, crc: 0 }));
        assert_eq!(tree.get(5), None);
        assert_eq!(tree.set(2, entry(9), L1), None);
    }

    proptest! {
        #[test]
        fn agrees_with_a_btree_map(ops in prop::collection::vec(
            (0u8..3, prop_oneof![0u32..40, 0u32..3000, any::<u32>()], 0u32..600), 1..200))
        {
            let mut tree = Tree::new();
            let mut model: BTreeMap<u32, (Entry, LayerId)> = BTreeMap::new();
            let mut layer = L1;
            let mut snapshots = Vec::new();
            for (i, (op, block, len)) in ops.into_iter().enumerate() {
                match op {
                    0 => {
                        let e = entry(i as u32 + 10);
                        let gone = tree.set(block, e, layer);
                        let old = model.insert(block, (e, layer));
                        prop_assert_eq!(
                            gone,
                            old.map(|(e, l)| Removed { block, slot: e.slot, owned: l == layer })
                        );
                    }
                    1 => {
                        let end = u64::from(block) + u64::from(len);
                        let mut gone = Vec::new();
                        tree.clear(block, end, false, layer, &mut |r| gone.push(r));
                        let mut want = Vec::new();
                        model.retain(|&b, (e, l)| {
                            let inside = b >= block && u64::from(b) < end;
                            if inside {
                                want.push(Removed { block: b, slot: e.slot, owned: *l == layer });
                            }
                            !inside
                        });
                        prop_assert_eq!(gone, want);
                    }
                    _ => {
                        snapshots.push((tree.clone(), model.clone()));
                        layer = LayerId(layer.0 + 1);
                    }
                }
            }
            snapshots.push((tree, model));
            for ((a, a_model), (b, b_model)) in snapshots.iter().zip(snapshots.iter().rev()) {
                let end = u64::from(a_model.len() as u32 * 97);
                let mut seen = Vec::new();
                a.diff(b, end, &mut |block, a, b| seen.push((block, a, b)));
                let mut blocks: Vec<u32> = a_model.keys().chain(b_model.keys()).copied().collect();
                blocks.sort_unstable();
                blocks.dedup();
                let of = |model: &BTreeMap<u32, (Entry, LayerId)>, block| model.get(&block).map(|(e, _)| *e);
                let want: Vec<_> = blocks
                    .into_iter()
                    .map(|block| (block, of(a_model, block), of(b_model, block)))
                    .filter(|(block, a, b)| a != b && u64::from(*block) < end)
                    .collect();
                prop_assert_eq!(seen, want);
            }
            for (tree, model) in snapshots {
                let mut seen = Vec::new();
                tree.visit(0, 1 << 32, layer, &mut |b, e, owned| { seen.push((b, e, owned)); true });
                let want: Vec<_> = model.iter().map(|(b, (e, l))| (*b, *e, *l == layer)).collect();
                prop_assert_eq!(seen, want);
            }
        }
    }
}
