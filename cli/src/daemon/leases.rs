//! Forks that belong to a client: it has a connection open, and when that ends,
//! however it ends, they are stopped and removed.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use parking_lot::Mutex;

use super::{Daemon, requests};
use crate::error::{Error, Kind, Result};
use crate::postgres::server::{StopHow, stop};
use crate::proc;

/// How long a server may take to end at once.
const STOP_AT_ONCE: Duration = Duration::from_secs(20);

/// A server that is just being started may be seen only at a second look.
const LOOKS: usize = 5;

/// Which client each such fork belongs to.
#[derive(Default)]
pub struct Leases(Mutex<BTreeMap<String, u64>>);

impl Leases {
    /// The fork belongs to that client.
    pub fn enter(&self, fork: &str, client: u64) {
        self.0.lock().insert(fork.to_string(), client);
    }

    /// The fork belongs to nobody, or is gone.
    pub fn forget(&self, fork: &str) {
        self.0.lock().remove(fork);
    }

    /// The fork has another name.
    pub fn rename(&self, old: &str, new: &str) {
        let mut leases = self.0.lock();
        if let Some(client) = leases.remove(old) {
            leases.insert(new.to_string(), client);
        }
    }

    /// Whether the fork belongs to that client.
    pub fn has(&self, fork: &str, client: u64) -> bool {
        self.0.lock().get(fork) == Some(&client)
    }

    fn of(&self, client: u64) -> Vec<String> {
        self.0.lock().iter().filter(|(_, of)| **of == client).map(|(fork, _)| fork.clone()).collect()
    }
}

impl Daemon {
    /// Ends the forks of a client, all at once.
    pub(super) fn end_leases(&self, client: u64) -> Result<()> {
        let forks = self.leases.of(client);
        let ended: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = forks.iter().map(|fork| scope.spawn(|| self.end_fork(fork))).collect();
            let gone = || Err(Error::new(Kind::Failed, "a thread of the daemon has ended"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
        });
        ended.into_iter().collect()
    }

    /// The same for one that has gone without a word.
    pub(super) fn end_leases_of_gone(&self, client: u64) {
        let closed = self.closed.read();
        if *closed {
            // The daemon has stopped their servers.
            return;
        }
        for fork in self.leases.of(client) {
            log::info!("removing {fork}, whose client has gone");
        }
        if let Err(error) = self.end_leases(client) {
            log::error!("a fork whose client has gone is still there: {error}");
        }
    }

    /// Lets a fork live on when its client goes.
    pub(super) fn keep(&self, fork: &str, client: u64) -> Result<()> {
        if !self.leases.has(fork, client) {
            return Err(Error::new(Kind::State, format!("fork {fork:?} is not this client's")));
        }
        self.leases.forget(fork);
        log::info!("{fork} is kept");
        Ok(())
    }

    /// Stops a fork's server at once, and removes the fork.
    pub(super) fn end_fork(&self, fork: &str) -> Result<()> {
        let pgdata = self.mountpoint.join(fork);
        let mut look = 1;
        loop {
            if let Some(pid) = requests::state(&self.store, &self.mountpoint, fork).pid() {
                stop(fork, &pgdata, pid, StopHow::Immediate, STOP_AT_ONCE)?;
            }
            // One that has not said yet that it is there.
            proc::postgres_under(&pgdata).into_iter().for_each(|pid| proc::signal(pid, Signal::SIGKILL));
            match self.remove(fork) {
                Err(error) if error.kind == Kind::State && look < LOOKS => look += 1,
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_follows_its_fork() {
        let leases = Leases::default();
        for (fork, client) in [("a", 1), ("b", 1), ("c", 2)] {
            leases.enter(fork, client);
        }
        leases.rename("b", "d");
        leases.rename("nobody", "e");
        leases.forget("a");
        assert_eq!((leases.of(1), leases.of(2), leases.of(3)), (vec!["d".into()], vec!["c".into()], vec![]));
        assert!(leases.has("d", 1) && !leases.has("d", 2) && !leases.has("a", 1));
    }
}
