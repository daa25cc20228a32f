//! The command line about the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `completions`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs completions bash > ~/.local/share/bash-completion/completions/pgcowfs
  pgcowfs completions zsh > \"${fpath[1]}/_pgcowfs\"
  pgcowfs completions fish > ~/.config/fish/completions/pgcowfs.fish")]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}

/// Shells that can complete command lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

/// `man`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pgcowfs man ~/.local/share/man/man1 && man pgcowfs-fork
  pgcowfs man /usr/local/share/man/man1")]
pub struct Man {
    /// Where to; it is made if it is not there
    pub dir: PathBuf,
}
