//! Loading dumps into a server: pg_restore, and psql for scripts.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use postgres_protocol::escape::escape_identifier;

use super::binaries::Binaries;
use super::tools::{self, Ended, Server, client};
use crate::dumps::kind::major;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::Ui;

/// So many of the errors that were allowed are shown.
const SHOWN: usize = 5;

/// A line that is longer is data.
const STATEMENT_MAX: usize = 64 << 10;

/// What pg_restore says of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The database that it is of.
    pub database: String,
    /// The major version of its server.
    pub server: Option<u32>,
    /// That of the pg_dump that has made it.
    pub pg_dump: Option<u32>,
    /// How many tables with data it has.
    pub tables: u64,
    /// Whether it is read from its beginning to its end only, as tar files are.
    pub in_order: bool,
}

/// Reads an archive's table of contents.
pub fn contents(own: &Binaries, archive: &Path) -> Result<Contents> {
    let mut command = Command::new(client(own, "pg_restore")?);
    command.env("LC_ALL", "C").arg("--list").arg(archive).stdin(Stdio::null());
    let output = command.output().context(|| "cannot run pg_restore")?;
    if output.status.success() {
        return Ok(listed(&String::from_utf8_lossy(&output.stdout)));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let error = match said.contains("unsupported version") {
        true => Error::new(
            Kind::Environment,
            format!("{} was made by a newer pg_dump than there is here", archive.display()),
        )
        .cause(format!("the newest on this machine is PostgreSQL {}", own.version))
        .hint("install that version's programs, or name their directory with --pg-bin DIR"),
        false => Error::new(Kind::BadInput, format!("{} is damaged", archive.display()))
            .cause("pg_restore cannot read its table of contents")
            .hint("take another dump, or another copy of this one"),
    };
    Err(error.detail(said))
}

fn listed(text: &str) -> Contents {
    let mut contents = Contents::default();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("; ").or(line.strip_prefix(';')).map(str::trim) {
            if let Some(name) = head.strip_prefix("dbname: ") {
                contents.database = name.to_string();
            } else if let Some(version) = head.strip_prefix("Dumped from database version: ") {
                contents.server = major(version);
            } else if head == "Format: TAR" {
                contents.in_order = true;
            } else if let Some(version) = head.strip_prefix("Dumped by pg_dump version: ") {
                contents.pg_dump = major(version);
            }
        } else if line.contains(" TABLE DATA ") {
            contents.tables += 1;
        }
    }
    contents
}

/// How dumps are loaded.
pub struct Loading<'a> {
    /// Where to; it is nobody else's meanwhile.
    pub server: &'a Server<'a>,
    /// The role that initdb has made there.
    pub superuser: &'a str,
    /// With which programs.
    pub binaries: &'a Binaries,
    /// Tables and indexes at once.
    pub jobs: u16,
    /// Leave owners and privileges out.
    pub no_owner: bool,
    /// Go on after errors.
    pub ignore_errors: bool,
    /// Set when it is to end.
    pub interrupted: &'a AtomicBool,
    /// For progress.
    pub ui: &'a Ui,
}

impl Loading<'_> {
    /// An archive, which makes its database.
    pub fn archive(&self, archive: &Path, contents: &Contents, warnings: &mut Vec<String>) -> Result<()> {
        let name = &contents.database;
        let door = self.make_way(name)?;
        let schemas = self.missing_schemas(archive)?;
        if !schemas.is_empty() {
            // So it is with a dump of chosen tables: the database first, then what they lie in.
            self.database_alone(archive, door)?;
            for schema in &schemas {
                self.sql(name, &format!("CREATE SCHEMA IF NOT EXISTS {}", escape_identifier(schema)))?;
                warnings.push(format!(
                    "schema {schema:?} of {name:?} is not in the dump, and was made for its tables"
                ));
            }
        }
        let door = if schemas.is_empty() { door } else { name };
        // It reads what is the caller's, so it runs as the caller: no SQL does. The
        // server is the fork's user's.
        let mut command = self.server.command_as_caller(&client(self.binaries, "pg_restore")?, door)?;
        if schemas.is_empty() {
            command.arg("--create");
        }
        command.args(["--verbose", "--no-tablespaces"]);
        let jobs = if contents.in_order { 1 } else { self.jobs };
        command.arg(format!("--jobs={jobs}"));
        if !self.ignore_errors {
            command.arg("--exit-on-error");
        }
        if self.no_owner {
            command.args(["--no-owner", "--no-privileges"]);
        }
        command.arg(archive);
        let mut waiting = self.ui.waiting();
        let (mut begun, mut through, mut step) = (0, false, String::new());
        let what = format!("pg_restore of database {name:?}");
        let ended = tools::run_to_end(&what, &mut command, self.interrupted, &mut |line| {
            if let Some((_, rest)) = line.split_once(": processing data for table ") {
                begun += 1;
                step = format!("table {begun} of {}, {rest}", contents.tables.max(begun));
            } else if let Some((_, rest)) = line.split_once(": creating ") {
                step = format!("making {rest}");
            }
            through |= line.contains("errors ignored on restore:");
            waiting.tell(|| format!("loading {name}: {step}"));
        })?;
        drop(waiting);
        through |= ended.ok;
        self.judge(&what, &ended, through, warnings)?;
        self.ui.note(format!("loaded {name}"));
        Ok(())
    }

    /// Whether what went wrong is a failure. One that is not through always is.
    fn judge(&self, what: &str, ended: &Ended, through: bool, warnings: &mut Vec<String>) -> Result<()> {
        if !through || (!ended.ok && !self.ignore_errors) {
            let error = ended.error(what);
            return Err(error.hint(self.advice(&ended.lines)));
        }
        let errors: Vec<&String> = ended.lines.iter().filter(|line| line.contains("ERROR:")).collect();
        warnings.extend(errors.iter().take(SHOWN).map(|line| format!("{what}: {line}")));
        if errors.len() > SHOWN {
            warnings.push(format!("{what}: there were more errors"));
        }
        Ok(())
    }

    fn advice(&self, lines: &[String]) -> &'static str {
        let role = |line: &String| line.contains("role \"") && line.contains("does not exist");
        match lines.iter().any(role) {
            true => {
                "a dump of one database has no roles: leave owners and privileges out with --no-owner, \
                 or take one of all databases"
            }
            false => "nothing was kept; --ignore-errors keeps what can be loaded",
        }
    }

    /// Removes a database that is there in every cluster, and comes with the dump; the
    /// name of one that is there.
    fn make_way(&self, database: &str) -> Result<&'static str> {
        let through = if database == "postgres" { "template1" } else { "postgres" };
        if !["postgres", "template1"].contains(&database) {
            return Ok(through);
        }
        let template = "UPDATE pg_database SET datistemplate = false WHERE datname = 'template1'";
        for statement in [template, &format!("DROP DATABASE {database}")] {
            self.sql(through, statement)?;
        }
        Ok(through)
    }

    /// The schemas that an archive has something of, and does not make itself.
    fn missing_schemas(&self, archive: &Path) -> Result<Vec<String>> {
        let mut command = Command::new(client(self.binaries, "pg_restore")?);
        command.env("LC_ALL", "C").args(["--schema-only", "--file=-"]).arg(archive).stdin(Stdio::null());
        let output = command.output().context(|| "cannot run pg_restore")?;
        if !output.status.success() {
            return Err(Error::new(Kind::Postgres, format!("pg_restore cannot read {}", archive.display()))
                .detail(String::from_utf8_lossy(&output.stderr))
                .hint("take another dump, or another copy of this one"));
        }
        Ok(missing_in(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Makes an archive's database, with its properties and without anything in it.
    fn database_alone(&self, archive: &Path, door: &str) -> Result<()> {
        let mut list = Command::new(client(self.binaries, "pg_restore")?);
        list.env("LC_ALL", "C").args(["--create", "--list"]).arg(archive).stdin(Stdio::null());
        let output = list.output().context(|| "cannot run pg_restore")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let of_database = |line: &&str| line.split_whitespace().nth(3) == Some("DATABASE");
        let lines: String = text.lines().filter(of_database).map(|line| format!("{line}\n")).collect();
        let mut command = self.server.command_as_caller(&client(self.binaries, "pg_restore")?, door)?;
        command.args(["--create", "--exit-on-error", "--use-list=/dev/stdin"]).stdin(Stdio::piped());
        if self.no_owner {
            command.args(["--no-owner", "--no-privileges"]);
        }
        let spawned = command.arg(archive).stderr(Stdio::piped()).spawn();
        let mut child = spawned.context(|| "cannot run pg_restore")?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it does not read, it says why.
            let _ = stdin.write_all(lines.as_bytes());
        }
        let what = "making the database";
        let ended = tools::wait(what, &mut child, self.interrupted, &mut |_| ())?;
        if ended.ok { Ok(()) } else { Err(ended.error(what).hint(self.advice(&ended.lines))) }
    }

    /// A statement of our own.
    pub fn sql(&self, database: &str, statement: &str) -> Result<()> {
        let mut command = self.server.command(&client(self.binaries, "psql")?, database);
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]).stdout(Stdio::null());
        tools::run("preparing the new cluster", &mut command, self.interrupted, &mut |_| ())
    }

    /// Has the planner know what there is in a database.
    pub fn analyze(&self, database: &str) -> Result<()> {
        let mut command = self.server.command(&client(self.binaries, "vacuumdb")?, database);
        command.args(["--analyze-only", "--quiet"]).arg(format!("--jobs={}", self.jobs));
        let mut waiting = self.ui.waiting();
        waiting.tell(|| format!("analysing {database}"));
        let what = format!("analysing database {database:?}");
        tools::run(&what, &mut command, self.interrupted, &mut |_| ())
    }

    /// A script of pg_dump's or pg_dumpall's. Whatever it does, it does as the fork's
    /// user.
    pub fn script(&self, what: &str, path: &Path, database: &str, warnings: &mut Vec<String>) -> Result<()> {
        let file = File::open(path).at("open", path)?;
        let size = file.metadata().at("look at", path)?.len();
        let mut command = self.server.command(&client(self.binaries, "psql")?, database);
        command.args(["-X", "-q", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.arg("-v").arg(format!("ON_ERROR_STOP={}", u8::from(!self.ignore_errors)));
        let mut child = command.stderr(Stdio::piped()).spawn().context(|| "cannot run psql")?;
        let stdin = child.stdin.take();
        let (fed, ended) = std::thread::scope(|scope| {
            let feeder = scope.spawn(|| {
                let mut progress = self.ui.progress(what, size);
                stdin.map_or(Ok(()), |to| feed(file, to, self.superuser, &mut |n| progress.add(n)))
            });
            let ended = tools::wait(what, &mut child, self.interrupted, &mut |_| ());
            (feeder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), ended)
        });
        let ended = ended?;
        // What psql says of its end tells more than that it takes nothing any more.
        if ended.ok {
            fed.at("load", path)?;
        }
        self.judge(what, &ended, ended.ok, warnings)
    }
}

/// The schemas that are named above the statements of a script, and are not made by it.
fn missing_in(script: &str) -> Vec<String> {
    let (mut used, mut made) = (BTreeSet::new(), BTreeSet::new());
    for line in script.lines() {
        let Some((name, rest)) = line.strip_prefix("-- Name: ").and_then(|rest| rest.split_once("; Type: "))
        else {
            continue;
        };
        let Some((kind, rest)) = rest.split_once("; Schema: ") else { continue };
        let Some((schema, _)) = rest.split_once("; Owner: ") else { continue };
        if kind == "SCHEMA" {
            made.insert(name);
        }
        if !["-", "public", "pg_catalog"].contains(&schema) {
            used.insert(schema);
        }
    }
    used.difference(&made).map(|schema| schema.to_string()).collect()
}

/// Passes a script on, without what cannot be done in a cluster that has its first role
/// and is used through it.
fn feed(
    from: impl io::Read,
    mut to: impl Write,
    superuser: &str,
    tell: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut from = BufReader::with_capacity(STATEMENT_MAX, from);
    let mut line = Vec::new();
    // Roles come first, before there is any data that looks like a statement.
    let mut roles = true;
    loop {
        line.clear();
        let read = if roles {
            from.read_until(b'\n', &mut line)?
        } else {
            let buffer = from.fill_buf()?;
            line.extend_from_slice(buffer);
            let read = buffer.len();
            from.consume(read);
            read
        };
        if read == 0 {
            return to.flush();
        }
        if roles {
            let text = String::from_utf8_lossy(&line);
            roles = !(text.starts_with("\\connect ") || text.starts_with("COPY "));
            if roles && is_of(text.trim_end(), superuser) {
                continue;
            }
        }
        to.write_all(&line)?;
        tell(read as u64);
    }
}

/// Whether a line makes or removes that role.
fn is_of(line: &str, superuser: &str) -> bool {
    let plain = superuser.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !superuser.starts_with(|c: char| c.is_ascii_digit());
    let names = [format!("\"{}\"", superuser.replace('"', "\"\"")), superuser.to_string()];
    ["CREATE ROLE ", "DROP ROLE ", "DROP ROLE IF EXISTS "].iter().any(|verb| {
        let name = line.strip_prefix(verb).and_then(|rest| rest.strip_suffix(';'));
        name.is_some_and(|name| name == names[0] || (plain && name == names[1]))
    })
}

/// Refuses a script that makes tablespaces: they would lie outside of the fork.
pub fn refuse_tablespaces(path: &Path) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).at("open", path)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = io::Read::take(&mut reader, STATEMENT_MAX as u64).read_until(b'\n', &mut line);
        let text = String::from_utf8_lossy(&line);
        if read.at("read", path)? == 0 || text.starts_with("\\connect ") || text.starts_with("COPY ") {
            return Ok(());
        }
        if text.starts_with("CREATE TABLESPACE ") {
            return Err(Error::new(Kind::BadInput, format!("{} makes tablespaces", path.display()))
                .cause(text.trim_end().to_string())
                .hint("a fork has nothing outside: dump again with pg_dumpall --no-tablespaces"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let text = ";\n; Archive created at 2026-01-02 03:04:05 UTC\n;     dbname: my shop\n;     TOC Entries: 9\n\
                    ;     Dumped from database version: 15.18 (Debian 15.18-0+deb12u1)\n\
                    ;     Dumped by pg_dump version: 18.6\n;\n;\n; Selected TOC Entries:\n;\n\
                    209; 1259 16389 TABLE public t postgres\n3310; 0 16389 TABLE DATA public t postgres\n";
        let contents = Contents {
            database: "my shop".into(),
            server: Some(15),
            pg_dump: Some(18),
            tables: 1,
            in_order: false,
        };
        assert_eq!(listed(text), contents);
        assert!(listed(";     Format: TAR\n").in_order);
    }

    #[test]
    fn schemas() {
        let script = "-- Name: a; Type: SCHEMA; Schema: -; Owner: app\n\nCREATE SCHEMA a;\n\
                      -- Name: t; Type: TABLE; Schema: a; Owner: app\n-- Name: t; Type: TABLE; Schema: my b; Owner: app\n\
                      -- Name: f; Type: FUNCTION; Schema: public; Owner: app\n-- Name: t; Type: TABLE DATA\n";
        assert_eq!(missing_in(script), ["my b"]);
    }

    #[test]
    fn the_first_role_is_there_already() {
        let script = "--\nCREATE ROLE app;\nCREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER;\n\
                      DROP ROLE IF EXISTS postgres;\n\\connect shop\nCREATE ROLE postgres;\n";
        let mut out = Vec::new();
        feed(script.as_bytes(), &mut out, "postgres", &mut |_| ()).unwrap();
        let left = "--\nCREATE ROLE app;\nALTER ROLE postgres WITH SUPERUSER;\n\\connect shop\nCREATE ROLE postgres;\n";
        assert_eq!(String::from_utf8(out).unwrap(), left);
        assert!(is_of("CREATE ROLE \"My \"\"Role\";", "My \"Role"));
        assert!(!is_of("CREATE ROLE My;", "My") && !is_of("CREATE ROLE postgres2;", "postgres"));
    }

    #[test]
    fn tablespaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sql");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("CREATE ROLE a;\nCREATE TABLESPACE fast OWNER a LOCATION '/mnt/fast';\n\\connect x\n");
        assert_eq!(refuse_tablespaces(&path).unwrap_err().kind, Kind::BadInput);
        write("\\connect x\nCOPY t FROM stdin;\nCREATE TABLESPACE fast\n");
        refuse_tablespaces(&path).unwrap();
    }
}
