//! What the program makes from its own command line: completions and manual pages.

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
