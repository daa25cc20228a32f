//! The rules by which a fork does not believe that it is its parent, on any
//! configuration.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::target::{Bytes, piece};
use super::conf::as_postgres;
use crate::error::Result;
use crate::postgres::conf::{Settings, entries};
use crate::postgres::identity::{Identity, Source, apply};
use crate::postgres::tree::{Text, Tree};

const AUTO: &str = "postgresql.auto.conf";
/// The files of the input, in this order.
const FILES: [&str; 4] = ["postgresql.conf", AUTO, "conf.d/1.conf", "conf.d/2.conf"];

/// A data directory in memory.
#[derive(Clone, Default, PartialEq)]
struct MemTree {
    files: RefCell<BTreeMap<String, Vec<u8>>>,
    /// `log`, where it leads.
    log: RefCell<Option<PathBuf>>,
}

impl Tree for MemTree {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.files.borrow().get(path).cloned())
    }
    fn write(&self, path: &str, contents: &[u8]) -> Result<()> {
        assert!(
            !path.starts_with('/') && path.split('/').all(|part| part != ".."),
            "written outside: {path}"
        );
        self.files.borrow_mut().insert(path.into(), contents.into());
        Ok(())
    }
    fn list(&self, dir: &str) -> Result<Vec<String>> {
        let files = self.files.borrow();
        let inside = files.keys().filter_map(|path| path.strip_prefix(dir)?.strip_prefix('/'));
        Ok(inside.filter(|name| !name.contains('/')).map(str::to_string).collect())
    }
    fn link_target(&self, path: &str) -> Result<Option<PathBuf>> {
        Ok(if path == "log" { self.log.borrow().clone() } else { None })
    }
    fn remove(&self, path: &str) -> Result<()> {
        self.files.borrow_mut().remove(path);
        if path == "log" {
            self.log.take();
        }
        Ok(())
    }
    fn make_dir(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let (flags, log) = (input.u8(), input.piece());
    let tree = MemTree::default();
    for name in ["postmaster.pid", "standby.signal", "pg_replslot/a"] {
        tree.files.borrow_mut().insert(name.into(), Vec::new());
    }
    for name in FILES {
        tree.files.borrow_mut().insert(name.into(), input.piece().to_vec());
    }
    *tree.log.borrow_mut() = std::str::from_utf8(log).ok().filter(|log| !log.is_empty()).map(PathBuf::from);
    let settings = [("work_mem".to_string(), "5MB".to_string())];
    let identity = Identity {
        fork: "pr42",
        pgdata: Path::new("/m/pr42"),
        port: 6001,
        socket_dir: Path::new("/s/run/it's"),
        listen: "localhost",
        major: 12 + u32::from(flags % 8),
        keep: flags & 0x80 != 0,
        follows: flags & 0x20 != 0,
        new_timeline: flags & 0x10 != 0,
        settings: &settings,
        source: Some(Source { fork: "main", mountpoint: Path::new("/m") }),
    };
    // Set where the input ends: a directory that a backup was restored to.
    let map = input.piece();
    if flags & 0x40 != 0 {
        tree.files.borrow_mut().insert("backup_label".into(), Vec::new());
        tree.files.borrow_mut().insert("tablespace_map".into(), map.to_vec());
    }
    // Too deep includes are refused, and tablespaces outside.
    if apply(&tree, &identity).is_err() {
        return;
    }
    if flags & 0x40 != 0 {
        for path in tablespaces(&String::from_utf8_lossy(map)) {
            assert!(!path.starts_with('/'), "the server would link a tablespace to {path:?}");
        }
    }
    let auto = Text::decode(tree.files.borrow()[AUTO].clone()).text;
    let seen: BTreeMap<String, String> = auto.split('\n').filter_map(as_postgres).collect();
    let ours = Settings::load(&tree).expect("it was read before");
    let mut want = vec![
        ("port", "6001"),
        ("cluster_name", "pr42"),
        ("unix_socket_directories", "/s/run/it's"),
        ("listen_addresses", "localhost"),
        ("work_mem", "5MB"),
    ];
    let begins_timeline = tree.files.borrow().contains_key("recovery.signal");
    if !identity.keep {
        want.extend([
            ("archive_mode", "off"),
            ("archive_command", ""),
            ("restore_command", if begins_timeline { "exit 1" } else { "" }),
            ("synchronous_standby_names", ""),
            ("max_logical_replication_workers", "0"),
            ("cron.launch_active_jobs", "off"),
        ]);
        if !identity.follows {
            want.push(("primary_conninfo", ""));
        }
        assert_eq!(tree.files.borrow().contains_key("standby.signal"), identity.follows);
        assert!(begins_timeline || identity.follows || !identity.new_timeline);
    }
    for (name, value) in want {
        assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name} in {auto:?}");
        assert_eq!(ours.get(name), Some(value), "{name}");
    }
    assert!(!tree.files.borrow().contains_key("postmaster.pid"));
    // Nothing of the parent's directory is left for the server to take for its own.
    for name in ["data_directory", "external_pid_file"] {
        assert_eq!(ours.get(name), None, "{name}");
    }
    // The second time it changes nothing, but for the order of what it sets.
    let once = tree.clone();
    apply(&tree, &identity).expect("it was possible before");
    let auto_of = |tree: &MemTree| {
        let auto = tree.files.borrow_mut().remove(AUTO).expect("it was written");
        entries(&Text::decode(auto).text).map(|e| (e.name, e.value)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(auto_of(&tree), auto_of(&once));
    assert!(tree == once);
}

/// The places of a tablespace_map as PostgreSQL reads them (read_tablespace_map in
/// xlogrecovery.c): one character after another.
fn tablespaces(map: &str) -> Vec<String> {
    let (mut paths, mut line) = (Vec::new(), String::new());
    let mut chars = map.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => line.extend(chars.next()),
            '\n' | '\r' => {
                paths.extend(line.split_once(' ').map(|(_, path)| path.to_string()));
                line.clear();
            }
            c => line.push(c),
        }
    }
    paths
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |flags: u8, log: &str, files: [&str; 4]| {
        let mut seed = vec![flags];
        for part in [log].into_iter().chain(files).chain(["16400 ts\\ 1\n16401 ../a\n"]) {
            seed.extend(piece(part.as_bytes()));
        }
        seed
    };
    let conf = "data_directory = '/m/main'\nhba_file = '/m/main/pg_hba.conf'\nident_file='/m/main/x/id.conf'\n\
                external_pid_file = '/run/x.pid'\nlog_directory = '/var/log/pg'\nstats_temp_directory = '/run/st'\n\
                include_dir '/m/main/conf.d'\narchive_mode = on\nshared_preload_libraries = 'citus'\n";
    let auto = "primary_conninfo = 'host=prod'\nwork_mem = '5MB'\nport = 6000\n";
    vec![
        seed(3, "/var/log", [conf, auto, "include '../b.conf'\n", "hba_file = '/etc/hba'\n"]),
        seed(0x82, "", [conf, auto, "include '2.conf'\n", "a = 1\n"]),
        seed(0x41, "", ["", "", "", ""]),
    ]
}
