//! The command line about masking.

use std::path::PathBuf;

use clap::Args;

/// What is done to a fork's data before anybody sees it.
#[derive(Args, Debug, Default)]
pub struct MaskOptions {
    /// Run this once on the new fork before it is there for others: an SQL script, an executable program, or
    /// anon for PostgreSQL Anonymizer; may be repeated
    #[arg(long = "mask", value_name = "FILE|anon")]
    pub masks: Vec<PathBuf>,
    /// The database that masks begin in (a script may \connect elsewhere)
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub mask_database: String,
}
