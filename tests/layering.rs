//! Imports point up the table in docs/ARCHITECTURE.md only, and each foreign
//! interface has one importer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The modules of the library in the order of the table. A module may use those
/// before it.
const ORDER: [&str; 13] = [
    "error", "ids", "attr", "block", "class", "stats", "device", "map", "delta", "base", "seal", "inplace",
    "layer",
];
const LAST: [&str; 3] = ["check", "forks", "mount"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every `crate::NAME` in the non-test part of a file.
fn used_modules(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or(text);
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn imports_point_up() {
    let rank: BTreeMap<&str, usize> = ORDER.iter().chain(&LAST).enumerate().map(|(i, m)| (*m, i)).collect();
    let root = workspace().join("fs/src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let module = inside.split(['/', '.']).next().unwrap();
        let Some(own) = rank.get(module) else { continue };
        for used in used_modules(&std::fs::read_to_string(&file).unwrap()) {
            if rank.get(used.as_str()).is_some_and(|r| r > own) {
                wrong.push(format!("{inside} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_importer_for_each_foreign_interface() {
    let mut files = Vec::new();
    sources(&workspace().join("fs/src"), &mut files);
    sources(&workspace().join("cli/src"), &mut files);
    let mut wrong = Vec::new();
    for (name, home) in [
        ("rocksdb::", "fs/src/map/rocks.rs"),
        ("fuser::", "fs/src/mount/"),
        ("io_uring::", "fs/src/"),
        ("tokio_postgres::", "cli/src/postgres/"),
    ] {
        let importers: Vec<_> = files
            .iter()
            .filter(|f| {
                let text = std::fs::read_to_string(f).unwrap();
                text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(name))
            })
            .collect();
        assert!(!importers.is_empty(), "nobody imports {name}");
        wrong
            .extend(importers.into_iter().filter(|f| !f.to_str().unwrap().contains(home)).map(|f| (name, f)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
