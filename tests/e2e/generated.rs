//! What the program makes from its own command line: completions and manual pages.

use std::path::Path;
use std::process::Command;

use crate::common::process::{in_path, run};
use crate::common::store::{Store, text};

/// The commands, as `--help` lists them.
fn commands(store: &Store) -> Vec<String> {
    let help = run(store.command_anywhere().arg("--help")).expect_ok();
    let list = help.split("Commands:\n").nth(1).expect("a list of commands");
    let lines = list.lines().take_while(|line| !line.is_empty());
    let named = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<String> =
        named.filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    assert!(names.len() > 25 && names.contains(&"fork".to_string()), "{help}");
    names
}

#[test]
fn completions_know_every_command() {
    let store = Store::bare(None);
    for shell in ["bash", "zsh", "fish"] {
        let script = run(store.command_anywhere().args(["completions", shell])).expect_ok();
        for command in commands(&store) {
            assert!(script.contains(&command), "{shell} does not know {command}");
        }
        if in_path(shell).is_some() {
            let file = store.scratch().join(shell);
            std::fs::write(&file, script).expect("write the script");
            run(Command::new(shell).arg("-n").arg(&file)).expect_ok();
        }
    }
    assert_eq!(run(store.command_anywhere().args(["completions", "tcsh"])).code, 2);
}

#[test]
fn every_command_has_a_manual_page() {
    let store = Store::bare(None);
    let dir = store.scratch().join("man/man1");
    let done = run(store.command_anywhere().arg("man").arg(&dir).arg("--json"));
    let report: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
    assert_eq!(text(&report, "dir"), dir.display().to_string());
    let commands = commands(&store);
    assert_eq!(report["pages"].as_array().expect("pages").len(), commands.len() + 1, "{report}");
    let all = std::fs::read_to_string(dir.join("pgcowfs.1")).expect("the program's page");
    for command in commands {
        let page = std::fs::read_to_string(dir.join(format!("pgcowfs-{command}.1"))).expect("a page");
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains("Examples:") || page.contains("Example:"),
            "{command}: {page}"
        );
        let name = format!("pgcowfs\\-{}", command.replace('-', "\\-"));
        assert!(all.contains(&name), "{command} is not in pgcowfs.1");
    }
    // A place that cannot be written to.
    let file = store.scratch().join("file");
    std::fs::write(&file, "").expect("write a file");
    let done = run(store.command_anywhere().arg("man").arg(file.join("x")));
    assert_eq!(done.code, 3, "{}", done.report());
}

/// docs/COMMANDS.md is what the program says of itself. `PGCOWFS_UPDATE_DOCS=1` writes it anew.
#[test]
fn the_reference_is_what_the_program_says() {
    let store = Store::bare(None);
    // As wide as the page is printed, whatever terminal this is.
    let help =
        |command: &str| run(store.command_anywhere().args([command, "-h"]).env("COLUMNS", "110")).expect_ok();
    let commands = commands(&store);
    let mut page = String::from(
        "# Commands\n\nWhat `pgcowfs COMMAND -h` says of each command; `--help` says more of some options. Every command \
         takes `--store`,\n`--json` and `--quiet` as well. Exit codes, JSON fields and files are in docs/CLI.md. This page \
         is made from the program\n(`PGCOWFS_UPDATE_DOCS=1 cargo test --release --workspace --test e2e the_reference`), and a \
         test compares the two.\n\n",
    );
    let links: Vec<String> = commands.iter().map(|name| format!("[{name}](#{name})")).collect();
    page += &format!("{}\n", links.join(" \u{b7} "));
    for command in &commands {
        let text = help(command);
        let (own, rest) = text.split_once("\nGlobal options:\n").expect("global options");
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        let text = format!("{}\n\n{}", own.trim_end(), after.trim());
        page += &format!("\n## {command}\n\n```text\n{}\n```\n", text.trim_end());
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/COMMANDS.md");
    if std::env::var_os("PGCOWFS_UPDATE_DOCS").is_some() {
        std::fs::write(&file, &page).expect("write docs/COMMANDS.md");
    }
    let there = std::fs::read_to_string(&file).expect("read docs/COMMANDS.md");
    let differs = there.lines().zip(page.lines()).position(|(a, b)| a != b);
    assert!(
        there == page,
        "docs/COMMANDS.md is not what the program says (line {:?}); write it anew with PGCOWFS_UPDATE_DOCS=1",
        differs.map(|line| line + 1)
    );
}
