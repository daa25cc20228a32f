//! A cluster's data directory as found on this machine: is it one, which
//! version, is it running, does it reach outside itself.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use pgcowfs::device::foreign::read_small;

use super::pid_file;
use crate::error::{Context, Error, Kind, Result};
use crate::proc;

/// The block size of the store, and so of every cluster in it.
pub const BLOCK_SIZE: u32 = 8192;

/// The oldest version whose configuration files follow the rules of `identity`.
pub const OLDEST: u32 = 12;

/// The largest PG_VERSION, pg_control and postmaster.pid that are read.
/// PostgreSQL's own have 3, 8192 and some 100 bytes.
const VERSION_MAX: u64 = 64;
const CONTROL_MAX: u64 = 64 << 10;
/// See there.
pub const PID_FILE_MAX: u64 = 64 << 10;

/// What a data directory tells about itself.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The directory, without symbolic links.
    pub dir: PathBuf,
    /// Major version.
    pub major: u32,
    /// The facts of global/pg_control.
    pub control: Control,
    /// The directory's owner.
    pub uid: u32,
}

impl Cluster {
    /// Looks at `dir`, refusing what is no usable cluster.
    pub fn inspect(dir: &Path) -> Result<Cluster> {
        let not_one = |why: String| {
            Error::new(Kind::BadInput, format!("{} is not a PostgreSQL data directory", dir.display()))
                .cause(why)
                .hint("give the directory that holds PG_VERSION (the output of `show data_directory`)")
        };
        let meta = match fs::metadata(dir) {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::new(Kind::NotFound, format!("there is no directory {}", dir.display())));
            }
            Err(e) => return Err(unreadable(dir, &e)),
        };
        if !meta.is_dir() {
            return Err(not_one("it is not a directory".into()));
        }
        let path = dir.join("PG_VERSION");
        let version = match read_small(&path, VERSION_MAX) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_string(),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(not_one("it has no PG_VERSION".into()));
            }
            Err(e) => return Err(unreadable(&path, &e)),
        };
        let major = match version.split('.').next().and_then(|n| n.parse::<u32>().ok()) {
            Some(major) if major >= OLDEST => major,
            Some(_) => {
                return Err(Error::new(
                    Kind::BadInput,
                    format!(
                        "{} is a cluster of PostgreSQL {version}; {OLDEST} is the oldest that works",
                        dir.display()
                    ),
                )
                .hint("upgrade it with pg_upgrade first"));
            }
            None => return Err(not_one(format!("its PG_VERSION says {version:?}"))),
        };
        for name in ["base", "global", "pg_wal"] {
            if !dir.join(name).is_dir() {
                return Err(not_one(format!("it has no directory {name}")));
            }
        }
        let control = Control::read(dir)?;
        if control.block_size != BLOCK_SIZE {
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "{} has a block size of {} bytes; only {BLOCK_SIZE} works",
                    dir.display(),
                    control.block_size
                ),
            )
            .hint("dump and restore it into a cluster with PostgreSQL's default block size"));
        }
        let dir = dir.canonicalize().at("resolve", dir)?;
        Ok(Cluster { dir, major, control, uid: meta.uid() })
    }

    /// Refuses a cluster that a server is using.
    pub fn check_stopped(&self) -> Result<()> {
        match running(&self.dir)? {
            None => Ok(()),
            Some(pid) => Err(Error::new(
                Kind::State,
                format!("the cluster {} is running", self.dir.display()),
            )
            .cause(format!("its postmaster.pid names process {pid}, which is a running PostgreSQL"))
            .hint(
                "stop it first: pg_ctl stop, systemctl stop postgresql, or pg_ctlcluster VERSION NAME stop",
            )),
        }
    }
}

/// What somebody has changed while it was brought in.
pub fn changed(path: &Path) -> Error {
    Error::new(Kind::BadInput, format!("{} changed while it was brought in", path.display()))
        .cause("something else uses the cluster")
        .hint("stop it, and whatever starts it, and try again; nothing was kept")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let user = crate::config::user_name(nix::unistd::Uid::effective().as_raw());
    let error = Error::io(format!("cannot read {} as user {user}", path.display()), error);
    match error.kind {
        Kind::Environment => error
            .hint("run this as the directory's owner or as root; root may choose the owner with --run-as"),
        _ => error.hint("give the data directory of a PostgreSQL cluster"),
    }
}

/// The process of the server that uses `dir`, as its postmaster.pid says.
pub fn running(dir: &Path) -> Result<Option<i32>> {
    let path = dir.join("postmaster.pid");
    let bytes = match read_small(&path, PID_FILE_MAX) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(&path, &e)),
    };
    Ok(pid_file::process(&String::from_utf8_lossy(&bytes)).filter(|&pid| {
        let there = proc::cwd(pid).map(|cwd| cwd == dir);
        // Another user's process does not show where it works: then its being
        // a PostgreSQL is enough to keep away.
        proc::alive(pid) && there.unwrap_or_else(|| proc::is_postgres(pid))
    }))
}

/// Refuses a base that is in use, or was since a fork was made on it.
pub fn check_base(fork: &str, base: &Path, mark: Option<u64>) -> Result<()> {
    const UNUSABLE: &str = "forks of a base that has changed cannot be used any more";
    if let Some(pid) = running(base)? {
        return Err(Error::new(
            Kind::State,
            format!("the base of fork {fork:?} is running: {}", base.display()),
        )
        .cause(format!("process {pid} writes to it, and a base must not change"))
        .hint(format!("stop that server; {UNUSABLE}")));
    }
    if mark.is_some_and(|mark| Control::read(base).is_ok_and(|control| control.mark == mark)) {
        return Ok(());
    }
    Err(Error::new(Kind::BadInput, format!("the base of fork {fork:?} has changed: {}", base.display()))
        .cause("its global/pg_control is not the one it was: a server has run on it since the fork was made")
        .hint(format!("restore the base as it was, or remove the fork; {UNUSABLE}")))
}

/// The facts of `global/pg_control` that are needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The cluster's identifier.
    pub system_identifier: u64,
    /// Whether it was shut down cleanly.
    pub clean: bool,
    /// Size of a data block.
    pub block_size: u32,
    /// A hash of all of it: any run of a server changes it.
    pub mark: u64,
}

impl Control {
    /// Reads it.
    pub fn read(dir: &Path) -> Result<Control> {
        let path = dir.join("global/pg_control");
        let bytes = read_small(&path, CONTROL_MAX).map_err(|e| {
            let error = unreadable(&path, &e);
            // The directory is there, and unusable.
            Error { kind: if error.kind == Kind::NotFound { Kind::BadInput } else { error.kind }, ..error }
        })?;
        Control::parse(&bytes).ok_or_else(|| {
            Error::new(Kind::BadInput, format!("{} cannot be understood", path.display()))
                .cause("it does not look like a pg_control file of this kind of machine")
                .hint("give the data directory of a PostgreSQL cluster that was made on this kind of machine")
        })
    }

    /// The layout differs between versions, except for its beginning and for
    /// the run `maxAlign, floatFormat, blcksz`: the constant in the middle of
    /// it is there to be recognised.
    pub fn parse(bytes: &[u8]) -> Option<Control> {
        const FLOAT_FORMAT: f64 = 1_234_567.0;
        const SHUT_DOWN: u32 = 1;
        const SHUT_DOWN_IN_RECOVERY: u32 = 2;
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let system_identifier = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let state = u32_at(16)?;
        let pattern = FLOAT_FORMAT.to_le_bytes();
        let at =
            (0..bytes.len().min(512)).step_by(8).find(|&at| bytes.get(at..at + 8) == Some(&pattern[..]))?;
        let clean = matches!(state, SHUT_DOWN | SHUT_DOWN_IN_RECOVERY);
        // FNV-1a: marks are stored, and compared by later builds.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let mark = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
        Some(Control { system_identifier, clean, block_size: u32_at(at + 8)?, mark })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The beginning of a pg_control with that block size.
    pub(crate) fn control_bytes(state: u32, block_size: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[..8].copy_from_slice(&7u64.to_le_bytes());
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        bytes[216..224].copy_from_slice(&1_234_567.0f64.to_le_bytes());
        bytes[224..228].copy_from_slice(&block_size.to_le_bytes());
        bytes
    }

    /// Something that passes for a data directory.
    pub(crate) fn fake(dir: &Path, state: u32, block_size: u32) {
        for name in ["base", "global", "pg_wal", "pg_tblspc"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("PG_VERSION"), "15\n").unwrap();
        fs::write(dir.join("global/pg_control"), control_bytes(state, block_size)).unwrap();
    }

    #[test]
    fn recognises_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), 1, 8192);
        let cluster = Cluster::inspect(dir.path()).unwrap();
        assert_eq!((cluster.major, cluster.control.system_identifier, cluster.control.clean), (15, 7, true));
        cluster.check_stopped().unwrap();
        fake(dir.path(), 6, 8192);
        assert!(!Cluster::inspect(dir.path()).unwrap().control.clean);
    }

    #[test]
    fn refuses_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |path: &Path| Cluster::inspect(path).unwrap_err().kind;
        assert_eq!(kind(&dir.path().join("none")), Kind::NotFound);
        assert_eq!(kind(dir.path()), Kind::BadInput);
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(kind(&dir.path().join("file")), Kind::BadInput);
        fake(dir.path(), 1, 4096);
        assert!(Cluster::inspect(dir.path()).unwrap_err().message.contains("4096"));
        fake(dir.path(), 1, 8192);
        for version in ["9.6", "11", "x", "", "-1", "99999999999", &"1".repeat(100), "\u{1b}[31m"] {
            fs::write(dir.path().join("PG_VERSION"), version).unwrap();
            assert_eq!(kind(dir.path()), Kind::BadInput, "{version:?}");
        }
        fs::write(dir.path().join("PG_VERSION"), "15").unwrap();
        fs::write(dir.path().join("global/pg_control"), "short").unwrap();
        assert_eq!(kind(dir.path()), Kind::BadInput);
    }

    #[test]
    fn a_base_that_was_used_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), 1, 8192);
        let mark = Control::read(dir.path()).unwrap().mark;
        check_base("x", dir.path(), Some(mark)).unwrap();
        let mut bytes = control_bytes(1, 8192);
        bytes[40] = 1;
        fs::write(dir.path().join("global/pg_control"), bytes).unwrap();
        assert_eq!(check_base("x", dir.path(), Some(mark)).unwrap_err().kind, Kind::BadInput);
        fs::remove_dir_all(dir.path().join("global")).unwrap();
        assert_eq!(check_base("x", dir.path(), Some(mark)).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn a_stale_pid_file_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), 1, 8192);
        // This process lives, but it is not a server working in that directory.
        fs::write(dir.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(running(dir.path()).unwrap(), None);
        for garbage in [&b"garbage"[..], b"", b"-2147483648\n", b"0", b"99999999999999999999", b"\xff\xfe\n"]
        {
            fs::write(dir.path().join("postmaster.pid"), garbage).unwrap();
            assert_eq!(running(dir.path()).unwrap(), None, "{}", garbage.escape_ascii());
        }
        fs::remove_file(dir.path().join("postmaster.pid")).unwrap();
        fs::create_dir(dir.path().join("postmaster.pid")).unwrap();
        assert_eq!(running(dir.path()).unwrap_err().kind, Kind::BadInput);
    }
}
