//! Masking: what is done to a fork before anybody else can use it.
//!
//! The fork is incomplete, so it goes with this program's connection to the daemon. Its
//! server listens on its own socket alone. When all masks have succeeded, what they have
//! replaced is taken out of the fork's files: old versions of rows, statistics, WAL.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pgcowfs::device::foreign::read_small;

use super::run::variables;
use super::{Context, address, ms, start, state, user};
use crate::args::MaskOptions;
use crate::client::Client;
use crate::error::{Context as _, Error, Kind, Result};
use crate::launch;
use crate::meta::{How, Mask};
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::residue::{self, Changed};
use crate::postgres::server::{self, StopHow, failure_kind, log_tail};
use crate::postgres::tools;
use crate::postgres::tree::DirTree;
use crate::postgres::user::OsUser;
use crate::protocol::ForkRow;
use crate::report::MaskedReport;

/// A longer script is for a program to run.
const SCRIPT_MAX: u64 = 256 << 10;

/// What is read of a program's output.
const SAID_MAX: u64 = 64 << 10;

/// A server that is stopped writes all that it has.
const STOP_TIMEOUT: Duration = Duration::from_secs(1800);

/// The masks that the command line names.
pub fn masks(options: &MaskOptions) -> Result<Vec<Mask>> {
    named(&options.masks, &options.mask_database)
}

/// The masks of these names.
pub fn named(files: &[std::path::PathBuf], database: &str) -> Result<Vec<Mask>> {
    let mask = |file: &std::path::PathBuf| Ok(Mask { database: database.to_string(), how: how(file)? });
    files.iter().map(mask).collect()
}

fn how(file: &Path) -> Result<How> {
    if file == Path::new("anon") {
        return Ok(How::Anon);
    }
    let meta = std::fs::metadata(file).at("read the mask", file)?;
    let unusable = |why: String| {
        Error::new(Kind::BadInput, format!("{} cannot be a mask", file.display()))
            .cause(why)
            .hint("a mask is an SQL script, or an executable program")
    };
    if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
        return Ok(How::Program(file.canonicalize().at("find", file)?));
    }
    let bytes = read_small(file, SCRIPT_MAX).map_err(|e| unusable(e.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not valid UTF-8".into()))?;
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(How::Script { name, text })
}

/// Runs all masks of an incomplete fork, and leaves it stopped.
pub fn apply(context: &Context, client: &mut Client, row: &ForkRow) -> Result<MaskedReport> {
    let began = Instant::now();
    let binaries = binaries::find(row.meta.pg_bin.as_deref(), Some(row.meta.pg_version))?;
    if !binaries.program("pg_resetwal").is_file() {
        return Err(Error::new(Kind::Environment, "there is no pg_resetwal beside this fork's PostgreSQL")
            .cause("masking makes the WAL anew with it, for the WAL has the data as it was")
            .hint("install the whole of PostgreSQL's server package, or choose another one with --pg-bin"));
    }
    let mut row = row.clone();
    // It is for this program alone.
    row.meta.listen = String::new();
    let mut options = launch::default_options();
    for (name, value) in [
        ("listen_addresses", ""),
        ("autovacuum", "off"),
        ("track_counts", "on"),
        ("archive_mode", "off"),
        // Its log is to be removed when it is done.
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
        ("log_statement", "none"),
        // Until it is published nobody relies on it.
        ("fsync", "off"),
    ] {
        options.settings.push((name.into(), value.into()));
    }
    start::start(context, client, &row, &options)?;
    let row = ForkRow { meta: row.meta, ..client.info(&row.name)? };
    let owner = user(&row)?;
    let server = address(&row, &owner);
    let before = residue::look(&server)?;
    for mask in &row.meta.masks {
        context.ui.note(format!("masking {} with {}", row.name, mask.name()));
        match &mask.how {
            How::Script { name, text } => script(&row, &owner, &binaries, mask, name, text)?,
            How::Program(path) => program(&row, mask, path)?,
            How::Anon => residue::anonymize(&server)?,
        }
        residue::end_sessions(&server)?;
    }
    let Changed { tables, orphans } = residue::rewrite(&server, &before, row.meta.pg_version)?;
    let Some(pid) = state(&row).pid() else {
        return Err(Error::new(Kind::Postgres, "the server has ended while the fork was masked").detail(
            log_tail(&String::from_utf8_lossy(
                &std::fs::read(context.paths.server_log(&row.name)).unwrap_or_default(),
            )),
        ));
    };
    server::stop(&row.name, &row.pgdata, pid, StopHow::Fast, STOP_TIMEOUT)?;
    owner.run(|| residue::clear(&DirTree(row.pgdata.clone()), &orphans))?;
    new_wal(&binaries, &owner, &row.pgdata)?;
    let log = context.paths.server_log(&row.name);
    std::fs::remove_file(&log).at("remove", &log)?;
    Ok(MaskedReport { mask_ms: ms(began.elapsed()), tables })
}

fn script(row: &ForkRow, owner: &OsUser, own: &Binaries, mask: &Mask, name: &str, text: &str) -> Result<()> {
    let psql = tools::client(own, "psql")?;
    let mut input = tempfile::tempfile().context(|| "cannot make a temporary file")?;
    input
        .write_all(text.as_bytes())
        .and_then(|()| input.seek(SeekFrom::Start(0)))
        .context(|| "cannot write a temporary file")?;
    // As `pgcowfs psql` does.
    let user = if row.meta.socket_trusts { OsUser::current()? } else { owner.clone() };
    let mut command = user.command(&psql);
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]).stdin(input);
    let environment = variables(row, &mask.database);
    command.envs(environment.into_iter().filter(|(name, _)| name.starts_with("PG")));
    if let Some(password) = row.meta.password.as_deref() {
        command.env("PGPASSWORD", password);
    }
    finish(&mut command, name, Kind::Postgres)
}

fn program(row: &ForkRow, mask: &Mask, path: &Path) -> Result<()> {
    let mut command = Command::new(path);
    command.envs(variables(row, &mask.database)).stdin(Stdio::null());
    finish(&mut command, &path.display().to_string(), Kind::Failed)
}

/// Runs what masks to its end, and tells what it said if it fails.
fn finish(command: &mut Command, name: &str, kind: Kind) -> Result<()> {
    let mut output = tempfile::tempfile().context(|| "cannot make a temporary file")?;
    let both = || output.try_clone().context(|| "cannot use a temporary file");
    command.stdout(both()?).stderr(both()?);
    let status = command.status().context(|| format!("cannot run the mask {name}"))?;
    if status.success() {
        return Ok(());
    }
    let said = said(&mut output).context(|| "cannot read a temporary file")?;
    let kind = match failure_kind(&said) {
        Kind::Storage => Kind::Storage,
        _ => kind,
    };
    Err(Error::new(kind, format!("the mask {name} has failed"))
        .cause(status.to_string())
        .detail(log_tail(&said))
        .hint("mend it, and try again; nothing was kept"))
}

fn said(output: &mut File) -> std::io::Result<String> {
    let end = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(end.saturating_sub(SAID_MAX)))?;
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces the WAL of a cluster that was shut down by a new, empty one.
fn new_wal(binaries: &Binaries, owner: &OsUser, pgdata: &Path) -> Result<()> {
    let program = binaries.program("pg_resetwal");
    let mut command = owner.command(&program);
    command.arg("-D").arg(pgdata).current_dir("/").stdin(Stdio::null());
    let output = command.output().at("run", &program)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Err(Error::new(failure_kind(&said), "the WAL cannot be made anew")
        .cause(format!("pg_resetwal: {}", output.status))
        .detail(log_tail(&said)))
}
