//! `pgcowfs mount`

use super::Context;
use super::init::absolute;
use crate::args::Mount;
use crate::client::Client;
use crate::config::{MapMemory, MountChanges};
use crate::daemon::{self, Ground};
use crate::error::{Error, Kind, Result};
use crate::report::MountReport;

/// Mounts the store.
pub fn run(context: &Context, args: &Mount) -> Result<()> {
    let mountpoint = args.mountpoint.as_deref().map(absolute).transpose()?;
    let changes = MountChanges { mountpoint, map_memory: args.map_memory };
    if args.daemon {
        return daemon::run(&context.paths, changes, Ground::Back);
    }
    if args.foreground {
        return daemon::run(&context.paths, changes, Ground::Fore);
    }
    let client = Client::open_with(&context.paths, &changes)?;
    let hello = &client.hello;
    if let Some(wanted) = changes.mountpoint
        && !client.started
        && wanted.canonicalize().unwrap_or(wanted.clone()) != hello.mountpoint
    {
        return Err(Error::new(
            Kind::State,
            format!("the store is mounted at {} already", hello.mountpoint.display()),
        )
        .hint(format!("unmount it first: pgcowfs umount; pgcowfs mount --mountpoint {}", wanted.display())));
    }
    if let (Some(MapMemory(bytes)), false) = (changes.map_memory, client.started) {
        return Err(Error::new(
            Kind::State,
            "the store is mounted already: its limit for page tables stays as it is",
        )
        .hint(format!("unmount it first: pgcowfs umount; pgcowfs mount --map-memory {bytes}")));
    }
    context.ui.print(&MountReport {
        store: context.paths.dir.clone(),
        mountpoint: hello.mountpoint.clone(),
        pid: hello.pid,
        started: client.started,
    })
}
