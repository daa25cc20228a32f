//! `pgcowfs psql`

use std::os::unix::process::CommandExt;

use super::{Context, state, user};
use crate::args::Psql;
use crate::error::{Error, Kind, Result};
use crate::postgres::user::OsUser;
use crate::postgres::{binaries, server};

/// Becomes psql, connected to a fork.
pub fn run(context: &Context, args: &Psql) -> Result<()> {
    let row = context.client()?.info(&args.fork)?;
    let now = state(&row);
    if now.pid().is_none() {
        return Err(server::not_running(&row.name, now));
    }
    let meta = &row.meta;
    let own = binaries::find(meta.pg_bin.as_deref(), Some(meta.pg_version))?;
    let Some(program) = binaries::client("psql", &own) else {
        return Err(Error::new(Kind::Environment, "there is no psql on this machine")
            .hint("install it (on Debian and Ubuntu: apt install postgresql-client)"));
    };
    // A cluster from elsewhere may ask who its client is (`peer`). A fresh one
    // does not, and then psql can read the caller's files.
    let user = if meta.socket_trusts { OsUser::current()? } else { user(&row)? };
    let mut command = user.command(&program);
    command
        .env("PGHOST", &meta.socket_dir)
        .env("PGPORT", meta.port.to_string())
        .env("PGUSER", &meta.superuser)
        .env("PGDATABASE", "postgres")
        .args(&args.args);
    let error = command.exec();
    Err(Error::io(format!("cannot run {}", program.display()), &error))
}
