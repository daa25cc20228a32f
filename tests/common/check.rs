//! The store's own check, of a store that no daemon serves. Together with `powercut`'s writer the only place here that
//! looks at a store through the core.

use std::path::Path;

use pgcowfs::{Options, Store};

/// What is broken in the store in `dir`, every page compared with its CRC; empty if nothing is.
pub fn check_store(dir: &Path) -> Vec<String> {
    let store = match Store::open(dir, Options::default()) {
        Ok(store) => store,
        Err(error) => return vec![format!("the store does not open: {error}")],
    };
    let mut broken = store.check(true).unwrap_or_else(|error| vec![format!("the check ends: {error}")]);
    if let Err(error) = store.close() {
        broken.push(format!("the store does not close: {error}"));
    }
    broken
}
