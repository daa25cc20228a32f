//! Shortening the recovery that begins whatever is made from a running fork.

use std::time::Duration;

use super::{Context, address, state, user};
use crate::args::{CheckpointMode, CheckpointOptions};
use crate::error::Result;
use crate::postgres::connect::{self, When};
use crate::postgres::server::State;
use crate::protocol::ForkRow;

/// Asks a fork's server for a checkpoint, if it runs and if that is wanted now.
pub fn checkpoint(
    context: &Context,
    options: &CheckpointOptions,
    fork: &ForkRow,
) -> Result<Option<Duration>> {
    let when = match options.checkpoint {
        CheckpointMode::Never => return Ok(None),
        CheckpointMode::Auto => When::AboveWal(options.checkpoint_wal),
        CheckpointMode::Always => When::Always,
    };
    let State::Running(_) = state(fork) else {
        return Ok(None);
    };
    match connect::checkpoint(&address(fork, &user(fork)?), when) {
        Ok(took) => Ok(took),
        // What is made is as good without it, it only recovers for longer.
        Err(error) if options.checkpoint == CheckpointMode::Auto => {
            context.ui.warn(format!("going on without a CHECKPOINT of {}: {error}", fork.name));
            Ok(None)
        }
        Err(error) => Err(error.hint(
            "do it without: --checkpoint never (what is made then recovers for longer at its first start)",
        )),
    }
}
