//! Talking SQL to a fork's server. The only importer of tokio-postgres.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, NoTls};

use super::user::OsUser;
use crate::error::{Context, Error, Kind, Result};
use crate::meta::ForkMeta;

/// How to reach a server.
pub struct Address<'a> {
    /// Its socket's directory.
    pub socket_dir: &'a Path,
    /// Its port.
    pub port: u16,
    /// The role.
    pub role: &'a str,
    /// The role's password, if known.
    pub password: Option<&'a str>,
    /// The user to connect as: `peer` authentication asks for it.
    pub user: &'a OsUser,
}

impl<'a> Address<'a> {
    /// Of a fork's server.
    pub fn new(meta: &'a ForkMeta, user: &'a OsUser) -> Address<'a> {
        Address {
            socket_dir: &meta.socket_dir,
            port: meta.port,
            role: &meta.superuser,
            password: meta.password.as_deref(),
            user,
        }
    }
}

/// When to ask for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// In any case.
    Always,
    /// When more WAL than that was written since the last one.
    AboveWal(u64),
}

/// Runs `work` as the address's user, with what it needs to wait for a server.
pub(super) fn wait<T: Send>(address: &Address, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    address.user.run(|| {
        // A runtime of this thread only: the connection must be made by a
        // thread that is the fork's user (`OsUser::run`).
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context(|| "cannot start the SQL client")?.block_on(work())
    })
}

/// Asks the server for a CHECKPOINT, if that is wanted now; says how long it took.
pub fn checkpoint(address: &Address, when: When) -> Result<Option<Duration>> {
    wait(address, async || {
        let client = connect(address).await?;
        if let When::AboveWal(limit) = when
            && wal_since_checkpoint(&client).await? <= limit
        {
            return Ok(None);
        }
        let start = Instant::now();
        client.batch_execute("CHECKPOINT").await.map_err(|e| refused("CHECKPOINT failed", &e))?;
        Ok(Some(start.elapsed()))
    })
}

/// One who is connected.
pub struct Session {
    /// What it says it is.
    pub application: String,
    /// The database.
    pub database: String,
    /// The role.
    pub role: String,
    /// The server's process for it.
    pub pid: i32,
}

/// Who is connected to the server, this program apart; the oldest first.
pub fn sessions(address: &Address) -> Result<Vec<Session>> {
    let query = "SELECT coalesce(nullif(application_name, ''), 'a client'), coalesce(datname::text, '-'), \
                 coalesce(usename::text, '-'), pid FROM pg_stat_activity \
                 WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() \
                 ORDER BY backend_start";
    wait(address, async || {
        let client = connect(address).await?;
        let rows = client.query(query, &[]).await;
        let rows = rows.map_err(|e| refused("cannot ask who is connected", &e))?;
        let session = |row: &tokio_postgres::Row| {
            Ok(Session {
                application: row.try_get(0)?,
                database: row.try_get(1)?,
                role: row.try_get(2)?,
                pid: row.try_get(3)?,
            })
        };
        let sessions: std::result::Result<_, tokio_postgres::Error> = rows.iter().map(session).collect();
        sessions.map_err(|e| refused("cannot read who is connected", &e))
    })
}

pub(super) async fn connect(address: &Address<'_>) -> Result<Client> {
    connect_to(address, "postgres").await
}

/// The same to another database than `postgres`.
pub(super) async fn connect_to(address: &Address<'_>, database: &str) -> Result<Client> {
    let mut config = Config::new();
    config
        .host_path(address.socket_dir)
        .port(address.port)
        .user(address.role)
        .dbname(database)
        .application_name("pgcowfs")
        .connect_timeout(Duration::from_secs(10));
    if let Some(password) = address.password {
        config.password(password);
    }
    let (client, connection) = config.connect(NoTls).await.map_err(|e| {
        refused(
            &format!("cannot connect to the server in {} as {}", address.socket_dir.display(), address.role),
            &e,
        )
    })?;
    tokio::spawn(async move {
        // What goes wrong here reaches the caller through its query.
        let _ = connection.await;
    });
    Ok(client)
}

async fn wal_since_checkpoint(client: &Client) -> Result<u64> {
    let query = "SELECT greatest(0, CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                 ELSE pg_current_wal_insert_lsn() END - redo_lsn)::bigint FROM pg_control_checkpoint()";
    let row = client
        .query_one(query, &[])
        .await
        .map_err(|e| refused("cannot ask for the position of the WAL", &e))?;
    let bytes: i64 = row.try_get(0).map_err(|e| refused("cannot read the position of the WAL", &e))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

pub(super) fn refused(what: &str, error: &tokio_postgres::Error) -> Error {
    let mut result = Error::new(Kind::Postgres, what);
    // The outermost text is only "db error" or "error connecting to server".
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        result = result.cause(error.to_string());
        cause = error.source();
    }
    result
}
