//! Dumping databases of a server into files: pg_dump and pg_dumpall.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;

use super::binaries::Binaries;
use super::tools::{self, Server, client};
use super::user::OsUser;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::{Progress, Ui};

/// A database that could be dumped.
#[derive(Clone, Debug, Deserialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its encoding.
    pub encoding: String,
    /// Its `LC_COLLATE`.
    pub collate: String,
    /// Its `LC_CTYPE`.
    pub ctype: String,
    /// Whether the role may connect to it.
    pub open: bool,
}

/// What a server says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct About {
    /// `server_version`, without what a distribution adds.
    pub version: String,
    /// The major version.
    pub major: u32,
    /// The role that initdb made.
    pub superuser: String,
    /// Whether the one who asks may read the hashes of passwords.
    pub reads_passwords: bool,
    /// Its databases, by name; never `template0`.
    pub databases: Vec<Found>,
}

/// Asks a server, through a database, what there is to dump.
pub fn about(server: &Server, own: &Binaries, through: &str) -> Result<About> {
    let query = "SELECT json_build_object(
        'version', split_part(current_setting('server_version'), ' ', 1),
        'major', current_setting('server_version_num')::int / 10000,
        'superuser', (SELECT rolname FROM pg_roles WHERE oid = 10),
        'reads_passwords', has_table_privilege('pg_authid', 'SELECT'),
        'databases', (SELECT json_agg(json_build_object(
            'name', datname, 'encoding', pg_encoding_to_char(encoding), 'collate', datcollate,
            'ctype', datctype, 'open', has_database_privilege(oid, 'CONNECT')) ORDER BY datname)
          FROM pg_database WHERE datallowconn AND datname <> 'template0'))";
    server.ask(own, through, query)
}

/// The databases that are meant: all, or those of these names.
pub fn choose(about: &About, wanted: &[String]) -> Result<Vec<Found>> {
    if wanted.is_empty() {
        return Ok(about.databases.clone());
    }
    let mut chosen: Vec<Found> = Vec::new();
    for name in wanted {
        let Some(found) = about.databases.iter().find(|found| found.name == *name) else {
            let there: Vec<&str> = about.databases.iter().map(|found| found.name.as_str()).collect();
            return Err(Error::new(Kind::NotFound, format!("there is no database {name:?}"))
                .cause(format!("the server has {}", there.join(", ")))
                .hint("choose from these with --database"));
        };
        if !chosen.iter().any(|other| other.name == found.name) {
            chosen.push(found.clone());
        }
    }
    Ok(chosen)
}

/// What is dumped of each database.
#[derive(Clone, Debug, Default)]
pub struct What {
    /// Only tables that match these patterns, as pg_dump has them.
    pub tables: Vec<String>,
    /// Definitions only.
    pub schema_only: bool,
    /// pg_dump's --compress, if not its default.
    pub compress: Option<String>,
    /// Give up when somebody holds a lock for that long.
    pub lock_wait_s: Option<u32>,
}

/// The tables of a database, and what they take: for progress, and for the record.
#[derive(Debug, Default)]
pub struct Tables {
    sizes: HashMap<String, u64>,
    /// Whether all of them will come.
    all: bool,
}

impl Tables {
    /// Asks for them. It takes no locks.
    pub fn of(server: &Server, own: &Binaries, database: &str, what: &What) -> Result<Tables> {
        if what.schema_only {
            return Ok(Tables::default());
        }
        let query = "SELECT coalesce(json_object_agg(n.nspname || '.' || c.relname,
              (c.relpages::bigint + coalesce(t.relpages, 0)) * 8192), '{}')
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
            WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema'
              AND n.nspname NOT LIKE 'pg\\_%'";
        let sizes: HashMap<String, i64> = server.ask(own, database, query)?;
        let bytes = |(name, bytes)| (name, u64::try_from(bytes).unwrap_or(0));
        let all = what.tables.is_empty();
        Ok(Tables { sizes: sizes.into_iter().map(bytes).collect(), all })
    }

    /// How many are to come, and what they take; nothing if only pg_dump knows which ones.
    fn expected(&self) -> (u64, u64) {
        match self.all {
            true => (self.sizes.len() as u64, self.sizes.values().sum()),
            false => (0, 0),
        }
    }
}

/// What follows pg_dump's words to know how far it is.
struct Follower<'a> {
    tables: &'a Tables,
    progress: &'a mut Progress,
    /// What all databases' tables are, and how many of them came before this one's.
    of: u64,
    begun: u64,
    label: String,
    /// Tables that are being written.
    running: Vec<(String, u64)>,
    parallel: bool,
    done: Done,
}

/// What has come of a database.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// How many tables with data.
    pub tables: u64,
    /// What they take in the server.
    pub bytes: u64,
}

impl Follower<'_> {
    fn hear(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once("dumping contents of table \"")
            && let Some(name) = rest.strip_suffix('"')
        {
            if !self.parallel {
                self.end_all();
            }
            self.begun += 1;
            let bytes = self.tables.sizes.get(name).copied().unwrap_or(0);
            self.running.push((name.to_string(), bytes));
            self.progress.relabel(&format!(
                "{}, table {} of {}",
                self.label,
                self.begun,
                self.of.max(self.begun)
            ));
        } else if let Some((_, rest)) = line.split_once(": finished item ")
            && let Some((_, table)) = rest.split_once(" TABLE DATA ")
        {
            let is_it = |(name, _): &(String, u64)| name.split_once('.').is_some_and(|(_, t)| t == table);
            if let Some(at) = self.running.iter().position(is_it) {
                let (_, bytes) = self.running.remove(at);
                self.end(bytes);
            }
        }
    }

    fn end_all(&mut self) {
        std::mem::take(&mut self.running).into_iter().for_each(|(_, bytes)| self.end(bytes));
    }

    fn end(&mut self, bytes: u64) {
        self.done.tables += 1;
        self.done.bytes += bytes;
        self.progress.add(bytes);
    }
}

/// How far a dump of several databases is.
pub struct Course {
    progress: Progress,
    tables: u64,
    begun: u64,
}

impl Course {
    /// Of databases with these tables.
    pub fn new<'a>(ui: &Ui, all: impl Iterator<Item = &'a Tables>) -> Course {
        let sum = |(tables, bytes), of: &Tables| (tables + of.expected().0, bytes + of.expected().1);
        let (tables, bytes) = all.fold((0, 0), sum);
        Course { progress: ui.progress("dumping", bytes), tables, begun: 0 }
    }

    /// It is all done.
    pub fn finish(self) {
        self.progress.finish();
    }
}

/// One database to dump, and how.
pub struct Job<'a> {
    /// From where.
    pub server: &'a Server<'a>,
    /// With which programs.
    pub binaries: &'a Binaries,
    /// Who runs them, if another than this program's user.
    pub user: &'a OsUser,
    /// The database.
    pub database: &'a str,
    /// What of it.
    pub what: &'a What,
    /// In so many processes at once.
    pub jobs: u16,
    /// Its tables.
    pub tables: &'a Tables,
    /// Set when it is to end.
    pub interrupted: &'a AtomicBool,
}

/// A dump in pg_dump's directory format; `dir` is made.
pub fn to_directory(job: &Job, dir: &Path, course: &mut Course) -> Result<Done> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir).at("make the directory", dir)?;
    let open = File::open(dir).at("open", dir)?;
    if !job.user.is_current() {
        fchown(&open, Some(job.user.uid), Some(job.user.gid)).at("hand over", dir)?;
    }
    let mut command = pg_dump(job)?;
    // The directory may lie where its user can reach nothing: it is handed over open.
    command.args(["--format=directory", "--file=/proc/self/fd/0"]).stdin(Stdio::from(open));
    command.arg(format!("--jobs={}", job.jobs));
    follow(job, &mut command, course)
}

/// A dump in pg_dump's custom format, in one file, which is made.
pub fn to_file(job: &Job, path: &Path, course: &mut Course) -> Result<Done> {
    let mut command = pg_dump(job)?;
    command.arg("--format=custom").stdout(create_own(path)?);
    follow(job, &mut command, course)
}

fn follow(job: &Job, command: &mut Command, course: &mut Course) -> Result<Done> {
    let mut follower = Follower {
        tables: job.tables,
        of: course.tables,
        begun: course.begun,
        progress: &mut course.progress,
        label: format!("dumping {}", job.database),
        running: Vec::new(),
        parallel: job.jobs > 1,
        done: Done::default(),
    };
    let what = format!("pg_dump of database {:?}", job.database);
    tools::run(&what, command, job.interrupted, &mut |line| follower.hear(line))?;
    follower.end_all();
    let (begun, done) = (follower.begun, follower.done);
    course.begun = begun;
    Ok(done)
}

fn pg_dump(job: &Job) -> Result<Command> {
    let mut command = job.server.command(&client(job.binaries, "pg_dump")?, job.database);
    // What is written is made durable all at once, at the end.
    command.args(["--verbose", "--no-sync"]);
    command.args(job.what.tables.iter().map(|pattern| format!("--table={pattern}")));
    if job.what.schema_only {
        command.arg("--schema-only");
    }
    if let Some(compress) = &job.what.compress {
        // Up to PostgreSQL 15 there are numbers only.
        let compress = if compress == "none" { "0" } else { compress };
        command.arg(format!("--compress={compress}"));
    }
    if let Some(seconds) = job.what.lock_wait_s {
        command.arg(format!("--lock-wait-timeout={seconds}s"));
    }
    Ok(command)
}

/// The roles of a server, with or without their passwords, and what is set for them.
/// Tablespaces are left out: a fork has none outside.
pub fn globals(
    server: &Server,
    own: &Binaries,
    through: &str,
    passwords: bool,
    path: &Path,
    interrupted: &AtomicBool,
) -> Result<()> {
    let mut command = server.command(&client(own, "pg_dumpall")?, through);
    command.args(["--globals-only", "--no-tablespaces"]).arg(format!("--database={through}"));
    if !passwords {
        command.arg("--no-role-passwords");
    }
    command.stdout(create_own(path)?);
    tools::run("pg_dumpall of the roles", &mut command, interrupted, &mut |_| ())
}

fn create_own(path: &Path) -> Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).at("make", path)
}
