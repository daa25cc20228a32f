//! `pgcowfs create`: a root fork, made through the mount like any data
//! directory, and complete only when it is published.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Context, ms};
use crate::args::Create;
use crate::client::Client;
use crate::config::StoreConfig;
use crate::error::{Error, Kind, Result};
use crate::meta::{ForkMeta, Origin, Secret, Upkeep};
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::cluster::Cluster;
use crate::postgres::identity::{self, Identity};
use crate::postgres::tree::DirTree;
use crate::postgres::user::{self, OsUser};
use crate::postgres::{adopt, import, initdb};
use crate::protocol::{CreateSpec, Created, ForkRow, Request};
use crate::report::CreateReport;

/// Where the new fork's files come from.
enum Source {
    Fresh { binaries: Binaries, password: String },
    Existing { cluster: Cluster, conf: PathBuf, in_place: bool },
}

/// Makes a root fork.
pub fn run(context: &Context, args: &Create) -> Result<()> {
    let began = Instant::now();
    pgcowfs::check_fork_name(&args.name)?;
    context.paths.check()?;
    let config = StoreConfig::load(&context.paths)?;
    let (source, user) = find_source(args, &config)?;
    let mut client = context.client()?;
    check_reach(&user, &client.hello.mountpoint)?;
    let spec = CreateSpec {
        fork: args.name.clone(),
        meta: settings(args, &source, &user),
        port: args.server.port,
        quota: args.server.quota,
    };
    let created: Created = client.call(&Request::Create(Box::new(spec)))?;
    let result = fill(context, args, &source, &user, &created);
    let (warnings, row) = match result.and_then(|warnings| Ok((warnings, publish(&mut client, &args.name)?)))
    {
        Ok(done) => done,
        Err(error) => {
            // If this fails too, the daemon does it when the connection ends.
            let undone: Result<()> = client.call(&Request::Remove { fork: args.name.clone() });
            if let Err(error) = undone {
                context.ui.warn(format!("the incomplete fork could not be removed yet: {error}"));
            }
            return Err(error);
        }
    };
    for warning in &warnings {
        context.ui.warn(warning);
    }
    context.ui.print(&CreateReport { fork: context.report(&row), warnings, create_ms: ms(began.elapsed()) })
}

fn publish(client: &mut Client, fork: &str) -> Result<ForkRow> {
    client.call(&Request::Publish { fork: fork.to_string() })
}

/// Everything that can be wrong with the input, before anything is made.
fn find_source(args: &Create, config: &StoreConfig) -> Result<(Source, OsUser)> {
    let pg_bin = args.binaries.pg_bin.as_deref();
    let wanted = args.run_as.as_deref();
    let (dir, in_place) = match (&args.from, &args.base) {
        (Some(dir), _) => (dir, false),
        (None, Some(dir)) => (dir, true),
        (None, None) => {
            if args.config_dir.is_some() {
                return Err(Error::new(Kind::Usage, "--config-dir goes with --from or --base"));
            }
            let user = user::choose(wanted.or(config.run_as.as_deref()))?;
            let binaries = binaries::find(pg_bin, args.pg_version)?;
            return Ok((Source::Fresh { binaries, password: initdb::password()? }, user));
        }
    };
    // As the user who runs this; whether the fork's user may is seen below.
    let cluster = Cluster::inspect(dir)?;
    let user = source_user(&cluster, wanted, config, in_place)?;
    binaries::find(pg_bin, Some(cluster.major))?;
    let conf = user.run(|| {
        let cluster = Cluster::inspect(&cluster.dir)?;
        cluster.check_stopped()?;
        adopt::locate(&cluster, args.config_dir.as_deref())
    })?;
    Ok((Source::Existing { cluster, conf, in_place }, user))
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

/// PostgreSQL must be able to reach its data directory.
fn check_reach(user: &OsUser, mountpoint: &Path) -> Result<()> {
    match user.barrier(mountpoint).filter(|_| !user.is_current()) {
        None => Ok(()),
        Some(dir) => Err(Error::new(
            Kind::Environment,
            format!("user {} cannot reach the mount point {}", user.name, mountpoint.display()),
        )
        .cause(format!("the directory {} is closed to that user", dir.display()))
        .hint(format!(
            "mount elsewhere (pgcowfs umount; pgcowfs mount --mountpoint DIR), or open it: chmod o+x {}",
            dir.display()
        ))),
    }
}

fn settings(args: &Create, source: &Source, user: &OsUser) -> ForkMeta {
    let (pg_version, origin, password, role) = match source {
        Source::Fresh { binaries, password } => {
            (binaries.major, Origin::Initdb, Some(Secret(password.clone())), initdb::SUPERUSER.to_string())
        }
        Source::Existing { cluster, in_place, .. } => {
            let dir = cluster.dir.clone();
            let origin = if *in_place { Origin::Base(dir) } else { Origin::Copy(dir) };
            // initdb names the superuser after who ran it, the owner.
            (cluster.major, origin, None, crate::config::user_name(cluster.uid))
        }
    };
    ForkMeta {
        port: 0,
        socket_dir: PathBuf::new(),
        listen: args.server.listen.clone(),
        pg_version,
        pg_bin: args.binaries.pg_bin.as_deref().and_then(|dir| dir.canonicalize().ok()),
        run_as: user.name.clone(),
        uid: user.uid,
        gid: user.gid,
        superuser: args.superuser.clone().unwrap_or(role),
        socket_trusts: password.is_some(),
        password,
        base_mark: match source {
            Source::Existing { cluster, in_place: true, .. } => Some(cluster.control.mark),
            _ => None,
        },
        origin,
        keep_identity: args.server.keep_identity,
        settings: args.server.settings.clone(),
        protection: None,
        upkeep: Upkeep::default(),
    }
}

/// Fills the incomplete fork; returns what the user should know.
fn fill(
    context: &Context,
    args: &Create,
    source: &Source,
    user: &OsUser,
    created: &Created,
) -> Result<Vec<String>> {
    let pgdata = &created.pgdata;
    let mut warnings = Vec::new();
    if let Source::Fresh { binaries, password } = source {
        context.ui.note(format!("making a cluster of PostgreSQL {} (initdb)", binaries.version));
        initdb::run(&initdb::Fresh {
            binaries,
            user,
            pgdata,
            scratch: &created.meta.socket_dir,
            superuser: &created.meta.superuser,
            password,
            args: &args.initdb_arg,
        })?;
    }
    let filled = user.run(|| {
        let tree = DirTree(pgdata.clone());
        let mut settings = args.server.settings.clone();
        if let Source::Existing { cluster, conf, in_place } = source {
            warnings.extend(match in_place {
                true => import::bring_outside_in(cluster, pgdata, context.ui)?,
                false => import::copy(cluster, pgdata, context.ui)?,
            });
            import::link_tablespaces(pgdata, cluster.major)?;
            adopt::adopt(cluster, conf, &tree)?;
            if let Some(warning) = import::check_ssl(pgdata)? {
                settings.insert(0, ("ssl".into(), "off".into()));
                warnings.push(warning);
            }
            if !cluster.control.clean {
                warnings.push("the source was not shut down cleanly; the first start recovers it".into());
            }
        }
        let identity = Identity {
            fork: &args.name,
            pgdata,
            port: created.meta.port,
            socket_dir: &created.meta.socket_dir,
            listen: &created.meta.listen,
            major: created.meta.pg_version,
            keep: args.server.keep_identity,
            settings: &settings,
            source: None,
        };
        warnings.extend(identity::apply(&tree, &identity)?);
        if let Source::Existing { cluster, .. } = source {
            import::check_same(cluster)?;
        }
        Ok(warnings)
    });
    filled.map_err(|error| match source {
        Source::Existing { .. } => unusable(error, &user.name),
        Source::Fresh { .. } => error,
    })
}

/// What fails while a cluster is brought in, which was found before: something
/// that is missing in it makes it unusable. There is always something to do.
fn unusable(mut error: Error, user: &str) -> Error {
    if error.kind == Kind::NotFound {
        error.kind = Kind::BadInput;
    }
    let hint = match error.kind {
        Kind::Environment => {
            format!("all of the cluster must be readable for user {user}, who runs it; nothing was kept")
        }
        Kind::BadInput => "mend or remove that in the cluster, and try again; nothing was kept".into(),
        _ => return error,
    };
    if error.hint.is_none() { error.hint(hint) } else { error }
}
