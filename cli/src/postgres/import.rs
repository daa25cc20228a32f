//! Copying a stopped cluster into a new fork, and what a base's links lead to.
//!
//! Links that lead out of the data directory are followed: a fork has
//! everything inside. The source is watched: a file that changes while it is
//! copied, or a server that starts on it, makes the copy worthless.

use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::cluster::{Cluster, Control};
use super::conf::{self, Settings};
use super::tree::DirTree;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::{Progress, Ui};

/// The deepest directory that is copied. PostgreSQL's own nest four deep.
const DEPTH_MAX: usize = 64;

/// What to do, found out before anything is done.
#[derive(Default)]
struct Plan {
    dirs: Vec<(PathBuf, u32)>,
    files: Vec<(PathBuf, PathBuf, Metadata)>,
    links: Vec<(PathBuf, PathBuf)>,
    bytes: u64,
    left_out: Vec<String>,
}

/// Copies `cluster` into the empty directory `pgdata`. Returns what was left out.
pub fn copy(cluster: &Cluster, pgdata: &Path, ui: &Ui) -> Result<Vec<String>> {
    let mut plan = Plan::default();
    // An error for a tablespace that is not there, before the walk skips it.
    cluster.tablespaces_outside()?;
    plan.walk(cluster, &cluster.dir, Path::new(""))?;
    plan.carry_out(pgdata, ui, &format!("copying {}", cluster.dir.display()))?;
    let mode = fs::metadata(&cluster.dir).at("look at", &cluster.dir)?.permissions().mode();
    fs::set_permissions(pgdata, fs::Permissions::from_mode(mode & 0o750)).at("set the mode of", pgdata)?;
    plan.check_unchanged()?;
    check_same(cluster)?;
    Ok(plan.left_out)
}

/// Brings in what the fork `pgdata` of a base still shows as links to outside.
pub fn bring_outside_in(cluster: &Cluster, pgdata: &Path, ui: &Ui) -> Result<()> {
    let mut plan = Plan::default();
    let mut outside: Vec<PathBuf> = vec!["pg_wal".into()];
    outside.extend(
        cluster.tablespaces_outside()?.into_iter().map(|(name, _)| Path::new("pg_tblspc").join(name)),
    );
    for rel in outside {
        let shown = pgdata.join(&rel);
        if shown.is_symlink() {
            plan.link(cluster, &cluster.dir.join(&rel), &rel)?;
            fs::remove_file(&shown).at("replace", &shown)?;
        }
    }
    if !plan.dirs.is_empty() {
        plan.carry_out(pgdata, ui, "copying what lies outside the base")?;
        plan.check_unchanged()?;
    }
    check_same(cluster)
}

/// Tablespaces inside the fork are directories of pg_tblspc. PostgreSQL knows
/// such from version 15 on; older ones want a link there, and do not mind that
/// it is relative.
pub fn link_tablespaces(pgdata: &Path, major: u32) -> Result<()> {
    if major >= 15 {
        return Ok(());
    }
    let (dir, place) = (pgdata.join("pg_tblspc"), pgdata.join("pgcowfs_tblspc"));
    for entry in fs::read_dir(&dir).at("list", &dir)? {
        let entry = entry.at("list", &dir)?;
        if !entry.file_type().at("look at", &entry.path())?.is_dir() {
            continue;
        }
        if !place.exists() {
            fs::DirBuilder::new().mode(0o700).create(&place).at("make", &place)?;
        }
        let (old, new) = (entry.path(), place.join(entry.file_name()));
        fs::rename(&old, &new).at("move", &old)?;
        symlink(Path::new("../pgcowfs_tblspc").join(entry.file_name()), &old).at("make the link", &old)?;
    }
    Ok(())
}

/// Whether nobody has used the cluster since it was inspected.
pub fn check_same(cluster: &Cluster) -> Result<()> {
    cluster.check_stopped()?;
    let control = Control::read(&cluster.dir)?;
    if control != cluster.control {
        return Err(changed(&cluster.dir.join("global/pg_control")));
    }
    Ok(())
}

/// Turns encryption off where its files are not readable for the fork's user
/// (Debian's key is for the group ssl-cert): the server would not start.
/// Returns the setting and what to tell; runs as that user.
pub fn check_ssl(pgdata: &Path) -> Result<Option<String>> {
    let settings = Settings::load(&DirTree(pgdata.into()))?;
    if !settings.is_on("ssl") {
        return Ok(None);
    }
    for (name, default) in [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")] {
        let path = pgdata.join(settings.get(name).unwrap_or(default));
        if let Err(e) = File::open(&path) {
            return Ok(Some(format!(
                "ssl is off in the fork: {name} {} is not readable ({e})",
                path.display()
            )));
        }
    }
    Ok(None)
}

fn changed(path: &Path) -> Error {
    Error::new(Kind::BadInput, format!("{} changed while it was copied", path.display()))
        .cause("something else uses the cluster")
        .hint("stop it, and whatever starts it, and try again; nothing was kept")
}

impl Plan {
    /// Everything in the directory `from`, which becomes `rel`.
    fn walk(&mut self, cluster: &Cluster, from: &Path, rel: &Path) -> Result<()> {
        let mut entries = fs::read_dir(from)
            .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
            .at("list", from)?;
        entries.sort_by_key(|e| e.file_name());
        for entry in entries {
            let (path, rel) = (entry.path(), rel.join(entry.file_name()));
            if is_left_behind(&rel) {
                continue;
            }
            let meta = entry.metadata().at("look at", &path)?;
            let kind = meta.file_type();
            if kind.is_symlink() {
                self.link(cluster, &path, &rel)?;
            } else if kind.is_dir() {
                self.directory(cluster, &path, &rel)?;
            } else if kind.is_file() {
                self.file(path, rel, meta);
            } else {
                let what = if kind.is_socket() { "a socket" } else { "not a file" };
                self.left_out.push(format!("{} was left out: it is {what}", path.display()));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, rel: PathBuf, meta: Metadata) {
        self.bytes += meta.len();
        self.files.push((path, rel, meta));
    }

    fn directory(&mut self, cluster: &Cluster, from: &Path, rel: &Path) -> Result<()> {
        if rel.components().count() > DEPTH_MAX {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} nests more than {DEPTH_MAX} directories deep", cluster.dir.display()),
            )
            .cause(format!("at {}: its links may lead in a circle", from.display()))
            .hint("remove such links from the data directory"));
        }
        let meta = fs::metadata(from).at("look at", from)?;
        self.dirs.push((rel.to_path_buf(), meta.permissions().mode() & 0o7777));
        match rel.to_str() {
            // What a running server keeps there is not worth copying.
            Some("pg_stat_tmp") => Ok(()),
            _ => self.walk(cluster, from, rel),
        }
    }

    fn link(&mut self, cluster: &Cluster, path: &Path, rel: &Path) -> Result<()> {
        let target = fs::read_link(path).at("read the link", path)?;
        let text = (rel.to_str(), target.to_str());
        if let (Some(rel_text), Some(target_text)) = text
            && conf::within(rel_text, target_text).is_some()
        {
            self.links.push((rel.to_path_buf(), target));
            return Ok(());
        }
        if matches!(rel.to_str(), Some("log" | "pg_log")) {
            // Logs elsewhere are the source's own.
            self.dirs.push((rel.to_path_buf(), 0o700));
            return Ok(());
        }
        let Ok(real) = path.canonicalize() else {
            self.left_out.push(format!(
                "{} was left out: its target {} is not there",
                path.display(),
                target.display()
            ));
            return Ok(());
        };
        let meta = fs::metadata(&real).at("look at", &real)?;
        if meta.is_file() {
            self.file(real, rel.to_path_buf(), meta);
            return Ok(());
        }
        if cluster.dir.starts_with(&real) || !meta.is_dir() {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} points to {}", path.display(), real.display()),
            )
            .cause("that is not something that can be copied into a fork")
            .hint("remove the link from the data directory"));
        }
        if rel.parent() == Some(Path::new("pg_tblspc")) {
            return self.tablespace(cluster, &real, rel);
        }
        self.directory(cluster, &real, rel)
    }

    /// A tablespace moves inside, where its link was.
    fn tablespace(&mut self, cluster: &Cluster, real: &Path, rel: &Path) -> Result<()> {
        self.dirs.push((rel.to_path_buf(), 0o700));
        // Its directory may hold one for each major version that used it.
        let own = format!("PG_{}_", cluster.major);
        for entry in fs::read_dir(real).at("list", real)? {
            let entry = entry.at("list", real)?;
            if entry.file_name().to_string_lossy().starts_with(&own) {
                self.directory(cluster, &entry.path(), &rel.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    fn carry_out(&self, pgdata: &Path, ui: &Ui, label: &str) -> Result<()> {
        for (rel, mode) in &self.dirs {
            let path = pgdata.join(rel);
            // In a base's fork a directory of that name may be there.
            if !path.is_dir() {
                fs::DirBuilder::new().mode(*mode).create(&path).at("make", &path)?;
            }
        }
        for (rel, target) in &self.links {
            let path = pgdata.join(rel);
            symlink(target, &path).at("make the link", &path)?;
        }
        let mut progress = ui.progress(label, self.bytes);
        let mut buffer = vec![0; 1 << 20];
        for (from, rel, meta) in &self.files {
            copy_file(from, &pgdata.join(rel), meta, &mut buffer, &mut progress)?;
        }
        progress.finish();
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        for (path, _, before) in &self.files {
            let now = fs::metadata(path).map_err(|_| changed(path))?;
            if (now.len(), now.mtime(), now.mtime_nsec())
                != (before.len(), before.mtime(), before.mtime_nsec())
            {
                return Err(changed(path));
            }
        }
        Ok(())
    }
}

/// Files of a running server, and those that it throws away at its start.
fn is_left_behind(rel: &Path) -> bool {
    let name = rel.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    matches!(rel.to_str(), Some("postmaster.pid" | "postmaster.opts" | "current_logfiles"))
        || name.starts_with("pgsql_tmp")
}

fn copy_file(
    from: &Path,
    to: &Path,
    meta: &Metadata,
    buffer: &mut [u8],
    progress: &mut Progress,
) -> Result<()> {
    let mut source = File::open(from).at("read", from)?;
    let mode = meta.permissions().mode() & 0o777;
    let mut target =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to).at("create", to)?;
    loop {
        // Whole buffers, so that blocks arrive whole.
        let mut filled = 0;
        while filled < buffer.len() {
            match source.read(&mut buffer[filled..]).at("read", from)? {
                0 => break,
                n => filled += n,
            }
        }
        target.write_all(&buffer[..filled]).at("write", to)?;
        progress.add(filled as u64);
        if filled < buffer.len() {
            break;
        }
    }
    let modified = meta.modified().at("look at", from)?;
    target.set_modified(modified).at("set the time of", to)
}

#[cfg(test)]
mod tests {
    use super::super::cluster::tests::{control_bytes, fake};
    use super::*;

    fn setup() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let (data, fork) = (top.join("data"), top.join("fork"));
        fs::create_dir_all(&data).unwrap();
        fs::create_dir_all(&fork).unwrap();
        fake(&data, 1, 8192);
        (dir, data, fork)
    }

    fn ui() -> Ui {
        Ui::new(false, true)
    }

    #[test]
    fn copies_contents_modes_and_times_and_leaves_scratch_behind() {
        let (_dir, data, fork) = setup();
        fs::create_dir_all(data.join("base/pgsql_tmp")).unwrap();
        fs::create_dir_all(data.join("pg_stat_tmp")).unwrap();
        for (name, bytes) in
            [("base/1", vec![7; 3 << 20]), ("pg_stat_tmp/x", vec![1]), ("postmaster.opts", vec![1])]
        {
            fs::write(data.join(name), bytes).unwrap();
        }
        fs::set_permissions(data.join("base/1"), fs::Permissions::from_mode(0o640)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::options().write(true).open(data.join("base/1")).unwrap().set_modified(old).unwrap();
        let cluster = Cluster::inspect(&data).unwrap();
        assert!(copy(&cluster, &fork, &ui()).unwrap().is_empty());
        assert_eq!(fs::read(fork.join("base/1")).unwrap(), vec![7; 3 << 20]);
        let meta = fs::metadata(fork.join("base/1")).unwrap();
        assert_eq!((meta.permissions().mode() & 0o777, meta.modified().unwrap()), (0o640, old));
        assert!(fork.join("pg_stat_tmp").is_dir() && !fork.join("pg_stat_tmp/x").exists());
        assert!(!fork.join("postmaster.opts").exists() && !fork.join("base/pgsql_tmp").exists());
        Cluster::inspect(&fork).unwrap();
    }

    #[test]
    fn brings_in_what_links_lead_to() {
        for major in [14, 15] {
            let (dir, data, fork) = setup();
            fs::write(data.join("PG_VERSION"), major.to_string()).unwrap();
            let outside = dir.path().join("outside");
            for sub in ["ts/PG_14_1", "ts/PG_15_1", "wal"] {
                fs::create_dir_all(outside.join(sub)).unwrap();
                fs::write(outside.join(sub).join("f"), sub).unwrap();
            }
            fs::write(outside.join("key"), "k").unwrap();
            symlink(outside.join("ts"), data.join("pg_tblspc/16400")).unwrap();
            fs::remove_dir(data.join("pg_wal")).unwrap();
            symlink(outside.join("wal"), data.join("pg_wal")).unwrap();
            symlink(outside.join("key"), data.join("server.key")).unwrap();
            symlink("PG_VERSION", data.join("inside")).unwrap();
            symlink("/var/log", data.join("log")).unwrap();
            symlink("/gone", data.join("dangling")).unwrap();
            let cluster = Cluster::inspect(&data).unwrap();
            let left_out = copy(&cluster, &fork, &ui()).unwrap();
            link_tablespaces(&fork, major).unwrap();
            assert!(left_out.len() == 1 && left_out[0].contains("dangling"), "{left_out:?}");
            assert_eq!(fs::read(fork.join("pg_wal/f")).unwrap(), b"wal");
            assert!(!fork.join("pg_wal").is_symlink() && !fork.join("server.key").is_symlink());
            let tablespace = fork.join("pg_tblspc/16400");
            assert_eq!(tablespace.is_symlink(), major == 14);
            assert_eq!(fs::read_dir(&tablespace).unwrap().count(), 1);
            assert!(tablespace.join(format!("PG_{major}_1/f")).exists());
            assert_eq!(fs::read_link(fork.join("inside")).unwrap(), Path::new("PG_VERSION"));
            assert!(fork.join("log").is_dir() && fs::read_dir(fork.join("log")).unwrap().count() == 0);
            super::super::identity::check_contained(&DirTree(fork), "x").unwrap();
        }
    }

    #[test]
    fn a_source_that_is_used_meanwhile_is_refused() {
        let (_dir, data, _) = setup();
        let cluster = Cluster::inspect(&data).unwrap();
        check_same(&cluster).unwrap();
        fs::write(data.join("global/pg_control"), control_bytes(6, 8192)).unwrap();
        assert_eq!(check_same(&cluster).unwrap_err().kind, Kind::BadInput);
        let mut plan = Plan::default();
        plan.walk(&cluster, &data, Path::new("")).unwrap();
        plan.check_unchanged().unwrap();
        fs::write(data.join("PG_VERSION"), "15 \n").unwrap();
        assert_eq!(plan.check_unchanged().unwrap_err().kind, Kind::BadInput);
    }
}
