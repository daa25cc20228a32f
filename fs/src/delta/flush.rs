//! Flushing a host file, once for all that was written before.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Whether the flushes of a host file have all succeeded.
#[derive(Default)]
pub struct FlushState {
    /// Why not, from the first failure on. The kernel reports a failure once,
    /// and takes the pages for clean afterwards: a second flush would succeed
    /// and mean nothing (see PostgreSQL's fsync failures of 2018).
    failed: Mutex<Option<String>>,
}

impl FlushState {
    /// Makes durable what was written before, if `unflushed` says that there is
    /// something. One at a time: who finds nothing to do must know that it is
    /// durable, not on its way.
    pub fn flush(&self, unflushed: &AtomicBool, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut failed = self.failed.lock();
        if let Some(why) = &*failed {
            return Err(Error::FlushFailed(why.clone()));
        }
        if unflushed.swap(false, Ordering::SeqCst) {
            flush().inspect_err(|e| *failed = Some(e.to_string()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_for_good() {
        let (state, unflushed) = (FlushState::default(), AtomicBool::new(true));
        let fail = || Err(Error::Io { context: "flushing".into(), source: std::io::ErrorKind::Other.into() });
        assert!(state.flush(&unflushed, fail).is_err());
        unflushed.store(true, Ordering::SeqCst);
        assert!(matches!(state.flush(&unflushed, || Ok(())), Err(Error::FlushFailed(_))));
    }
}
