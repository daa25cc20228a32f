//! The command line about the role of whoever uses a fork.

use std::path::PathBuf;

use clap::Args;

/// A role to make in a new fork.
#[derive(Args, Debug)]
pub struct RoleOptions {
    /// Make a role for whoever uses the fork, a superuser; one of that name gets the password and these rights
    #[arg(long, value_name = "ROLE", requires_all = ["password_file", "start"])]
    pub user: Option<String>,
    /// The file with its password, which nobody else may read; - for standard input
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// The role may read and write all data and make tables of its own, and no more (PostgreSQL 14 or newer)
    #[arg(long, requires = "user")]
    pub restricted: bool,
}
