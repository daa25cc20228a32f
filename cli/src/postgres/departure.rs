//! What a fork's configuration becomes when the fork leaves the store, as a data
//! directory like any other.
//!
//! What names the store goes: the port, the socket directory and the name that the fork
//! was given, and paths into its data directory in the mount. So a plain `pg_ctl start`
//! takes what the cluster's own postgresql.conf says, or PostgreSQL's defaults. What is
//! right only in a store goes, too. All else stays: an exported fork archives and
//! replicates as little as the fork did.

use std::collections::BTreeSet;
use std::path::Path;

use super::conf::{self, Edit, Entry, Settings};
use super::identity::{self, AUTO_CONF, Identity, Source};
use super::tree::{Text, Tree};
use crate::error::Result;
use crate::meta::ForkMeta;

/// A fork that leaves.
pub struct Departure<'a> {
    /// Its name.
    pub fork: &'a str,
    /// Its settings in the store.
    pub meta: &'a ForkMeta,
    /// Where the store's forks are.
    pub mountpoint: &'a Path,
    /// Where it goes.
    pub dir: &'a Path,
}

/// Edits the configuration in `tree`; returns what the user should know.
pub fn apply(tree: &dyn Tree, departure: &Departure) -> Result<Vec<String>> {
    let Departure { fork, meta, mountpoint, dir } = *departure;
    let identity = Identity {
        fork,
        pgdata: dir,
        port: meta.port,
        socket_dir: &meta.socket_dir,
        listen: &meta.listen,
        major: meta.pg_version,
        keep: true,
        follows: false,
        new_timeline: false,
        settings: &[],
        source: Some(Source { fork, mountpoint }),
    };
    let mut warnings = BTreeSet::new();
    let settings = identity::own_paths(tree, &identity, &mut warnings)?;
    if settings.get("full_page_writes").is_some() && !settings.is_on("full_page_writes") {
        warnings.insert(
            "full_page_writes = off was taken out of the configuration: it is safe in a fork, and on few disks".into(),
        );
    }
    let only_here = |entry: &Entry| match entry.name.as_str() {
        "port" => entry.value == meta.port.to_string(),
        "unix_socket_directories" => Path::new(&entry.value) == meta.socket_dir,
        "cluster_name" => entry.value == fork,
        "full_page_writes" | "recovery_init_sync_method" => true,
        _ => false,
    };
    for file in settings.files.iter().map(String::as_str).chain([AUTO_CONF]) {
        let Some(bytes) = tree.read(file)? else { continue };
        let old = Text::decode(bytes);
        let text = match file {
            AUTO_CONF => conf::without(&old.text, only_here),
            _ => conf::edit(&old.text, |entry| match only_here(entry) {
                true => Edit::CommentOut,
                false => Edit::Keep,
            }),
        };
        if text != old.text {
            tree.write(file, &old.with(text).encode())?;
        }
    }
    if meta.socket_trusts && guard_socket(tree, meta, &settings)? {
        warnings.insert(format!(
            "the Unix socket asks who comes: {} may connect as {}, others need a password, \
             for the socket directory is not the fork's own any more (pg_hba.conf)",
            meta.run_as, meta.superuser
        ));
    }
    Ok(warnings.into_iter().collect())
}

/// The map of users that is added where the superuser's name is not the user's.
const MAP: &str = "pgcowfs";

/// A fresh cluster of pgcowfs trusts its socket, since nobody else reaches the socket's
/// directory. Outside everybody does.
fn guard_socket(tree: &dyn Tree, meta: &ForkMeta, settings: &Settings) -> Result<bool> {
    // Somebody has chosen other rules.
    if settings.get("hba_file").is_some() {
        return Ok(false);
    }
    let Some(bytes) = tree.read("pg_hba.conf")? else { return Ok(false) };
    let old = Text::decode(bytes);
    let same_name = meta.run_as == meta.superuser;
    let map = if same_name { String::new() } else { format!(" map={MAP}") };
    let mut text = String::new();
    let mut changed = false;
    for line in old.text.split_inclusive('\n') {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["local", databases, users, "trust"] => {
                if !changed {
                    text += &format!("local all \"{}\" peer{map}\n", meta.superuser.replace('"', "\"\""));
                }
                text += &format!("local {databases} {users} scram-sha-256\n");
                changed = true;
            }
            _ => text += line,
        }
    }
    if changed {
        tree.write("pg_hba.conf", &old.with(text).encode())?;
        if !same_name {
            let ident = Text::decode(tree.read("pg_ident.conf")?.unwrap_or_default());
            let line = format!("{MAP} \"{}\" \"{}\"\n", meta.run_as, meta.superuser);
            let gap = if ident.text.is_empty() || ident.text.ends_with('\n') { "" } else { "\n" };
            tree.write("pg_ident.conf", &ident.with(format!("{}{gap}{line}", ident.text)).encode())?;
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::super::tree::DirTree;
    use super::*;
    use crate::meta::tests::sample;

    fn depart(conf: &str, auto: &str, hba: &str, run_as: &str) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        for (name, text) in
            [("postgresql.conf", conf), ("postgresql.auto.conf", auto), ("pg_hba.conf", hba), ("x.conf", "")]
        {
            tree.write(name, text.as_bytes()).unwrap();
        }
        let meta = ForkMeta { run_as: run_as.into(), ..sample() };
        let mountpoint = Path::new("/s/mnt");
        let departure = Departure { fork: "main", meta: &meta, mountpoint, dir: Path::new("/out/main") };
        let warnings = apply(&tree, &departure).unwrap();
        (dir, warnings)
    }

    fn read(dir: &tempfile::TempDir, name: &str) -> String {
        std::fs::read_to_string(dir.path().join(name)).unwrap()
    }

    #[test]
    fn nothing_leads_back_into_the_store() {
        let (dir, warnings) = depart(
            "port = 5433\nfull_page_writes = off\ninclude '/s/mnt/main/x.conf'\nident_file = '/s/mnt/main/a/ident'\n",
            "port = '6001'\nunix_socket_directories = '/s/run/pr 42'\ncluster_name = 'main'\n\
             listen_addresses = 'localhost'\narchive_mode = 'off'\nrecovery_init_sync_method = 'syncfs'\n",
            "",
            "postgres",
        );
        assert_eq!(
            read(&dir, "postgresql.auto.conf"),
            "listen_addresses = 'localhost'\narchive_mode = 'off'\n"
        );
        let settings = Settings::load(&DirTree(dir.path().into())).unwrap();
        assert_eq!(settings.get("port"), Some("5433"));
        assert_eq!(settings.get("full_page_writes"), None);
        assert_eq!(settings.get("ident_file"), Some("/out/main/a/ident"));
        assert!(settings.files.contains(&"x.conf".to_string()) && settings.outside.is_empty());
        assert!(warnings.len() == 1 && warnings[0].contains("full_page_writes"), "{warnings:?}");
    }

    #[test]
    fn what_the_user_has_chosen_stays() {
        let auto = "port = '7000'\ncluster_name = 'mine'\nunix_socket_directories = '/run/x'\n";
        let (dir, warnings) = depart("full_page_writes = on\n", auto, "local all all peer\n", "postgres");
        assert_eq!(read(&dir, "postgresql.auto.conf"), auto);
        assert_eq!(read(&dir, "pg_hba.conf"), "local all all peer\n");
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn a_socket_that_everybody_reaches_asks() {
        let hba = "# x\nlocal   all  all    trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal replication all trust";
        let (dir, warnings) = depart("", "", hba, "postgres");
        assert_eq!(
            read(&dir, "pg_hba.conf"),
            "# x\nlocal all \"postgres\" peer\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n\
             local replication all scram-sha-256\n"
        );
        assert!(warnings.len() == 1 && warnings[0].contains("pg_hba.conf"), "{warnings:?}");
        let (dir, _) = depart("", "", hba, "joe");
        assert!(read(&dir, "pg_hba.conf").contains("local all \"postgres\" peer map=pgcowfs\n"));
        assert_eq!(read(&dir, "pg_ident.conf"), "pgcowfs \"joe\" \"postgres\"\n");
    }
}
