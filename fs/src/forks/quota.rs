//! Quotas: how much a fork's own writes may take of the host's disk.

use crate::error::Result;
use crate::map::Batch;
use crate::map::schema::QuotaRecord;

use super::fork::Fork;
use super::store::Store;

impl Fork {
    /// The quota in bytes.
    pub fn quota(&self) -> Option<u64> {
        self.delta().account.quota()
    }

    /// Sets the quota of a fork that is being made, in [`Store::fork`]'s `edit`;
    /// it becomes durable with the fork.
    pub fn set_first_quota(&self, quota: Option<u64>) {
        self.delta().account.set_quota(quota);
    }
}

impl Store {
    /// Sets or lifts a fork's quota, durably; writes see it at once.
    pub fn set_quota(&self, name: &str, quota: Option<u64>) -> Result<()> {
        let fork = self.by_name(name)?;
        // Not while the fork is removed, which takes the record along.
        let _commit = fork.commit.lock();
        drop(fork.head()?);
        let mut batch = Batch::default();
        match quota {
            Some(bytes) => batch.put(QuotaRecord::encode(fork.id(), bytes)),
            None => batch.delete(QuotaRecord::key(fork.id())),
        }
        self.core.map.commit(&batch)?;
        fork.delta().account.set_quota(quota);
        Ok(())
    }
}
