//! Where a store is, what lies where in it, and its few own settings.
//!
//! The store's directory belongs to the core; what this program adds:
//! `config.json`, `daemon.lock`, `start.lock`, `daemon.log`, `control.sock`,
//! `mnt/`, `run/FORK/` (sockets), `logs/FORK.log`, and now and then `incoming/`.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

use crate::daemon::ports::PortRange;
use crate::error::{Context, Error, Kind, Result};

/// The store's directory, and the names in it.
#[derive(Clone, Debug)]
pub struct StorePaths {
    /// The store's directory, absolute.
    pub dir: PathBuf,
}

impl StorePaths {
    /// The store that the command line, the environment or the default names.
    pub fn choose(option: Option<&Path>) -> Result<StorePaths> {
        let dir = match option {
            Some(dir) if dir.as_os_str().is_empty() => {
                return Err(Error::new(Kind::Usage, "the store's directory is an empty string")
                    .hint("check --store and PGCOWFS_STORE"));
            }
            Some(dir) => dir.to_path_buf(),
            None => default_dir()?,
        };
        let dir = std::path::absolute(&dir).at("make absolute", &dir)?;
        // The mount point and PostgreSQL's /proc/PID/cwd are compared by path,
        // so symbolic links in it are resolved once, here.
        let dir = match (dir.canonicalize(), dir.parent(), dir.file_name()) {
            (Ok(dir), ..) => dir,
            (Err(_), Some(parent), Some(name)) => parent.canonicalize().map_or(dir.clone(), |p| p.join(name)),
            _ => dir,
        };
        Ok(StorePaths { dir })
    }

    /// The settings of the store.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// The daemon's socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Locked by the daemon as long as it lives.
    pub fn daemon_lock(&self) -> PathBuf {
        self.dir.join("daemon.lock")
    }

    /// Locked by a client while it starts a daemon.
    pub fn start_lock(&self) -> PathBuf {
        self.dir.join("start.lock")
    }

    /// What a daemon in the background has to say.
    pub fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The directory of the socket directories.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The directory of the servers' logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where what pg_dump gets from a server lies until it is loaded.
    pub fn incoming(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    /// The log of a fork's server. It lies outside the mount, so that it
    /// survives the fork's trouble, and is not inherited by forks.
    pub fn server_log(&self, fork: &str) -> PathBuf {
        self.logs().join(format!("{fork}.log"))
    }

    /// The mount point if none is chosen.
    pub fn default_mountpoint(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Whether a store can be there: this program's settings are.
    pub fn check(&self) -> Result<()> {
        let meta = match fs::symlink_metadata(self.config()) {
            Ok(_) => fs::metadata(&self.dir).at("read", &self.dir)?,
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::io(format!("cannot look into the store {}", self.dir.display()), &e)
                    .hint("a store is used by the user who made it; choose your own with --store DIR"));
            }
            Err(_) if self.dir.exists() => {
                return Err(Error::new(Kind::BadInput, format!("{} is not a store", self.dir.display()))
                    .cause("it has no config.json")
                    .hint("give the store's directory with --store DIR or PGCOWFS_STORE; `pgcowfs init` makes a store"));
            }
            Err(_) => {
                return Err(Error::new(
                    Kind::NotFound,
                    format!("there is no store at {}", self.dir.display()),
                )
                .hint(
                    "make it with `pgcowfs init`, or choose another one with --store DIR or PGCOWFS_STORE",
                ));
            }
        };
        let me = Uid::effective();
        if meta.uid() != me.as_raw() {
            // Root on a user's store would leave files in it that the user
            // can no longer open; a user on root's store cannot open anything.
            let owner = user_name(meta.uid());
            let sudo = if meta.uid() == 0 { "sudo".to_string() } else { format!("sudo -u {owner}") };
            return Err(Error::new(
                Kind::Environment,
                format!("the store {} belongs to user {owner}", self.dir.display()),
            )
            .hint(format!(
                "run this as that user: {sudo} pgcowfs ...; or choose another store with --store DIR"
            )));
        }
        Ok(())
    }
}

/// A user's name, or the number of one without.
pub fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("#{uid}"),
    }
}

/// The store of a user who chose none.
fn default_dir() -> Result<PathBuf> {
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute()) {
        return Ok(data.join("pgcowfs"));
    }
    if Uid::effective().is_root() {
        // Not below /root: PostgreSQL runs as another user and must reach its
        // data directory through every directory above it.
        return Ok(PathBuf::from("/var/lib/pgcowfs"));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    match home {
        Some(home) => Ok(home.join(".local/share/pgcowfs")),
        None => Err(Error::new(Kind::Environment, "no store is chosen, and HOME is not set")
            .hint("choose one with --store DIR or PGCOWFS_STORE")),
    }
}

/// The settings of a store, in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Where the forks appear; null: STORE/mnt.
    #[serde(default)]
    pub mountpoint: Option<PathBuf>,
    /// The ports that forks are given.
    pub port_range: PortRange,
    /// The user PostgreSQL runs as when the daemon is root's; null: postgres.
    #[serde(default)]
    pub run_as: Option<String>,
    /// What forks leave free of the store's disk; null: 64 MiB.
    #[serde(default)]
    pub keep_free: Option<KeepFree>,
    /// The most memory for page tables; null: a sixteenth of the machine's.
    #[serde(default)]
    pub map_memory: Option<MapMemory>,
}

/// What `mount` changes in the settings, for good.
#[derive(Clone, Debug, Default)]
pub struct MountChanges {
    /// [`StoreConfig::mountpoint`]
    pub mountpoint: Option<PathBuf>,
    /// [`StoreConfig::map_memory`]
    pub map_memory: Option<MapMemory>,
}

/// How much memory page tables may take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MapMemory(pub u64);

/// The least that page tables may take where nothing else is said.
const MAP_MEMORY_MIN: u64 = 64 << 20;
/// The part of the machine's memory that they may take then.
const MAP_MEMORY_SHARE: u64 = 16;

impl MapMemory {
    /// What a store without a setting has.
    pub fn of_machine() -> MapMemory {
        use nix::unistd::{SysconfVar, sysconf};
        let number = |what| sysconf(what).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let memory = number(SysconfVar::_PHYS_PAGES).saturating_mul(number(SysconfVar::PAGE_SIZE));
        MapMemory((memory / MAP_MEMORY_SHARE).max(MAP_MEMORY_MIN))
    }
}

impl FromStr for MapMemory {
    type Err = String;
    fn from_str(text: &str) -> Result<MapMemory, String> {
        crate::args::size(text).map(MapMemory)
    }
}

impl TryFrom<String> for MapMemory {
    type Error = String;
    fn try_from(text: String) -> Result<MapMemory, String> {
        text.parse()
    }
}

impl From<MapMemory> for String {
    fn from(memory: MapMemory) -> String {
        format!("{}B", memory.0)
    }
}

/// How much of a disk stays free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeepFree {
    /// That much.
    Bytes(u64),
    /// That part of the disk, up to 99.
    Percent(u8),
}

impl FromStr for KeepFree {
    type Err = String;
    fn from_str(text: &str) -> Result<KeepFree, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return crate::args::size(text).map(KeepFree::Bytes);
        };
        match percent.parse() {
            Ok(percent) if percent < 100 => Ok(KeepFree::Percent(percent)),
            _ => Err("a percentage from 0% to 99% is needed".into()),
        }
    }
}

impl TryFrom<String> for KeepFree {
    type Error = String;
    fn try_from(text: String) -> Result<KeepFree, String> {
        text.parse()
    }
}

impl From<KeepFree> for String {
    fn from(keep: KeepFree) -> String {
        match keep {
            KeepFree::Bytes(bytes) => format!("{bytes}B"),
            KeepFree::Percent(percent) => format!("{percent}%"),
        }
    }
}

impl KeepFree {
    /// As bytes of the disk that `dir` is on.
    pub fn bytes(self, dir: &Path) -> Result<u64> {
        match self {
            KeepFree::Bytes(bytes) => Ok(bytes),
            KeepFree::Percent(percent) => {
                let disk = nix::sys::statvfs::statvfs(dir).at("measure the disk of", dir)?;
                Ok(disk.blocks() * disk.fragment_size() / 100 * u64::from(percent))
            }
        }
    }
}

impl StoreConfig {
    /// Reads it.
    pub fn load(paths: &StorePaths) -> Result<StoreConfig> {
        let path = paths.config();
        let text = read_small(&path).at("read", &path)?;
        serde_json::from_str(&text).map_err(|e| {
            Error::new(Kind::BadInput, format!("{} cannot be understood", path.display()))
                .cause(e.to_string())
                .hint("mend the file; its fields are in docs/CLI.md")
        })
    }

    /// Writes it, wholly or not at all.
    pub fn save(&self, paths: &StorePaths) -> Result<()> {
        let path = paths.config();
        let temporary = path.with_extension("json.new");
        let text = serde_json::to_string_pretty(self).map_err(|e| {
            Error::new(Kind::Failed, "cannot write the store's settings").cause(e.to_string())
        })?;
        let write = || {
            use std::io::Write;
            let mut options = fs::File::options();
            let mut file = open_own(options.write(true).create(true).truncate(true), &temporary)?;
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(&paths.dir)?.sync_all()
        };
        write().at("write", &path)
    }

    /// Where the forks appear.
    pub fn mountpoint(&self, paths: &StorePaths) -> PathBuf {
        self.mountpoint.clone().unwrap_or_else(|| paths.default_mountpoint())
    }
}

/// The largest file of settings.
const SMALL: u64 = 1 << 20;

/// Reads a small regular file, and waits for nobody who would fill a pipe.
fn read_small(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > SMALL {
        return Err(std::io::Error::other("it is not a small regular file"));
    }
    let mut text = String::new();
    file.take(SMALL).read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a file of this program's own in the store. Whoever made the store: nothing
/// that a link leads to is opened, and no pipe is waited for.
pub fn open_own(options: &mut fs::OpenOptions, path: &Path) -> std::io::Result<fs::File> {
    let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is not a regular file")) }
}

/// Makes a directory of this program's own with exactly that mode.
pub fn own_dir(path: &Path, mode: u32) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).at("make", path),
        _ => {}
    }
    if !fs::symlink_metadata(path).at("look at", path)?.is_dir() {
        return Err(Error::new(Kind::BadInput, format!("{} is not a directory", path.display()))
            .cause("a link in its place would lead out of the store")
            .hint("remove it, or find out who made the store"));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).at("set the mode of", path)
}

/// The mode of the directories above what PostgreSQL must reach: closed,
/// except that a server under another user may pass through those of root.
pub fn passage_mode() -> u32 {
    if Uid::effective().is_root() { 0o711 } else { 0o700 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let paths = StorePaths::choose(Some(dir.path())).unwrap();
        assert_eq!(paths.check().unwrap_err().kind, Kind::BadInput);
        let config = StoreConfig {
            mountpoint: Some("/x".into()),
            port_range: "7000-7001".parse().unwrap(),
            run_as: None,
            keep_free: Some(KeepFree::Percent(7)),
            map_memory: Some(MapMemory(3 << 20)),
        };
        config.save(&paths).unwrap();
        assert_eq!(StoreConfig::load(&paths).unwrap(), config);
        paths.check().unwrap();
        fs::write(paths.config(), "{}").unwrap();
        assert_eq!(StoreConfig::load(&paths).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn what_is_its_own_is_no_link_and_no_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link, pipe) =
            (dir.path().join("victim"), dir.path().join("link"), dir.path().join("pipe"));
        fs::write(&victim, "precious").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        for path in [&link, &pipe] {
            let mut options = fs::File::options();
            assert!(open_own(options.write(true).create(true).truncate(true), path).is_err(), "{path:?}");
        }
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        fs::remove_file(&link).unwrap();
        fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
        assert_eq!(own_dir(&link, 0o700).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn missing_store_has_a_next_step() {
        let dir = tempfile::tempdir().unwrap();
        let paths = StorePaths::choose(Some(&dir.path().join("none"))).unwrap();
        let error = paths.check().unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.hint.unwrap().contains("pgcowfs init"));
        assert_eq!(StorePaths::choose(Some(Path::new(""))).unwrap_err().kind, Kind::Usage);
    }
}
