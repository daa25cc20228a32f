//! `pgcowfs mount`

use super::Context;
use super::init::absolute;
use crate::args::Mount;
use crate::client::Client;
use crate::daemon::{self, Ground};
use crate::error::{Error, Kind, Result};
use crate::report::MountReport;

/// Mounts the store.
pub fn run(context: &Context, args: &Mount) -> Result<()> {
    let mountpoint = args.mountpoint.as_deref().map(absolute).transpose()?;
    if args.daemon {
        return daemon::run(&context.paths, mountpoint, Ground::Back);
    }
    if args.foreground {
        return daemon::run(&context.paths, mountpoint, Ground::Fore);
    }
    let client = Client::open_at(&context.paths, mountpoint.as_deref())?;
    let hello = &client.hello;
    if let Some(wanted) = mountpoint
        && !client.started
        && wanted.canonicalize().unwrap_or(wanted.clone()) != hello.mountpoint
    {
        return Err(Error::new(
            Kind::State,
            format!("the store is mounted at {} already", hello.mountpoint.display()),
        )
        .hint(format!("unmount it first: pgcowfs umount; pgcowfs mount --mountpoint {}", wanted.display())));
    }
    context.ui.print(&MountReport {
        store: context.paths.dir.clone(),
        mountpoint: hello.mountpoint.clone(),
        pid: hello.pid,
        started: client.started,
    })
}
