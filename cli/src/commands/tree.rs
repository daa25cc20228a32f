//! `pgcowfs tree`

use super::Context;
use crate::error::Result;
use crate::protocol::{ForkRow, Request, SnapshotRow};
use crate::report::{SnapshotEntry, TreeNode, TreeReport};

/// Shows what was made from what.
pub fn run(context: &Context) -> Result<()> {
    let mut client = context.client()?;
    let mut forks: Vec<ForkRow> = client.call(&Request::List)?;
    if forks.is_empty() {
        context.ui.note("the store has no forks; make one with `pgcowfs create NAME`");
    }
    let snapshots: Vec<SnapshotRow> = client.call(&Request::Snapshots { fork: None })?;
    forks.sort_by(|a, b| (&a.created_at, &a.name).cmp(&(&b.created_at, &b.name)));
    let mut forest = Forest { context, forks, snapshots };
    let mut roots = forest.grow(|forest, fork| match &fork.parent {
        None => true,
        Some(parent) => *parent == fork.name || !forest.forks.iter().any(|other| other.name == *parent),
    });
    // Names that were given anew can make a circle: it begins with the oldest.
    while let Some(oldest) = forest.forks.first().map(|fork| fork.name.clone()) {
        roots.extend(forest.grow(|_, fork| fork.name == oldest));
    }
    context.ui.print(&TreeReport(roots))
}

/// What has no place in the tree yet.
struct Forest<'a> {
    context: &'a Context<'a>,
    /// The oldest first.
    forks: Vec<ForkRow>,
    snapshots: Vec<SnapshotRow>,
}

impl Forest<'_> {
    /// Takes the forks that `belongs` says out, with all that was made from them.
    fn grow(&mut self, belongs: impl Fn(&Self, &ForkRow) -> bool) -> Vec<TreeNode> {
        let names: Vec<String> =
            self.forks.iter().filter(|fork| belongs(self, fork)).map(|fork| fork.name.clone()).collect();
        let (taken, left) =
            std::mem::take(&mut self.forks).into_iter().partition(|f| names.contains(&f.name));
        self.forks = left;
        let taken: Vec<ForkRow> = taken;
        taken.iter().map(|fork| self.node(fork)).collect()
    }

    fn node(&mut self, fork: &ForkRow) -> TreeNode {
        let own: Vec<SnapshotRow> = self.snapshots.iter().filter(|s| s.fork == fork.name).cloned().collect();
        let mut children: Vec<TreeNode> = Vec::new();
        for snapshot in own {
            let on_it = self.grow(|_, child| {
                child.parent.as_deref() == Some(&fork.name) && snapshot.forks.contains(&child.name)
            });
            children.push(TreeNode::Snapshot { snapshot: SnapshotEntry::new(snapshot), children: on_it });
        }
        children.extend(self.grow(|_, child| child.parent.as_deref() == Some(&fork.name)));
        TreeNode::Fork { fork: Box::new(self.context.report(fork)), children }
    }
}
