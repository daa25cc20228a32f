//! The operating system's user that PostgreSQL runs as: PostgreSQL refuses to
//! run as root, so root's forks belong to another user, and everything done to
//! their files (running programs, copying, connecting) is done as that user.

use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::error::{Context, Error, Kind, Result};

/// A user with all its groups.
#[derive(Clone, Debug)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// All its groups.
    groups: Vec<Gid>,
    /// Its home.
    home: PathBuf,
}

impl OsUser {
    /// The user this program runs as.
    pub fn current() -> Result<OsUser> {
        let uid = Uid::effective();
        match User::from_uid(uid).context(|| format!("cannot look up user {uid}"))? {
            Some(user) => OsUser::with_groups(user),
            // A container may run under a number without a name.
            None => Ok(OsUser {
                name: std::env::var("USER").unwrap_or_else(|_| format!("#{uid}")),
                uid: uid.as_raw(),
                gid: Gid::effective().as_raw(),
                groups: vec![Gid::effective()],
                home: std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from),
            }),
        }
    }

    /// The user of that name.
    pub fn named(name: &str) -> Result<OsUser> {
        match User::from_name(name).context(|| format!("cannot look up user {name:?}"))? {
            Some(user) => OsUser::with_groups(user),
            None => Err(Error::new(Kind::Environment, format!("there is no user {name:?} on this machine"))
                .hint("install PostgreSQL's package, which makes the user postgres, or choose one with --run-as USER")),
        }
    }

    /// The user of that number.
    pub fn numbered(uid: u32) -> Result<OsUser> {
        if Uid::effective().as_raw() == uid {
            return OsUser::current();
        }
        match User::from_uid(Uid::from_raw(uid)).context(|| format!("cannot look up user {uid}"))? {
            Some(user) => OsUser::with_groups(user),
            None => Err(Error::new(
                Kind::Environment,
                format!("there is no user with the number {uid} on this machine"),
            )
            .hint("choose one with --run-as USER")),
        }
    }

    fn with_groups(user: User) -> Result<OsUser> {
        let name = CString::new(user.name.as_str())
            .map_err(|_| Error::new(Kind::Failed, format!("the name of user {} contains a NUL", user.uid)))?;
        let groups = getgrouplist(&name, user.gid)
            .context(|| format!("cannot look up the groups of {}", user.name))?;
        Ok(OsUser { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups, home: user.dir })
    }

    /// Whether this program runs as that user already.
    pub fn is_current(&self) -> bool {
        Uid::effective().as_raw() == self.uid
    }

    /// Makes a program run as this user, without the caller's environment
    /// variables for PostgreSQL.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PG") && !text.starts_with("PGCOWFS") {
                command.env_remove(name);
            }
        }
        if !self.is_current() {
            command.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name);
            self.become_in(&mut command);
        }
        command
    }

    /// The same; the program is asked to end (SIGTERM) when this one is gone.
    pub fn bound_command(&self, program: &Path) -> Command {
        let mut command = self.command(program);
        let parent = nix::unistd::getpid();
        let end_with_parent = move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            // It may be gone by now.
            match nix::unistd::getppid() == parent {
                true => Ok(()),
                false => Err(std::io::Error::from(std::io::ErrorKind::Interrupted)),
            }
        };
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; these
        // are two bare system calls. They come after a change of the user, which would
        // undo the first one.
        unsafe { command.pre_exec(end_with_parent) };
        command
    }

    /// Lets the child, between fork and exec, drop root for this user.
    fn become_in(&self, command: &mut Command) {
        let (uid, gid, groups) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid), self.groups.clone());
        let drop_root = move || {
            nix::unistd::setgroups(&groups)?;
            nix::unistd::setgid(gid)?;
            nix::unistd::setuid(uid)?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe calls are
        // allowed; these are three bare system calls on values made before.
        // Command::uid would clear the supplementary groups, and PostgreSQL
        // needs them (ssl-cert, to read its key).
        unsafe { command.pre_exec(drop_root) };
    }

    /// Runs `work` as this user, on a thread of its own when that is another
    /// user: the kernel checks its file accesses and shows its connections as
    /// this user's, while the rest of the program stays root. Threads that
    /// `work` starts are this user's as well.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.is_current() {
            return work();
        }
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.become_on_this_thread()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn become_on_this_thread(&self) -> Result<()> {
        let groups: Vec<libc::gid_t> = self.groups.iter().map(|g| g.as_raw()).collect();
        const KEEP: libc::c_long = -1;
        // SAFETY: bare system calls, which read `groups` and nothing else. The
        // wrappers of libc would change all threads; the system calls change
        // the calling one, which is what is wanted.
        let refused = unsafe {
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) != 0
                || libc::syscall(libc::SYS_setresgid, KEEP, libc::c_long::from(self.gid), KEEP) != 0
                || libc::syscall(libc::SYS_setresuid, KEEP, libc::c_long::from(self.uid), KEEP) != 0
        };
        match refused {
            false => Ok(()),
            true => {
                let error = std::io::Error::last_os_error();
                Err(Error::io(format!("cannot act as user {}", self.name), &error)
                    .hint("only root may run a fork as another user"))
            }
        }
    }

    /// The first directory on the way to `path` that this user may not pass.
    pub fn barrier(&self, path: &Path) -> Option<PathBuf> {
        let mut directories: Vec<&Path> = path.ancestors().skip(1).collect();
        directories.reverse();
        let closed = |dir: &&&Path| {
            let Ok(meta) = std::fs::metadata(dir) else {
                return false;
            };
            let shift = match () {
                () if meta.uid() == self.uid => 6,
                () if self.groups.iter().any(|g| g.as_raw() == meta.gid()) => 3,
                () => 0,
            };
            self.uid != 0 && (meta.permissions().mode() >> shift) & 1 == 0
        };
        directories.iter().find(closed).map(|dir| dir.to_path_buf())
    }
}

/// The user that a fork's server shall run as: `wanted` if root asks for one,
/// the caller itself if it is not root.
pub fn choose(wanted: Option<&str>) -> Result<OsUser> {
    let me = OsUser::current()?;
    match wanted {
        None if me.uid != 0 => Ok(me),
        Some(name) if me.uid != 0 => {
            if name == me.name {
                return Ok(me);
            }
            Err(Error::new(Kind::Environment, format!("only root may run PostgreSQL as user {name:?}"))
                .hint("leave --run-as away: your servers run as yourself"))
        }
        _ => {
            let user = OsUser::named(wanted.unwrap_or("postgres"))?;
            if user.uid == 0 {
                return Err(Error::new(Kind::Usage, "PostgreSQL does not run as root")
                    .hint("choose an ordinary user with --run-as USER"));
            }
            Ok(user)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_as_another_user_on_one_thread_only() {
        let me = OsUser::current().unwrap();
        assert_eq!(me.run(|| Ok(Uid::effective().as_raw())).unwrap(), me.uid);
        let Ok(nobody) = OsUser::named("nobody") else {
            return;
        };
        if me.uid != 0 {
            assert!(nobody.run(|| Ok(())).is_err());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let file = dir.path().join("f");
        nobody.run(|| std::fs::write(&file, "x").at("write", &file)).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().uid(), nobody.uid);
        assert!(Uid::effective().is_root());
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(nobody.barrier(&file), Some(dir.path().to_path_buf()));
        let out = nobody.command(Path::new("id")).arg("-u").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), nobody.uid.to_string());
    }

    #[test]
    fn root_is_refused() {
        if Uid::effective().is_root() {
            assert_eq!(choose(Some("root")).unwrap_err().kind, Kind::Usage);
        } else {
            assert_eq!(choose(Some("somebody-else")).unwrap_err().kind, Kind::Environment);
        }
        assert_eq!(OsUser::named("no-such-user-here").unwrap_err().kind, Kind::Environment);
    }
}
