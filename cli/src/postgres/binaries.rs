//! Finding PostgreSQL's programs: the ones whose major version is the cluster's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Kind, Result};

/// A directory with PostgreSQL's server programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The directory.
    pub dir: PathBuf,
    /// Major version.
    pub major: u32,
    /// As `postgres --version` says it.
    pub version: String,
}

impl Binaries {
    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What is in `dir`; None if there is no server in it. A link to a server
    /// leads to the directory that has the other programs, too.
    fn look(dir: &Path) -> Option<Binaries> {
        let program = dir.join("postgres").canonicalize().ok()?;
        let dir = program.parent()?.to_path_buf();
        let output = Command::new(&program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = version_in(&text)?;
        Some(Binaries { dir, major: major_of(&version)?, version })
    }
}

/// `15.18` from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version_in(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("(PostgreSQL) ")?;
    Some(rest.split_whitespace().next()?.to_string())
}

/// 15 from `15.18`, 18 from `18beta1`.
fn major_of(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

/// Finds the programs.
///
/// With `pg_bin` they must be there; else the first match of PATH, pg_config
/// and the usual places is taken, newest first among those.
pub fn find(pg_bin: Option<&Path>, major: Option<u32>) -> Result<Binaries> {
    if let Some(dir) = pg_bin {
        let Some(found) = Binaries::look(dir) else {
            return Err(Error::new(
                Kind::Environment,
                format!("there is no PostgreSQL server in {}", dir.display()),
            )
            .cause("it has no program postgres that runs and tells its version")
            .hint("--pg-bin wants the directory that `pg_config --bindir` prints"));
        };
        return match major {
            Some(major) if major != found.major => Err(Error::new(
                Kind::Environment,
                format!("PostgreSQL {major} is needed, but {} has {}", dir.display(), found.version),
            )
            .hint(advice(Some(major)))),
            _ => Ok(found),
        };
    }
    let mut seen = Vec::new();
    for dir in places() {
        let Some(found) = Binaries::look(&dir) else {
            continue;
        };
        if major.is_none_or(|major| major == found.major) {
            return Ok(found);
        }
        let line = format!("{} has {}", found.dir.display(), found.version);
        if !seen.contains(&line) {
            seen.push(line);
        }
    }
    let what = major.map_or("PostgreSQL".to_string(), |major| format!("PostgreSQL {major}"));
    let mut error = Error::new(Kind::Environment, format!("there are no binaries of {what} on this machine"));
    if seen.is_empty() {
        error = error
            .cause("looked in PATH, pg_config --bindir, /usr/lib/postgresql/*/bin and other usual places");
    }
    for line in seen {
        error = error.cause(line);
    }
    Err(error.hint(advice(major)))
}

/// The programs of that version, or else of the next newer one; without a version, the
/// newest.
pub fn at_least(pg_bin: Option<&Path>, major: Option<u32>) -> Result<Binaries> {
    let mut there = match pg_bin {
        Some(_) => vec![find(pg_bin, None)?],
        None => all(),
    };
    there.retain(|found| major.is_none_or(|major| found.major >= major));
    let best = match major {
        Some(_) => there.into_iter().min_by_key(|found| found.major),
        None => there.into_iter().max_by_key(|found| found.major),
    };
    match (best, major) {
        (Some(best), _) => Ok(best),
        // It says what there is.
        (None, None) => find(pg_bin, None),
        (None, Some(major)) => find(pg_bin, Some(major)).map_err(|mut error| {
            error.message = format!("PostgreSQL {major} or newer is needed, and not on this machine");
            error
        }),
    }
}

/// Every server that is found, each version once, the first one of it.
pub fn all() -> Vec<Binaries> {
    let mut found: Vec<Binaries> = Vec::new();
    for binaries in places().iter().filter_map(|dir| Binaries::look(dir)) {
        if !found.iter().any(|other| other.version == binaries.version) {
            found.push(binaries);
        }
    }
    found
}

fn advice(major: Option<u32>) -> String {
    let package = major.map_or("postgresql".to_string(), |major| format!("postgresql-{major}"));
    format!(
        "install it (on Debian and Ubuntu: apt install {package}), or name its directory with --pg-bin DIR"
    )
}

/// Where servers may be, best first.
fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    places.retain(|dir| dir.is_absolute() && dir.join("postgres").exists());
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    // Debian, SUSE and Gentoo, Alpine, Red Hat, from source, macOS-style trees.
    for (parent, prefix, rest) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr/lib", "postgresql", "bin"),
        ("/usr/libexec", "postgresql", ""),
        ("/usr", "pgsql-", "bin"),
        ("/usr/local", "pgsql", "bin"),
        ("/opt", "pgsql", "bin"),
        ("/opt", "postgresql", "bin"),
    ] {
        places.extend(versions_in(Path::new(parent), prefix).into_iter().map(|dir| dir.join(rest)));
    }
    let mut unique = Vec::new();
    for dir in places {
        if !unique.contains(&dir) {
            unique.push(dir);
        }
    }
    unique
}

/// The directories in `parent` whose name begins with `prefix`, highest version first.
fn versions_in(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix(prefix) {
            let version = version.trim_start_matches('-');
            if version.is_empty() || version.starts_with(|c: char| c.is_ascii_digit()) {
                found.insert((major_of(version), name.clone()), entry.path());
            }
        }
    }
    found.into_values().rev().collect()
}

/// A client program: of the fork's own binaries, else of any on this machine.
/// (Some distributions of PostgreSQL come without clients.)
pub fn client(name: &str, own: &Binaries) -> Option<PathBuf> {
    client_anywhere(name, Some(&own.dir))
}

/// The same, of any binaries on this machine; of those in `first`, if it has it.
pub fn client_anywhere(name: &str, first: Option<&Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default();
    first
        .map(Path::to_path_buf)
        .into_iter()
        .chain(path)
        .chain(places())
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = version_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").unwrap();
        assert_eq!((debian.as_str(), major_of(&debian)), ("15.18", Some(15)));
        assert_eq!(major_of("18beta1"), Some(18));
        assert_eq!(major_of("16devel"), Some(16));
        assert_eq!((major_of(""), version_in("something else")), (None, None));
    }

    #[test]
    fn newest_directory_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["pgsql-9.6", "pgsql-15", "pgsql-16", "pgsql-odd", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found = versions_in(dir.path(), "pgsql-");
        let names: Vec<_> = found.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["pgsql-16", "pgsql-15", "pgsql-9.6"]);
    }

    #[test]
    fn a_directory_without_a_server_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = find(Some(dir.path()), None).unwrap_err();
        assert_eq!(error.kind, Kind::Environment);
        assert!(error.message.contains(dir.path().to_str().unwrap()));
        assert_eq!(at_least(None, Some(999)).unwrap_err().kind, Kind::Environment);
        assert_eq!(find(None, Some(999)).unwrap_err().kind, Kind::Environment);
    }
}
