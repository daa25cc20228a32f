//! Standbys: forks that follow a running server.
//!
//! How a follower connects is in its own configuration, as with any standby. The
//! password, if there is one, is in a file beside it that only its user can read, and
//! which no fork of it gets.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::conf::Settings;
use super::connect::{Address, connect, refused, wait};
use super::conninfo;
use super::identity::PASSWORDS;
use super::remote::{Remote, Session};
use super::tree::Tree;
use super::user::OsUser;
use crate::error::{Error, Kind, Result};
use crate::meta::Follow;
use crate::ui::{bytes_text, duration_text};

/// What `pg_basebackup` writes of a connection and has no meaning for a standby, or is
/// given to it in another way.
const NOT_FOR_STANDBY: [&str; 7] =
    ["passfile", "service", "servicefile", "password", "dbname", "replication", "fallback_application_name"];

/// So long a server may take to notice that its standby has gone.
const SLOT_FREE_WITHIN: Duration = Duration::from_secs(10);

/// Of a log so much is looked at.
const LOG_TAIL: u64 = 64 << 10;

/// The settings that make the cluster in `tree`, which `pg_basebackup` has prepared
/// to be a standby, one of that name with that slot; puts its password there.
pub fn settle(
    tree: &dyn Tree,
    remote: &Remote,
    name: &str,
    slot: Option<&str>,
) -> Result<Vec<(String, String)>> {
    let settings = Settings::load(tree)?;
    let written = settings.get("primary_conninfo").unwrap_or_default();
    let mut options = conninfo::parse(written).ok_or_else(|| {
        Error::new(Kind::Postgres, "pg_basebackup has not written how a standby connects")
            .cause(format!("primary_conninfo is {written:?}"))
    })?;
    options.retain(|(name, _)| !NOT_FOR_STANDBY.contains(&name.as_str()));
    let get = |wanted: &str| options.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let passwords = remote
        .passwords_for(&get("host").unwrap_or_else(|| "localhost".into()), &get("user").unwrap_or_default());
    if get("application_name").is_none() {
        options.push(("application_name".into(), application_name(name)));
    }
    if let Some(passwords) = passwords {
        tree.write(PASSWORDS, &passwords)?;
        // Servers work in their data directory.
        options.push(("passfile".into(), PASSWORDS.into()));
    }
    let settings = [
        ("primary_conninfo", conninfo::build(&options)),
        ("primary_slot_name", slot.unwrap_or_default().to_string()),
        ("hot_standby", "on".to_string()),
        // Whoever reads here must not keep the server from cleaning up.
        ("hot_standby_feedback", "off".to_string()),
    ];
    Ok(settings.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// What a follower calls itself on the server.
pub fn application_name(fork: &str) -> String {
    format!("pgcowfs_{fork}")
}

/// How far a follower is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Following {
    /// The server.
    pub url: String,
    /// Its slot there; null: none.
    pub slot: Option<String>,
    /// `streaming`, `broken`, `stopped`, or `promoted`.
    pub state: &'static str,
    /// WAL that the server had, when it last said so, and that is not replayed yet;
    /// null: not known.
    pub lag_bytes: Option<u64>,
    /// For how long what is missing has been missing; null: not known.
    pub lag_s: Option<f64>,
    /// Why it is not streaming, if that is known.
    pub reason: Option<String>,
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.state, self.lag_bytes, self.lag_s) {
            ("streaming", Some(0), _) => f.write_str("follows, up to date"),
            ("streaming", Some(bytes), Some(s)) => {
                let time = duration_text(Duration::from_secs_f64(s.clamp(0.0, 1e9)));
                write!(f, "follows, {time} behind ({})", bytes_text(bytes))
            }
            ("streaming", Some(bytes), None) => write!(f, "follows, {} behind", bytes_text(bytes)),
            ("streaming", ..) => f.write_str("follows, how far is not known yet"),
            ("stopped", ..) => f.write_str("follows when it runs"),
            ("promoted", ..) => f.write_str("was promoted, and follows no more"),
            _ => write!(f, "does not follow: {}", self.reason.as_deref().unwrap_or("its log says why")),
        }
    }
}

impl Following {
    /// One whose server does not run.
    pub fn stopped(follow: &Follow) -> Following {
        Following {
            url: follow.url.clone(),
            slot: follow.slot.clone(),
            state: "stopped",
            ..Following::default()
        }
    }

    /// One whose server runs; its log is read where it is not streaming.
    pub fn running(follow: &Follow, address: &Address, log: &Path) -> Following {
        let stopped = Following::stopped(follow);
        match ask(address) {
            Ok(Seen { in_recovery: false, .. }) => Following { state: "promoted", ..stopped },
            Ok(Seen { received: Some(received), replayed, age_s, .. }) => {
                let lag = received.saturating_sub(replayed);
                let lag_s = if lag == 0 { Some(0.0) } else { age_s };
                Following { state: "streaming", lag_bytes: Some(lag), lag_s, ..stopped }
            }
            Ok(Seen { streaming: true, .. }) => Following { state: "streaming", ..stopped },
            Ok(_) => Following { state: "broken", reason: last_failure(log), ..stopped },
            Err(error) => Following { state: "broken", reason: Some(error.to_string()), ..stopped },
        }
    }
}

struct Seen {
    in_recovery: bool,
    streaming: bool,
    received: Option<u64>,
    replayed: u64,
    age_s: Option<f64>,
}

fn ask(address: &Address) -> Result<Seen> {
    // What the receiver has last heard of the end of the server's WAL (nothing yet, when it
    // began where that is), and the time of the last
    // transaction that is there; of none since the start, that of the last checkpoint.
    let query = "SELECT pg_is_in_recovery(), coalesce(r.status = 'streaming', false), \
                 CASE WHEN r.status = 'streaming' THEN (greatest(r.latest_end_lsn, pg_last_wal_receive_lsn()) - '0/0')::int8 END, \
                 coalesce(pg_last_wal_replay_lsn() - '0/0', 0)::int8, \
                 extract(epoch FROM clock_timestamp() - coalesce(pg_last_xact_replay_timestamp(), \
                 (SELECT checkpoint_time FROM pg_control_checkpoint())))::float8 \
                 FROM (SELECT) one LEFT JOIN pg_stat_wal_receiver r ON true";
    let failed = |e| refused("cannot ask how far the standby is", &e);
    wait(address, async || {
        let row = connect(address).await?.query_one(query, &[]).await.map_err(failed)?;
        let bytes = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        Ok(Seen {
            in_recovery: row.try_get(0).map_err(failed)?,
            streaming: row.try_get(1).map_err(failed)?,
            received: row.try_get::<_, Option<i64>>(2).map_err(failed)?.map(bytes),
            replayed: bytes(row.try_get(3).map_err(failed)?),
            // Two machines have two clocks.
            age_s: row.try_get::<_, Option<f64>>(4).map_err(failed)?.map(|age| age.max(0.0)),
        })
    })
}

/// The last thing in a standby's log that kept it from streaming.
fn last_failure(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(end.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    failure_in(&String::from_utf8_lossy(&bytes))
}

fn failure_in(log: &str) -> Option<String> {
    let about = ["WAL", "primary", "replication slot", "timeline", "recovery"];
    let message = |line: &str| {
        let (_, message) = line.split_once("FATAL:  ").or_else(|| line.split_once("ERROR:  "))?;
        about.iter().any(|word| message.contains(word)).then(|| message.to_string())
    };
    log.lines().rev().find_map(message)
}

/// Has `look` look until what it sees is no older than `most`, for a moment: right
/// after a pause a busy standby is behind for as long as the pause was.
pub fn check_lag(fork: &str, most: Duration, mut look: impl FnMut() -> Following) -> Result<()> {
    let began = Instant::now();
    loop {
        let now = look();
        if now.state == "streaming" && now.lag_s.is_some_and(|lag| lag <= most.as_secs_f64()) {
            return Ok(());
        }
        if began.elapsed() >= LAG_PATIENCE || now.state == "stopped" || now.state == "promoted" {
            let most = duration_text(most);
            return Err(Error::new(
                Kind::State,
                format!("{fork:?} may be more than {most} behind its server"),
            )
            .cause(format!("it {now}"))
            .hint("see `pgcowfs show` for why; try again later, or allow more with --max-lag"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

const LAG_PATIENCE: Duration = Duration::from_secs(1);

/// The WAL that a follower will need, kept on the server while the follower is made.
///
/// A slot that stays would be left there if this program were killed. So a temporary
/// one keeps the WAL, which goes with its connection; the one that stays is a copy of
/// it, made last.
pub struct Keeping {
    session: Session,
    temporary: String,
    slot: String,
    made: bool,
}

impl Keeping {
    /// Begins; nobody may have that slot.
    pub fn begin(remote: &Remote, slot: &str) -> Result<Keeping> {
        let mut session = Session::open(remote, false)?;
        // Not every version has it; and the copy takes as long as it takes.
        let _ = session.ask("SET idle_session_timeout = 0");
        let temporary = format!("{slot:.50}_{}", std::process::id());
        session.ask(&format!("SELECT pg_create_physical_replication_slot('{temporary}', true, true)"))?;
        Ok(Keeping { session, temporary, slot: slot.to_string(), made: false })
    }

    /// Whether there is a slot of that name.
    pub fn is_taken(remote: &Remote, slot: &str) -> Result<bool> {
        let query = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        Ok(Session::open(remote, false)?.value(&query)?.trim() != "0")
    }

    /// Makes the slot that stays.
    pub fn make(&mut self) -> Result<()> {
        let Keeping { temporary, slot, .. } = self;
        let copy = format!("SELECT pg_copy_physical_replication_slot('{temporary}', '{slot}', false)");
        self.session.ask(&copy)?;
        self.made = true;
        self.session.ask(&format!("SELECT pg_drop_replication_slot('{}')", self.temporary))?;
        Ok(())
    }

    /// Takes it back.
    pub fn undo(&mut self) -> Result<()> {
        // The server may need a moment to see that nobody uses it any more.
        if std::mem::take(&mut self.made) {
            let slot = &self.slot;
            drop_when_free(&mut self.session, &format!("SELECT pg_drop_replication_slot('{slot}')"))?;
        } else {
            // If it is gone, or the server is, so much the better: it goes with the connection.
            let _ = self.session.ask(&format!("SELECT pg_drop_replication_slot('{}')", self.temporary));
        }
        Ok(())
    }
}

/// What is needed to drop a follower's slot when the follower has gone.
pub struct Slot {
    follow: Follow,
    conninfo: String,
    passwords: Option<Vec<u8>>,
    user: OsUser,
}

impl Slot {
    /// That of the follower in `pgdata`; None if it has none.
    pub fn of(follow: &Follow, tree: &dyn Tree, user: &OsUser) -> Result<Option<Slot>> {
        if follow.slot.is_none() {
            return Ok(None);
        }
        let settings = Settings::load(tree)?;
        let mut options = settings.get("primary_conninfo").and_then(conninfo::parse).unwrap_or_default();
        options.retain(|(name, value)| name != "passfile" || value != PASSWORDS);
        let passwords = tree.read(PASSWORDS)?;
        let conninfo = conninfo::build(&options);
        Ok(Some(Slot { follow: follow.clone(), conninfo, passwords, user: user.clone() }))
    }

    /// Drops it, or returns what to tell: by hand it is one command.
    pub fn drop(&self) -> Option<String> {
        let slot = self.follow.slot.as_deref().unwrap_or_default();
        let dropped = Remote::over(&self.conninfo, &self.user, self.passwords.clone())
            .and_then(|remote| Session::open(&remote, true))
            .and_then(|mut session| drop_when_free(&mut session, &format!("DROP_REPLICATION_SLOT {slot}")));
        dropped.err().map(|error| {
            let url = &self.follow.url;
            let why = error.detail.clone().unwrap_or_else(|| error.to_string());
            format!(
                "the slot {slot} is still on the server, and keeps WAL there ({}); drop it: psql {} -c \"SELECT \
                 pg_drop_replication_slot('{slot}')\"",
                why.lines().last().unwrap_or_default(),
                shell_quote(url)
            )
        })
    }
}

/// Drops a slot by that command, when the server has noticed that nobody uses it any more.
fn drop_when_free(session: &mut Session, command: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        match session.ask(command) {
            Ok(_) => return Ok(()),
            Err(error) => {
                let said = error.detail.as_deref().unwrap_or_default();
                if said.contains("does not exist") {
                    return Ok(());
                }
                if !said.contains("is active") || began.elapsed() > SLOT_FREE_WITHIN {
                    return Err(error);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn shell_quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following(state: &'static str, lag_bytes: Option<u64>, lag_s: Option<f64>) -> Following {
        Following { state, lag_bytes, lag_s, ..Following::default() }
    }

    #[test]
    fn in_words() {
        assert_eq!(following("streaming", Some(0), Some(0.0)).to_string(), "follows, up to date");
        assert_eq!(
            following("streaming", Some(2048), Some(3.0)).to_string(),
            "follows, 3.0 s behind (2.0 kB)"
        );
        assert_eq!(following("stopped", None, None).to_string(), "follows when it runs");
        assert!(following("broken", None, None).to_string().contains("does not follow"));
    }

    #[test]
    fn a_limit_holds_only_for_what_is_known() {
        let most = Duration::from_secs(30);
        let check = |now: Following| check_lag("stage", most, || now.clone());
        check(following("streaming", Some(9), Some(29.0))).unwrap();
        for now in [
            following("streaming", Some(9), Some(31.0)),
            following("streaming", Some(9), None),
            following("streaming", None, None),
            following("broken", None, None),
            following("stopped", None, None),
        ] {
            assert_eq!(check(now.clone()).unwrap_err().kind, Kind::State, "{now}");
        }
        let mut looks = 0;
        check_lag("stage", most, || {
            looks += 1;
            following("streaming", Some(9), Some(if looks < 3 { 99.0 } else { 1.0 }))
        })
        .unwrap();
    }

    #[test]
    fn why_a_standby_does_not_stream() {
        let log = "2026 LOG:  started streaming WAL from primary at 0/3000000 on timeline 1\n\
                   2026 FATAL:  could not receive data from WAL stream: ERROR:  requested WAL segment 0 has already been removed\n\
                   2026 FATAL:  the database system is starting up\n";
        assert!(failure_in(log).unwrap().contains("has already been removed"));
        assert_eq!(failure_in("LOG:  ready\n"), None);
    }
}
