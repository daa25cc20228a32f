//! A running server's cluster, by a base backup (`--from-server`), which may go on to
//! follow the server (`--follow`).

use std::path::Path;

use parking_lot::Mutex;

use super::{Brought, Facts, Making, Source};
use crate::args::{RunningServer, ServerCheckpoint, slot_of};
use crate::config::StoreConfig;
use crate::error::{Error, Kind, Result};
use crate::meta::{Follow, Origin};
use crate::postgres::base_backup::BaseBackup;
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::cluster::Cluster;
use crate::postgres::follow::{self, Keeping};
use crate::postgres::primary::Primary;
use crate::postgres::remote::Remote;
use crate::postgres::standalone;
use crate::postgres::tree::DirTree;
use crate::postgres::user::{self, OsUser};

/// What it is copied for.
#[derive(Clone, Copy)]
pub struct For<'a> {
    /// The fork.
    pub name: &'a str,
    /// How.
    pub running: &'a RunningServer,
    /// The user that the fork's server runs as, if one is chosen.
    pub run_as: Option<&'a str>,
    /// The directory of the programs, if one is chosen.
    pub pg_bin: Option<&'a Path>,
}

/// The server.
pub struct Server {
    remote: Remote,
    primary: Primary,
    binaries: Binaries,
    max_rate: Option<u64>,
    spread_checkpoint: bool,
    /// The standby that it becomes.
    standby: Option<Standby>,
}

struct Standby {
    name: String,
    slot: Option<String>,
    /// What keeps the WAL for it meanwhile.
    keeping: Mutex<Option<Keeping>>,
}

impl Server {
    /// Asks the server, and refuses one that cannot be copied.
    pub fn find(url: &str, for_fork: &For, config: &StoreConfig) -> Result<Server> {
        let For { name, running, run_as, pg_bin } = *for_fork;
        let user = user::choose(run_as.or(config.run_as.as_deref()))?;
        let remote = Remote::new(url, &user)?;
        let primary = Primary::ask(&remote)?;
        let binaries = binaries::find(pg_bin, Some(primary.major))?;
        let program = binaries.program("pg_basebackup");
        if !program.is_file() {
            return Err(Error::new(Kind::Environment, format!("there is no {}", program.display()))
                .cause(format!("the server is PostgreSQL {}, and is copied with its own version", primary.major))
                .hint("install PostgreSQL's client programs of that version, or choose others with --pg-bin DIR"));
        }
        let standby = match running.follow {
            Some(_) => Some(Standby::find(&remote, name, running)?),
            None => None,
        };
        Ok(Server {
            standby,
            remote,
            primary,
            binaries,
            max_rate: running.max_rate,
            spread_checkpoint: running.checkpoint == ServerCheckpoint::Spread,
        })
    }

    fn settle_files(&self, making: &Making) -> Result<Brought> {
        let tree = DirTree(making.pgdata.into());
        Cluster::inspect(making.pgdata)?;
        let warnings = standalone::settle(&tree, &self.primary.settings)?;
        let mut brought = Brought { warnings, ..Brought::default() };
        if let Some(standby) = &self.standby {
            brought.settings = self.primary.limits.clone();
            let slot = standby.slot.as_deref();
            brought.settings.extend(follow::settle(&tree, &self.remote, &standby.name, slot)?);
            brought.warnings.extend(self.synchronous_warning(standby));
        }
        brought.check_ssl(making.pgdata)?;
        Ok(brought)
    }

    /// The server would wait for a standby that it takes for one of its own.
    fn synchronous_warning(&self, standby: &Standby) -> Option<String> {
        let names = self.primary.settings.get("synchronous_standby_names")?;
        let is_one = |name: &str| name == "*" || name.eq_ignore_ascii_case(&standby.application_name());
        let mut parts = names.split(|c: char| c == ',' || c == '(' || c == ')' || c.is_whitespace());
        parts.any(|part| is_one(part.trim_matches('"'))).then(|| {
            format!(
                "synchronous_standby_names = '{names}' on the server takes {} for a synchronous standby: commits \
                 there may wait for it",
                standby.name
            )
        })
    }
}

impl Standby {
    fn find(remote: &Remote, name: &str, running: &RunningServer) -> Result<Standby> {
        let named = || running.slot.clone().unwrap_or_else(|| slot_of(name));
        let slot = (!running.no_slot).then(named);
        if let Some(slot) = &slot
            && Keeping::is_taken(remote, slot)?
        {
            return Err(Error::new(Kind::Exists, format!("the server has a slot {slot:?} already"))
                .cause("another standby may be using it")
                .hint(format!(
                    "choose another --slot; or, if nobody needs it: psql ... -c \"SELECT \
                     pg_drop_replication_slot('{slot}')\""
                )));
        }
        Ok(Standby { name: name.to_string(), slot, keeping: Mutex::new(None) })
    }

    fn application_name(&self) -> String {
        follow::application_name(&self.name)
    }
}

impl Source for Server {
    fn user(&self) -> &OsUser {
        self.remote.user()
    }

    fn facts(&self) -> Facts {
        Facts {
            pg_version: self.primary.major,
            origin: Origin::Server(self.remote.url().to_string()),
            superuser: self.primary.superuser.clone(),
            password: None,
            base_mark: None,
            follow: self
                .standby
                .as_ref()
                .map(|standby| Follow { url: self.remote.url().to_string(), slot: standby.slot.clone() }),
        }
    }

    fn fill(&self, making: &Making) -> Result<Brought> {
        if let Some(Standby { slot: Some(slot), keeping, .. }) = &self.standby {
            *keeping.lock() = Some(Keeping::begin(&self.remote, slot)?);
        }
        let backup = BaseBackup {
            remote: &self.remote,
            binaries: &self.binaries,
            pgdata: making.pgdata,
            tablespaces: &self.primary.tablespaces,
            max_rate: self.max_rate,
            spread_checkpoint: self.spread_checkpoint,
            for_standby: self.standby.is_some(),
            wal_is_kept: self.standby.as_ref().is_some_and(|standby| standby.slot.is_some()),
        };
        backup.run(making.ui, &format!("copying {}", self.remote.url()))?;
        self.user().run(|| self.settle_files(making))
    }

    fn settle(&self, _making: &Making) -> Result<Vec<String>> {
        if let Some(standby) = &self.standby
            && let Some(keeping) = standby.keeping.lock().as_mut()
        {
            keeping.make()?;
        }
        Ok(Vec::new())
    }

    fn undo(&self) -> Result<()> {
        match &self.standby {
            Some(standby) => standby.keeping.lock().as_mut().map_or(Ok(()), Keeping::undo),
            None => Ok(()),
        }
    }
}
