//! `pgcowfs diff`

use std::collections::BTreeMap;
use std::time::Instant;

use similar::TextDiff;

use super::fork::at_time;
use super::{Context, address, ms, state, user};
use crate::args::{Diff, Place};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{self, When};
use crate::postgres::relations::{self, Names, Relation};
use crate::postgres::{binaries, schema, server, tools};
use crate::protocol::{FileChangeRow, ForkRow, Request, Side};
use crate::report::{Called, DiffReport, FileDiff, Pages, RelationDiff, SchemaDiff, SchemaReport};

/// Compares two forks or snapshots.
pub fn run(context: &Context, args: &Diff) -> Result<()> {
    let mut client = context.client()?;
    let sides = [at_time(&mut client, &args.a)?, at_time(&mut client, &args.b)?];
    let [place_a, place_b] = &sides;
    let (a, b) = (look_up(&mut client, place_a)?, look_up(&mut client, place_b)?);
    if args.schema {
        return compare_schemas(context, args.database.as_deref(), (place_a, &a), (place_b, &b));
    }
    if args.checkpoint {
        // Of a snapshot, nothing is to be written any more.
        for (row, _) in [(&a, place_a), (&b, place_b)].into_iter().filter(|(_, place)| place.label.is_none())
        {
            write_out(row)?;
        }
    }
    let started = Instant::now();
    let changes = compare(&mut client, place_a, place_b)?;
    let took_ms = ms(started.elapsed());
    let names = [running_names(context, &a)?, running_names(context, &b)?];
    if names.iter().all(Option::is_none) && !changes.is_empty() {
        let fork = &place_b.fork;
        context
            .ui
            .note(format!("no server of either side runs; for the names of tables: pgcowfs start {fork}"));
    }
    let (relations, files) = resolve(&changes, [names[0].as_ref(), names[1].as_ref()]);
    let mut pages = Pages::default();
    relations.iter().map(|r| &r.pages).chain(files.iter().map(|f| &f.pages)).for_each(|of| pages.add(of));
    context.ui.print(&DiffReport {
        a: place_a.to_string(),
        b: place_b.to_string(),
        pages,
        relations,
        files,
        took_ms,
    })
}

fn look_up(client: &mut Client, place: &Place) -> Result<ForkRow> {
    if let Some(label) = &place.label {
        pgcowfs::check_label(label)?;
    }
    client.info(&place.fork)
}

/// Asks the daemon by which files two sides differ.
pub fn compare(client: &mut Client, a: &Place, b: &Place) -> Result<Vec<FileChangeRow>> {
    let side = |place: &Place| Side { fork: place.fork.clone(), label: place.label.clone() };
    client.call(&Request::Diff { a: side(a), b: side(b) })
}

/// Has a fork's server write what it has changed, if it runs.
pub fn write_out(row: &ForkRow) -> Result<()> {
    if state(row).pid().is_some() {
        connect::checkpoint(&address(row, &user(row)?), When::Always)?;
    }
    Ok(())
}

/// The names of a fork's tables, if its server runs and says them.
pub fn running_names(context: &Context, row: &ForkRow) -> Result<Option<Names>> {
    if state(row).pid().is_none() {
        return Ok(None);
    }
    match relations::names(&address(row, &user(row)?)) {
        Ok(names) => Ok(Some(names)),
        Err(error) => {
            context.ui.warn(format!("{} does not tell the names of its tables: {error}", row.name));
            Ok(None)
        }
    }
}

/// What a file's relation is called by the first of `names` that know it.
pub fn called<'a>(names: impl IntoIterator<Item = &'a Names, IntoIter: Clone>, path: &str) -> Called {
    let names = names.into_iter();
    match names.clone().find_map(|names| names.relation(path)) {
        Some(Relation { database, schema, name, kind, table }) => Called {
            database: database.clone(),
            schema: Some(schema.clone()),
            name: Some(name.clone()),
            kind: Some(kind.clone()),
            table: table.clone(),
        },
        None => {
            let database = names.clone().find_map(|names| names.database(path)).cloned();
            Called { database, ..Called::default() }
        }
    }
}

/// What tells a relation's fork from all others: by name, or by its file.
type Key = (Option<Relation>, String);

/// Puts the files of each relation together. The first side's names are for files that
/// only it has.
pub fn resolve(changes: &[FileChangeRow], names: [Option<&Names>; 2]) -> (Vec<RelationDiff>, Vec<FileDiff>) {
    let [names_a, names_b] = names;
    let mut found: BTreeMap<Key, RelationDiff> = BTreeMap::new();
    let mut files = Vec::new();
    for change in changes {
        let pages = Pages {
            added: change.added,
            removed: change.removed,
            changed: change.changed,
            same_contents: change.rewritten,
        };
        let Some(file) = pgcowfs::class::relation_file(&change.path) else {
            files.push(FileDiff {
                path: change.path.clone(),
                before: change.before,
                after: change.after,
                pages,
            });
            continue;
        };
        let order = if change.after.is_none() { [names_a, names_b] } else { [names_b, names_a] };
        let relation = order.into_iter().flatten().find_map(|names| names.relation(&change.path));
        // The first segment's path stands for a relation without a name.
        let stem = change.path.rsplit_once('.').map_or(change.path.as_str(), |(stem, _)| stem);
        let key = match relation {
            Some(relation) => (Some(relation.clone()), file.fork.to_string()),
            None => (None, stem.to_string()),
        };
        let row = found.entry(key).or_insert_with(|| RelationDiff {
            called: called(order.into_iter().flatten(), &change.path),
            fork: file.fork.to_string(),
            paths: Vec::new(),
            new_files: false,
            pages: Pages::default(),
        });
        if !row.paths.iter().any(|path| path == stem) {
            row.paths.push(stem.to_string());
        }
        row.pages.add(&pages);
    }
    let mut relations: Vec<RelationDiff> = found.into_values().collect();
    for row in &mut relations {
        row.new_files = row.paths.len() > 1;
    }
    relations.sort_by_key(|row| std::cmp::Reverse(row.pages.differing()));
    files.sort_by_key(|file| std::cmp::Reverse(file.pages.differing()));
    (relations, files)
}

fn compare_schemas(
    context: &Context,
    database: Option<&str>,
    (place_a, a): (&Place, &ForkRow),
    (place_b, b): (&Place, &ForkRow),
) -> Result<()> {
    for (place, row) in [(place_a, a), (place_b, b)] {
        if place.label.is_some() {
            return Err(Error::new(Kind::Usage, format!("{place} has no server to ask for its definitions"))
                .cause("it is a snapshot")
                .hint(format!("fork it, and compare the fork: pgcowfs fork {place} NAME --start")));
        }
        if state(row).pid().is_none() {
            return Err(server::not_running(&row.name, state(row)));
        }
    }
    let newer = if a.meta.pg_version > b.meta.pg_version { a } else { b };
    let own = binaries::find(newer.meta.pg_bin.as_deref(), Some(newer.meta.pg_version))?;
    let pg_dump = tools::client(&own, "pg_dump")?;
    let (user_a, user_b) = (user(a)?, user(b)?);
    let (at_a, at_b) = (address(a, &user_a), address(b, &user_b));
    let (in_a, in_b) = (schema::databases(&at_a)?, schema::databases(&at_b)?);
    let mut wanted: Vec<String> = in_a.iter().chain(&in_b).cloned().collect();
    wanted.sort();
    wanted.dedup();
    if let Some(database) = database {
        if !wanted.iter().any(|there| there == database) {
            return Err(Error::new(Kind::NotFound, format!("neither side has a database {database:?}"))
                .hint(format!("they have: {}", wanted.join(", "))));
        }
        wanted = vec![database.to_string()];
    }
    let mut databases = Vec::new();
    for database in wanted {
        let dump = |there: &[String], at| match there.contains(&database) {
            true => schema::dump(&pg_dump, at, &database),
            false => Ok(String::new()),
        };
        let (old, new) = (dump(&in_a, &at_a)?, dump(&in_b, &at_b)?);
        let diff = TextDiff::from_lines(&old, &new);
        let head = |place: &Place| format!("{place}/{database}");
        let text = diff.unified_diff().header(&head(place_a), &head(place_b)).to_string();
        databases.push(SchemaDiff { database, equal: old == new, diff: text });
    }
    context.ui.print(&SchemaReport { a: place_a.to_string(), b: place_b.to_string(), databases })
}
