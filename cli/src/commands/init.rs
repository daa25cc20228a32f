//! `pgcowfs init`

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgcowfs::Store;

use super::Context;
use crate::args::Init;
use crate::config::{StoreConfig, own_dir, passage_mode};
use crate::error::{Context as _, Error, Kind, Result};
use crate::postgres::user;
use crate::report::InitReport;

/// Makes a store.
pub fn run(context: &Context, args: &Init) -> Result<()> {
    let paths = &context.paths;
    let dir = &paths.dir;
    if paths.config().exists() {
        return Err(Error::new(Kind::Exists, format!("{} is a store already", dir.display()))
            .hint("use it as it is (pgcowfs list), or choose another directory with --store DIR"));
    }
    if let Some(name) = args.run_as.as_deref() {
        user::choose(Some(name))?;
    }
    let mountpoint = args.mountpoint.as_deref().map(absolute).transpose()?;
    // What is made here is nobody else's business.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let made = make_dir(dir)?;
    let fill = || -> Result<StoreConfig> {
        Store::init(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(passage_mode())).at("set the mode of", dir)?;
        own_dir(&paths.run(), passage_mode())?;
        own_dir(&paths.logs(), passage_mode())?;
        let config = StoreConfig {
            mountpoint: mountpoint.clone(),
            port_range: args.port_range,
            run_as: args.run_as.clone(),
            keep_free: args.keep_free,
            map_memory: None,
        };
        // Last: it says that the store is complete.
        config.save(paths)?;
        Ok(config)
    };
    let config = fill().inspect_err(|_| {
        if made {
            // The failure to report is the first one.
            let _ = fs::remove_dir_all(dir);
        }
    })?;
    context.ui.print(&InitReport {
        store: dir.clone(),
        mountpoint: config.mountpoint(paths),
        port_range: config.port_range.to_string(),
    })
}

/// Makes the store's directory and those above it; whether it was missing.
fn make_dir(dir: &Path) -> Result<bool> {
    if dir.is_dir() {
        return Ok(false);
    }
    if dir.exists() {
        return Err(Error::new(Kind::BadInput, format!("{} is not a directory", dir.display()))
            .hint("a store is a directory; choose one with --store DIR"));
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).at("make", parent)?;
    }
    fs::create_dir(dir).at("make", dir)?;
    Ok(true)
}

/// A path that means the same in the daemon, which works in `/`.
pub fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).at("make absolute", path)
}
