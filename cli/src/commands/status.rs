//! `pgcowfs status`. It looks, and starts nothing.

use super::Context;
use crate::client::Client;
use crate::config::StoreConfig;
use crate::daemon::mounts;
use crate::error::Result;
use crate::protocol::{DaemonStatus, Request};
use crate::report::StatusReport;

/// Shows the state of the store and its daemon.
pub fn run(context: &Context) -> Result<()> {
    let paths = &context.paths;
    paths.check()?;
    let Some(mut client) = Client::connect(paths)? else {
        let mountpoint = StoreConfig::load(paths)?.mountpoint(paths);
        let dead = mounts::mounted(&mountpoint)?.is_some();
        return context.ui.print(&StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            state: if dead { "dead" } else { "stopped" },
            pid: None,
            mountpoint,
            store: paths.dir.clone(),
            forks: None,
            layers: None,
            map_entries: None,
            map_memory_bytes: None,
            store_bytes: None,
            used_bytes: None,
            shared_bytes: None,
            layers_to_merge: None,
            merging_pages: None,
            reclaimable_bytes: None,
            reclaimed_bytes: None,
            pools: None,
            dumps: None,
            uptime_s: None,
            transport: None,
            requests: None,
        });
    };
    let status: DaemonStatus = client.call(&Request::Status)?;
    context.ui.print(&StatusReport {
        version: client.hello.version.clone(),
        state: "running",
        pid: Some(client.hello.pid),
        mountpoint: client.hello.mountpoint.clone(),
        store: paths.dir.clone(),
        forks: Some(status.forks),
        layers: Some(status.layers),
        map_entries: Some(status.map_entries),
        map_memory_bytes: Some(status.map_memory_bytes),
        store_bytes: Some(status.store_bytes),
        used_bytes: Some(status.used_bytes),
        shared_bytes: Some(status.shared_bytes),
        layers_to_merge: Some(status.layers_to_merge),
        merging_pages: status.merging_pages,
        reclaimable_bytes: Some(status.reclaimable_bytes),
        reclaimed_bytes: Some(status.reclaimed_bytes),
        pools: Some(status.pools),
        dumps: Some(status.dumps),
        uptime_s: Some(status.uptime_s),
        transport: Some(status.transport),
        requests: Some(status.requests.into_iter().map(|(name, n)| (name, n.into())).collect()),
    })
}
