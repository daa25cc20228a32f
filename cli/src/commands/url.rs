//! `pgcowfs url`

use super::Context;
use crate::args::Url;
use crate::error::{Error, Kind, Result};
use crate::report::UrlReport;

/// Prints a fork's connection strings.
pub fn run(context: &Context, args: &Url) -> Result<()> {
    let row = context.client()?.info(&args.fork)?;
    let meta = &row.meta;
    let database = args.database.clone().unwrap_or_else(|| "postgres".into());
    let tcp_url = meta.tcp_url(&database, true);
    if args.tcp && tcp_url.is_none() {
        return Err(Error::new(Kind::State, format!("fork {:?} does not listen on TCP", row.name))
            .hint("it was made with --listen ''; use the socket: --socket"));
    }
    context.ui.print(&UrlReport {
        name: row.name.clone(),
        socket_url: (!args.tcp).then(|| meta.socket_url(&database)),
        tcp_url: tcp_url.filter(|_| !args.socket),
        host: meta.tcp_host(),
        socket_dir: meta.socket_dir.clone(),
        port: meta.port,
        user: meta.superuser.clone(),
        database,
        password: meta.password.as_deref().map(str::to_string),
    })
}
