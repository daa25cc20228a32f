//! `pgcowfs create`: a root fork, made through the mount like any data
//! directory, and complete only when it is published. Each source of its files
//! is a file of its own.

mod existing;
mod fresh;
mod from_dump;
mod running;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::existing::Existing;
use self::fresh::Fresh;
use self::from_dump::FromDump;
use self::running::{For, Server};
use super::{Context, mask, ms, start, state};
use crate::args::{ChoiceOptions, Create, MaskOptions, Restore, RunningServer};
use crate::client::Client;
use crate::config::{StoreConfig, StorePaths};
use crate::error::{Context as _, Error, Kind, Result};
use crate::launch;
use crate::meta::{Follow, ForkMeta, How, Mask, Origin, Secret, Upkeep};
use crate::postgres::bring::Brought;
use crate::postgres::identity::{self, Identity};
use crate::postgres::server::{self, StopHow};
use crate::postgres::tree::DirTree;
use crate::postgres::user::OsUser;
use crate::protocol::{CreateSpec, Created, ForkRow, Request};
use crate::report::{CreateReport, MaskedReport};
use crate::ui::Ui;

/// Where a new fork's files come from. Making one has found that it can be used.
trait Source {
    /// Who runs the fork's server and owns its files.
    fn user(&self) -> &OsUser;

    /// What the store keeps about the fork because of where it comes from.
    fn facts(&self) -> Facts;

    /// Brings the files into the incomplete fork: a whole data directory, which does
    /// not know yet that it is another one.
    fn fill(&self, making: &Making) -> Result<Brought>;

    /// What is to be done or checked when the fork has its identity, before it is
    /// published. Returns what its user should know.
    fn settle(&self, _making: &Making) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Takes back what was done elsewhere, if the fork is not made after all.
    fn undo(&self) -> Result<()> {
        Ok(())
    }

    /// An error of what is done to the files that were brought in.
    fn explain(&self, error: Error) -> Error {
        error
    }
}

/// What a source tells about its cluster.
struct Facts {
    pg_version: u32,
    origin: Origin,
    /// The role to connect as, if the user chooses none.
    superuser: String,
    /// That role's password, where it is made here.
    password: Option<Secret>,
    base_mark: Option<u64>,
    follow: Option<Follow>,
}

/// An incomplete fork.
struct Making<'a> {
    name: &'a str,
    ui: &'a Ui,
    paths: &'a StorePaths,
    pgdata: &'a Path,
    meta: &'a ForkMeta,
}

/// Everything that can be wrong with the input, before anything is made.
fn find_source(context: &Context, args: &Create, config: &StoreConfig) -> Result<Box<dyn Source>> {
    if args.running.lacks_url() {
        return Err(Error::new(Kind::Usage, "--max-rate and --checkpoint go with --from-server or --follow"));
    }
    if let Some(from) = &args.from_dump {
        return Ok(Box::new(FromDump::find(context, from, args, config)?));
    }
    from_dump::refuse_options(args)?;
    if let Some(url) = args.running.url() {
        let for_fork = For {
            name: &args.name,
            running: &args.running,
            run_as: args.run_as.as_deref(),
            pg_bin: args.binaries.pg_bin.as_deref(),
        };
        return Ok(Box::new(Server::find(url, &for_fork, config)?));
    }
    Ok(match (&args.from, &args.base) {
        (Some(dir), _) => Box::new(Existing::find(dir, false, args, config)?),
        (None, Some(dir)) => Box::new(Existing::find(dir, true, args, config)?),
        (None, None) => Box::new(Fresh::find(args, config)?),
    })
}

/// Makes a root fork.
pub fn run(context: &Context, args: &Create) -> Result<()> {
    let began = Instant::now();
    pgcowfs::check_fork_name(&args.name)?;
    context.paths.check()?;
    let config = StoreConfig::load(&context.paths)?;
    let source = find_source(context, args, &config)?;
    let mut client = context.client()?;
    check_reach(source.user(), &client.hello.mountpoint)?;
    let (masks, mask_forks) = masks(args)?;
    let spec = CreateSpec {
        fork: args.name.clone(),
        meta: ForkMeta { masks, mask_forks, ..settings(args, source.as_ref()) },
        port: args.server.port,
        quota: args.server.quota,
    };
    let created: Created = client.call(&Request::Create(Box::new(spec)))?;
    let result = fill(context, args, source.as_ref(), &created);
    let done = result.and_then(|warnings| {
        let masked = masked(context, &mut client, &created, &args.name)?;
        let row = publish(&mut client, &args.name)?;
        let starts = row.meta.follow.is_some();
        Ok((warnings, masked, if starts { start(context, &mut client, &row)? } else { row }))
    });
    let (warnings, masked, row) = match done {
        Ok(done) => done,
        Err(error) => {
            stop(context, &mut client, &args.name);
            // If this fails too, the daemon does it when the connection ends.
            let undone: Result<()> = client.call(&Request::Remove { fork: args.name.clone() });
            if let Err(error) = undone {
                context.ui.warn(format!("the incomplete fork could not be removed yet: {error}"));
            }
            if let Err(error) = source.undo() {
                context.ui.warn(format!("what was made on the server is still there: {error}"));
            }
            return Err(error);
        }
    };
    for warning in &warnings {
        context.ui.warn(warning);
    }
    let create_ms = ms(began.elapsed());
    context.ui.print(&CreateReport { fork: context.report(&row), warnings, masked, create_ms })
}

/// Copies a running server anew, for a root that was copied from it: into an incomplete
/// fork of that name, which whoever asks removes. Returns its data directory.
pub fn copy_server(
    context: &Context,
    client: &mut Client,
    root: &ForkRow,
    url: &str,
    name: &str,
    running: &RunningServer,
) -> Result<(PathBuf, Brought)> {
    let config = StoreConfig::load(&context.paths)?;
    let pg_bin = root.meta.pg_bin.as_deref();
    let for_fork = For { name, running, run_as: Some(&root.meta.run_as), pg_bin };
    let source = Server::find(url, &for_fork, &config)?;
    let facts = source.facts();
    if facts.pg_version != root.meta.pg_version {
        return Err(Error::new(
            Kind::BadInput,
            format!("the server at {url} is PostgreSQL {}", facts.pg_version),
        )
        .cause(format!("fork {:?} is of PostgreSQL {}", root.name, root.meta.pg_version))
        .hint("bring it in under another name: pgcowfs create NAME --from-server URL"));
    }
    let meta =
        ForkMeta { origin: facts.origin, masks: Vec::new(), mask_forks: Vec::new(), ..root.meta.clone() };
    let spec = CreateSpec { fork: name.to_string(), meta, port: None, quota: None };
    let created: Created = client.call(&Request::Create(Box::new(spec)))?;
    let making =
        Making { name, ui: context.ui, paths: &context.paths, pgdata: &created.pgdata, meta: &created.meta };
    let brought = source.fill(&making)?;
    Ok((created.pgdata, brought))
}

/// What masks the fork, and what each fork of it.
fn masks(args: &Create) -> Result<(Vec<Mask>, Vec<Mask>)> {
    let masks = mask::masks(&args.mask)?;
    if !masks.is_empty() && args.running.follow.is_some() {
        return Err(Error::new(Kind::Usage, "--mask does not go with --follow")
            .cause("a standby is what its server is, and cannot be written to")
            .hint("have each fork of it masked before anybody sees it: --mask-forks FILE"));
    }
    let mask_forks = mask::named(&args.mask_forks, &args.mask.mask_database)?;
    if !masks.is_empty() && args.server.keep_identity {
        return Err(Error::new(Kind::Usage, "--mask does not go with --keep-identity")
            .cause("what replicates from a masked fork, or archives it, would have the data as it was"));
    }
    if let Some(mask) = mask_forks.iter().find(|mask| matches!(mask.how, How::Program(_))) {
        return Err(Error::new(
            Kind::Usage,
            format!("--mask-forks needs a script, and {} is a program", mask.name()),
        )
        .cause("what it does is kept with the fork, whatever becomes of the file")
        .hint("give an SQL script that is not executable, or mask each fork with --mask"));
    }
    Ok((masks, mask_forks))
}

fn masked(
    context: &Context,
    client: &mut Client,
    created: &Created,
    name: &str,
) -> Result<Option<MaskedReport>> {
    if created.meta.masks.is_empty() {
        return Ok(None);
    }
    let row = client.info(name)?;
    mask::apply(context, client, &row).map(Some)
}

/// Starts a standby, which can only follow while it runs. One that cannot start would
/// keep the server's WAL for nothing.
fn start(context: &Context, client: &mut Client, row: &ForkRow) -> Result<ForkRow> {
    start::start(context, client, row, &launch::default_options())?;
    client.info(&row.name)
}

/// Stops the server of a fork that is not to be after all.
fn stop(context: &Context, client: &mut Client, fork: &str) {
    let Ok(row) = client.info(fork) else { return };
    if let Some(pid) = state(&row).pid()
        && let Err(error) = server::stop(fork, &row.pgdata, pid, StopHow::Immediate, STOP_WITHIN)
    {
        context.ui.warn(error.to_string());
    }
}

const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Makes a root fork of a dump: `create --from-dump` of a path.
pub fn restore(context: &Context, args: &Restore) -> Result<()> {
    // A path that looks like a URL is one all the same.
    let dump = std::path::absolute(&args.dump).at("make absolute", &args.dump)?;
    let create = Create {
        name: args.name.clone(),
        from: None,
        base: None,
        running: RunningServer::default(),
        from_dump: Some(dump.into()),
        choice: ChoiceOptions { database: args.database.clone(), table: Vec::new() },
        load: args.load.clone(),
        config_dir: None,
        binaries: args.binaries.clone(),
        pg_version: None,
        initdb_arg: Vec::new(),
        run_as: args.run_as.clone(),
        superuser: None,
        mask: MaskOptions::default(),
        mask_forks: Vec::new(),
        server: args.server.clone(),
    };
    run(context, &create)
}

fn publish(client: &mut Client, fork: &str) -> Result<ForkRow> {
    client.call(&Request::Publish { fork: fork.to_string() })
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

fn settings(args: &Create, source: &dyn Source) -> ForkMeta {
    let (facts, user) = (source.facts(), source.user());
    ForkMeta {
        port: 0,
        socket_dir: PathBuf::new(),
        listen: args.server.listen.clone(),
        pg_version: facts.pg_version,
        pg_bin: args.binaries.pg_bin.as_deref().and_then(|dir| dir.canonicalize().ok()),
        run_as: user.name.clone(),
        uid: user.uid,
        gid: user.gid,
        superuser: args.superuser.clone().unwrap_or(facts.superuser),
        socket_trusts: facts.password.is_some(),
        password: facts.password,
        base_mark: facts.base_mark,
        origin: facts.origin,
        keep_identity: args.server.keep_identity,
        new_timeline: false,
        follow: facts.follow,
        settings: args.server.settings.clone(),
        protection: None,
        upkeep: Upkeep::default(),
        masks: Vec::new(),
        mask_forks: Vec::new(),
    }
}

/// Fills the incomplete fork; returns what the user should know.
fn fill(context: &Context, args: &Create, source: &dyn Source, created: &Created) -> Result<Vec<String>> {
    let (pgdata, meta) = (&created.pgdata, &created.meta);
    let making = Making { name: &args.name, ui: context.ui, paths: &context.paths, pgdata, meta };
    let Brought { mut warnings, mut settings, .. } = source.fill(&making)?;
    settings.extend_from_slice(&args.server.settings);
    let identity = Identity {
        fork: &args.name,
        pgdata,
        port: meta.port,
        socket_dir: &meta.socket_dir,
        listen: &meta.listen,
        major: meta.pg_version,
        keep: args.server.keep_identity,
        follows: meta.follow.is_some(),
        new_timeline: false,
        settings: &settings,
        source: None,
    };
    let identified = source.user().run(|| identity::apply(&DirTree(pgdata.clone()), &identity));
    warnings.extend(identified.map_err(|error| source.explain(error))?);
    warnings.extend(source.settle(&making).map_err(|error| source.explain(error))?);
    Ok(warnings)
}
