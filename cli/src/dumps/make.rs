//! Making a dump of a server: the same of a fork's and of any other.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;

use super::manifest::{self, Database, FileEntry, GLOBALS, Manifest};
use super::staging::Staging;
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::binaries::Binaries;
use crate::postgres::dump::{self, About, Course, Found, Job, Tables, What};
use crate::postgres::tools::Server;
use crate::postgres::user::OsUser;
use crate::ui::Ui;

/// As many jobs as there are processors, up to this.
const JOBS_MAX: usize = 8;

/// What is dumped, and from where.
pub struct Making<'a> {
    /// The server.
    pub server: &'a Server<'a>,
    /// In words, for the manifest.
    pub source: String,
    /// A database of it that is there.
    pub through: &'a str,
    /// With which programs.
    pub binaries: &'a Binaries,
    /// Who runs them.
    pub user: &'a OsUser,
    /// What the server says of itself.
    pub about: &'a About,
    /// The databases.
    pub found: &'a [Found],
    /// What of them.
    pub what: &'a What,
    /// Tables at once.
    pub jobs: u16,
    /// Set when it is to end.
    pub interrupted: &'a AtomicBool,
}

impl Making<'_> {
    fn tables(&self) -> Result<Vec<Tables>> {
        let of = |found: &Found| Tables::of(self.server, self.binaries, &found.name, self.what);
        self.found.iter().map(of).collect()
    }

    fn job<'a>(&'a self, found: &'a Found, tables: &'a Tables, jobs: u16) -> Job<'a> {
        Job {
            server: self.server,
            binaries: self.binaries,
            user: self.user,
            database: &found.name,
            what: self.what,
            jobs,
            tables,
            interrupted: self.interrupted,
        }
    }

    /// One database, in one file.
    pub fn file(&self, ui: &Ui, path: &Path) -> Result<Vec<Database>> {
        let tables = self.tables()?;
        let mut course = Course::new(ui, tables.iter());
        let mut made = Vec::new();
        for (found, tables) in self.found.iter().zip(&tables).take(1) {
            let done = dump::to_file(&self.job(found, tables, 1), path, &mut course)?;
            made.push(Database::new(found, done));
        }
        course.finish();
        Ok(made)
    }

    /// All databases and, unless there are reasons, the roles in a directory, which is
    /// made. What there is in it; its files are not listed yet.
    pub fn directory(&self, ui: &Ui, dir: &Path, warnings: &mut Vec<String>) -> Result<Manifest> {
        let made_at = Timestamp::now().to_string();
        fs::DirBuilder::new().mode(0o700).create(dir).at("make the directory", dir)?;
        let tables = self.tables()?;
        let mut course = Course::new(ui, tables.iter());
        let mut databases = Vec::new();
        for (found, tables) in self.found.iter().zip(&tables) {
            let job = self.job(found, tables, self.jobs);
            let done = dump::to_directory(&job, &dir.join(manifest::directory(&found.name)), &mut course)?;
            databases.push(Database::new(found, done));
        }
        course.finish();
        let passwords = self.globals(&dir.join(GLOBALS), warnings)?;
        Ok(Manifest {
            version: manifest::VERSION,
            made_at,
            source: self.source.clone(),
            pg_version: self.about.version.clone(),
            pg_major: self.about.major,
            superuser: self.about.superuser.clone(),
            passwords,
            schema_only: self.what.schema_only,
            tables: self.what.tables.clone(),
            databases,
            files: Vec::new(),
        })
    }

    /// The roles; whether with their passwords, which only a superuser may read.
    fn globals(&self, path: &Path, warnings: &mut Vec<String>) -> Result<bool> {
        let globals =
            |with| dump::globals(self.server, self.binaries, self.through, with, path, self.interrupted);
        if self.about.reads_passwords {
            return globals(true).map(|()| true);
        }
        globals(false)?;
        warnings.push("the roles come without their passwords, which only a superuser may read".into());
        Ok(false)
    }
}

impl Database {
    fn new(found: &Found, done: dump::Done) -> Database {
        Database {
            name: found.name.clone(),
            dir: manifest::directory(&found.name),
            encoding: found.encoding.clone(),
            collate: found.collate.clone(),
            ctype: found.ctype.clone(),
            tables: done.tables,
            bytes: done.bytes,
        }
    }
}

/// Makes what was written durable, and says so in the manifest, which comes last. How
/// many bytes there are.
pub fn seal(staging: &Staging, mut manifest: Manifest) -> Result<u64> {
    manifest.files = staging.settle()?;
    let text = manifest.encode()?;
    let path = staging.content().join(manifest::NAME);
    let mut options = fs::File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&path).at("make", &path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).at("write", &path)?;
    let dir = staging.content();
    fs::File::open(&dir).and_then(|dir| dir.sync_all()).at("make durable", &dir)?;
    let sum = |bytes: u64, file: &FileEntry| bytes + file.size;
    Ok(manifest.files.iter().fold(text.len() as u64, sum))
}

/// How many tables are written or read at once, if nobody says so.
pub fn default_jobs() -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors.min(JOBS_MAX)).unwrap_or(1)
}

/// What of the choices on the command line does not go together.
pub fn check_choice(databases: &[String], tables: &[String]) -> Result<()> {
    match tables.is_empty() || databases.len() == 1 {
        true => Ok(()),
        false => Err(Error::new(Kind::Usage, "--table goes with one --database")
            .hint("take the tables of each database by themselves")),
    }
}
