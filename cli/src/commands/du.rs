//! `pgcowfs du`

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::Context;
use super::diff::{called, running_names};
use crate::args::Du;
use crate::error::Result;
use crate::protocol::{FileUsageRow, Request};
use crate::report::{DuReport, RelationUsage};

/// Shows what a fork takes.
pub fn run(context: &Context, args: &Du) -> Result<()> {
    let mut client = context.client()?;
    let files: Vec<FileUsageRow> = client.call(&Request::Usage { fork: args.fork.clone() })?;
    let row = client.info(&args.fork)?;
    let sum = |of: fn(&FileUsageRow) -> u64| files.iter().map(of).sum::<u64>();
    let pages = sum(|file| file.exclusive_bytes);
    let mut relations = None;
    if args.relations {
        let names = running_names(context, &row)?;
        if names.is_none() {
            let fork = &row.name;
            context.ui.note(format!("{fork} does not run; for the names of tables: pgcowfs start {fork}"));
        }
        let mut found: BTreeMap<String, RelationUsage> = BTreeMap::new();
        for file in &files {
            let Some(of) = pgcowfs::class::relation_file(&file.path) else { continue };
            let dir = file.path.rsplit_once('/').map_or("", |(dir, _)| dir);
            let usage = found.entry(format!("{dir}/{}", of.node)).or_insert_with_key(|path| RelationUsage {
                called: called(names.as_ref(), &file.path),
                path: path.clone(),
                bytes: 0,
                exclusive_bytes: 0,
                shared_bytes: 0,
                base_bytes: 0,
            });
            usage.bytes += file.bytes;
            usage.exclusive_bytes += file.exclusive_bytes;
            usage.shared_bytes += file.shared_bytes;
            usage.base_bytes += file.base_bytes;
        }
        let mut all: Vec<RelationUsage> = found.into_values().collect();
        all.sort_by_key(|usage| Reverse((usage.exclusive_bytes, usage.bytes)));
        all.truncate(args.top);
        relations = Some(all);
    }
    context.ui.print(&DuReport {
        name: row.name.clone(),
        total_bytes: row.logical_bytes,
        exclusive_bytes: pages + row.wal_bytes,
        wal_bytes: row.wal_bytes,
        shared_bytes: sum(|file| file.shared_bytes),
        base_bytes: sum(|file| file.base_bytes),
        kept_bytes: row.delta_bytes.saturating_sub(pages + row.wal_bytes),
        relations,
    })
}
