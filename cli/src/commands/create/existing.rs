//! A stopped cluster's data directory on this machine: copied (`--from`), or used
//! in place (`--base`).

use std::path::{Path, PathBuf};

use super::{Facts, Making, Source};
use crate::args::Create;
use crate::config::StoreConfig;
use crate::error::{Error, Kind, Result};
use crate::meta::Origin;
use crate::postgres::bring::{self, Brought, Way};
use crate::postgres::cluster::Cluster;
use crate::postgres::user::{self, OsUser};
use crate::postgres::{adopt, binaries, import};

/// The cluster.
pub struct Existing {
    user: OsUser,
    cluster: Cluster,
    /// Its postgresql.conf.
    conf: PathBuf,
    in_place: bool,
}

impl Existing {
    /// Looks at the directory, and refuses one that cannot be brought in.
    pub fn find(dir: &Path, in_place: bool, args: &Create, config: &StoreConfig) -> Result<Existing> {
        // As the user who runs this; whether the fork's user may is seen below.
        let cluster = Cluster::inspect(dir)?;
        let user = source_user(&cluster, args.run_as.as_deref(), config, in_place)?;
        binaries::find(args.binaries.pg_bin.as_deref(), Some(cluster.major))?;
        let conf = user.run(|| {
            let cluster = Cluster::inspect(&cluster.dir)?;
            cluster.check_stopped()?;
            adopt::locate(&cluster, args.config_dir.as_deref())
        })?;
        Ok(Existing { user, cluster, conf, in_place })
    }
}

impl Source for Existing {
    fn user(&self) -> &OsUser {
        &self.user
    }

    fn facts(&self) -> Facts {
        let Existing { cluster, in_place, .. } = self;
        let dir = cluster.dir.clone();
        Facts {
            pg_version: cluster.major,
            origin: if *in_place { Origin::Base(dir) } else { Origin::Copy(dir) },
            // initdb names the superuser after who ran it, the owner.
            superuser: crate::config::user_name(cluster.uid),
            password: None,
            base_mark: in_place.then_some(cluster.control.mark),
            follow: None,
        }
    }

    fn fill(&self, making: &Making) -> Result<Brought> {
        let way = if self.in_place { Way::InPlace } else { Way::Copy };
        let bring = || bring::bring(&self.cluster, &self.conf, making.pgdata, making.ui, way);
        self.user.run(bring).map_err(|error| self.explain(error))
    }

    fn settle(&self, _making: &Making) -> Result<Vec<String>> {
        self.user.run(|| import::check_same(&self.cluster))?;
        Ok(Vec::new())
    }

    /// What fails while a cluster is brought in, which was found before: something
    /// that is missing in it makes it unusable. There is always something to do.
    fn explain(&self, mut error: Error) -> Error {
        if error.kind == Kind::NotFound {
            error.kind = Kind::BadInput;
        }
        let hint = match error.kind {
            Kind::Environment => {
                let user = &self.user.name;
                format!("all of the cluster must be readable for user {user}, who runs it; nothing was kept")
            }
            Kind::BadInput => "mend or remove that in the cluster, and try again; nothing was kept".into(),
            _ => return error,
        };
        if error.hint.is_none() { error.hint(hint) } else { error }
    }
}

/// The source's owner runs its fork, unless another user is chosen.
fn source_user(
    cluster: &Cluster,
    wanted: Option<&str>,
    config: &StoreConfig,
    in_place: bool,
) -> Result<OsUser> {
    let me = OsUser::current()?;
    let user = match wanted {
        None if me.uid == 0 && cluster.uid != 0 => OsUser::numbered(cluster.uid)?,
        _ => user::choose(wanted.or(config.run_as.as_deref()))?,
    };
    if in_place && user.uid != cluster.uid {
        let owner = crate::config::user_name(cluster.uid);
        return Err(Error::new(
            Kind::Environment,
            format!(
                "{} belongs to user {owner}, and PostgreSQL would run as {}",
                cluster.dir.display(),
                user.name
            ),
        )
        .cause("a base is used as it is, and PostgreSQL wants to own its data directory")
        .hint(format!("run this as {owner} (or as root, with --run-as {owner}), or copy it with --from")));
    }
    Ok(user)
}
