//! What comes before something is made from a running fork: its recovery is
//! shortened, and what it has is looked at.

use std::time::Duration;

use super::{Context, address, state, user};
use crate::args::{CheckpointMode, CheckpointOptions};
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::{self, When};
use crate::postgres::follow;
use crate::postgres::server::State;
use crate::protocol::ForkRow;

/// Asks a fork's server for a checkpoint, if it runs and if that is wanted now; and
/// refuses a standby that is too far behind.
pub fn checkpoint(
    context: &Context,
    options: &CheckpointOptions,
    fork: &ForkRow,
) -> Result<Option<Duration>> {
    check_lag(context, options, fork)?;
    let took = ask(context, options, fork)?;
    // It may have taken its time.
    check_lag(context, options, fork)?;
    Ok(took)
}

fn check_lag(context: &Context, options: &CheckpointOptions, fork: &ForkRow) -> Result<()> {
    let Some(most) = options.max_lag else { return Ok(()) };
    if fork.meta.follow.is_none() {
        return Err(Error::new(Kind::Usage, format!("{:?} follows no server", fork.name))
            .cause("--max-lag is about how far a standby is behind its server")
            .hint("leave it away; `pgcowfs create NAME --follow URL` makes a standby"));
    }
    let look = || context.following(fork).unwrap_or_default();
    follow::check_lag(&fork.name, most, look)
}

fn ask(context: &Context, options: &CheckpointOptions, fork: &ForkRow) -> Result<Option<Duration>> {
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
