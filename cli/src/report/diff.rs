//! What `diff` and `du` report.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Report;
use crate::ui::{Cell, bytes_text, ms_text, table};

/// Counts of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pages {
    /// Only on the second side.
    pub added: u64,
    /// Only on the first side.
    pub removed: u64,
    /// With other contents.
    pub changed: u64,
    /// In other places, with the same contents.
    pub same_contents: u64,
}

impl Pages {
    /// Adds those of another one.
    pub fn add(&mut self, other: &Pages) {
        self.added += other.added;
        self.removed += other.removed;
        self.changed += other.changed;
        self.same_contents += other.same_contents;
    }

    /// Those that are not the same on both sides.
    pub fn differing(&self) -> u64 {
        self.added + self.removed + self.changed
    }

    fn cells(&self) -> [Cell; 4] {
        [self.changed, self.added, self.removed, self.same_contents].map(|n| Cell::plain(n.to_string()))
    }
}

/// What a relation is called.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Called {
    /// Its database; null for what all share, and where it is not known.
    pub database: Option<String>,
    /// Its schema; this and the following are null without a server that knows it.
    pub schema: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// table, index, toast, sequence, ...
    pub kind: Option<String>,
    /// The table that it serves.
    pub table: Option<String>,
}

impl Called {
    /// Schema and name, or else the file.
    fn title(&self, file: impl FnOnce() -> String) -> String {
        let title = match (&self.schema, &self.name) {
            (Some(schema), Some(name)) => format!("{schema}.{name}"),
            _ => file(),
        };
        match &self.table {
            Some(table) => format!("{title} (of {table})"),
            None => title,
        }
    }

    /// Its database's cell in a table.
    pub fn database(&self) -> Cell {
        Cell::plain(self.database.as_deref().unwrap_or("-"))
    }

    /// Its kind's cell in a table.
    pub fn kind(&self) -> Cell {
        Cell::plain(self.kind.as_deref().unwrap_or("-"))
    }
}

/// A relation that differs, in one of its forks.
#[derive(Clone, Debug, Serialize)]
pub struct RelationDiff {
    /// What it is called.
    #[serde(flatten)]
    pub called: Called,
    /// main, fsm, vm or init.
    pub fork: String,
    /// Its files, by the path of the first segment.
    pub paths: Vec<String>,
    /// Whether both sides have it in different files: it was written anew.
    pub new_files: bool,
    /// Its pages.
    pub pages: Pages,
}

impl RelationDiff {
    /// Schema and name, or the file.
    pub fn title(&self) -> String {
        let title = self.called.title(|| self.paths.join(", "));
        if self.new_files { title + " (written anew)" } else { title }
    }

    /// Whether it is PostgreSQL's own.
    fn is_systems(&self) -> bool {
        let own = |schema: &str| schema == "pg_catalog" || schema == "information_schema";
        self.called.schema.as_deref().is_some_and(own)
            || self
                .called
                .table
                .as_deref()
                .and_then(|table| table.split_once('.'))
                .is_some_and(|(schema, _)| own(schema))
    }
}

/// What people are shown of relations: those that are PostgreSQL's own, of which nearly
/// any change touches some, together, a line for each database.
pub fn shown(relations: &[RelationDiff]) -> Vec<RelationDiff> {
    let (systems, mut shown): (Vec<_>, Vec<_>) =
        relations.iter().cloned().partition(RelationDiff::is_systems);
    let mut together: BTreeMap<Option<String>, (usize, Pages)> = BTreeMap::new();
    for relation in systems {
        let (count, pages) = together.entry(relation.called.database).or_default();
        *count += 1;
        pages.add(&relation.pages);
    }
    shown.extend(together.into_iter().map(|(database, (count, pages))| RelationDiff {
        called: Called {
            database,
            kind: Some(format!("{count} {}", if count == 1 { "relation" } else { "relations" })),
            ..Called::default()
        },
        fork: "-".into(),
        paths: vec!["system catalogs".into()],
        new_files: false,
        pages,
    }));
    shown
}

/// Another file that differs.
#[derive(Clone, Debug, Serialize)]
pub struct FileDiff {
    /// Its path.
    pub path: String,
    /// Its size on the first side; null: it is not there.
    pub before: Option<u64>,
    /// Its size on the second side.
    pub after: Option<u64>,
    /// Its pages.
    pub pages: Pages,
}

/// `diff`
#[derive(Debug, Serialize)]
pub struct DiffReport {
    /// The first side.
    pub a: String,
    /// The second side.
    pub b: String,
    /// All together.
    pub pages: Pages,
    /// Tables and indexes, the most different first.
    pub relations: Vec<RelationDiff>,
    /// Other files, likewise.
    pub files: Vec<FileDiff>,
    /// How long the comparison took.
    pub took_ms: f64,
}

impl Report for DiffReport {
    fn human(&self, _color: bool) -> String {
        let mut rows = Vec::new();
        for relation in &shown(&self.relations) {
            let mut row = vec![
                relation.called.database(),
                Cell::plain(relation.title()),
                relation.called.kind(),
                Cell::plain(&relation.fork),
            ];
            row.extend(relation.pages.cells());
            rows.push(row);
        }
        for file in &self.files {
            let mut row =
                vec![Cell::plain("-"), Cell::plain(&file.path), Cell::plain("file"), Cell::plain("-")];
            row.extend(file.pages.cells());
            rows.push(row);
        }
        let mut out = String::new();
        if !rows.is_empty() {
            let head =
                ["DATABASE", "RELATION", "KIND", "FORK", "CHANGED", "ADDED", "REMOVED", "SAME CONTENTS"];
            out += &table(&head, &[false, false, false, false, true, true, true, true], &rows);
            out.push('\n');
        }
        let Pages { added, removed, changed, same_contents } = self.pages;
        out += &match self.pages == Pages::default() && rows.is_empty() {
            true => format!("{} and {} have the same pages", self.a, self.b),
            false => format!(
                "from {} to {}: {changed} pages changed, {added} added, {removed} removed ({}); {same_contents} \
                 in other places have the same contents",
                self.a,
                self.b,
                bytes_text(self.pages.differing() * 8192)
            ),
        };
        out + &format!(" (compared in {})\n", ms_text(self.took_ms))
    }
}

/// The definitions in one database.
#[derive(Debug, Serialize)]
pub struct SchemaDiff {
    /// The database.
    pub database: String,
    /// Whether they are the same.
    pub equal: bool,
    /// How they differ, as a unified diff.
    pub diff: String,
}

/// `diff --schema`
#[derive(Debug, Serialize)]
pub struct SchemaReport {
    /// The first side.
    pub a: String,
    /// The second side.
    pub b: String,
    /// Each database of either side.
    pub databases: Vec<SchemaDiff>,
}

impl Report for SchemaReport {
    fn human(&self, color: bool) -> String {
        let mut out = String::new();
        for line in self.databases.iter().flat_map(|database| database.diff.lines()) {
            let paint = match line.as_bytes().first() {
                Some(b'+') => Some("32"),
                Some(b'-') => Some("31"),
                Some(b'@') => Some("36"),
                _ => None,
            };
            out += &Cell::colored(crate::error::one_line(line), paint.filter(|_| color)).painted();
            out.push('\n');
        }
        if self.databases.iter().all(|database| database.equal) {
            out += &format!("{} and {} have the same definitions\n", self.a, self.b);
        }
        out
    }
}

/// `du`
#[derive(Debug, Serialize)]
pub struct DuReport {
    /// The fork.
    pub name: String,
    /// Sum of its files' sizes.
    pub total_bytes: u64,
    /// Pages and WAL that only it has.
    pub exclusive_bytes: u64,
    /// Those of them that are WAL segments.
    pub wal_bytes: u64,
    /// Pages of layers that others are built on, too.
    pub shared_bytes: u64,
    /// What its base shows.
    pub base_bytes: u64,
    /// What only it holds and does not show: pages of its snapshots, and of layers to be merged.
    pub kept_bytes: u64,
    /// Tables and indexes, those with most of their own first; null without `--relations`.
    pub relations: Option<Vec<RelationUsage>>,
}

/// What a relation takes, with all its forks.
#[derive(Debug, Serialize)]
pub struct RelationUsage {
    /// What it is called.
    #[serde(flatten)]
    pub called: Called,
    /// Its first file.
    pub path: String,
    /// Sum of its files' sizes.
    pub bytes: u64,
    /// Bytes of pages that only this fork has.
    pub exclusive_bytes: u64,
    /// Bytes of pages that others are built on, too.
    pub shared_bytes: u64,
    /// Bytes that its base shows.
    pub base_bytes: u64,
}

impl Report for DuReport {
    fn human(&self, _color: bool) -> String {
        let mut out = String::new();
        if let Some(relations) = &self.relations {
            let row = |of: &RelationUsage| {
                vec![
                    of.called.database(),
                    Cell::plain(of.called.title(|| of.path.clone())),
                    of.called.kind(),
                    Cell::plain(bytes_text(of.exclusive_bytes)),
                    Cell::plain(bytes_text(of.shared_bytes)),
                    Cell::plain(bytes_text(of.bytes)),
                ]
            };
            let rows: Vec<Vec<Cell>> = relations.iter().map(row).collect();
            let head = ["DATABASE", "RELATION", "KIND", "EXCLUSIVE", "SHARED", "SIZE"];
            out += &table(&head, &[false, false, false, true, true, true], &rows);
            out.push('\n');
        }
        let mut rows = vec![
            ("exclusive", self.exclusive_bytes),
            ("  of it WAL", self.wal_bytes),
            ("shared", self.shared_bytes),
            ("kept", self.kept_bytes),
            ("size", self.total_bytes),
        ];
        if self.base_bytes > 0 {
            rows.insert(3, ("from its base", self.base_bytes));
        }
        let rows: Vec<_> = rows.into_iter().map(|(name, n)| (name, Cell::plain(bytes_text(n)))).collect();
        out + &crate::ui::pairs(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(database: &str, schema: &str, name: &str, table: Option<&str>) -> RelationDiff {
        RelationDiff {
            called: Called {
                database: Some(database.into()),
                schema: Some(schema.into()),
                name: Some(name.into()),
                kind: Some("table".into()),
                table: table.map(Into::into),
            },
            fork: "main".into(),
            paths: vec!["base/5/1".into()],
            new_files: false,
            pages: Pages { changed: 2, added: 1, ..Pages::default() },
        }
    }

    #[test]
    fn catalogs_are_one_line_for_each_database() {
        let all = [
            relation("shop", "pg_catalog", "pg_class", None),
            relation("shop", "public", "orders", None),
            relation("shop", "pg_toast", "pg_toast_1255", Some("pg_catalog.pg_proc")),
            relation("shop", "pg_toast", "pg_toast_16400", Some("public.orders")),
            relation("crm", "pg_catalog", "pg_class_oid_index", Some("pg_catalog.pg_class")),
        ];
        let shown = shown(&all);
        let lines: Vec<_> = shown
            .iter()
            .map(|r| {
                let Called { database, kind, .. } = &r.called;
                (database.as_deref().unwrap(), r.title(), kind.as_deref().unwrap(), r.pages.changed)
            })
            .collect();
        assert_eq!(
            lines,
            [
                ("shop", "public.orders".into(), "table", 2),
                ("shop", "pg_toast.pg_toast_16400 (of public.orders)".into(), "table", 2),
                ("crm", "system catalogs".into(), "1 relation", 2),
                ("shop", "system catalogs".into(), "2 relations", 4),
            ]
        );
    }
}
