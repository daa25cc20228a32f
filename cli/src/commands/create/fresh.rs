//! A fresh cluster (initdb).

use super::{Brought, Facts, Making, Source};
use crate::args::Create;
use crate::config::StoreConfig;
use crate::error::{Error, Kind, Result};
use crate::meta::{Origin, Secret};
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::initdb;
use crate::postgres::user::{self, OsUser};

/// What initdb needs.
pub struct Fresh {
    user: OsUser,
    binaries: Binaries,
    password: String,
    args: Vec<String>,
}

impl Fresh {
    /// Looks for the programs.
    pub fn find(args: &Create, config: &StoreConfig) -> Result<Fresh> {
        if args.config_dir.is_some() {
            return Err(Error::new(Kind::Usage, "--config-dir goes with --from or --base"));
        }
        Ok(Fresh {
            user: user::choose(args.run_as.as_deref().or(config.run_as.as_deref()))?,
            binaries: binaries::find(args.binaries.pg_bin.as_deref(), args.pg_version)?,
            password: initdb::password()?,
            args: args.initdb_arg.clone(),
        })
    }
}

impl Source for Fresh {
    fn user(&self) -> &OsUser {
        &self.user
    }

    fn facts(&self) -> Facts {
        Facts {
            pg_version: self.binaries.major,
            origin: Origin::Initdb,
            superuser: initdb::SUPERUSER.to_string(),
            password: Some(Secret(self.password.clone())),
            base_mark: None,
            follow: None,
        }
    }

    fn fill(&self, making: &Making) -> Result<Brought> {
        make_cluster(making, &self.binaries, &self.user, &self.password, &self.args)?;
        Ok(Brought::default())
    }
}

/// Runs initdb on an incomplete fork.
pub fn make_cluster(
    making: &Making,
    binaries: &Binaries,
    user: &OsUser,
    password: &str,
    args: &[String],
) -> Result<()> {
    making.ui.note(format!("making a cluster of PostgreSQL {} (initdb)", binaries.version));
    initdb::run(&initdb::Fresh {
        binaries,
        user,
        pgdata: making.pgdata,
        scratch: &making.meta.socket_dir,
        superuser: &making.meta.superuser,
        password,
        args,
    })
}
