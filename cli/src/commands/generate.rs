//! `pgcowfs completions` and `pgcowfs man`: what is made from the command line's own
//! definition.

use std::fs;

use clap::CommandFactory;
use clap_complete::Shell as Completes;

use super::Context;
use crate::args::{Cli, Completions, Man, Shell};
use crate::error::{Context as _, Result};
use crate::report::ManReport;

/// Prints a script with which a shell completes command lines.
pub fn completions(context: &Context, args: &Completions) -> Result<()> {
    let shell = match args.shell {
        Shell::Bash => Completes::Bash,
        Shell::Zsh => Completes::Zsh,
        Shell::Fish => Completes::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgcowfs", &mut script);
    context.ui.print_text(String::from_utf8_lossy(&script).into_owned())
}

/// Writes manual pages, one for each command.
pub fn man(context: &Context, args: &Man) -> Result<()> {
    fs::create_dir_all(&args.dir).at("make", &args.dir)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).at("write manual pages to", &args.dir)?;
    let program = Cli::command();
    let commands = program.get_subcommands().map(|command| format!("pgcowfs-{}", command.get_name()));
    let names = std::iter::once("pgcowfs".to_string()).chain(commands);
    let pages = names.map(|name| args.dir.join(format!("{name}.1"))).collect();
    context.ui.print(&ManReport { dir: args.dir.clone(), pages })
}
