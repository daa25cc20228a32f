//! `pgcowfs export`: a fork as a data directory on any disk.
//!
//! What is copied is a fork of the fork that nobody else sees, and that nothing writes
//! to: one instant. The copy has a name of its own until it is whole and durable.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::TempDir;

use super::fork::{self, Wanted};
use super::{Context, ms, user};
use crate::args::Export;
use crate::error::{Context as _, Error, Kind, Result};
use crate::postgres::cluster::Cluster;
use crate::postgres::departure::{self, Departure};
use crate::postgres::import;
use crate::postgres::tree::DirTree;
use crate::postgres::user::OsUser;
use crate::protocol::{ForkRow, Request};
use crate::report::ExportReport;

/// Writes a fork out.
pub fn run(context: &Context, args: &Export) -> Result<()> {
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).context(|| "cannot watch for signals")?;
    }
    let mut client = context.client()?;
    let place = fork::at_time(&mut client, &args.fork)?;
    let parent = fork::check_parent(&mut client, &place, &args.checkpoint)?;
    let owner = user(&parent)?;
    let dir = check_target(&args.dir, &client.hello.mountpoint)?;
    let partial = Partial::make(&dir, &owner)?;
    let checkpoint = fork::checkpoint_first(context, &place, &parent, &args.checkpoint)?;
    let name = format!("export-{}", std::process::id());
    // A standby outside would follow in the name of the one here: what leaves is a fork of it.
    let as_is = parent.meta.follow.is_none();
    let masks = Vec::new();
    let wanted = Wanted { incomplete: true, as_is, masks, ..Wanted::of(&place, &parent, name) };
    let forked = fork::fork(context, &mut client, wanted)?.forked;
    let of = if as_is { &parent } else { &forked.row };
    let departure =
        Departure { fork: &of.name, meta: &of.meta, mountpoint: &client.hello.mountpoint, dir: &dir };
    let copied = copy(context, &owner, &forked.row, &departure, &partial, &stop);
    // If this fails, too, the daemon does it when the connection ends.
    let removed: Result<()> = client.call(&Request::Remove { fork: forked.row.name.clone() });
    let copied = copied?;
    partial.finish(&dir)?;
    if let Err(error) = removed {
        context.ui.warn(format!("the fork that was copied could not be removed yet: {error}"));
    }
    for warning in &copied.warnings {
        context.ui.warn(warning);
    }
    context.ui.print(&ExportReport {
        fork: place.fork,
        snapshot: place.label,
        dir,
        bytes: copied.bytes,
        files: copied.files,
        pg_version: parent.meta.pg_version.to_string(),
        recovers: copied.recovers,
        stall_ms: forked.stall_ms,
        checkpoint_ms: checkpoint.map(ms),
        export_ms: ms(began.elapsed()),
        warnings: copied.warnings,
    })
}

/// What was copied.
struct Copied {
    bytes: u64,
    files: usize,
    recovers: bool,
    warnings: Vec<String>,
}

/// As the user whose files they are.
fn copy(
    context: &Context,
    owner: &OsUser,
    row: &ForkRow,
    departure: &Departure,
    partial: &Partial,
    stop: &AtomicBool,
) -> Result<Copied> {
    let to = partial.0.path();
    owner.run(|| {
        let cluster = Cluster::inspect(&row.pgdata)?;
        let (bytes, files) = import::copy_out(&cluster, to, context.ui, stop)?;
        let warnings = departure::apply(&DirTree(to.to_path_buf()), departure)?;
        import::sync_all(to, stop)?;
        Ok(Copied { bytes, files, recovers: !cluster.control.clean, warnings })
    })
}

/// Where it goes, as an absolute path, unless it cannot go there.
fn check_target(dir: &Path, mountpoint: &Path) -> Result<PathBuf> {
    let usage = |why: &str| {
        Error::new(Kind::Usage, format!("cannot export to {}", dir.display()))
            .cause(why)
            .hint("give the name of a directory that is to be made")
    };
    let Some(name) = dir.file_name() else { return Err(usage("that has no name of its own")) };
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let above = parent.canonicalize().at("find", parent)?;
    let dir = above.join(name);
    if dir.starts_with(mountpoint) {
        return Err(usage("that is among the store's forks"));
    }
    match fs::symlink_metadata(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(dir),
        Err(e) => Err(e).at("look at", &dir),
        Ok(meta) if !meta.is_dir() => Err(Error::new(Kind::Exists, format!("{} exists", dir.display()))
            .cause("it is not a directory")
            .hint("choose another name")),
        Ok(_) if fs::read_dir(&dir).at("list", &dir)?.next().is_some() => {
            Err(Error::new(Kind::Exists, format!("{} is not empty", dir.display()))
                .hint("choose another name, or remove what is there"))
        }
        Ok(meta) if meta.dev() != fs::metadata(&above).at("look at", &above)?.dev() => {
            Err(usage("a disk is mounted there, and PostgreSQL wants a directory of its own on it"))
        }
        Ok(_) => Ok(dir),
    }
}

/// The copy until it is whole; it goes if it is left.
struct Partial(TempDir);

impl Partial {
    /// Makes one beside `dir`, for that user.
    fn make(dir: &Path, owner: &OsUser) -> Result<Partial> {
        let above = dir.parent().unwrap_or(Path::new("/"));
        let name = dir.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let made = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".partial").tempdir_in(above);
        let made = made.context(|| format!("cannot make a directory in {}", above.display()))?;
        if let Some(closed) = owner.barrier(made.path()).filter(|_| !owner.is_current()) {
            return Err(Error::new(
                Kind::Environment,
                format!("user {} cannot reach {}", owner.name, dir.display()),
            )
            .cause(format!("the directory {} is closed to that user, who owns the fork", closed.display()))
            .hint(format!("choose another place, or open it: chmod o+x {}", closed.display())));
        }
        if !owner.is_current() {
            std::os::unix::fs::chown(made.path(), Some(owner.uid), Some(owner.gid))
                .at("hand over", made.path())?;
        }
        Ok(Partial(made))
    }

    /// Gives it its name, durably.
    fn finish(mut self, dir: &Path) -> Result<()> {
        fs::rename(self.0.path(), dir).at("make", dir)?;
        self.0.disable_cleanup(true);
        import::sync(dir.parent().unwrap_or(Path::new("/")))
    }
}
