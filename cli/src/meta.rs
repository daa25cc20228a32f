//! What this program keeps about a fork: its server's port, socket, user and
//! version. The store carries it as opaque bytes (JSON).

// As a file of the fuzz targets, this one has no directory of its own.
#[path = "meta/mask.rs"]
pub mod mask;
#[path = "meta/upkeep.rs"]
mod upkeep;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

pub use self::mask::{How, Mask};
pub use self::upkeep::{DumpFailure, DumpSchedule, DumpWhat, Expiry, Pool, Schedule, Upkeep};

/// How a fork came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A fresh cluster.
    Initdb,
    /// A copy of that data directory.
    Copy(PathBuf),
    /// That data directory, in place.
    Base(PathBuf),
    /// A copy of the running server with that connection string, which has no secret.
    Server(String),
    /// A fork of another fork.
    Fork,
}

/// The server that a standby follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// As its user has named it; there is no secret in it. How to connect is in the
    /// standby's own configuration.
    pub url: String,
    /// The slot on it that keeps the WAL for the standby.
    pub slot: Option<String>,
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl std::ops::Deref for Secret {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// A fork that is not to be removed, put back or renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// When it ends, RFC 3339; null: when it is lifted.
    pub until: Option<String>,
}

impl Protection {
    fn holds(&self) -> bool {
        let until = self.until.as_ref().and_then(|until| until.parse::<jiff::Timestamp>().ok());
        // A time that nobody can read is none that has passed.
        until.is_none_or(|until| until > jiff::Timestamp::now())
    }
}

/// A fork's server. Fields that a later version adds must have a default, as
/// stores outlive programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkMeta {
    /// Its port, also the one in its socket's name.
    pub port: u16,
    /// The directory of its socket, reachable by its own user only.
    pub socket_dir: PathBuf,
    /// `listen_addresses`.
    pub listen: String,
    /// The major version, as PG_VERSION has it.
    pub pg_version: u32,
    /// The binaries, where the user has chosen them.
    #[serde(default)]
    pub pg_bin: Option<PathBuf>,
    /// The user it runs as, who owns its files.
    pub run_as: String,
    /// That user's number.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// The database role to connect as.
    pub superuser: String,
    /// That role's password, where `create` made it; for TCP only.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Whether its socket asks nobody who they are (the socket's directory does).
    #[serde(default)]
    pub socket_trusts: bool,
    /// Where it comes from.
    pub origin: Origin,
    /// What its base's pg_control was when the fork was made: a server that
    /// runs on the base changes it.
    #[serde(default)]
    pub base_mark: Option<u64>,
    /// Whether it may act as its parent: a reset asks again.
    #[serde(default)]
    pub keep_identity: bool,
    /// Whether it begins a new timeline at its first start: a reset asks again.
    #[serde(default)]
    pub new_timeline: bool,
    /// The server that it follows, as a standby. What is made from it does not.
    #[serde(default)]
    pub follow: Option<Follow>,
    /// The settings it was made with: a reset to what it was made from makes them
    /// again.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
    /// Set by `protect`.
    #[serde(default)]
    pub protection: Option<Protection>,
    /// What the daemon does about it by itself.
    #[serde(default)]
    pub upkeep: Upkeep,
    /// What has masked its data before it was there for others.
    #[serde(default)]
    pub masks: Vec<Mask>,
    /// What masks each fork of it.
    #[serde(default)]
    pub mask_forks: Vec<Mask>,
}

impl ForkMeta {
    /// From the store's bytes.
    pub fn decode(fork: &str, bytes: &[u8]) -> Result<ForkMeta> {
        serde_json::from_slice(bytes).map_err(|e| {
            Error::new(Kind::BadInput, format!("the settings of fork {fork:?} cannot be understood"))
                .cause(e.to_string())
                .hint("it was made by another program, or by a newer pgcowfs")
        })
    }

    /// As bytes for the store.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::new(Kind::Failed, "cannot write a fork's settings").cause(e.to_string()))
    }

    /// The fork's protection, while it holds.
    pub fn protection(&self) -> Option<&Protection> {
        self.protection.as_ref().filter(|protection| protection.holds())
    }

    /// Refuses what a protected fork is protected from.
    pub fn refuse_protected(&self, fork: &str) -> Result<()> {
        let why = "it and its snapshots are not removed, and it is neither put back nor renamed";
        self.refuse_while_protected(fork, why)
    }

    /// Refuses what does not go with protection, which `why` says.
    pub fn refuse_while_protected(&self, fork: &str, why: &str) -> Result<()> {
        let Some(protection) = self.protection() else { return Ok(()) };
        let until = protection.until.as_ref().map_or(String::new(), |until| format!(" until {until}"));
        Err(Error::new(Kind::State, format!("fork {fork:?} is protected{until}"))
            .cause(why)
            .hint(format!("if that is meant, lift the protection first: pgcowfs protect {fork} --off")))
    }

    /// The connection string for the socket. It carries no secret.
    pub fn socket_url(&self, database: &str) -> String {
        format!(
            "postgresql:///{}?host={}&port={}&user={}",
            escape(database),
            escape_path(&self.socket_dir),
            self.port,
            escape(&self.superuser)
        )
    }

    /// The connection string for TCP, if the server listens there.
    pub fn tcp_url(&self, database: &str, with_password: bool) -> Option<String> {
        let host = self.tcp_host()?;
        let host = if host.contains(':') { format!("[{host}]") } else { escape(&host) };
        let password = match (&self.password, with_password) {
            (Some(password), true) => format!(":{}", escape(password)),
            _ => String::new(),
        };
        Some(format!(
            "postgresql://{}{password}@{host}:{}/{}",
            escape(&self.superuser),
            self.port,
            escape(database)
        ))
    }

    /// The host to connect to over TCP.
    pub fn tcp_host(&self) -> Option<String> {
        let first = self.listen.split(',').map(str::trim).find(|a| !a.is_empty())?;
        Some(match first {
            "*" | "0.0.0.0" | "::" => "localhost".to_string(),
            address => address.to_string(),
        })
    }
}

/// Percent-encodes everything that is not unreserved in RFC 3986.
pub fn escape(text: &str) -> String {
    escape_except(text.as_bytes(), b"")
}

fn escape_path(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    // A slash is allowed in a query, and far easier to read.
    escape_except(path.as_os_str().as_bytes(), b"/")
}

fn escape_except(bytes: &[u8], also_plain: &[u8]) -> String {
    let mut out = String::new();
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) || also_plain.contains(&b) {
            out.push(char::from(b));
        } else {
            out += &format!("%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> ForkMeta {
        ForkMeta {
            port: 6001,
            socket_dir: "/s/run/pr 42".into(),
            listen: "localhost".into(),
            pg_version: 15,
            pg_bin: None,
            run_as: "postgres".into(),
            uid: 101,
            gid: 104,
            superuser: "postgres".into(),
            password: Some(Secret("p@ss/w".into())),
            socket_trusts: true,
            origin: Origin::Initdb,
            base_mark: None,
            keep_identity: false,
            new_timeline: false,
            follow: None,
            settings: Vec::new(),
            protection: None,
            upkeep: Upkeep::default(),
            masks: Vec::new(),
            mask_forks: Vec::new(),
        }
    }

    #[test]
    fn urls() {
        let mut meta = sample();
        assert_eq!(
            meta.socket_url("postgres"),
            "postgresql:///postgres?host=/s/run/pr%2042&port=6001&user=postgres"
        );
        assert_eq!(
            meta.tcp_url("a b", true).unwrap(),
            "postgresql://postgres:p%40ss%2Fw@localhost:6001/a%20b"
        );
        assert_eq!(meta.tcp_url("db", false).unwrap(), "postgresql://postgres@localhost:6001/db");
        meta.listen = "::1, 127.0.0.1".into();
        assert_eq!(meta.tcp_url("db", false).unwrap(), "postgresql://postgres@[::1]:6001/db");
        meta.listen = "*".into();
        assert_eq!(meta.tcp_host().unwrap(), "localhost");
        meta.listen = String::new();
        assert_eq!(meta.tcp_url("db", true), None);
    }

    #[test]
    fn protection_ends() {
        let mut meta = sample();
        assert!(meta.refuse_protected("x").is_ok());
        for (until, holds) in [
            (None, true),
            (Some("2000-01-01T00:00:00Z"), false),
            (Some("9000-01-01T00:00:00Z"), true),
            (Some("soon"), true),
        ] {
            meta.protection = Some(Protection { until: until.map(String::from) });
            assert_eq!(meta.refuse_protected("x").is_err(), holds, "{until:?}");
        }
    }

    #[test]
    fn survives_the_store_and_newer_fields() {
        let meta = sample();
        let bytes = meta.encode().unwrap();
        assert_eq!(ForkMeta::decode("x", &bytes).unwrap(), meta);
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        value["from_the_future"] = true.into();
        assert_eq!(ForkMeta::decode("x", value.to_string().as_bytes()).unwrap(), meta);
        assert_eq!(ForkMeta::decode("x", b"").unwrap_err().kind, Kind::BadInput);
    }
}
