//! What becomes of the symbolic links of a data directory that is brought in.
//!
//! Afterwards no link of the fork leads out of it, so that no server writes
//! through one: a link to something that comes in leads there, in the fork;
//! a file elsewhere takes the link's place; and so do the directories elsewhere
//! that PostgreSQL works in, with what PostgreSQL puts there. All other links to
//! elsewhere are left out.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use pgcowfs::class::{belongs_in_tablespace, belongs_in_wal};
use pgcowfs::device::foreign::{Place, kind_name};

use super::cluster::{Cluster, changed};
use super::identity::SERVER_DIRS;
use crate::error::{Context, Error, Kind, Result};

/// Which entries of a directory come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// All of them.
    All,
    /// Those of a `pg_wal`: it may lie on a disk with other things.
    Wal,
    /// Those of a tablespace, for this major version.
    Tablespace(u32),
}

impl Only {
    /// Whether an entry of that name comes in.
    pub fn takes(self, name: &std::ffi::OsStr) -> bool {
        let name = name.as_bytes();
        match self {
            Only::All => true,
            Only::Wal => belongs_in_wal(name),
            Only::Tablespace(major) => {
                belongs_in_tablespace(name) && name.starts_with(format!("PG_{major}_").as_bytes())
            }
        }
    }

    /// What it is that comes in.
    pub fn what(self) -> &'static str {
        match self {
            Only::All => "file",
            Only::Wal => "WAL",
            Only::Tablespace(_) => "tablespace of this version",
        }
    }
}

/// What becomes of one link.
#[derive(Debug)]
pub enum Fate {
    /// It stays a link, with that target.
    Stays(PathBuf),
    /// The file it leads to takes its place.
    File(Place, PathBuf),
    /// The directory it leads to takes its place.
    Directory(Place, PathBuf, Only),
    /// An empty directory takes its place.
    Empty,
    /// It is left out, for that reason.
    LeftOut(String),
}

/// The links of one data directory.
pub struct Links<'a> {
    cluster: &'a Cluster,
    /// What comes in: from where, to where, and what of it.
    roots: Vec<(PathBuf, PathBuf, Only)>,
}

impl<'a> Links<'a> {
    /// Those of `cluster`.
    pub fn new(cluster: &'a Cluster) -> Result<Links<'a>> {
        let mut links = Links { cluster, roots: vec![(cluster.dir.clone(), PathBuf::new(), Only::All)] };
        let spaces = cluster.dir.join("pg_tblspc");
        let spaces = fs::read_dir(&spaces).at("list", &spaces)?;
        let spaces = spaces.flatten().map(|e| Path::new("pg_tblspc").join(e.file_name()));
        for rel in SERVER_DIRS.iter().map(PathBuf::from).chain(spaces) {
            let path = cluster.dir.join(&rel);
            let (Some(only), true) = (links.followed(&rel), path.is_symlink()) else { continue };
            if let Ok(real) = path.canonicalize()
                && !real.starts_with(&cluster.dir)
            {
                links.roots.push((real, rel, only));
            }
        }
        Ok(links)
    }

    /// What comes in of a directory elsewhere that a link at `rel` leads to, if
    /// PostgreSQL works in that directory.
    fn followed(&self, rel: &Path) -> Option<Only> {
        let (parent, name) = (rel.parent()?, rel.file_name()?);
        match () {
            () if rel == Path::new("pg_wal") => Some(Only::Wal),
            () if parent == Path::new("pg_tblspc") => Some(Only::Tablespace(self.cluster.major)),
            () if parent == Path::new("base") && name.as_bytes().iter().all(u8::is_ascii_digit) => {
                Some(Only::All)
            }
            () if SERVER_DIRS.iter().any(|dir| rel == Path::new(dir)) => Some(Only::All),
            () => None,
        }
    }

    /// Where in the fork something is that comes in from `real`.
    fn inside(&self, real: &Path) -> Option<PathBuf> {
        let found = self.roots.iter().filter_map(|(root, at, only)| {
            let rest = real.strip_prefix(root).ok()?;
            let first = rest.components().next();
            first
                .is_none_or(|name| only.takes(name.as_os_str()))
                .then(|| (root.as_os_str().len(), at.join(rest)))
        });
        found.max().map(|(_, inside)| inside)
    }

    /// What becomes of the link at `path`, which is at `rel` in the data
    /// directory and called `shown` in messages.
    pub fn fate(&self, path: &Path, shown: &Path, rel: &Path) -> Result<Fate> {
        // Whatever keeps it from being read, it was a link a moment ago.
        let target = fs::read_link(path).map_err(|_| changed(shown))?;
        // Nothing of the source's logs and statistics is worth copying.
        let scratch = matches!(rel.to_str(), Some("log" | "pg_log" | "pg_stat_tmp"));
        let followed = self.followed(rel);
        let unusable = |why: String| {
            Error::new(Kind::BadInput, format!("{} cannot be brought in", shown.display()))
                .cause(why)
                .hint("make it a directory of the cluster's own, or remove the link")
        };
        let place = match Place::at(path) {
            Ok(place) => place,
            Err(_) if scratch => return Ok(Fate::Empty),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || is_loop(&e) => {
                let why = format!("its target {} cannot be reached ({e})", target.display());
                return match followed {
                    Some(_) => Err(unusable(why)),
                    None => Ok(Fate::LeftOut(format!("{} was left out: {why}", shown.display()))),
                };
            }
            Err(e) => return Err(e).at("follow the link", shown),
        };
        let real = place.path().at("follow the link", shown)?;
        // Where it is itself what brings the directory in, it cannot lead there.
        if let Some(inside) = self.inside(&real).filter(|inside| inside != rel) {
            return Ok(Fate::Stays(relative(rel, &inside, target)));
        }
        if scratch {
            return Ok(Fate::Empty);
        }
        let leads = format!("it leads to {}", real.display());
        let kind = place.meta().file_type();
        match followed {
            None if kind.is_file() => Ok(Fate::File(place, real)),
            None => {
                let what = if kind.is_dir() { "a directory elsewhere" } else { kind_name(kind) };
                Ok(Fate::LeftOut(format!("{} was left out: {leads}, {what}", shown.display())))
            }
            Some(_) if !kind.is_dir() => Err(unusable(format!("{leads}, {}", kind_name(kind)))),
            Some(_) if self.cluster.dir.starts_with(&real) => {
                Err(unusable(format!("{leads}, which contains the data directory")))
            }
            Some(_) if place.meta().uid() != self.cluster.uid => {
                Err(unusable(format!("{leads}, which does not belong to the owner of the data directory")))
            }
            Some(only) => Ok(Fate::Directory(place, real, only)),
        }
    }
}

/// Whether links lead in a circle, or the path got too long on the way.
fn is_loop(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENAMETOOLONG))
}

/// The target of a link at `rel` that leads to `inside`: `text`, what it is now,
/// if that says so by itself. A `..` behind a name does not: it may come out
/// anywhere, as the name may be a link.
fn relative(rel: &Path, inside: &Path, text: PathBuf) -> PathBuf {
    let mut at = rel.parent().map(Path::to_path_buf).unwrap_or_default();
    let mut plain = true;
    let mut names = false;
    for part in text.components() {
        match part {
            Component::ParentDir => plain = plain && !names && at.pop(),
            Component::Normal(name) => {
                names = true;
                at.push(name);
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => plain = false,
        }
    }
    if plain && at == inside {
        return text;
    }
    let up = rel.components().count().saturating_sub(1);
    let mut target: PathBuf = std::iter::repeat_n(Component::ParentDir, up).collect();
    target.push(inside);
    match target.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => target,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::cluster::tests::fake;
    use super::*;

    #[test]
    fn targets_within_say_so_themselves() {
        let target = |rel: &str, inside: &str, text: &str| {
            relative(Path::new(rel), Path::new(inside), text.into()).display().to_string()
        };
        assert_eq!(target("a", "b", "b"), "b");
        assert_eq!(target("a/b", "c/d", "../c/./d"), "../c/./d");
        assert_eq!(target("a/b", "c/d", "/top/c/d"), "../c/d");
        assert_eq!(target("a/b", "a/c", "x/../c"), "../a/c", "x may lead anywhere");
        assert_eq!(target("a", "b", "../top/b"), "b", "out and in again");
        assert_eq!(target("a", "", "/top"), ".");
        assert_eq!(target("a/b", "", "/top"), "../");
    }

    #[test]
    fn each_link_has_its_fate() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let data = top.join("data");
        fake(&data, 1, 8192);
        for made in ["data/base/1", "out/wal/archive_status", "out/lost+found", "ts/PG_15_1/5", "ts/other"] {
            fs::create_dir_all(top.join(made)).unwrap();
        }
        fs::write(top.join("out/file"), "x").unwrap();
        fs::remove_dir(data.join("pg_wal")).unwrap();
        let link = |rel: &str, target: &str| {
            let target = target.replace('^', top.to_str().unwrap());
            symlink(target, data.join(rel)).unwrap();
        };
        for (rel, target) in [
            ("pg_wal", "^/out/wal"),
            ("pg_tblspc/1", "^/ts"),
            ("pg_tblspc/2", "^"),
            ("pg_tblspc/3", "/dev"),
            ("pg_tblspc/4", "none"),
            ("pg_tblspc/5", "../base"),
            ("abs", "^/data/PG_VERSION"),
            ("to-wal", "^/out/wal/archive_status"),
            ("to-space", "^/ts/PG_15_1/5"),
            ("to-rest", "^/ts/other"),
            ("file", "^/out/file"),
            ("circle", "circle"),
            ("null", "/dev/null"),
            ("log", "/nowhere"),
        ] {
            link(rel, target);
        }
        let cluster = Cluster::inspect(&data).unwrap();
        let links = Links::new(&cluster).unwrap();
        let fate = |rel: &str| links.fate(&data.join(rel), &data.join(rel), Path::new(rel));
        let stays = |rel: &str| match fate(rel).unwrap() {
            Fate::Stays(target) => target.display().to_string(),
            other => panic!("{rel}: {other:?}"),
        };
        assert!(
            matches!(fate("pg_wal").unwrap(), Fate::Directory(_, path, Only::Wal) if path == top.join("out/wal"))
        );
        assert!(matches!(fate("pg_tblspc/1").unwrap(), Fate::Directory(_, _, Only::Tablespace(15))));
        for (rel, why) in [("pg_tblspc/2", "contains"), ("pg_tblspc/4", "cannot be reached")] {
            let error = fate(rel).unwrap_err();
            assert!(error.kind == Kind::BadInput && error.to_string().contains(why), "{rel}: {error}");
        }
        if cluster.uid != 0 {
            assert!(fate("pg_tblspc/3").unwrap_err().to_string().contains("owner"));
        }
        assert_eq!(stays("pg_tblspc/5"), "../base");
        assert_eq!(stays("abs"), "PG_VERSION");
        assert_eq!(stays("to-wal"), "pg_wal/archive_status");
        assert_eq!(stays("to-space"), "pg_tblspc/1/PG_15_1/5");
        assert!(matches!(fate("file").unwrap(), Fate::File(..)));
        assert!(matches!(fate("log").unwrap(), Fate::Empty));
        for (rel, why) in
            [("to-rest", "directory elsewhere"), ("circle", "cannot be reached"), ("null", "a device")]
        {
            assert!(matches!(fate(rel).unwrap(), Fate::LeftOut(text) if text.contains(why)), "{rel}");
        }
    }
}
