//! A running server's cluster (`--from-server`), by a base backup.

use super::{Brought, Facts, Making, Source};
use crate::args::{Create, ServerCheckpoint};
use crate::config::StoreConfig;
use crate::error::{Error, Kind, Result};
use crate::meta::Origin;
use crate::postgres::base_backup::BaseBackup;
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::cluster::Cluster;
use crate::postgres::primary::Primary;
use crate::postgres::remote::Remote;
use crate::postgres::tree::DirTree;
use crate::postgres::user::{self, OsUser};
use crate::postgres::{import, standalone};

/// The server.
pub struct Server {
    remote: Remote,
    primary: Primary,
    binaries: Binaries,
    max_rate: Option<u64>,
    spread_checkpoint: bool,
}

impl Server {
    /// Asks the server, and refuses one that cannot be copied.
    pub fn find(url: &str, args: &Create, config: &StoreConfig) -> Result<Server> {
        let user = user::choose(args.run_as.as_deref().or(config.run_as.as_deref()))?;
        let remote = Remote::new(url, &user)?;
        let primary = Primary::ask(&remote)?;
        let binaries = binaries::find(args.binaries.pg_bin.as_deref(), Some(primary.major))?;
        let program = binaries.program("pg_basebackup");
        if !program.is_file() {
            return Err(Error::new(Kind::Environment, format!("there is no {}", program.display()))
                .cause(format!("the server is PostgreSQL {}, and is copied with its own version", primary.major))
                .hint("install PostgreSQL's client programs of that version, or choose others with --pg-bin DIR"));
        }
        Ok(Server {
            remote,
            primary,
            binaries,
            max_rate: args.running.max_rate,
            spread_checkpoint: args.running.checkpoint == ServerCheckpoint::Spread,
        })
    }

    fn settle_files(&self, making: &Making) -> Result<Brought> {
        let tree = DirTree(making.pgdata.into());
        Cluster::inspect(making.pgdata)?;
        let warnings = standalone::settle(&tree, &self.primary.settings)?;
        let mut brought = Brought { warnings, ..Brought::default() };
        if let Some(warning) = import::check_ssl(making.pgdata)? {
            brought.settings.push(("ssl".into(), "off".into()));
            brought.warnings.push(warning);
        }
        Ok(brought)
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
        }
    }

    fn fill(&self, making: &Making) -> Result<Brought> {
        let backup = BaseBackup {
            remote: &self.remote,
            binaries: &self.binaries,
            pgdata: making.pgdata,
            tablespaces: &self.primary.tablespaces,
            max_rate: self.max_rate,
            spread_checkpoint: self.spread_checkpoint,
            for_standby: false,
            wal_is_kept: false,
        };
        backup.run(making.ui, &format!("copying {}", self.remote.url()))?;
        self.user().run(|| self.settle_files(making))
    }
}
