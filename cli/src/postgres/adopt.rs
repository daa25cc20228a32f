//! Bringing a cluster's configuration into a new fork, wherever it lies: a
//! Debian cluster's under /etc/postgresql, and files that it includes.
//!
//! Afterwards nothing outside is included; `hba_file` and its like are not
//! set, so PostgreSQL takes the files in the data directory, wherever that is
//! mounted. (Settings that override things are the business of `identity`.)

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgcowfs::device::foreign::read_small;

use super::cluster::Cluster;
use super::conf::{self, Budget, Edit, Entry};
use super::debian;
use super::identity::default_file;
use super::tree::{Text, Tree};
use crate::error::{Context, Error, Kind, Result};

/// The cluster's postgresql.conf: where the user says, in its data directory,
/// or where Debian keeps it.
pub fn locate(cluster: &Cluster, chosen: Option<&Path>) -> Result<PathBuf> {
    let conf = match chosen {
        Some(dir) => dir.join("postgresql.conf"),
        None => {
            let own = cluster.dir.join("postgresql.conf");
            match own.exists() {
                true => own,
                false => match debian::config_dir(&cluster.dir) {
                    Some(dir) => dir.join("postgresql.conf"),
                    None => {
                        return Err(Error::new(
                            Kind::BadInput,
                            format!("no postgresql.conf was found for {}", cluster.dir.display()),
                        )
                        .cause("it is neither in the data directory nor named by a cluster under /etc/postgresql")
                        .hint("say where it is with --config-dir DIR"));
                    }
                },
            }
        }
    };
    // Through links, so that a linked file counts as lying where it is.
    conf.canonicalize().at("read", &conf)
}

/// Brings `conf` and all it refers to into `tree`, whose other files are (or
/// show) those of `cluster`.
pub fn adopt(cluster: &Cluster, conf: &Path, tree: &dyn Tree) -> Result<()> {
    let mut adopter = Adopter {
        source: &cluster.dir,
        tree,
        taken: tree.list("")?,
        placed: BTreeMap::new(),
        access: BTreeMap::new(),
        budget: Budget::default(),
    };
    adopter.file(conf, "postgresql.conf", 0).map_err(|error| {
        let of = format!("{} is the postgresql.conf of the cluster", conf.display());
        if conf.starts_with(&cluster.dir) { error } else { error.cause(of) }
    })?;
    for setting in ["hba_file", "ident_file"] {
        let name = default_file(setting);
        let here = conf.with_file_name(name);
        let set = adopter.access.get(setting);
        let path = set.cloned().unwrap_or(here);
        // A missing pg_ident.conf is allowed, a missing pg_hba.conf is not.
        if set.is_none() && setting == "ident_file" && !path.exists() {
            continue;
        }
        let bytes = read_small(&path, conf::BYTES_MAX).at("read", &path)?;
        if tree.read(name)?.as_ref() != Some(&bytes) || tree.link_target(name)?.is_some() {
            tree.write(name, &bytes)?;
        }
    }
    Ok(())
}

struct Adopter<'a> {
    source: &'a Path,
    tree: &'a dyn Tree,
    /// Names in use at the top of the data directory.
    taken: Vec<String>,
    /// What has been brought in, and as what: a file is included twice, or by itself.
    placed: BTreeMap<PathBuf, String>,
    /// Where hba_file and ident_file point.
    access: BTreeMap<String, PathBuf>,
    budget: Budget,
}

impl Adopter<'_> {
    /// Brings the file `path` in as `name`; over so many levels it is included.
    fn file(&mut self, path: &Path, name: &str, depth: usize) -> Result<()> {
        self.placed.insert(path.to_path_buf(), name.to_string());
        let bytes = read_small(path, conf::BYTES_MAX).at("read", path)?;
        self.budget.take(&path.display().to_string(), bytes.len(), depth)?;
        let old = Text::decode(bytes);
        let mut failure = None;
        let text = conf::edit(&old.text, |entry| {
            if failure.is_some() {
                return Edit::Keep;
            }
            self.line(path, name, depth, entry).unwrap_or_else(|error| {
                failure = Some(error);
                Edit::Keep
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        if text != old.text || path != self.source.join(name) {
            self.tree.write(name, &old.with(text).encode())?;
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, name: &str, depth: usize, entry: &Entry) -> Result<Edit> {
        match entry.name.as_str() {
            "data_directory" | "external_pid_file" => Ok(Edit::CommentOut),
            "hba_file" | "ident_file" => {
                self.access.insert(entry.name.clone(), beside(path, &entry.value));
                Ok(Edit::CommentOut)
            }
            _ if entry.is_include() => self.include(path, name, depth, entry),
            _ => Ok(Edit::Keep),
        }
    }

    fn include(&mut self, path: &Path, name: &str, depth: usize, entry: &Entry) -> Result<Edit> {
        let written = beside(path, &entry.value);
        let Ok(target) = written.canonicalize() else {
            if entry.name == "include_if_exists" {
                return Ok(Edit::CommentOut);
            }
            return Err(Error::new(Kind::BadInput, format!("{} does not exist", written.display()))
                .cause(format!("{} '{}' in {} names it", entry.name, entry.value, path.display()))
                .hint("mend that line first; PostgreSQL does not start with it either"));
        };
        let place = match self.placed.get(&target) {
            Some(place) => place.clone(),
            None => {
                let place = self.place(&target);
                self.placed.insert(target.clone(), place.clone());
                if entry.name == "include_dir" {
                    self.directory(&target, &place, depth + 1)?;
                } else {
                    self.file(&target, &place, depth + 1)?;
                }
                place
            }
        };
        let stays = conf::within(name, &entry.value).as_deref() == Some(&place);
        let mut way = format!("{}{place}", "../".repeat(name.matches('/').count()));
        if way.is_empty() {
            way.push('.');
        }
        Ok(if stays { Edit::Keep } else { Edit::Set(way) })
    }

    fn directory(&mut self, target: &Path, place: &str, depth: usize) -> Result<()> {
        if self.tree.list(place)?.is_empty() && !target.starts_with(self.source) {
            self.tree.make_dir(place)?;
        }
        let entries = fs::read_dir(target).at("list", target)?;
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        for file in conf::sorted_conf(names) {
            let path = target.join(&file).canonicalize().at("read", &target.join(&file))?;
            self.file(&path, &conf::in_directory(place, &file), depth)?;
        }
        Ok(())
    }

    /// Where something goes: where it is in the data directory, else at its
    /// top, under its own name if that is free.
    fn place(&mut self, target: &Path) -> String {
        if let Some(inside) = target.strip_prefix(self.source).ok().and_then(Path::to_str) {
            return inside.to_string();
        }
        // Only the root directory has no name.
        let own = target.file_name().map_or_else(|| "root".into(), |n| n.to_string_lossy().into_owned());
        let numbered = (1..).map(|n| format!("{n}-{own}"));
        let free = [own.clone()].into_iter().chain(numbered).find(|name| !self.taken.contains(name));
        // The sequence has no end, so there is a free name; `own` is the first.
        let name = free.unwrap_or(own);
        self.taken.push(name.clone());
        name
    }
}

fn beside(file: &Path, target: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("/")).join(target)
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::fake;
    use super::super::conf::Settings;
    use super::super::tree::DirTree;
    use super::*;

    struct Setup {
        _dir: tempfile::TempDir,
        cluster: Cluster,
        etc: PathBuf,
        tree: DirTree,
    }

    /// A Debian cluster, and a fork that shows its data directory's files.
    fn debian_cluster() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (data, etc, fork) = (top.join("data"), top.join("etc"), top.join("fork"));
        for d in [&data, &etc.join("conf.d"), &fork] {
            fs::create_dir_all(d).unwrap();
        }
        fake(&data, 1, 8192);
        fake(&fork, 1, 8192);
        fs::write(
            etc.join("postgresql.conf"),
            format!(
                "data_directory = '{0}/data' # use data in another directory\nhba_file = '{0}/etc/pg_hba.conf'\n\
                 ident_file = '{0}/etc/pg_ident.conf'\nexternal_pid_file = '/var/run/postgresql/15-main.pid'\n\
                 port = 5432\ninclude_dir = 'conf.d'\ninclude '{0}/etc/extra/base'\ninclude_if_exists 'none.conf'\n",
                top.display()
            ),
        )
        .unwrap();
        fs::write(etc.join("conf.d/a.conf"), "work_mem = '9MB'\n").unwrap();
        fs::create_dir(etc.join("extra")).unwrap();
        fs::write(etc.join("extra/base"), "include '../shared.conf'\n").unwrap();
        fs::write(etc.join("shared.conf"), "a = 'gr\u{fc}n'\n").unwrap();
        fs::write(etc.join("pg_hba.conf"), "local all all peer\n").unwrap();
        fs::write(etc.join("pg_ident.conf"), "# map\n").unwrap();
        Setup { cluster: Cluster::inspect(&data).unwrap(), etc, tree: DirTree(fork), _dir: dir }
    }

    #[test]
    fn a_debian_configuration_comes_in_whole() {
        let s = debian_cluster();
        assert_eq!(locate(&s.cluster, None).unwrap_err().kind, Kind::BadInput);
        let conf = locate(&s.cluster, Some(&s.etc)).unwrap();
        adopt(&s.cluster, &conf, &s.tree).unwrap();
        let text = String::from_utf8(s.tree.read("postgresql.conf").unwrap().unwrap()).unwrap();
        for name in ["data_directory", "hba_file", "ident_file", "external_pid_file", "include_if_exists"] {
            assert!(text.contains(&format!("#pgcowfs: {name}")), "{name}: {text}");
        }
        let settings = Settings::load(&s.tree).unwrap();
        assert!(settings.outside.is_empty(), "{:?}", settings.outside);
        assert_eq!(
            (settings.get("work_mem"), settings.get("a"), settings.get("port")),
            (Some("9MB"), Some("grün"), Some("5432"))
        );
        assert_eq!(settings.get("hba_file"), None);
        // "base" is a directory of PostgreSQL's, so the included file of that name had to move.
        assert!(s.tree.read("1-base").unwrap().is_some());
        assert_eq!(s.tree.read("pg_hba.conf").unwrap().unwrap(), b"local all all peer\n");
        assert!(s.tree.read("pg_ident.conf").unwrap().is_some());
        assert!(
            fs::read_to_string(s.etc.join("postgresql.conf")).unwrap().starts_with("data_directory"),
            "the source is as it was"
        );
    }

    #[test]
    fn a_missing_include_is_named() {
        let s = debian_cluster();
        fs::remove_file(s.etc.join("shared.conf")).unwrap();
        let error = adopt(&s.cluster, &s.etc.join("postgresql.conf"), &s.tree).unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert!(error.message.contains("shared.conf") && error.causes[0].contains("extra/base"), "{error}");
    }

    #[test]
    fn a_file_that_includes_itself_ends() {
        let s = debian_cluster();
        fs::write(s.etc.join("shared.conf"), "include 'shared.conf'\n").unwrap();
        adopt(&s.cluster, &s.etc.join("postgresql.conf"), &s.tree).unwrap();
    }
}
