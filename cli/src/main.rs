//! `pgcowfs`: fork a running PostgreSQL cluster on any disk.
//!
//! The program in one page:
//! - `args` is the command line, `commands` has one file per command, `report`
//!   and `ui` are what a command tells its user, `error` how it fails;
//! - `client` talks to the daemon of a store (and starts it), `protocol` is
//!   what they say to each other, `daemon` is the other end: the only place
//!   that opens a store (`check` looks at one that cannot be opened);
//! - `dumps` is what dumps are on the disk;
//! - `launch` starts a fork's server, for a command or for the daemon;
//! - `postgres` is everything that knows PostgreSQL: binaries, configuration,
//!   processes, SQL. Nothing else imports tokio-postgres.

mod args;
mod client;
mod commands;
mod config;
mod daemon;
mod dumps;
mod error;
#[cfg(test)]
#[path = "../../tests/fuzz/in_program.rs"]
mod fuzz;
mod launch;
mod meta;
mod postgres;
mod proc;
mod protocol;
mod report;
mod ui;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let ui = ui::Ui::new(cli.global.json, cli.global.quiet);
    match commands::run(&cli, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}
