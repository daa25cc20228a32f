//! Looking at a directory that is to become a base.
//!
//! Nobody knows who made it. Only regular files are opened; everything is found
//! through the directory that it is in, and must be where that directory says,
//! so that what is exchanged meanwhile leads nowhere else. Two kinds of links
//! lead out of the directory and are followed, those that PostgreSQL makes:
//! `pg_wal` and `pg_tblspc/OID`. Of what is there, only what PostgreSQL puts there
//! is taken: a link to `/` is no tablespace.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::record;
use crate::attr::Kind;
use crate::block::MAX_FILE_BYTES;
use crate::class::{belongs_in_tablespace, belongs_in_wal};
use crate::device::foreign::Place;
use crate::error::{Error, Result};
use crate::map::schema::BaseFileRecord;

/// The deepest directory of a base. PostgreSQL's own nest four deep.
const DEPTH_MAX: usize = 64;

/// A PGDATA directory as it was found.
#[derive(Debug)]
pub struct Scanned {
    /// The directory, without symbolic links.
    pub dir: PathBuf,
    /// Its own attributes.
    pub top: Metadata,
    /// What is in it.
    pub entries: Vec<Found>,
}

/// One entry found in a base.
#[derive(Debug)]
pub struct Found {
    /// Its name.
    pub name: Vec<u8>,
    /// Its kind.
    pub kind: Kind,
    /// Its attributes.
    pub meta: Metadata,
    /// A regular file's record.
    pub file: Option<BaseFileRecord>,
    /// A link's target.
    pub target: Vec<u8>,
    /// A directory's entries.
    pub entries: Vec<Found>,
}

/// Looks at a PGDATA directory with everything in it, as the user of the calling
/// thread. Nothing of it may be on the device `mount`: that is the mount of the
/// store itself, whose threads must not wait for each other.
pub fn scan(dir: &Path, mount: Option<u64>) -> Result<Scanned> {
    let place = Place::at(dir).map_err(|e| failed(dir, e))?;
    let dir = place.path().map_err(|e| failed(dir, e))?;
    let top = place.meta().clone();
    let mut scan = Scan { dir: &dir, owner: top.uid(), mount, names: Vec::new(), seen: HashSet::new() };
    let entries = scan.directory(&place, &dir, |_| true)?;
    Ok(Scanned { dir, top, entries })
}

fn bad(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadBase { path: path.to_path_buf(), reason: reason.into() }
}

/// What the host refuses: permission is a matter of its own.
fn failed(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::PermissionDenied => Error::io(format!("cannot read {}", path.display()), e),
        _ => bad(path, e.to_string()),
    }
}

/// Which names of a directory are taken.
type Wanted = fn(&[u8]) -> bool;

struct Scan<'a> {
    dir: &'a Path,
    owner: u32,
    mount: Option<u64>,
    /// Where it is, from the top.
    names: Vec<Vec<u8>>,
    /// Directories that were listed.
    seen: HashSet<(u64, u64)>,
}

impl Scan<'_> {
    /// The entries of the directory at `path` whose names are `wanted`.
    fn directory(&mut self, place: &Place, path: &Path, wanted: Wanted) -> Result<Vec<Found>> {
        if self.names.len() > DEPTH_MAX {
            return Err(bad(path, format!("its directories nest more than {DEPTH_MAX} deep")));
        }
        if self.mount == Some(place.meta().dev()) {
            return Err(bad(path, "it is in the mount of this store; copy it with --from"));
        }
        if !self.seen.insert((place.meta().dev(), place.meta().ino())) {
            return Err(bad(path, "it is in the base more than once"));
        }
        let failed = |e| failed(path, e);
        let entries = place.list().map_err(failed)?;
        let names = entries.map(|e| e.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>();
        let mut found = Vec::new();
        for name in names.map_err(failed)? {
            if wanted(name.as_bytes()) {
                found.push(self.entry(place, path, name)?);
            }
        }
        // A name that was away for a moment would be missing for good.
        match place.is_unchanged().map_err(failed)? {
            true => Ok(found),
            false => Err(bad(path, "it changed while it was looked at")),
        }
    }

    fn entry(&mut self, dir: &Place, dir_path: &Path, name: OsString) -> Result<Found> {
        let path = dir_path.join(&name);
        let failed = |e| failed(&path, e);
        let mut place = Place::itself(&dir.entry(&name)).map_err(failed)?;
        let mut real = path.clone();
        if place.meta().is_symlink()
            && self.is_servers_link(&name)
            && let Some((to, there)) = self.follow(&dir.entry(&name), &path)?
        {
            (place, real) = (to, there);
        }
        if place.path().map_err(failed)? != real {
            return Err(bad(&path, "it was moved while it was looked at"));
        }
        let meta = place.meta().clone();
        let kind = match meta.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_file() => Kind::File,
            kind if kind.is_symlink() => Kind::Symlink,
            kind if kind.is_fifo() => Kind::Fifo,
            kind if kind.is_socket() => Kind::Socket,
            _ => return Err(bad(&path, "it is a device")),
        };
        let mut found =
            Found { name: name.into_vec(), kind, file: None, target: Vec::new(), entries: Vec::new(), meta };
        match kind {
            Kind::File => {
                // Tried now, so that an unreadable base is refused as a whole.
                place.open().map_err(failed)?;
                if found.meta.size() > MAX_FILE_BYTES {
                    let bytes = found.meta.size();
                    return Err(bad(
                        &path,
                        format!("it has {bytes} bytes, and {MAX_FILE_BYTES} is the most"),
                    ));
                }
                found.file = Some(record(&real, &found.meta)?);
            }
            Kind::Symlink => {
                let target = std::fs::read_link(dir.entry(OsStr::from_bytes(&found.name)));
                found.target = target.map_err(failed)?.into_os_string().into_vec();
            }
            Kind::Directory => {
                self.names.push(found.name.clone());
                let (wanted, what) = self.contents(real != path);
                found.entries = self.directory(&place, &real, wanted)?;
                self.names.pop();
                if let Some(what) = what
                    && found.entries.is_empty()
                    && place.list().map_err(failed)?.next().is_some()
                {
                    return Err(bad(
                        &path,
                        format!("it leads to {}, where there is no {what}", real.display()),
                    ));
                }
            }
            _ => {}
        }
        Ok(found)
    }

    /// Whether PostgreSQL makes a link of that name in this directory.
    fn is_servers_link(&self, name: &OsStr) -> bool {
        match self.names.as_slice() {
            [] => name == "pg_wal",
            [top] => top == b"pg_tblspc",
            _ => false,
        }
    }

    /// What is taken of the directory that was just entered, and what must be
    /// there if it is elsewhere.
    fn contents(&self, elsewhere: bool) -> (Wanted, Option<&'static str>) {
        match self.names.as_slice() {
            [top, _] if top == b"pg_tblspc" => (belongs_in_tablespace, elsewhere.then_some("tablespace")),
            [top] if top == b"pg_wal" && elsewhere => (belongs_in_wal, Some("WAL")),
            _ => (|_| true, None),
        }
    }

    /// The directory that a link of PostgreSQL's leads to, and where it is; `None`
    /// if that is in the base itself, where it is found anyhow.
    fn follow(&self, link: &Path, path: &Path) -> Result<Option<(Place, PathBuf)>> {
        let failed = |e| failed(path, e);
        let place = Place::at(link).map_err(failed)?;
        let real = place.path().map_err(failed)?;
        let refuse = |why: &str| Err(bad(path, format!("it leads to {}, {why}", real.display())));
        if real.starts_with(self.dir) {
            return Ok(None);
        }
        if !place.meta().is_dir() {
            return refuse("which is no directory");
        }
        if self.dir.starts_with(&real) {
            return refuse("which contains the data directory");
        }
        if self.mount == Some(place.meta().dev()) {
            return refuse("which is in the mount of this store; copy it with --from");
        }
        if place.meta().uid() != self.owner {
            return refuse("which does not belong to the owner of the data directory");
        }
        Ok(Some((place, real)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(found: &[Found]) -> Vec<String> {
        let mut names: Vec<_> = found.iter().map(|f| String::from_utf8_lossy(&f.name).into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_is_postgresqls_comes_in_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let (data, wal, space) = (dir.path().join("data"), dir.path().join("wal"), dir.path().join("space"));
        for made in [&data.join("base/5"), &data.join("pg_tblspc"), &wal, &space.join("PG_15_1/5")] {
            std::fs::create_dir_all(made).unwrap();
        }
        for file in [wal.join("00000002.history"), wal.join("x"), space.join("PG_15_1/5/1"), space.join("x")]
        {
            std::fs::write(file, "x").unwrap();
        }
        symlink(&wal, data.join("pg_wal")).unwrap();
        symlink(&space, data.join("pg_tblspc/16400")).unwrap();
        symlink(&space, data.join("base/5/link")).unwrap();
        let scanned = scan(&data, None).unwrap();
        assert_eq!(names(&scanned.entries), ["base", "pg_tblspc", "pg_wal"]);
        let entry = |of: &[Found], name: &str| -> (Kind, Vec<String>) {
            let found = of.iter().find(|f| f.name == name.as_bytes()).unwrap();
            (found.kind, names(&found.entries))
        };
        assert_eq!(entry(&scanned.entries, "pg_wal"), (Kind::Directory, vec!["00000002.history".into()]));
        let spaces = scanned.entries.iter().find(|f| f.name == b"pg_tblspc").unwrap();
        assert_eq!(entry(&spaces.entries, "16400"), (Kind::Directory, vec!["PG_15_1".into()]));
        let base = scanned.entries.iter().find(|f| f.name == b"base").unwrap();
        assert_eq!(entry(&base.entries[0].entries, "link").0, Kind::Symlink);
    }

    #[test]
    fn nothing_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let data = top.join("data");
        std::fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::fs::create_dir_all(top.join("other")).unwrap();
        std::fs::write(top.join("other/x"), "").unwrap();
        let link = data.join("pg_tblspc/1");
        for (target, why) in [
            (top.join("other"), "no tablespace"),
            (top.join("other/x"), "no directory"),
            (top.clone(), "contains the data directory"),
            (top.join("none"), "No such file"),
            (link.clone(), "symbolic links"),
        ] {
            let _ = std::fs::remove_file(&link);
            symlink(&target, &link).unwrap();
            let error = scan(&data, None).unwrap_err().to_string();
            assert!(error.contains("pg_tblspc/1") && error.contains(why), "{}: {error}", target.display());
        }
        std::fs::remove_file(&link).unwrap();
        let device = std::fs::metadata(&data).unwrap().dev();
        assert!(scan(&data, Some(device)).unwrap_err().to_string().contains("mount of this store"));
        scan(&data, None).unwrap();
    }
}
