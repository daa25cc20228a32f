//! The configuration of a base backup.
//!
//! A base backup has the server's data directory and nothing else. Configuration
//! that lies elsewhere (Debian: /etc/postgresql) is not in it, and there is no
//! reading it over a connection: then the fork gets one of its own, with the
//! settings that the server runs with.

use std::collections::BTreeMap;

use super::conf::{self, Edit, Settings};
use super::tree::{Text, Tree};
use crate::error::Result;

/// Settings that say where the server's machine has something.
const OF_THE_MACHINE: [&str; 25] = [
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "bonjour",
    "bonjour_name",
    "krb_server_keyfile",
    "listen_addresses",
    "log_directory",
    "port",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_crl_dir",
    "ssl_crl_file",
    "ssl_dh_params_file",
    "ssl_key_file",
    "ssl_passphrase_command",
    "stats_temp_directory",
    "syslog_ident",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "huge_pages",
];

/// Where the server's own postgresql.conf goes, if it is of no use here.
const ASIDE: &str = "postgresql.conf.server";

/// Who may connect, where the server's rules are not known: as with a fresh cluster,
/// whoever reaches the socket, and on this machine who has a password.
const HBA: &str = "\
# The server's own pg_hba.conf is not in a base backup.
local   all   all                  trust
host    all   all   127.0.0.1/32   scram-sha-256
host    all   all   ::1/128        scram-sha-256
";

/// Makes the configuration in `tree` one that works by itself; the server runs with
/// `settings`. Returns what the user should know.
pub fn settle(tree: &dyn Tree, settings: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let own = tree.read("postgresql.conf")?;
    let there = Settings::load(tree)?;
    let is_whole = own.is_some() && there.outside.is_empty();
    let has_own_hba = is_whole && there.get("hba_file").is_none() && tree.read("pg_hba.conf")?.is_some();
    if is_whole {
        for file in there.files.iter().map(String::as_str).chain(["postgresql.auto.conf"]) {
            drop_paths(tree, file)?;
        }
    } else {
        if let Some(own) = own {
            tree.write(ASIDE, &own)?;
            warnings.push(format!(
                "{}: what it leads to is not in a base backup, so postgresql.conf has the server's settings \
                 instead, and its own is {ASIDE}",
                there.outside.join(", ")
            ));
        } else {
            warnings.push(
                "the server's configuration lies outside its data directory and is not in a base backup: \
                 postgresql.conf has the settings that it runs with"
                    .into(),
            );
        }
        let mut text = String::from("# The settings of the server that this was copied from.\n");
        let wanted = settings.iter().filter(|(name, _)| !OF_THE_MACHINE.contains(&name.as_str()));
        let wanted: Vec<_> = wanted.map(|(name, value)| (name.clone(), value.clone())).collect();
        text = conf::set_all(&text, &wanted);
        tree.write("postgresql.conf", text.as_bytes())?;
        drop_paths(tree, "postgresql.auto.conf")?;
    }
    if !has_own_hba {
        warnings.push(
            "who may connect is not in the base backup: pg_hba.conf lets in whoever reaches the socket, and with \
             a password whoever is on this machine"
                .into(),
        );
        tree.write("pg_hba.conf", HBA.as_bytes())?;
    }
    Ok(warnings)
}

/// Comments out where the server's machine has something: PostgreSQL then takes what
/// is in the data directory.
fn drop_paths(tree: &dyn Tree, file: &str) -> Result<()> {
    let Some(bytes) = tree.read(file)? else { return Ok(()) };
    let old = Text::decode(bytes);
    let text = conf::edit(&old.text, |entry| match entry.name.as_str() {
        "data_directory" | "external_pid_file" | "hba_file" | "ident_file" => Edit::CommentOut,
        _ => Edit::Keep,
    });
    match text == old.text {
        true => Ok(()),
        false => tree.write(file, &old.with(text).encode()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::DirTree;
    use super::*;

    fn settings() -> BTreeMap<String, String> {
        let pairs =
            [("work_mem", "9MB"), ("port", "5432"), ("hba_file", "/etc/x"), ("search_path", "\"$user\", a")];
        pairs.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn what_is_not_there_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        let warnings = settle(&tree, &settings()).unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        let made = Settings::load(&tree).unwrap();
        assert_eq!((made.get("work_mem"), made.get("search_path")), (Some("9MB"), Some("\"$user\", a")));
        assert_eq!((made.get("port"), made.get("hba_file")), (None, None));
        assert!(String::from_utf8(tree.read("pg_hba.conf").unwrap().unwrap()).unwrap().contains("local"));
    }

    #[test]
    fn what_is_whole_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        tree.write("postgresql.conf", b"work_mem = 3MB\nexternal_pid_file = '/run/x'\n").unwrap();
        tree.write("pg_hba.conf", b"local all all peer\n").unwrap();
        assert!(settle(&tree, &settings()).unwrap().is_empty());
        let now = Settings::load(&tree).unwrap();
        assert_eq!((now.get("work_mem"), now.get("external_pid_file")), (Some("3MB"), None));
        assert_eq!(tree.read("pg_hba.conf").unwrap().unwrap(), b"local all all peer\n");
    }

    #[test]
    fn what_leads_outside_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        tree.write("postgresql.conf", b"include '/etc/pg/all.conf'\nhba_file = '/etc/pg/hba'\n").unwrap();
        tree.write("pg_hba.conf", b"host all all 0.0.0.0/0 trust\n").unwrap();
        assert_eq!(settle(&tree, &settings()).unwrap().len(), 2);
        assert!(tree.read(ASIDE).unwrap().is_some());
        assert_eq!(Settings::load(&tree).unwrap().get("work_mem"), Some("9MB"));
        assert!(
            !tree.read("pg_hba.conf").unwrap().unwrap().starts_with(b"host"),
            "rules that were not in force"
        );
    }
}
