//! A fork must not believe that it is its parent.
//!
//! These rules run on a new fork before its name becomes visible, so that it
//! is safe however it is started, also by a plain `pg_ctl start`:
//! - it writes nowhere but into its own tree (always);
//! - it has its own port, socket directory and cluster name (always);
//! - it does not archive, replicate, follow, subscribe, wait for a standby, or
//!   run scheduled jobs (unless the identity is to be kept).
//!
//! Settings go to postgresql.auto.conf, which overrides postgresql.conf and
//! all its includes. Only the settings that PostgreSQL reads before it has a
//! data directory (`hba_file` and the like) must be edited where they stand.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::conf::{self, Edit, Settings};
use super::timeline;
use super::tree::{Text, Tree};
use crate::error::{Error, Kind, Result};

/// Who the fork is.
pub struct Identity<'a> {
    /// Its name.
    pub fork: &'a str,
    /// Its data directory in the mount.
    pub pgdata: &'a Path,
    /// Its port.
    pub port: u16,
    /// Its socket directory.
    pub socket_dir: &'a Path,
    /// `listen_addresses`.
    pub listen: &'a str,
    /// PostgreSQL's major version.
    pub major: u32,
    /// Leave replication, archiving and jobs as they are.
    pub keep: bool,
    /// It goes on to follow the server that its configuration names.
    pub follows: bool,
    /// Begin a new timeline at the first start; a fork of a standby does so anyway.
    pub new_timeline: bool,
    /// More settings.
    pub settings: &'a [(String, String)],
    /// The fork that its files come from.
    pub source: Option<Source<'a>>,
}

/// The fork that another one's files come from: its parent, or itself.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Its name.
    pub fork: &'a str,
    /// The directory of all forks' data directories. An absolute path into one of
    /// them was the source's own, whatever its name was when that was written.
    pub mountpoint: &'a Path,
}

/// Directories of a data directory that PostgreSQL writes to.
pub const SERVER_DIRS: [&str; 18] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    "pg_xlog",
];

/// So many things outside are named in one error.
const NAMED_MAX: usize = 20;

/// Files that a fork's rules edit: they must be the fork's own.
const OWN_FILES: [&str; 2] = ["postgresql.conf", "postgresql.auto.conf"];

/// What a fork of a cluster must not have: state of its parent's server, and
/// the marks of a standby.
const FOREIGN_FILES: [&str; 7] = [
    "postmaster.pid",
    "postmaster.opts",
    "current_logfiles",
    STANDBY_SIGNAL,
    RECOVERY_SIGNAL,
    "recovery.conf",
    PASSWORDS,
];

const STANDBY_SIGNAL: &str = "standby.signal";
const RECOVERY_SIGNAL: &str = "recovery.signal";

/// Where a follower has its password for the server that it follows.
pub const PASSWORDS: &str = "pgcowfs.pgpass";

/// Libraries whose workers connect to other servers or call out, without a
/// setting that keeps them from it.
const CALLING_LIBRARIES: [&str; 5] = ["pglogical", "bdr", "spock", "citus", "pg_net"];

/// Refuses a tree in which the server would write outside (tablespaces, a
/// symbolic `pg_wal`), and names what lies there.
pub fn check_contained(tree: &dyn Tree, fork: &str) -> Result<()> {
    let mut outside = Vec::new();
    for name in tree.list("pg_tblspc")? {
        let path = format!("pg_tblspc/{name}");
        if let Some(target) = leads_out(tree, &path)? {
            outside.push(format!("tablespace {name} is at {}", target.display()));
        }
    }
    for name in SERVER_DIRS.iter().chain(&OWN_FILES) {
        if let Some(target) = leads_out(tree, name)? {
            outside.push(format!("{name} is a link to {}", target.display()));
        }
    }
    outside.extend(tablespaces_to_come(tree)?);
    outside.truncate(NAMED_MAX);
    if outside.is_empty() {
        return Ok(());
    }
    let mut error = Error::new(
        Kind::BadInput,
        format!("{fork:?} has files outside its data directory, which a fork would share"),
    )
    .hint(
        "move them inside: ALTER TABLE/DATABASE ... SET TABLESPACE pg_default and DROP TABLESPACE; \
             a pg_wal goes back into a stopped fork's directory; a backup is started once where it is",
    );
    for line in outside {
        error = error.cause(line);
    }
    Err(error)
}

/// The tablespaces outside that the first start would make: a server that
/// begins with a backup_label replaces what is in pg_tblspc by links to where
/// tablespace_map says.
fn tablespaces_to_come(tree: &dyn Tree) -> Result<Vec<String>> {
    let (Some(_), Some(map)) = (tree.read("backup_label")?, tree.read("tablespace_map")?) else {
        return Ok(Vec::new());
    };
    let lines = tablespace_lines(&String::from_utf8_lossy(&map));
    let places = lines.iter().filter_map(|line| line.split_once(' '));
    // Older servers skip any number of blanks.
    let outside =
        places.filter(|(name, to)| conf::within(&format!("pg_tblspc/{name}"), to.trim_start()).is_none());
    Ok(outside.map(|(name, to)| format!("tablespace_map puts tablespace {name} at {to}")).collect())
}

/// The lines of a tablespace_map as the server reads them: either end of line ends
/// one, and a backslash takes the next character as it is.
fn tablespace_lines(map: &str) -> Vec<String> {
    let (mut lines, mut line) = (Vec::new(), String::new());
    let mut escaped = false;
    for c in map.chars() {
        match c {
            '\n' | '\r' if !escaped => lines.push(std::mem::take(&mut line)),
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            c => line.push(c),
        }
        escaped = false;
    }
    lines.push(line);
    lines
}

/// Where a link points, if that is not below the data directory's top.
fn leads_out(tree: &dyn Tree, path: &str) -> Result<Option<PathBuf>> {
    let Some(target) = tree.link_target(path)? else {
        return Ok(None);
    };
    let inside = target.to_str().is_some_and(|t| conf::within(path, t).is_some());
    Ok((!inside).then_some(target))
}

/// Applies the rules; returns what the user should know.
pub fn apply(tree: &dyn Tree, identity: &Identity) -> Result<Vec<String>> {
    check_contained(tree, identity.source.map_or(identity.fork, |source| source.fork))?;
    let mut warnings = BTreeSet::new();
    let old = Text::decode(tree.read(AUTO_CONF)?.unwrap_or_else(|| AUTO_CONF_HEAD.as_bytes().to_vec()));
    let begins_timeline = begins_timeline(tree, identity, &old.text)?;
    remove_foreign(tree, identity)?;
    let settings = own_paths(tree, identity, &mut warnings)?;
    for outside in &settings.outside {
        warnings.insert(format!("{outside} is read from outside the fork"));
    }
    if !identity.keep {
        let libraries = settings.get("shared_preload_libraries").unwrap_or_default();
        for library in libraries.split(',').map(|l| l.trim().trim_matches('"')) {
            if CALLING_LIBRARIES.contains(&library) {
                warnings.insert(format!(
                    "shared_preload_libraries has {library}, whose workers may connect to other servers; \
                     take it out before the fork starts if it must not"
                ));
            }
        }
    }
    if begins_timeline && settings.get("wal_level") == Some("minimal") {
        return Err(Error::new(Kind::BadInput, format!("{:?} cannot begin a new timeline", identity.fork))
            .cause("its parent writes WAL of wal_level=minimal, from which there is no way to one")
            .hint("fork it without --new-timeline"));
    }
    let old = Text::decode(tree.read(AUTO_CONF)?.unwrap_or_else(|| AUTO_CONF_HEAD.as_bytes().to_vec()));
    let in_place = has_tablespaces_in_place(tree)?;
    let mut text = conf::set_all(&timeline::without(&old.text), &overrides(identity, &settings, in_place));
    if begins_timeline {
        text += &timeline::lines(AUTO_CONF);
        tree.write(RECOVERY_SIGNAL, b"")?;
    }
    let new = old.with(text);
    tree.write(AUTO_CONF, &new.encode())?;
    Ok(warnings.into_iter().collect())
}

/// Makes all settings that name the parent's paths name the fork's; the settings then.
pub(super) fn own_paths(
    tree: &dyn Tree,
    identity: &Identity,
    warnings: &mut BTreeSet<String>,
) -> Result<Settings> {
    // An include that becomes the fork's own brings another file into view,
    // so this goes on until there is nothing left to edit.
    loop {
        let settings = Settings::load(tree)?;
        let mut changed = edit_paths(tree, AUTO_CONF, identity, warnings)?;
        for file in &settings.files {
            changed |= edit_paths(tree, file, identity, warnings)?;
        }
        if !changed {
            return Ok(settings);
        }
    }
}

/// Whether a fork is to begin a timeline of its own at its first start. That of a
/// standby must, for its parent goes on with the other one; so must the fork of one
/// that has not been started yet.
fn begins_timeline(tree: &dyn Tree, identity: &Identity, auto_conf: &str) -> Result<bool> {
    if identity.keep || identity.follows {
        return Ok(false);
    }
    let must = tree.read(STANDBY_SIGNAL)?.is_some() || timeline::is_prepared(auto_conf);
    Ok(identity.new_timeline || must)
}

/// Makes a fork known by its name, port and socket directory, whose name was that of
/// its source; nothing else about it changes. Returns the files that did.
pub fn readdress(tree: &dyn Tree, identity: &Identity) -> Result<Vec<String>> {
    let settings = Settings::load(tree)?;
    let mut changed = Vec::new();
    for file in &settings.files {
        if edit_paths(tree, file, identity, &mut BTreeSet::new())? {
            changed.push(file.clone());
        }
    }
    let mut address = vec![
        ("port".to_string(), identity.port.to_string()),
        ("unix_socket_directories".to_string(), identity.socket_dir.display().to_string()),
    ];
    // Unless somebody has given it another one.
    if settings.get("cluster_name") == identity.source.map(|source| source.fork) {
        address.push(("cluster_name".to_string(), identity.fork.to_string()));
    }
    edit_paths(tree, AUTO_CONF, identity, &mut BTreeSet::new())?;
    let old = Text::decode(tree.read(AUTO_CONF)?.unwrap_or_default());
    let new = old.with(conf::set_all(&old.text, &address));
    tree.write(AUTO_CONF, &new.encode())?;
    changed.push(AUTO_CONF.to_string());
    Ok(changed)
}

/// What `ALTER SYSTEM` writes to.
pub(super) const AUTO_CONF: &str = "postgresql.auto.conf";

const AUTO_CONF_HEAD: &str =
    "# Do not edit this file manually!\n# It will be overwritten by the ALTER SYSTEM command.\n";

fn remove_foreign(tree: &dyn Tree, identity: &Identity) -> Result<()> {
    let marks = if identity.keep { 3 } else { FOREIGN_FILES.len() };
    for name in FOREIGN_FILES[..marks].iter().filter(|name| !(identity.follows && **name == PASSWORDS)) {
        tree.remove(name)?;
    }
    if identity.follows {
        tree.write(STANDBY_SIGNAL, b"")?;
    }
    if !identity.keep {
        for slot in tree.list("pg_replslot")? {
            tree.remove(&format!("pg_replslot/{slot}"))?;
        }
    }
    // A log directory elsewhere (log -> /var/log/postgresql) is the parent's.
    for name in ["log", "pg_log"] {
        if leads_out(tree, name)?.is_some() {
            tree.remove(name)?;
            tree.make_dir(name)?;
        }
    }
    Ok(())
}

/// Makes the settings of one file that name the parent's paths name the
/// fork's; returns whether there were any.
fn edit_paths(
    tree: &dyn Tree,
    file: &str,
    identity: &Identity,
    warnings: &mut BTreeSet<String>,
) -> Result<bool> {
    let Some(bytes) = tree.read(file)? else {
        return Ok(false);
    };
    let old = Text::decode(bytes);
    let own = |value: &str| -> Option<String> {
        let value = Path::new(value);
        if value.starts_with(identity.pgdata) {
            return None;
        }
        let mut rest = value.strip_prefix(identity.source?.mountpoint).ok()?.components();
        rest.next()?;
        rest.as_path().to_str().map(str::to_string)
    };
    let text = conf::edit(&old.text, |entry| match entry.name.as_str() {
        "data_directory" | "external_pid_file" => Edit::CommentOut,
        "hba_file" | "ident_file" if entry.value.starts_with('/') => match own(&entry.value) {
            Some(rest) if rest == default_file(&entry.name) => Edit::CommentOut,
            // A relative path would be taken from where the server is started.
            Some(rest) => Edit::Set(identity.pgdata.join(rest).display().to_string()),
            None if Path::new(&entry.value).starts_with(identity.pgdata) => Edit::Keep,
            None => {
                warnings.insert(format!("{} = '{}' is read from outside the fork", entry.name, entry.value));
                Edit::Keep
            }
        },
        _ if entry.is_include() => match own(&entry.value) {
            Some(rest) => Edit::Set(format!("{}{rest}", "../".repeat(file.matches('/').count()))),
            None => Edit::Keep,
        },
        _ => Edit::Keep,
    });
    let changed = text != old.text;
    if changed {
        tree.write(file, &old.with(text).encode())?;
    }
    Ok(changed)
}

/// What PostgreSQL takes when `hba_file` or `ident_file` is not set.
pub fn default_file(setting: &str) -> &'static str {
    if setting == "hba_file" { "pg_hba.conf" } else { "pg_ident.conf" }
}

/// Whether tablespaces are directories of pg_tblspc.
fn has_tablespaces_in_place(tree: &dyn Tree) -> Result<bool> {
    for name in tree.list("pg_tblspc")? {
        if tree.link_target(&format!("pg_tblspc/{name}"))?.is_none() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The settings that make it itself; the user's own come last and win.
fn overrides(identity: &Identity, settings: &Settings, in_place: bool) -> Vec<(String, String)> {
    let mut list: Vec<(&str, String)> = vec![
        ("cluster_name", identity.fork.to_string()),
        ("port", identity.port.to_string()),
        ("unix_socket_directories", identity.socket_dir.display().to_string()),
        ("listen_addresses", identity.listen.to_string()),
    ];
    if writes_outside(settings.get("log_directory")) {
        list.push(("log_directory", "log".into()));
    }
    if identity.major < 15 && writes_outside(settings.get("stats_temp_directory")) {
        list.push(("stats_temp_directory", "pg_stat_tmp".into()));
    }
    if in_place && identity.major >= 15 {
        // Else a recovery from a backup, or to a new timeline, ends with a PANIC about them.
        list.push(("allow_in_place_tablespaces", "on".into()));
    }
    if !identity.keep {
        let off = |name| (name, "off".to_string());
        let empty = |name| (name, String::new());
        list.extend([
            off("archive_mode"),
            empty("archive_command"),
            empty("archive_cleanup_command"),
            empty("restore_command"),
            empty("recovery_end_command"),
            // A commit would wait for the parent's standby for ever.
            empty("synchronous_standby_names"),
            ("max_logical_replication_workers", "0".to_string()),
            // Placeholders where the extension is not loaded.
            off("cron.launch_active_jobs"),
            ("timescaledb.max_background_workers", "0".to_string()),
        ]);
        if !identity.follows {
            list.extend([empty("primary_conninfo"), empty("primary_slot_name")]);
        }
        if identity.major >= 15 {
            list.push(empty("archive_library"));
        }
        if identity.major >= 17 {
            list.push(off("sync_replication_slots"));
        }
    }
    let mut list: Vec<(String, String)> = list.into_iter().map(|(n, v)| (n.to_string(), v)).collect();
    list.extend_from_slice(identity.settings);
    list
}

/// Whether a directory setting leads out of the data directory.
fn writes_outside(value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    Path::new(value).is_absolute() || Path::new(value).components().any(|c| c == Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::super::tree::DirTree;
    use super::*;

    struct Parent {
        dir: tempfile::TempDir,
        tree: DirTree,
    }

    fn parent(conf: &str, auto: &str) -> Parent {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        for name in ["base", "pg_wal", "pg_tblspc", "pg_replslot", "pg_replslot/slot_a"] {
            tree.make_dir(name).unwrap();
        }
        tree.write("pg_replslot/slot_a/state", b"x").unwrap();
        tree.write("postgresql.conf", conf.as_bytes()).unwrap();
        tree.write("postgresql.auto.conf", auto.as_bytes()).unwrap();
        for name in FOREIGN_FILES {
            tree.write(name, b"").unwrap();
        }
        Parent { dir, tree }
    }

    fn identity(keep: bool) -> Identity<'static> {
        Identity {
            fork: "pr42",
            pgdata: Path::new("/m/pr42"),
            port: 6001,
            socket_dir: Path::new("/s/run/pr42"),
            listen: "localhost",
            major: 15,
            keep,
            follows: false,
            new_timeline: false,
            settings: &[],
            source: Some(Source { fork: "main", mountpoint: Path::new("/m") }),
        }
    }

    fn read(parent: &Parent, path: &str) -> String {
        String::from_utf8(parent.tree.read(path).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_fork_of_production_is_not_production() {
        let p = parent(
            "port = 5432\narchive_mode = on\narchive_command = 'cp %p /archive/%f'\nsynchronous_standby_names = '*'\n",
            "primary_conninfo = 'host=prod'\nprimary_slot_name = 's'\nwork_mem = '5MB'\nport = 6000\n",
        );
        assert!(apply(&p.tree, &identity(false)).unwrap().is_empty());
        for name in FOREIGN_FILES.iter().filter(|name| **name != RECOVERY_SIGNAL) {
            assert_eq!(p.tree.read(name).unwrap(), None, "{name}");
        }
        assert!(p.tree.list("pg_replslot").unwrap().is_empty());
        let settings = Settings::load(&p.tree).unwrap();
        for (name, value) in [
            ("archive_mode", "off"),
            ("archive_command", ""),
            ("archive_library", ""),
            ("primary_conninfo", ""),
            ("primary_slot_name", ""),
            ("synchronous_standby_names", ""),
            ("max_logical_replication_workers", "0"),
            ("cron.launch_active_jobs", "off"),
            ("port", "6001"),
            ("unix_socket_directories", "/s/run/pr42"),
            ("listen_addresses", "localhost"),
            ("cluster_name", "pr42"),
            ("work_mem", "5MB"),
        ] {
            assert_eq!(settings.get(name), Some(value), "{name}");
        }
        assert!(!read(&p, "postgresql.auto.conf").contains("prod"), "nothing of the parent is left");
    }

    #[test]
    fn a_renamed_fork_knows_its_own_files() {
        let p = parent(
            "hba_file = '/m/main/conf/hba'\nident_file = '/etc/ident'\nport = 1\n",
            "work_mem = '5MB'\n",
        );
        apply(&p.tree, &identity(false)).unwrap();
        let renamed = |name: &'static str| Identity {
            fork: name,
            pgdata: Path::new("/m/other"),
            socket_dir: Path::new("/s/run/other"),
            source: Some(Source { fork: "pr42", mountpoint: Path::new("/m") }),
            ..identity(false)
        };
        let changed = readdress(&p.tree, &renamed("other")).unwrap();
        assert_eq!(changed, ["postgresql.conf", "postgresql.auto.conf"]);
        let get = |name: &str| Settings::load(&p.tree).unwrap().get(name).unwrap_or_default().to_string();
        assert_eq!(get("hba_file"), "/m/other/conf/hba");
        assert_eq!((get("ident_file").as_str(), get("work_mem").as_str()), ("/etc/ident", "5MB"));
        assert_eq!((get("cluster_name").as_str(), get("port").as_str()), ("other", "6001"));
        assert_eq!(get("unix_socket_directories"), "/s/run/other");
        // One that its user has chosen stays.
        p.tree.write("postgresql.auto.conf", b"cluster_name = 'mine'\n").unwrap();
        readdress(&p.tree, &renamed("other")).unwrap();
        assert_eq!(get("cluster_name"), "mine");
    }

    #[test]
    fn a_fork_of_a_standby_begins_a_timeline() {
        let p = parent("recovery_target_time = '2020-01-01'\n", "primary_conninfo = 'host=prod'\n");
        let get = |name: &str| Settings::load(&p.tree).unwrap().get(name).unwrap_or_default().to_string();
        // One that goes on to follow keeps what it needs for that, and nothing else.
        let follower = Identity { follows: true, ..identity(false) };
        apply(&p.tree, &follower).unwrap();
        assert!(p.tree.read(STANDBY_SIGNAL).unwrap().is_some() && p.tree.read(PASSWORDS).unwrap().is_some());
        assert_eq!((get("primary_conninfo").as_str(), get("archive_mode").as_str()), ("host=prod", "off"));
        assert!(p.tree.read(RECOVERY_SIGNAL).unwrap().is_none() && get("restore_command").is_empty());
        // A fork of that, and a fork of the fork before its first start.
        for _ in 0..2 {
            apply(&p.tree, &identity(false)).unwrap();
            assert!(p.tree.read(RECOVERY_SIGNAL).unwrap().is_some());
            assert!(
                p.tree.read(STANDBY_SIGNAL).unwrap().is_none() && p.tree.read(PASSWORDS).unwrap().is_none()
            );
            assert_eq!((get("restore_command").as_str(), get("primary_conninfo").as_str()), ("exit 1", ""));
            assert_eq!(get("recovery_target_time"), "");
            assert!(read(&p, AUTO_CONF).ends_with(&timeline::lines(AUTO_CONF)));
            assert!(!timeline::is_prepared(&read(&p, AUTO_CONF).replace(&timeline::lines(AUTO_CONF), "")));
        }
        // What the server does at the end of that.
        p.tree.remove(RECOVERY_SIGNAL).unwrap();
        let command = get("recovery_end_command");
        let done = std::process::Command::new("sh").arg("-c").arg(command).current_dir(p.dir.path()).status();
        assert!(done.unwrap().success());
        assert!(!timeline::is_prepared(&read(&p, AUTO_CONF)), "{}", read(&p, AUTO_CONF));
        assert_eq!((get("restore_command").as_str(), get("recovery_end_command").as_str()), ("", ""));
        apply(&p.tree, &identity(false)).unwrap();
        assert!(p.tree.read(RECOVERY_SIGNAL).unwrap().is_none(), "a fork of a cluster as any other");
        apply(&p.tree, &Identity { new_timeline: true, ..identity(false) }).unwrap();
        assert!(p.tree.read(RECOVERY_SIGNAL).unwrap().is_some());
        p.tree.write("postgresql.conf", b"wal_level = minimal\n").unwrap();
        let error = apply(&p.tree, &Identity { new_timeline: true, ..identity(false) }).unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let p = parent("hba_file = '/m/main/pg_hba.conf'\n", "");
        apply(&p.tree, &identity(false)).unwrap();
        let once = (read(&p, "postgresql.conf"), read(&p, "postgresql.auto.conf"));
        apply(&p.tree, &identity(false)).unwrap();
        assert_eq!(once, (read(&p, "postgresql.conf"), read(&p, "postgresql.auto.conf")));
    }

    #[test]
    fn kept_identity_still_has_its_own_address() {
        let p = parent("archive_mode = on\n", "primary_conninfo = 'host=prod'\n");
        apply(&p.tree, &identity(true)).unwrap();
        let settings = Settings::load(&p.tree).unwrap();
        assert_eq!(settings.get("archive_mode"), Some("on"));
        assert_eq!(settings.get("primary_conninfo"), Some("host=prod"));
        assert_eq!(settings.get("port"), Some("6001"));
        assert!(p.tree.read("standby.signal").unwrap().is_some());
        assert!(p.tree.read("postmaster.pid").unwrap().is_none());
        assert_eq!(p.tree.list("pg_replslot").unwrap(), ["slot_a"]);
    }

    #[test]
    fn absolute_paths_become_the_forks_own() {
        let p = parent(
            "data_directory = '/m/main'\nhba_file = '/m/main/pg_hba.conf'\nident_file='/m/main/x/id.conf'\n\
             external_pid_file = '/run/x.pid'\nlog_directory = '/var/log/pg'\nstats_temp_directory = '/run/st'\n\
             include_dir '/m/main/conf.d'\n",
            "hba_file = '/m/main/pg_hba.conf'\n",
        );
        p.tree.make_dir("conf.d").unwrap();
        p.tree.write("conf.d/a.conf", b"include '/m/main/b.conf'\nhba_file = '/etc/hba'\n").unwrap();
        let warnings = apply(&p.tree, &Identity { major: 14, ..identity(false) }).unwrap();
        // '/etc/hba' is read, not written; b.conf is missing, which PostgreSQL will say itself.
        assert_eq!(warnings, ["hba_file = '/etc/hba' is read from outside the fork"]);
        assert_eq!(
            read(&p, "conf.d/a.conf").lines().next().unwrap().split("  #").next(),
            Some("include '../b.conf'")
        );
        let conf = read(&p, "postgresql.conf");
        assert!(conf.contains("#pgcowfs: data_directory") && conf.contains("#pgcowfs: hba_file"), "{conf}");
        assert!(
            conf.contains("ident_file = '/m/pr42/x/id.conf'") && conf.contains("#pgcowfs: external_pid_file")
        );
        assert!(conf.contains("include_dir 'conf.d'"));
        let settings = Settings::load(&p.tree).unwrap();
        assert_eq!(settings.get("log_directory"), Some("log"));
        assert_eq!(settings.get("stats_temp_directory"), Some("pg_stat_tmp"));
    }

    #[test]
    fn what_lies_outside_is_refused_by_name() {
        use std::os::unix::fs::symlink;
        let p = parent("", "");
        symlink("/data/ts1", p.dir.path().join("pg_tblspc/16400")).unwrap();
        symlink("../inside", p.dir.path().join("pg_tblspc/16401")).unwrap();
        let error = apply(&p.tree, &identity(false)).unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert_eq!(error.causes, ["tablespace 16400 is at /data/ts1"]);
        assert!(error.message.contains("main"), "{error}");
        assert!(p.tree.read("postmaster.pid").unwrap().is_some(), "nothing was changed");
        p.tree.remove("pg_tblspc/16400").unwrap();
        p.tree.remove("pg_wal").unwrap();
        symlink("/wal", p.dir.path().join("pg_wal")).unwrap();
        symlink("/var/log", p.dir.path().join("log")).unwrap();
        assert_eq!(apply(&p.tree, &identity(false)).unwrap_err().causes, ["pg_wal is a link to /wal"]);
        p.tree.remove("pg_wal").unwrap();
        apply(&p.tree, &identity(false)).unwrap();
        assert_eq!(p.tree.link_target("log").unwrap(), None);
    }

    #[test]
    fn a_backups_map_of_tablespaces_leads_nowhere_else() {
        let p = parent("", "");
        p.tree.write("tablespace_map", b"16400 /data/ts1\n16401 ../inside\n").unwrap();
        apply(&p.tree, &identity(false)).unwrap();
        p.tree.write("backup_label", b"START WAL LOCATION: 0/28\n").unwrap();
        let error = apply(&p.tree, &identity(false)).unwrap_err();
        assert_eq!(error.causes, ["tablespace_map puts tablespace 16400 at /data/ts1"]);
        // However it is written, if the server reads it so.
        for map in [
            "16400 \\/data/ts1\n",
            "1 ../a\r16400 /data/ts1",
            "16400   /data/ts1\n",
            "1\\\n2 .\n16400 /data/ts1",
        ] {
            p.tree.write("tablespace_map", map.as_bytes()).unwrap();
            let error = apply(&p.tree, &identity(false)).unwrap_err();
            assert!(error.causes.len() == 1 && error.causes[0].ends_with("/data/ts1"), "{map:?}: {error}");
        }
    }

    #[test]
    fn the_users_settings_win_and_libraries_that_call_out_are_named() {
        let p = parent("shared_preload_libraries = 'pg_stat_statements, citus'\n", "");
        let settings = [("archive_mode".to_string(), "on".to_string())];
        let warnings = apply(&p.tree, &Identity { settings: &settings, ..identity(false) }).unwrap();
        assert!(warnings.len() == 1 && warnings[0].contains("citus"), "{warnings:?}");
        assert_eq!(Settings::load(&p.tree).unwrap().get("archive_mode"), Some("on"));
    }
}
