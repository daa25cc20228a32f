//! What a running server tells about itself, before anything is copied.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::cluster::{BLOCK_SIZE, OLDEST};
use super::remote::{Remote, Session};
use crate::error::{Error, Kind, Result};

/// A tablespace outside the server's data directory.
#[derive(Clone, Debug, Deserialize)]
pub struct Tablespace {
    /// Its number.
    pub oid: u32,
    /// Where it is.
    pub location: PathBuf,
}

/// A server to copy.
#[derive(Clone, Debug)]
pub struct Primary {
    /// Its major version.
    pub major: u32,
    /// The role that initdb has made.
    pub superuser: String,
    /// Its tablespaces.
    pub tablespaces: Vec<Tablespace>,
    /// What its configuration sets, as far as the role may see it.
    pub settings: BTreeMap<String, String>,
    /// What a standby must have as much of.
    pub limits: Vec<(String, String)>,
}

impl Primary {
    /// Asks it, for replication and for queries: both must be allowed.
    pub fn ask(remote: &Remote) -> Result<Primary> {
        let mut session = Session::open(remote, true)?;
        let version = session.value("SHOW server_version_num")?;
        let major = version.trim().parse::<u32>().map_or(0, |number| number / 10_000);
        if major < OLDEST {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "the server at {} is PostgreSQL {major}; {OLDEST} is the oldest that works",
                    remote.url()
                ),
            )
            .hint("upgrade it with pg_upgrade first"));
        }
        let block_size = session.value("SHOW block_size")?;
        if block_size.trim() != BLOCK_SIZE.to_string() {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "the server at {} has a block size of {} bytes; only {BLOCK_SIZE} works",
                    remote.url(),
                    block_size.trim()
                ),
            )
            .hint("dump and restore it into a cluster with PostgreSQL's default block size"));
        }
        drop(session);
        let mut session = Session::open(remote, false).map_err(|error| {
            error.cause(
                "where its tablespaces lie must be known, so that nothing is written outside of the fork",
            )
        })?;
        Ok(Primary {
            major,
            superuser: session.value("SELECT rolname FROM pg_roles WHERE oid = 10")?,
            tablespaces: json(&mut session, TABLESPACES_QUERY)?,
            settings: json(&mut session, SETTINGS_QUERY)?,
            limits: json::<BTreeMap<_, _>>(&mut session, LIMITS_QUERY)?.into_iter().collect(),
        })
    }
}

/// Those inside the data directory have a relative path, and come with it.
const TABLESPACES_QUERY: &str = "SELECT coalesce(json_agg(json_build_object('oid', oid::bigint, 'location', pg_tablespace_location(oid))), '[]') \
     FROM pg_tablespace WHERE pg_tablespace_location(oid) LIKE '/%'";

const SETTINGS_QUERY: &str = "SELECT coalesce(json_object_agg(name, current_setting(name)), '{}') FROM pg_settings \
     WHERE source IN ('configuration file', 'command line') AND context <> 'internal'";

const LIMITS_QUERY: &str = "SELECT json_object_agg(name, setting) FROM pg_settings WHERE name IN ('max_connections', \
     'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')";

fn json<T: DeserializeOwned>(session: &mut Session, query: &str) -> Result<T> {
    let text = session.ask(query)?.join("\n");
    serde_json::from_str(&text).map_err(|e| {
        Error::new(Kind::Postgres, "the server's answer cannot be understood")
            .cause(e.to_string())
            .detail(text)
    })
}
