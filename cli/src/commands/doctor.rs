//! `pgcowfs doctor`. It looks, and changes and starts nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::sys::utsname::uname;
use pgcowfs::device::FILES_MIN;
use pgcowfs::mount::ring;

use super::Context;
use crate::client::Client;
use crate::config::{MapMemory, StoreConfig, StorePaths};
use crate::daemon::mounts::{self, Health, Mounted};
use crate::error::{Error, Kind, Result};
use crate::launch;
use crate::postgres::binaries;
use crate::protocol::{ForkRow, Request};
use crate::report::{Checked, DoctorReport, Finding};
use crate::ui::bytes_text;

/// The oldest kernel that is known to work.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// The first kernel with FUSE over io_uring.
const KERNEL_RING: (u32, u32) = (6, 14);
/// The oldest PostgreSQL.
const POSTGRES_MIN: u32 = 12;
/// With fewer open files, delta files of many forks are opened and closed all the time.
const FILES_GOOD: u64 = 1024;
/// The daemon's own caches, and some pages on their way to the disk.
const MEMORY_GOOD: u64 = 512 << 20;
/// The store keeps this free by itself; below it nothing can be written.
const DISK_MIN: u64 = 64 << 20;
/// A few segments of WAL.
const DISK_GOOD: u64 = 1 << 30;
/// No clock that is right shows less: 2025-01-01.
const CLOCK_MIN: Duration = Duration::from_secs(1_735_689_600);
/// By how much a file may be newer than the clock says it is.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Checks the machine, and the store if there is one.
pub fn run(context: &Context) -> Result<()> {
    let paths = &context.paths;
    let mut checks =
        vec![fuse(), kernel(), io_uring(), files(), memory(), postgres(), clients(), clock(paths)];
    let store = paths.check();
    match &store {
        Ok(()) => {
            checks.extend([disk(paths), layout(paths), forks(paths)]);
        }
        Err(error) if error.kind == Kind::NotFound => {
            let found = format!("there is none at {}", paths.dir.display());
            checks.push(finding("store", Finding::Note, found, "make one: pgcowfs init"));
        }
        Err(error) => checks.push(failed("store", error)),
    }
    checks.push(stale_mounts());
    let report = DoctorReport::new(paths.dir.clone(), checks);
    context.ui.print(&report)?;
    let problems: Vec<&Checked> = report.checks.iter().filter(|c| c.state == Finding::Problem).collect();
    match problems.first() {
        None => Ok(()),
        Some(first) => {
            let error = Error::new(
                Kind::Environment,
                format!("{} of the checks have found a problem", problems.len()),
            );
            let error =
                problems.iter().fold(error, |error, p| error.cause(format!("{}: {}", p.name, p.found)));
            Err(error.hint(first.mend.clone().unwrap_or_else(|| "see the report".into())))
        }
    }
}

fn finding(name: &'static str, state: Finding, found: impl Into<String>, mend: &str) -> Checked {
    Checked { name, state, found: found.into(), mend: (!mend.is_empty()).then(|| mend.to_string()) }
}

fn ok(name: &'static str, found: impl Into<String>) -> Checked {
    finding(name, Finding::Ok, found, "")
}

/// What another part of the program has refused.
fn failed(name: &'static str, error: &Error) -> Checked {
    let found = [std::slice::from_ref(&error.message), &error.causes].concat().join(": ");
    finding(name, Finding::Problem, found, error.hint.as_deref().unwrap_or(""))
}

fn fuse() -> Checked {
    match mounts::check_fuse() {
        Ok(()) => ok("FUSE", "/dev/fuse can be used"),
        Err(error) => failed("FUSE", &error),
    }
}

/// Major and minor version of a release such as `6.1.0-18-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel_version() -> Option<(u32, u32)> {
    uname().ok().and_then(|names| version_of(&names.release().to_string_lossy()))
}

fn kernel() -> Checked {
    match kernel_version() {
        Some((major, minor)) if (major, minor) < KERNEL_MIN => finding(
            "kernel",
            Finding::Problem,
            format!("Linux {major}.{minor}"),
            "pgcowfs needs Linux 5.15 or newer; install a newer kernel",
        ),
        Some((major, minor)) => ok("kernel", format!("Linux {major}.{minor}")),
        None => finding(
            "kernel",
            Finding::Warning,
            "its version is not known",
            "pgcowfs needs Linux 5.15 or newer",
        ),
    }
}

fn io_uring() -> Checked {
    let name = "FUSE over io_uring";
    match ring::is_switched_on() {
        Ok(true) => ok(name, "switched on"),
        Ok(false) => finding(
            name,
            Finding::Note,
            "switched off; requests cost more without it",
            &format!("as root, before the store is mounted: echo Y > {}", ring::SWITCH),
        ),
        Err(_) if kernel_version().is_some_and(|version| version < KERNEL_RING) => finding(
            name,
            Finding::Note,
            "this kernel has none; requests cost less with it",
            "Linux 6.14 or newer has it",
        ),
        Err(_) => finding(
            name,
            Finding::Note,
            "this kernel was built without it, or its FUSE module is not loaded yet",
            "as root: modprobe fuse",
        ),
    }
}

fn files() -> Checked {
    let name = "open files";
    let mend = "raise the limit: ulimit -Hn, /etc/security/limits.conf, or LimitNOFILE= of the service";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < FILES_MIN => finding(
            name,
            Finding::Problem,
            format!("a process may have {hard}; the daemon needs {FILES_MIN}"),
            mend,
        ),
        Ok((_, hard)) if hard < FILES_GOOD => {
            finding(name, Finding::Warning, format!("a process may have only {hard}"), mend)
        }
        Ok((_, hard)) => ok(name, format!("a process may have {hard}")),
        Err(e) => finding(name, Finding::Warning, format!("the limit is not known: {e}"), mend),
    }
}

fn memory() -> Checked {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let most = bytes_text(MapMemory::of_machine().0);
    match available.map(|kb| kb << 10) {
        None => finding(
            "memory",
            Finding::Warning,
            "/proc/meminfo does not tell what is available",
            "mount /proc",
        ),
        Some(bytes) if bytes < MEMORY_GOOD => finding(
            "memory",
            Finding::Warning,
            format!("{} are available", bytes_text(bytes)),
            "the daemon and the servers need some hundred megabytes; stop something else",
        ),
        Some(bytes) => {
            ok("memory", format!("{} are available; page tables take {most} at most", bytes_text(bytes)))
        }
    }
}

fn postgres() -> Checked {
    let found = binaries::all();
    let list: Vec<String> = found.iter().map(|b| format!("{} in {}", b.version, b.dir.display())).collect();
    match found.iter().any(|b| b.major >= POSTGRES_MIN) {
        true => ok("PostgreSQL", list.join(", ")),
        false => finding(
            "PostgreSQL",
            Finding::Problem,
            if list.is_empty() { "no server is found".into() } else { list.join(", ") },
            "install version 12 or newer (on Debian and Ubuntu: apt install postgresql), or name its directory with --pg-bin DIR",
        ),
    }
}

fn clients() -> Checked {
    let Some(own) = binaries::all().into_iter().next() else {
        return finding("psql and pg_dump", Finding::Note, "without a server nothing needs them", "");
    };
    let absent: Vec<&str> =
        ["psql", "pg_dump"].into_iter().filter(|name| binaries::client(name, &own).is_none()).collect();
    match absent.is_empty() {
        true => ok("psql and pg_dump", "found"),
        false => finding(
            "psql and pg_dump",
            Finding::Warning,
            format!("there is no {}", absent.join(", and no ")),
            "`psql` and `diff --schema` need them (on Debian and Ubuntu: apt install postgresql-client)",
        ),
    }
}

fn clock(paths: &StorePaths) -> Checked {
    let mend = "set it (timedatectl set-ntp true): times of files, forks and protections follow it";
    let now = SystemTime::now();
    if now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() < CLOCK_MIN {
        return finding("clock", Finding::Warning, "it is years behind", mend);
    }
    let newest = [paths.daemon_log(), paths.config(), paths.logs()];
    let newest = newest.iter().filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max();
    match newest.and_then(|time| time.duration_since(now).ok()).filter(|ahead| *ahead > CLOCK_SLACK) {
        Some(ahead) => finding(
            "clock",
            Finding::Warning,
            format!("the store has files that are {} newer than now", crate::ui::duration_text(ahead)),
            mend,
        ),
        None => ok("clock", "no file of the store is newer than now"),
    }
}

/// The mount that a path lies on: the last one of the longest place.
fn mount_of(path: &Path) -> Result<Option<(PathBuf, Mounted)>> {
    let all = mounts::all()?;
    let around = all.into_iter().filter(|(place, _)| path.starts_with(place));
    Ok(around.max_by_key(|(place, _)| place.components().count()))
}

fn disk(paths: &StorePaths) -> Checked {
    let (space, mount) = match (statvfs(&paths.dir), mount_of(&paths.dir)) {
        (Ok(space), Ok(mount)) => (space, mount),
        (Err(e), _) => {
            let found = format!("cannot look at {}: {e}", paths.dir.display());
            return finding("disk", Finding::Problem, found, "see that its disk is mounted and in order");
        }
        (_, Err(error)) => return failed("disk", &error),
    };
    let kind = mount.map_or("an unknown file system".to_string(), |(_, mount)| mount.kind);
    let free = space.blocks_available() * space.fragment_size();
    let found = format!("{} free on {kind}, for the store {}", bytes_text(free), paths.dir.display());
    let flaw = match kind.as_str() {
        "ext4" | "xfs" | "btrfs" => None,
        "tmpfs" | "ramfs" => {
            Some("what is in memory only does not survive a loss of power; keep the store on a disk")
        }
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") || kind == "9p" || kind == "cifs" => {
            Some(
                "a daemon needs a local disk that does what fsync says; keep the store on ext4, xfs or btrfs",
            )
        }
        _ => Some("it is tested on ext4, xfs and btrfs"),
    };
    let mend = "free some: pgcowfs gc --wait, pgcowfs rm, or files of others";
    match (free, flaw) {
        (free, _) if free < DISK_MIN => finding("disk", Finding::Problem, found, mend),
        (free, _) if free < DISK_GOOD => finding("disk", Finding::Warning, found, mend),
        (_, Some(flaw)) => finding("disk", Finding::Warning, found, flaw),
        (_, None) => ok("disk", found),
    }
}

/// Whether store and mount point are in each other's way.
fn layout(paths: &StorePaths) -> Checked {
    let name = "mount point";
    let (mountpoint, all) = match (StoreConfig::load(paths), mounts::all()) {
        (Ok(config), Ok(all)) => (config.mountpoint(paths), all),
        (Err(error), _) | (_, Err(error)) => return failed(name, &error),
    };
    if paths.dir.starts_with(&mountpoint) {
        let found = format!("the store lies in {}, where its forks are mounted", mountpoint.display());
        return finding(name, Finding::Problem, found, "choose another one: pgcowfs mount --mountpoint DIR");
    }
    let over = |(place, mount): &(PathBuf, Mounted)| paths.dir.starts_with(place) && mount.is_ours();
    if let Some((place, _)) = all.iter().find(|mount| over(mount)) {
        let found = format!("the store lies in {}, the mount of another store", place.display());
        return finding(
            name,
            Finding::Problem,
            found,
            "keep it on a disk: make one anew with pgcowfs --store DIR init",
        );
    }
    let inside = |(place, _): &&(PathBuf, Mounted)| {
        place.starts_with(&paths.dir) && *place != paths.dir && *place != mountpoint
    };
    if let Some((place, mount)) = all.iter().find(inside) {
        let found = format!("{} ({}) is mounted inside the store", place.display(), mount.kind);
        return finding(name, Finding::Warning, found, "the store's files belong on one disk; unmount it");
    }
    match all.iter().rev().find(|(place, _)| *place == mountpoint) {
        Some((_, mount)) if !mount.is_ours() => finding(
            name,
            Finding::Problem,
            format!("{} has something else mounted on it ({})", mountpoint.display(), mount.kind),
            "unmount it, or choose another one: pgcowfs mount --mountpoint DIR",
        ),
        Some(_) => ok(name, format!("{} is mounted", mountpoint.display())),
        None => ok(name, format!("{} is not mounted", mountpoint.display())),
    }
}

/// What a running daemon says of its forks.
fn forks(paths: &StorePaths) -> Checked {
    let rows = Client::connect(paths).and_then(|client| match client {
        Some(mut client) => client.call::<Vec<ForkRow>>(&Request::List).map(Some),
        None => Ok(None),
    });
    match rows {
        Ok(None) => ok("forks", "not asked: no daemon serves the store"),
        Err(error) => failed("forks", &error),
        Ok(Some(rows)) => match rows.iter().find_map(|row| Some((row, row.fault.as_ref()?))) {
            Some((row, fault)) => finding(
                "forks",
                Finding::Problem,
                format!("{} accepts nothing any more: {fault}", row.name),
                launch::after_fault(row),
            ),
            None => ok("forks", format!("{} forks, none of them at fault", rows.len())),
        },
    }
}

fn stale_mounts() -> Checked {
    let name = "stale mounts";
    let all = match mounts::all() {
        Ok(all) => all,
        Err(error) => return failed(name, &error),
    };
    let ours = all.iter().filter(|(_, mount)| mount.is_ours());
    let bad =
        ours.map(|(place, _)| (place, mounts::health(place))).find(|(_, health)| *health != Health::Alive);
    match bad {
        None => ok(name, "every mount of pgcowfs answers"),
        Some((place, health)) => {
            let how =
                if health == Health::Dead { "its daemon is gone" } else { "its daemon does not answer" };
            finding(
                name,
                Finding::Warning,
                format!("{}: {how}", place.display()),
                &format!(
                    "any command of its store that needs the daemon cleans up; or detach it: fusermount3 -uz {}",
                    place.display()
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.15"), Some((5, 15)));
        assert_eq!(version_of("next"), None);
        assert!(kernel_version().is_some());
    }
}
