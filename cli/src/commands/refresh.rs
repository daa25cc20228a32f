//! `pgcowfs refresh`: a root becomes what its source is now.
//!
//! The new state is made aside, in an incomplete fork of the root: what differs is
//! written there, page by page, and masked if the root is. Then it takes the root's
//! place, as a reset does.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::fork::{self, Wanted};
use super::reset::{self, Swap};
use super::{Context, create, mask, ms, state, user};
use crate::args::{Place, Refresh, RunningServer, ServerCheckpoint};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::meta::{ForkMeta, Origin};
use crate::postgres::bring::{self, Brought, Way};
use crate::postgres::cluster::{self, Cluster};
use crate::postgres::identity::{self, Identity};
use crate::postgres::tree::DirTree;
use crate::postgres::user::OsUser;
use crate::postgres::{adopt, import};
use crate::protocol::{ForkRow, Request, ResetSpec, ResetTarget};
use crate::report::{MaskedReport, RefreshReport};

/// Refreshes a root.
pub fn run(context: &Context, args: &Refresh) -> Result<()> {
    let began = Instant::now();
    let mut client = context.client()?;
    let row = client.info(&args.fork)?;
    let from = source(&row, args.from.as_deref())?;
    let owner = user(&row)?;
    let (aside, staged) = names();
    let mut spec = ResetSpec { fork: row.name.clone(), to: ResetTarget::Made(aside.clone()), origin: None };
    // Whatever stands in its way is found before anything is read.
    client.call::<()>(&Request::CheckReset(spec.clone()))?;
    if let Some(base) = &row.base {
        cluster::check_base(&row.name, base, row.meta.base_mark)?;
    }
    let again = format!("pgcowfs refresh --force {}", row.name);
    if !args.force && state(&row).pid().is_some() {
        reset::refuse_sessions(&row, &again)?;
    }
    let new = match &from {
        From::Directory(_) if args.max_rate.is_some() || args.checkpoint != ServerCheckpoint::Fast => {
            return Err(Error::new(Kind::Usage, "--max-rate and --checkpoint go with a running server")
                .hint("leave them away"));
        }
        From::Directory(dir) => {
            let (cluster, conf) = find(&row, &owner, dir, args.config_dir.as_deref())?;
            spec.origin = Some(Origin::Copy(cluster.dir.clone()));
            New { cluster, conf, staged: None, brought: Brought::default() }
        }
        From::Server(url) => copy_server(context, &mut client, &row, &owner, url, &staged, args)?,
    };
    let refreshed_from = match from {
        From::Directory(_) => new.cluster.dir.display().to_string(),
        From::Server(url) => url,
    };
    let (brought, masked) = make(context, &mut client, &row, &owner, new, aside.clone())?;
    let swap =
        Swap { row: &row, spec, options: &args.options, unless_connected: (!args.force).then_some(&again) };
    let swapped = swap.run(context, &mut client)?;
    if let Err(error) = client.call::<()>(&Request::Remove { fork: aside }) {
        context.ui.warn(format!("what was made aside is not removed yet: {error}"));
    }
    let mut warnings = brought.warnings;
    warnings.extend(swapped.done.warnings);
    warnings.iter().for_each(|warning| context.ui.warn(warning));
    context.ui.print(&RefreshReport {
        fork: context.report(&client.info(&row.name)?),
        refreshed_from,
        written_bytes: brought.written,
        masked,
        refresh_ms: ms(began.elapsed()),
        stop_ms: swapped.stopped.map(ms),
        start_ms: swapped.started.map(ms),
        warnings,
    })
}

/// Where its new state is.
enum From {
    Directory(PathBuf),
    Server(String),
}

/// The new state.
struct New {
    cluster: Cluster,
    /// Its postgresql.conf.
    conf: PathBuf,
    /// The incomplete fork that it is in, if that is to be removed.
    staged: Option<String>,
    /// What is known about it already.
    brought: Brought,
}

/// The names of what is made aside, and of a server's copy: nobody sees them.
fn names() -> (String, String) {
    let number = std::process::id();
    (format!("refresh-{number}"), format!("refresh-{number}-source"))
}

/// Copies the server that the root was copied from.
fn copy_server(
    context: &Context,
    client: &mut Client,
    row: &ForkRow,
    owner: &OsUser,
    url: &str,
    staged: &str,
    args: &Refresh,
) -> Result<New> {
    if args.config_dir.is_some() {
        return Err(Error::new(Kind::Usage, "--config-dir goes with a directory")
            .hint("leave it away: a server's configuration comes with it"));
    }
    let running = RunningServer {
        from_server: Some(url.to_string()),
        follow: None,
        slot: None,
        no_slot: false,
        max_rate: args.max_rate,
        checkpoint: args.checkpoint,
    };
    let (dir, brought) = create::copy_server(context, client, row, url, staged, &running)?;
    let (cluster, conf) = find(row, owner, &dir, None)?;
    Ok(New { cluster, conf, staged: Some(staged.to_string()), brought })
}

fn source(row: &ForkRow, from: Option<&Path>) -> Result<From> {
    let name = &row.name;
    let refused = |why: &str, hint: String| {
        Err(Error::new(Kind::State, format!("fork {name:?} cannot be refreshed")).cause(why).hint(hint))
    };
    if let Some(parent) = &row.parent {
        return refused(
            &format!("it is a fork of {parent:?}"),
            format!("make it what its parent is now: pgcowfs reset {name} --to parent"),
        );
    }
    if row.meta.follow.is_some() {
        return refused("it follows a server", "it is what that server is already, while it runs".into());
    }
    match (from, &row.meta.origin) {
        (_, Origin::Initdb) => refused(
            "it was made empty (initdb)",
            format!(
                "bring a cluster in under another name: pgcowfs create NAME --from DIR; {name} stays what it is"
            ),
        ),
        (_, Origin::Fork) => refused(
            "it was a fork of another one",
            "bring a cluster in under another name: pgcowfs create NAME --from DIR".into(),
        ),
        (Some(dir), _) => Ok(From::Directory(dir.to_path_buf())),
        (None, Origin::Copy(dir)) => Ok(From::Directory(dir.clone())),
        (None, Origin::Server(url)) => Ok(From::Server(url.clone())),
        (None, Origin::Base(dir)) => refused(
            &format!("it uses {} in place, which must stay as it is", dir.display()),
            format!("give the newer cluster's directory: pgcowfs refresh {name} --from DIR"),
        ),
    }
}

/// The cluster, and its postgresql.conf, unless they cannot be used for this fork.
fn find(row: &ForkRow, owner: &OsUser, dir: &Path, config_dir: Option<&Path>) -> Result<(Cluster, PathBuf)> {
    let cluster = Cluster::inspect(dir)?;
    if cluster.major != row.meta.pg_version {
        return Err(Error::new(
            Kind::BadInput,
            format!("{} is a cluster of PostgreSQL {}", dir.display(), cluster.major),
        )
        .cause(format!("fork {:?} is of PostgreSQL {}", row.name, row.meta.pg_version))
        .hint("bring it in under another name: pgcowfs create NAME --from DIR"));
    }
    let conf = owner.run(|| {
        let cluster = Cluster::inspect(&cluster.dir)?;
        cluster.check_stopped()?;
        adopt::locate(&cluster, config_dir)
    })?;
    Ok((cluster, conf))
}

/// Makes the new state aside. If anything fails, it is removed again.
fn make(
    context: &Context,
    client: &mut Client,
    row: &ForkRow,
    owner: &OsUser,
    new: New,
    name: String,
) -> Result<(Brought, Option<MaskedReport>)> {
    let New { cluster, conf, staged, brought: known } = new;
    let place = Place { fork: row.name.clone(), label: None };
    let wanted = Wanted {
        incomplete: true,
        as_is: true,
        aside: true,
        masks: Vec::new(),
        ..Wanted::of(&place, row, name.clone())
    };
    let mut aside = fork::fork(context, client, wanted)?.forked.row;
    let brought = owner.run(|| {
        let brought = bring::bring(&cluster, &conf, &aside.pgdata, context.ui, Way::Over)?;
        let settings = [known.settings.as_slice(), brought.settings.as_slice(), &row.meta.settings].concat();
        let identity = Identity {
            fork: &aside.name,
            pgdata: &aside.pgdata,
            port: aside.meta.port,
            socket_dir: &aside.meta.socket_dir,
            listen: &aside.meta.listen,
            major: row.meta.pg_version,
            keep: row.meta.keep_identity,
            follows: false,
            new_timeline: false,
            settings: &settings,
            source: None,
        };
        let warnings = identity::apply(&DirTree(aside.pgdata.clone()), &identity)?;
        import::check_same(&cluster)?;
        Ok(Brought { warnings: [known.warnings, brought.warnings, warnings].concat(), ..brought })
    });
    let made = brought.and_then(|brought| {
        // Its room is for the masks.
        if let Some(fork) = staged {
            client.call::<()>(&Request::Remove { fork })?;
        }
        if row.meta.masks.is_empty() {
            return Ok((brought, None));
        }
        aside.meta = ForkMeta { masks: row.meta.masks.clone(), ..aside.meta };
        let masked = mask::apply(context, client, &aside)?;
        Ok((brought, Some(masked)))
    });
    made.map_err(|error| {
        // If this fails, too, the daemon does it when the connection ends.
        match client.call::<()>(&Request::Remove { fork: name }) {
            Ok(()) => error,
            Err(more) => error.cause(format!("what was made aside is not removed yet: {more}")),
        }
    })
}
