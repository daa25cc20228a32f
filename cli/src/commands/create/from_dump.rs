//! A dump, or what pg_dump gets from a running server (`--from-dump`): loaded into a
//! fresh cluster, by a server that is started for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pgcowfs::device::foreign::read_small;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::fresh::make_cluster;
use super::{Brought, Facts, Making, Source};
use crate::args::Create;
use crate::commands::Context;
use crate::config::{MapMemory, StoreConfig, own_dir};
use crate::dumps::kind::{self, DumpKind};
use crate::dumps::make;
use crate::dumps::manifest::{Database, GLOBALS, Manifest};
use crate::dumps::staging::{self, Staging};
use crate::error::{Context as _, Error, Kind, Result};
use crate::meta::{Origin, Secret};
use crate::postgres::binaries::{self, Binaries};
use crate::postgres::cluster::PID_FILE_MAX;
use crate::postgres::connect::Address;
use crate::postgres::dump::{self, About, Found, What};
use crate::postgres::restore::{self, Contents, Loading};
use crate::postgres::server::{self, State, StopHow};
use crate::postgres::tools::{Server, refuse_interrupted};
use crate::postgres::user::{self, OsUser};
use crate::postgres::{conninfo, initdb, role};

/// A server that is started to be loaded writes much when it stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3600);
const START_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_AT_ONCE: Duration = Duration::from_secs(60);

/// What makes loading fast, for that one run: nothing is lost if it goes wrong, and all
/// of it is made durable before anybody can see the fork.
const SETTINGS: [(&str, &str); 12] = [
    ("listen_addresses", ""),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("archive_mode", "off"),
    ("max_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("max_locks_per_transaction", "1024"),
    ("logging_collector", "off"),
];

/// The memory that building an index may take.
const MEMORY_MIN: u64 = 64 << 20;
const MEMORY_MAX: u64 = 1 << 30;

/// What is loaded.
enum Plan {
    /// A directory of ours, and the databases of it.
    Ours(PathBuf, Vec<Database>),
    Archive(PathBuf, Contents),
    Script(PathBuf),
    Server(Box<Retrieval>),
}

/// A server to get it from.
struct Retrieval {
    url: String,
    /// A database of it that is there.
    through: String,
    about: About,
    found: Vec<Found>,
    what: What,
}

/// What is loaded, and what it is loaded with.
pub struct FromDump {
    plan: Plan,
    user: OsUser,
    binaries: Binaries,
    password: String,
    /// The role that initdb made where the dump comes from, if that is known.
    superuser: String,
    initdb_args: Vec<String>,
    jobs: u16,
    no_owner: bool,
    ignore_errors: bool,
    warnings: Vec<String>,
}

/// Refuses options that say how a dump is loaded, where there is none.
pub fn refuse_options(args: &Create) -> Result<()> {
    let (choice, load) = (&args.choice, &args.load);
    match choice.database.is_empty() && load.jobs.is_none() && !load.no_owner && !load.ignore_errors {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Usage,
            "--database, --table, --jobs, --no-owner and --ignore-errors go with --from-dump",
        )
        .hint("leave them away, or say which dump to load")),
    }
}

impl FromDump {
    /// Looks at the dump or asks the server, and refuses what cannot be loaded.
    pub fn find(context: &Context, from: &OsStr, args: &Create, config: &StoreConfig) -> Result<FromDump> {
        make::check_choice(&args.choice.database, &args.choice.table)?;
        let user = user::choose(args.run_as.as_deref().or(config.run_as.as_deref()))?;
        let mut warnings = Vec::new();
        let looked = match from.to_str().filter(|text| conninfo::is_uri(text)) {
            Some(url) => ask(url, args, &mut warnings)?,
            None => look(context, Path::new(from), args)?,
        };
        let Looked { plan, server, needs, superuser, locale } = looked;
        let pg_bin = args.binaries.pg_bin.as_deref();
        let binaries = match args.pg_version {
            Some(version) if needs.is_some_and(|needs| version < needs) => {
                let needs = needs.unwrap_or(version);
                return Err(Error::new(
                    Kind::Usage,
                    format!("a dump of PostgreSQL {needs} is not loaded into version {version}"),
                )
                .hint("leave --pg-version away, or choose a newer one"));
            }
            Some(version) => binaries::find(pg_bin, Some(version))?,
            None => binaries::at_least(pg_bin, needs)?,
        };
        if let Some(server) = server.filter(|server| *server != binaries.major) {
            warnings.push(format!(
                "it comes from PostgreSQL {server}, and becomes PostgreSQL {}",
                binaries.major
            ));
        }
        let mut initdb_args = locale.unwrap_or_default();
        initdb_args.extend_from_slice(&args.initdb_arg);
        Ok(FromDump {
            plan,
            user,
            binaries,
            password: initdb::password()?,
            superuser: superuser.unwrap_or_else(|| initdb::SUPERUSER.to_string()),
            initdb_args,
            jobs: args.load.jobs.unwrap_or_else(make::default_jobs),
            no_owner: args.load.no_owner,
            ignore_errors: args.load.ignore_errors,
            warnings,
        })
    }

    /// Starts a server on the fork, has it loaded, and stops it.
    fn load(&self, making: &Making) -> Result<Vec<String>> {
        let interrupted: Arc<AtomicBool> = Arc::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, interrupted.clone())
                .context(|| "cannot watch for signals")?;
        }
        let loaded = self.load_watching(making, &interrupted);
        if matches!(self.plan, Plan::Server(_)) {
            // Others may have theirs in it, and then it stays.
            let _ = std::fs::remove_dir(making.paths.incoming());
        }
        refuse_interrupted(&interrupted)?;
        loaded
    }

    fn load_watching(&self, making: &Making, interrupted: &AtomicBool) -> Result<Vec<String>> {
        let mut warnings = self.warnings.clone();
        // It goes with what is in it when this is through.
        let retrieved = match &self.plan {
            Plan::Server(from) => Some(self.retrieve(from, making, interrupted, &mut warnings)?),
            _ => None,
        };
        self.start(making)?;
        let loaded = self.load_running(making, retrieved.as_ref(), interrupted, &mut warnings);
        let how =
            if loaded.is_ok() { (StopHow::Fast, STOP_TIMEOUT) } else { (StopHow::Immediate, STOP_AT_ONCE) };
        let stopped = stop(making, how.0, how.1);
        loaded.and(stopped).map(|()| warnings)
    }

    fn start(&self, making: &Making) -> Result<()> {
        let meta = making.meta;
        let memory = (2 * MapMemory::of_machine().0 / u64::from(self.jobs)).clamp(MEMORY_MIN, MEMORY_MAX);
        let mut settings = vec![
            ("port".to_string(), meta.port.to_string()),
            ("unix_socket_directories".to_string(), meta.socket_dir.display().to_string()),
            ("maintenance_work_mem".to_string(), format!("{}kB", memory >> 10)),
        ];
        settings.extend(SETTINGS.map(|(name, value)| (name.to_string(), value.to_string())));
        server::start(
            &server::Start {
                fork: making.name,
                binaries: &self.binaries,
                user: &self.user,
                pgdata: making.pgdata,
                socket_dir: &meta.socket_dir,
                log: &making.paths.server_log(making.name),
                settings,
                timeout: START_TIMEOUT,
            },
            making.ui,
        )?;
        Ok(())
    }

    fn load_running(
        &self,
        making: &Making,
        retrieved: Option<&(Staging, Manifest)>,
        interrupted: &AtomicBool,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let meta = making.meta;
        let address = Address {
            socket_dir: &meta.socket_dir,
            port: meta.port,
            role: &meta.superuser,
            password: Some(&self.password),
            user: &self.user,
        };
        let server = Server::Fork(&address);
        let loading = Loading {
            server: &server,
            superuser: &meta.superuser,
            binaries: &self.binaries,
            jobs: self.jobs,
            no_owner: self.no_owner,
            ignore_errors: self.ignore_errors,
            interrupted,
            ui: making.ui,
        };
        match (&self.plan, retrieved) {
            (Plan::Ours(dir, databases), _) => self.directory(&loading, dir, databases, warnings)?,
            (Plan::Server(_), Some((staging, manifest))) => {
                self.directory(&loading, &staging.content(), &manifest.databases, warnings)?;
            }
            (Plan::Server(_), None) => {}
            (Plan::Archive(path, contents), _) => loading.archive(path, contents, warnings)?,
            (Plan::Script(path), _) => loading.script("loading", path, "postgres", warnings)?,
        }
        role::keep_superuser(&address)?;
        for found in dump::about(&server, &self.binaries, "postgres")?.databases {
            loading.analyze(&found.name)?;
        }
        Ok(())
    }

    /// A directory as `pgcowfs dump` makes it.
    fn directory(
        &self,
        loading: &Loading,
        dir: &Path,
        databases: &[Database],
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        if !self.no_owner {
            loading.script("loading the roles", &dir.join(GLOBALS), "postgres", warnings)?;
        }
        for database in databases {
            let path = dir.join(&database.dir);
            let contents = Contents {
                // What pg_restore would make of it is not what it is called in the manifest.
                database: database.name.clone(),
                ..restore::contents(&self.binaries, &path)?
            };
            loading.archive(&path, &contents, warnings)?;
        }
        Ok(())
    }

    /// Gets a server's databases, into a directory of the store's that only root and the
    /// store's user can look into.
    fn retrieve(
        &self,
        from: &Retrieval,
        making: &Making,
        interrupted: &AtomicBool,
        warnings: &mut Vec<String>,
    ) -> Result<(Staging, Manifest)> {
        let incoming = making.paths.incoming();
        own_dir(&incoming, 0o700)?;
        staging::sweep(&incoming)?;
        let staging = Staging::begin(&incoming.join(making.name))?;
        let making_dump = make::Making {
            server: &Server::Url(&from.url),
            source: from.url.clone(),
            through: &from.through,
            binaries: &self.binaries,
            user: &OsUser::current()?,
            about: &from.about,
            found: &from.found,
            what: &from.what,
            jobs: self.jobs,
            interrupted,
        };
        let manifest = making_dump.directory(making.ui, &staging.content(), warnings)?;
        Ok((staging, manifest))
    }
}

fn stop(making: &Making, how: StopHow, timeout: Duration) -> Result<()> {
    let text = read_small(&making.pgdata.join("postmaster.pid"), PID_FILE_MAX).ok();
    let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    match State::of(text.as_deref(), making.pgdata) {
        State::Running(pid) => server::stop(making.name, making.pgdata, pid, how, timeout).map(|_| ()),
        // It has ended by itself, and who asked it has heard of that.
        State::Stopped | State::Crashed => Ok(()),
    }
}

impl Source for FromDump {
    fn user(&self) -> &OsUser {
        &self.user
    }

    fn facts(&self) -> Facts {
        Facts {
            pg_version: self.binaries.major,
            origin: Origin::Initdb,
            superuser: self.superuser.clone(),
            password: Some(Secret(self.password.clone())),
            base_mark: None,
            follow: None,
        }
    }

    fn fill(&self, making: &Making) -> Result<Brought> {
        make_cluster(making, &self.binaries, &self.user, &self.password, &self.initdb_args)?;
        Ok(Brought::default())
    }

    fn settle(&self, making: &Making) -> Result<Vec<String>> {
        self.load(making)
    }
}

/// What was found before anything is made.
struct Looked {
    plan: Plan,
    /// The major version that it comes from.
    server: Option<u32>,
    /// The major version that can load it.
    needs: Option<u32>,
    superuser: Option<String>,
    /// Arguments for initdb.
    locale: Option<Vec<String>>,
}

/// Asks a server what there is.
fn ask(url: &str, args: &Create, warnings: &mut Vec<String>) -> Result<Looked> {
    conninfo::check(url)?;
    let pg_bin = args.binaries.pg_bin.as_deref();
    let newest = binaries::at_least(pg_bin, None)?;
    let named = conninfo::database(url);
    let through = named.clone().unwrap_or_else(|| "postgres".into());
    let about = dump::about(&Server::Url(url), &newest, &through).map_err(|error| {
        error.within(format!("cannot get anything from {url}")).hint(
            "check that the server runs and lets you in: psql with the same URL; a password belongs into ~/.pgpass, \
             PGPASSFILE or PGPASSWORD",
        )
    })?;
    let wanted = match (&args.choice.database, named) {
        (chosen, _) if !chosen.is_empty() => chosen.clone(),
        (_, Some(named)) => vec![named],
        (_, None) => Vec::new(),
    };
    let all = wanted.is_empty();
    let mut found = dump::choose(&about, &wanted)?;
    if all {
        for closed in found.iter().filter(|found| !found.open) {
            warnings.push(format!("database {:?} is left out: the role may not connect to it", closed.name));
        }
        found.retain(|found| found.open);
    }
    let what = What { tables: args.choice.table.clone(), ..What::default() };
    Ok(Looked {
        server: Some(about.major),
        needs: Some(about.major),
        superuser: Some(about.superuser.clone()),
        locale: about
            .databases
            .iter()
            .find(|of| of.name == "template1")
            .map(|of| locale(&of.encoding, &of.collate, &of.ctype)),
        plan: Plan::Server(Box::new(Retrieval { url: url.to_string(), through, about, found, what })),
    })
}

/// Looks at a file or a directory.
fn look(context: &Context, path: &Path, args: &Create) -> Result<Looked> {
    if !args.choice.table.is_empty() {
        return Err(Error::new(Kind::Usage, "--table goes with the URL of a server")
            .cause("a table's indexes and what it refers to are not found in a dump")
            .hint("dump only these tables, or load all and drop the others"));
    }
    // PostgreSQL's programs run elsewhere.
    let path = std::path::absolute(path).at("make absolute", path)?;
    let wanted = &args.choice.database;
    let pg_bin = args.binaries.pg_bin.as_deref();
    match kind::look(&path)? {
        DumpKind::Ours => {
            let manifest = Manifest::read(&path)?;
            let databases = chosen(&manifest, wanted)?;
            binaries::at_least(pg_bin, Some(manifest.pg_major))?;
            manifest.verify(&path, context.ui)?;
            let first = manifest.databases.iter().find(|of| of.name == "template1");
            Ok(Looked {
                server: Some(manifest.pg_major),
                needs: Some(manifest.pg_major),
                superuser: Some(manifest.superuser.clone()),
                locale: first
                    .or(manifest.databases.first())
                    .map(|of| locale(&of.encoding, &of.collate, &of.ctype)),
                plan: Plan::Ours(path, databases),
            })
        }
        DumpKind::Archive => {
            let contents = restore::contents(&binaries::at_least(pg_bin, None)?, &path)?;
            if wanted.iter().any(|name| *name != contents.database) {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("the dump has only database {:?}", contents.database),
                )
                .hint("leave --database away"));
            }
            let needs = contents.server.max(contents.pg_dump);
            let server = contents.server;
            let plan = Plan::Archive(path, contents);
            Ok(Looked { plan, server, needs, superuser: None, locale: None })
        }
        DumpKind::Script(script) => {
            if !wanted.is_empty() {
                return Err(Error::new(Kind::Usage, "--database does not go with a script")
                    .cause("psql runs it as a whole")
                    .hint("leave it away, or dump in pg_dump's custom or directory format"));
            }
            restore::refuse_tablespaces(&path)?;
            let needs = script.server.max(script.pg_dump);
            Ok(Looked {
                plan: Plan::Script(path),
                server: script.server,
                needs,
                superuser: None,
                locale: None,
            })
        }
    }
}

/// The databases of a dump that are meant.
fn chosen(manifest: &Manifest, wanted: &[String]) -> Result<Vec<Database>> {
    let there = &manifest.databases;
    if let Some(missing) = wanted.iter().find(|name| !there.iter().any(|of| of.name == **name)) {
        let names: Vec<&str> = there.iter().map(|of| of.name.as_str()).collect();
        return Err(Error::new(Kind::NotFound, format!("the dump has no database {missing:?}"))
            .cause(format!("it has {}", names.join(", ")))
            .hint("choose from these with --database"));
    }
    let is_meant = |of: &&Database| wanted.is_empty() || wanted.contains(&of.name);
    Ok(there.iter().filter(is_meant).cloned().collect())
}

fn locale(encoding: &str, collate: &str, ctype: &str) -> Vec<String> {
    vec![format!("--encoding={encoding}"), format!("--lc-collate={collate}"), format!("--lc-ctype={ctype}")]
}
