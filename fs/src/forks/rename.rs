//! Renaming a fork.
//!
//! A fork's name is in its own record, and as the parent's in the records of those
//! that were made from it. One batch changes them all. Nobody looks at the name but
//! who looks the fork up: its files, and what has them open, stay as they are.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::map::Batch;

use super::store::{Known, Store};

impl Store {
    /// Gives a fork another name. If that fails, nothing has changed.
    pub fn rename(&self, old: &str, new: &str) -> Result<()> {
        let _one = self.changes.lock();
        let _nobody_begins = self.renames.write();
        let _name = self.reserve(new)?;
        let (id, _) = self.record_of(old)?;
        let mut family: Vec<Arc<Known>> = self.forks.read().values().cloned().collect();
        family.retain(|known| {
            let record = known.record.lock();
            record.id == id || record.parent == old
        });
        // Nobody loads one of them, or removes it, from here on.
        let loaded: Vec<_> = family.iter().map(|known| known.fork.lock()).collect();
        let here = |known: &Known| self.forks.read().contains_key(&known.record.lock().id);
        let family: Vec<_> = family.iter().zip(&loaded).filter(|(known, _)| here(known)).collect();
        if !family.iter().any(|(known, _)| known.record.lock().id == id) {
            return Err(Error::NoSuchFork(old.to_string()));
        }
        // Nor makes it go on in another layer.
        let forks = family.iter().filter_map(|(_, loaded)| loaded.as_ref());
        let commits = forks.map(|fork| fork.settled()).collect::<Result<Vec<_>>>()?;
        let mut batch = Batch::default();
        let mut records = Vec::new();
        for (known, _) in &family {
            let mut record = known.record.lock().clone();
            match record.id == id {
                true => record.name = new.to_string(),
                false => record.parent = new.to_string(),
            }
            batch.put(record.encode());
            records.push(record);
        }
        self.core.map.commit(&batch)?;
        for ((known, loaded), record) in family.into_iter().zip(records) {
            if let Some(fork) = loaded.as_ref() {
                fork.set_record(record.clone());
            }
            *known.record.lock() = record;
        }
        {
            let mut names = self.names.write();
            names.remove(old);
            names.insert(new.to_string(), id);
        }
        drop(commits);
        drop(loaded);
        self.tell(old, id);
        self.tell(new, id);
        Ok(())
    }
}
