//! Copying a stopped cluster into a new fork, or out of one, and what a base's links
//! lead to.
//!
//! A fork has everything inside; `links` says what becomes of links. Nobody
//! knows who made the source, and somebody may be at work on it: everything is
//! found through the directory that it is in, only regular files are opened,
//! what is copied is what was found, and no more of it than it had then. A file
//! that changes while it is copied, or a server that starts on the source, makes
//! the copy worthless.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use pgcowfs::block::{BLOCK_BYTES, MAX_FILE_BYTES};
use pgcowfs::device::foreign::{Place, kind_name, same};

use super::cluster::{Cluster, Control, changed};
use super::conf::Settings;
use super::links::{Fate, Links, Only};
use super::tree::DirTree;
use super::update;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::Ui;

/// The deepest directory that is copied. PostgreSQL's own nest four deep.
const DEPTH_MAX: usize = 64;

/// So many things that were left out are named one by one.
const NAMED_MAX: usize = 20;

/// What to do, found out before anything is done.
struct Plan<'a> {
    links: Links<'a>,
    dirs: Vec<(PathBuf, u32)>,
    files: Vec<Source>,
    kept: Vec<(PathBuf, PathBuf)>,
    bytes: u64,
    left_out: Vec<String>,
    /// Directories that were listed, and what they were then.
    listed: Vec<(PathBuf, Metadata)>,
    seen: HashSet<(u64, u64)>,
    /// Ends it when it is set.
    stop: Option<&'a AtomicBool>,
}

/// A file to copy.
struct Source {
    from: PathBuf,
    /// As whom the cluster knows it.
    shown: PathBuf,
    to: PathBuf,
    meta: Metadata,
}

/// Copies `cluster` into the empty directory `pgdata`. Returns what was left out.
pub fn copy(cluster: &Cluster, pgdata: &Path, ui: &Ui) -> Result<Vec<String>> {
    let mut plan = Plan::new(cluster)?;
    let top = Place::itself(&cluster.dir).at("read", &cluster.dir)?;
    plan.walk(&top, &cluster.dir, Path::new(""), Only::All)?;
    plan.carry_out(pgdata, ui, &format!("copying {}", cluster.dir.display()))?;
    let mode = top.meta().permissions().mode() & 0o750;
    fs::set_permissions(pgdata, fs::Permissions::from_mode(mode)).at("set the mode of", pgdata)?;
    plan.check_unchanged()?;
    check_same(cluster)?;
    Ok(plan.left_out())
}

/// Makes the data directory `pgdata` what `cluster` is, writing only pages that differ.
/// Returns what was left out, and how many bytes were written.
pub fn copy_over(cluster: &Cluster, pgdata: &Path, ui: &Ui) -> Result<(Vec<String>, u64)> {
    let mut plan = Plan::new(cluster)?;
    let top = Place::itself(&cluster.dir).at("read", &cluster.dir)?;
    plan.walk(&top, &cluster.dir, Path::new(""), Only::All)?;
    let files = plan.files.iter().map(|file| file.to.as_path()).collect();
    update::shape(pgdata, &update::Wanted { dirs: &plan.dirs, links: &plan.kept, files: &files })?;
    let mut progress = ui.progress(&format!("comparing with {}", cluster.dir.display()), plan.bytes);
    let mut written = 0;
    for file in &plan.files {
        let tell = &mut |bytes| {
            progress.add(bytes);
            Ok(())
        };
        written += update::file(&file.from, &file.meta, &pgdata.join(&file.to), tell)?;
    }
    progress.finish();
    plan.check_unchanged()?;
    check_same(cluster)?;
    Ok((plan.left_out(), written))
}

/// Copies the fork `cluster`, which nobody writes to, into the empty directory `dir`,
/// durably; ends when `stop` is set. Returns how many bytes its files have, and how
/// many files there are.
pub fn copy_out(cluster: &Cluster, dir: &Path, ui: &Ui, stop: &AtomicBool) -> Result<(u64, usize)> {
    let mut plan = Plan::new(cluster)?;
    plan.stop = Some(stop);
    let top = Place::itself(&cluster.dir).at("read", &cluster.dir)?;
    plan.walk(&top, &cluster.dir, Path::new(""), Only::All)?;
    plan.carry_out(dir, ui, "copying")?;
    let mode = top.meta().permissions().mode() & 0o750;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).at("set the mode of", dir)?;
    Ok((plan.bytes, plan.files.len()))
}

/// Makes everything below a directory durable; ends when `stop` is set.
pub fn sync_all(dir: &Path, stop: &AtomicBool) -> Result<()> {
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let entry = entry.at("list", &dir)?;
            let kind = entry.file_type().at("look at", &entry.path())?;
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                check_stop(Some(stop))?;
                sync(&entry.path())?;
            }
        }
        sync(&dir)?;
    }
    Ok(())
}

/// Makes a file or a directory durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).at("sync", path)
}

fn check_stop(stop: Option<&AtomicBool>) -> Result<()> {
    match stop.is_some_and(|stop| stop.load(Ordering::SeqCst)) {
        false => Ok(()),
        true => Err(Error::new(Kind::Failed, "interrupted").hint("nothing was kept; begin anew")),
    }
}

/// Brings in what the fork `pgdata` of a base still shows as links. Returns what
/// was left out.
pub fn bring_outside_in(cluster: &Cluster, pgdata: &Path, ui: &Ui) -> Result<Vec<String>> {
    let mut plan = Plan::new(cluster)?;
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        let shown = pgdata.join(&dir);
        for entry in fs::read_dir(&shown).at("list", &shown)? {
            let entry = entry.at("list", &shown)?;
            let rel = dir.join(entry.file_name());
            let kind = entry.file_type().at("look at", &entry.path())?;
            if kind.is_dir() {
                dirs.push(rel);
            } else if kind.is_symlink() {
                let fork = entry.path();
                let now = fs::read_link(&fork).at("read the link", &fork)?;
                let source = cluster.dir.join(&rel);
                let fate = plan.links.fate(&source, &source, &rel)?;
                if !matches!(&fate, Fate::Stays(target) if *target == now) {
                    fs::remove_file(&fork).at("replace", &fork)?;
                    plan.link(fate, &source, &rel)?;
                }
            }
        }
    }
    plan.carry_out(pgdata, ui, "copying what lies outside the base")?;
    plan.check_unchanged()?;
    check_same(cluster)?;
    Ok(plan.left_out())
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
        if let Err(e) = Place::at(&path).and_then(|place| place.open()) {
            return Ok(Some(format!(
                "ssl is off in the fork: {name} {} is not readable ({e})",
                path.display()
            )));
        }
    }
    Ok(None)
}

impl<'a> Plan<'a> {
    fn new(cluster: &'a Cluster) -> Result<Plan<'a>> {
        Ok(Plan {
            links: Links::new(cluster)?,
            dirs: Vec::new(),
            files: Vec::new(),
            kept: Vec::new(),
            bytes: 0,
            left_out: Vec::new(),
            listed: Vec::new(),
            seen: HashSet::new(),
            stop: None,
        })
    }

    /// What the directory at `from` has of these, which becomes `rel`.
    fn walk(&mut self, dir: &Place, from: &Path, rel: &Path, only: Only) -> Result<()> {
        if !self.seen.insert((dir.meta().dev(), dir.meta().ino())) {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} would be copied more than once", from.display()),
            )
            .cause("several links or mounts lead to it, perhaps in a circle")
            .hint("remove such links from the data directory"));
        }
        self.listed.push((from.to_path_buf(), dir.meta().clone()));
        let entries = dir.list().and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut names: Vec<_> = entries.at("list", from)?.into_iter().map(|e| e.file_name()).collect();
        names.sort();
        for name in names.iter().filter(|name| only.takes(name)) {
            self.entry(dir, name, &from.join(name), &rel.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: &Place, name: &OsStr, path: &Path, rel: &Path) -> Result<()> {
        if is_left_behind(rel) {
            return Ok(());
        }
        let place = Place::itself(&dir.entry(name)).map_err(|e| vanished(path, &e, "look at"))?;
        let kind = place.meta().file_type();
        if kind.is_symlink() {
            let fate = self.links.fate(&dir.entry(name), path, rel)?;
            return self.link(fate, path, rel);
        }
        if place.path().at("look at", path)? != path {
            return Err(changed(path));
        }
        if kind.is_dir() {
            self.directory(&place, path, rel, Only::All)
        } else if kind.is_file() {
            self.file(&place, path, path, rel)
        } else {
            self.left_out.push(format!("{} was left out: it is {}", path.display(), kind_name(kind)));
            Ok(())
        }
    }

    fn link(&mut self, fate: Fate, path: &Path, rel: &Path) -> Result<()> {
        match fate {
            Fate::Stays(target) => self.kept.push((rel.to_path_buf(), target)),
            Fate::File(place, real) => self.file(&place, &real, path, rel)?,
            Fate::Empty => self.dirs.push((rel.to_path_buf(), 0o700)),
            Fate::LeftOut(why) => self.left_out.push(why),
            Fate::Directory(place, real, only) => {
                let before = (self.dirs.len(), self.files.len());
                self.directory(&place, &real, rel, only)?;
                let empty = (self.dirs.len(), self.files.len()) == (before.0 + 1, before.1);
                if empty && place.list().at("list", &real)?.next().is_some() {
                    return Err(Error::new(
                        Kind::BadInput,
                        format!("{} cannot be brought in", path.display()),
                    )
                    .cause(format!("it leads to {}, where there is no {}", real.display(), only.what()))
                    .hint("make the link lead where it should, or remove it"));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, place: &Place, from: &Path, shown: &Path, rel: &Path) -> Result<()> {
        let meta = place.meta().clone();
        if meta.len() > MAX_FILE_BYTES {
            return Err(Error::new(Kind::BadInput, format!("{} is too large", from.display()))
                .cause(format!("it has {} bytes, and {MAX_FILE_BYTES} is the most", meta.len()))
                .hint("PostgreSQL makes no such file; remove it if it is not needed"));
        }
        self.bytes = self.bytes.saturating_add(meta.len());
        let (from, shown, to) = (from.to_path_buf(), shown.to_path_buf(), rel.to_path_buf());
        self.files.push(Source { from, shown, to, meta });
        Ok(())
    }

    fn directory(&mut self, place: &Place, from: &Path, rel: &Path, only: Only) -> Result<()> {
        if rel.components().count() > DEPTH_MAX {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} nests more than {DEPTH_MAX} directories deep", rel.display()),
            )
            .cause("PostgreSQL's own directories nest four deep")
            .hint("move what is there out of the data directory"));
        }
        self.dirs.push((rel.to_path_buf(), place.meta().permissions().mode() & 0o7777));
        match rel.to_str() {
            // What a running server keeps there is not worth copying.
            Some("pg_stat_tmp") => Ok(()),
            _ => self.walk(place, from, rel, only),
        }
    }

    fn carry_out(&self, pgdata: &Path, ui: &Ui, label: &str) -> Result<()> {
        for (rel, mode) in &self.dirs {
            let path = pgdata.join(rel);
            fs::DirBuilder::new().mode(*mode).create(&path).at("make", &path)?;
        }
        for (rel, target) in &self.kept {
            let path = pgdata.join(rel);
            symlink(target, &path).at("make the link", &path)?;
        }
        if self.files.is_empty() {
            return Ok(());
        }
        let mut progress = ui.progress(label, self.bytes);
        let mut buffer = vec![0; 1 << 20];
        for file in &self.files {
            let tell = &mut |bytes| {
                progress.add(bytes);
                check_stop(self.stop)
            };
            copy_file(file, &pgdata.join(&file.to), &mut buffer, tell)?;
        }
        progress.finish();
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        let files = self.files.iter().map(|file| (&file.from, &file.meta));
        for (path, before) in self.listed.iter().map(|(path, meta)| (path, meta)).chain(files) {
            match Place::itself(path) {
                Ok(now) if same(now.meta(), before) => {}
                _ => return Err(changed(path)),
            }
        }
        Ok(())
    }

    /// What was left out, in words.
    fn left_out(mut self) -> Vec<String> {
        let more = self.left_out.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            self.left_out.truncate(NAMED_MAX);
            self.left_out.push(format!("{more} more things of such kinds were left out"));
        }
        self.left_out
    }
}

/// Files of a running server, and those that it throws away at its start.
fn is_left_behind(rel: &Path) -> bool {
    let name = rel.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    matches!(rel.to_str(), Some("postmaster.pid" | "postmaster.opts" | "current_logfiles"))
        || name.starts_with("pgsql_tmp")
}

/// What was there a moment ago and is not is a change; other errors are errors.
fn vanished(path: &Path, error: &io::Error, verb: &str) -> Error {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => changed(path),
        _ => Error::io(format!("cannot {verb} {}", path.display()), error),
    }
}

/// Copies a file; `tell` hears of the bytes, and may end it.
fn copy_file(
    source: &Source,
    to: &Path,
    buffer: &mut [u8],
    tell: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<()> {
    let (from, meta) = (&source.from, &source.meta);
    let found = Place::itself(from).map_err(|e| vanished(from, &e, "read"))?;
    if !same(found.meta(), meta) {
        return Err(changed(from));
    }
    let mut file = found.open().map_err(|e| {
        let error = Error::io(format!("cannot read {}", from.display()), &e);
        match source.shown == *from {
            true => error,
            false => error.cause(format!("the link {} leads there", source.shown.display())),
        }
    })?;
    let mode = meta.permissions().mode() & 0o777;
    let mut target =
        fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to).at("create", to)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&file, at, meta.len()).at("read", from)? {
        tell(start - at)?;
        seek(&file, start).at("read", from)?;
        seek(&target, start).at("write", to)?;
        at = start;
        while at < end {
            // Whole buffers, so that blocks arrive whole.
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            match file.read_exact(&mut buffer[..want]) {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(changed(from)),
                other => other.at("read", from)?,
            }
            target.write_all(&buffer[..want]).at("write", to)?;
            tell(want as u64)?;
            at += want as u64;
        }
    }
    if at < meta.len() {
        target.set_len(meta.len()).at("write", to)?;
        tell(meta.len() - at)?;
    }
    if !same(&file.metadata().at("read", from)?, meta) {
        return Err(changed(from));
    }
    let modified = meta.modified().at("look at", from)?;
    target.set_modified(modified).at("set the time of", to)
}

fn seek(file: &File, to: u64) -> io::Result<()> {
    let to = i64::try_from(to).map_err(|_| ErrorKind::FileTooLarge)?;
    Ok(lseek(file, to, Whence::SeekSet).map(|_| ())?)
}

/// Where the next data is in a file of `len` bytes, from `at` on, in whole
/// blocks; `None` if only a hole is left. A sparse file of terabytes costs what
/// is in it.
fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let find = |from: u64, what: Whence| {
        let from = i64::try_from(from).map_err(|_| Errno::EFBIG)?;
        lseek(file, from, what).map(|found| found as u64)
    };
    if at >= len {
        return Ok(None);
    }
    let data = match find(at, Whence::SeekData) {
        Ok(data) => data,
        Err(Errno::ENXIO) => return Ok(None),
        // This host does not know holes.
        Err(Errno::EINVAL) => return Ok(Some((at, len))),
        Err(e) => return Err(e.into()),
    };
    let hole = match find(data, Whence::SeekHole) {
        Ok(hole) => hole,
        // It was cut meanwhile, which is found when it is read.
        Err(Errno::ENXIO) => len,
        Err(e) => return Err(e.into()),
    };
    let start = (data / BLOCK_BYTES * BLOCK_BYTES).max(at);
    let end = hole.next_multiple_of(BLOCK_BYTES).min(len);
    Ok((start < end).then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

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
            for sub in ["ts/PG_14_1", "ts/PG_15_1", "ts/lost+found", "wal", "wal/lost+found"] {
                fs::create_dir_all(outside.join(sub)).unwrap();
                fs::write(outside.join(sub).join("f"), sub).unwrap();
            }
            fs::write(outside.join("wal/00000002.history"), "wal").unwrap();
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
            assert_eq!(fs::read(fork.join("pg_wal/00000002.history")).unwrap(), b"wal");
            assert_eq!(fs::read_dir(fork.join("pg_wal")).unwrap().count(), 1, "only what is WAL's");
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
        let (_dir, data, fork) = setup();
        let cluster = Cluster::inspect(&data).unwrap();
        check_same(&cluster).unwrap();
        fs::write(data.join("global/pg_control"), control_bytes(6, 8192)).unwrap();
        assert_eq!(check_same(&cluster).unwrap_err().kind, Kind::BadInput);
        let look = || {
            let mut plan = Plan::new(&cluster).unwrap();
            let top = Place::itself(&data).unwrap();
            plan.walk(&top, &data, Path::new(""), Only::All).unwrap();
            plan
        };
        let file = data.join("PG_VERSION");
        let changes: [fn(&Path); 4] = [
            |file| fs::write(file, "15 \n").unwrap(),
            |file| fs::remove_file(file).unwrap(),
            |file| {
                fs::remove_file(file).unwrap();
                symlink("/etc/hostname", file).unwrap();
            },
            |file| {
                fs::remove_file(file).unwrap();
                mkfifo(file, Mode::S_IRWXU).unwrap();
            },
        ];
        for (n, change) in changes.iter().enumerate() {
            // Gone, or a pipe, since the last change.
            let _ = fs::remove_file(&file);
            fs::write(&file, "15\n").unwrap();
            let plan = look();
            plan.check_unchanged().unwrap();
            change(&file);
            assert_eq!(plan.check_unchanged().unwrap_err().kind, Kind::BadInput, "change {n}");
            let to = fork.join(n.to_string());
            fs::create_dir(&to).unwrap();
            let error = plan.carry_out(&to, &ui(), "").unwrap_err();
            assert!(
                error.kind == Kind::BadInput && error.message.contains("PG_VERSION"),
                "change {n}: {error}"
            );
        }
    }

    #[test]
    fn holes_cost_nothing_and_stay_holes() {
        let (_dir, data, fork) = setup();
        // More than could be copied or stored.
        let size = 4 << 40;
        let sparse = File::create(data.join("base/1")).unwrap();
        sparse.set_len(size).unwrap();
        let data_at = [0, 5 << 20, size / 2 + 3 * 4096, size - 3];
        for at in data_at {
            sparse.write_at(b"abc", at).unwrap();
        }
        let cluster = Cluster::inspect(&data).unwrap();
        copy(&cluster, &fork, &ui()).unwrap();
        let copied = File::open(fork.join("base/1")).unwrap();
        let meta = copied.metadata().unwrap();
        assert!(meta.len() == size && meta.blocks() * 512 < 1 << 20, "{} bytes", meta.blocks() * 512);
        for at in data_at {
            let mut bytes = [0; 3];
            copied.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(&bytes, b"abc", "at {at}");
        }
    }
}
