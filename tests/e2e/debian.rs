//! Debian's layout: configuration under /etc/postgresql, data elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::pg::{Endpoint, Postgres, owner};
use crate::common::process::{in_path, run};
use crate::common::store::{Store, text};
use crate::common::{is_root, skipped, turn_on_a_mount};
use crate::e2e::lifecycle::psql;

/// A cluster made by `pg_createcluster`, dropped at the end of the test.
struct DebianCluster {
    name: String,
    version: String,
    pgdata: PathBuf,
}

impl DebianCluster {
    fn create(data: &Path) -> DebianCluster {
        // A name of its own: the machine's clusters are not ours to touch.
        let name = format!("pgcowfs_test_{}", std::process::id());
        let version = Postgres::get().major().to_string();
        let cluster = DebianCluster { name, version, pgdata: data.to_owned() };
        let create = run(Command::new("pg_createcluster").args(["-d"]).arg(data).args([
            "--start-conf=manual",
            "-p",
            "5980",
            &cluster.version,
            &cluster.name,
            "--",
            "--data-checksums",
        ]));
        create.expect_ok();
        cluster
    }

    fn ctl(&self, action: &str) {
        run(Command::new("pg_ctlcluster").args([&self.version, &self.name, action])).expect_ok();
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/postgresql").join(&self.version).join(&self.name)
    }
}

impl Drop for DebianCluster {
    fn drop(&mut self) {
        let _ = run(Command::new("pg_dropcluster").args(["--stop", &self.version, &self.name]));
    }
}

/// `--from` and `--base` of such a cluster: its configuration comes along and points into the fork; the original still
/// works, and neither its data nor its configuration has changed.
#[test]
fn debian_cluster() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    if !is_root() {
        return skipped("pg_createcluster needs root");
    }
    if in_path("pg_createcluster").is_none() {
        return skipped("no pg_createcluster");
    }
    let store = Store::new();
    let home = store.scratch().subdir_of("debian", owner());
    let cluster = DebianCluster::create(&home.join("data"));
    let etc = cluster.etc();
    let conf = etc.join("postgresql.conf");
    assert!(conf.exists() && !cluster.pgdata.join("postgresql.conf").exists(), "Debian's layout");
    // An own setting, one by an included file, and a file of access rules that is noticed when it is missing.
    std::fs::create_dir_all(etc.join("conf.d")).expect("make conf.d");
    std::fs::write(etc.join("conf.d/ours.conf"), "work_mem = '7MB'\n").expect("write a setting");
    crate::common::plain::append(&conf, "maintenance_work_mem = '77MB'");
    cluster.ctl("start");
    let at = Endpoint {
        host: PathBuf::from("/var/run/postgresql"),
        port: 5980,
        user: "postgres".to_owned(),
        password: None,
    };
    let pg = Postgres::get();
    pg.psql(&at, "postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").expect_ok();
    cluster.ctl("stop");
    let before = std::fs::read_to_string(&conf).expect("read the configuration");

    for how in ["--from", "--base"] {
        let name = how.trim_start_matches('-');
        store.ok(["create", name, how, cluster.pgdata.to_str().expect("UTF-8")]);
        store.start(name);
        assert_eq!(psql(&store, name, "SELECT count(*) FROM t"), "1000");
        let inside = store.path(name);
        for setting in ["data_directory", "config_file", "hba_file", "ident_file"] {
            let value = psql(&store, name, &format!("SHOW {setting}"));
            assert!(Path::new(&value).starts_with(&inside), "{setting} of the fork is {value}");
        }
        assert_eq!(
            psql(
                &store,
                name,
                "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('maintenance_work_mem'))"
            ),
            "7MB 77MB"
        );
        assert_eq!(psql(&store, name, "SHOW unix_socket_directories"), text(&store.show(name), "socket_dir"));
        let pid_file = psql(&store, name, "SHOW external_pid_file");
        assert!(!pid_file.contains(&cluster.name), "{how}: the pid file of the original: {pid_file}");
        // A fork of it is no different.
        let child = format!("{name}-child");
        store.ok(["fork", name, &child]);
        store.start(&child);
        psql(&store, &child, "DELETE FROM t");
        assert_eq!(psql(&store, name, "SELECT count(*) FROM t"), "1000");
        store.stop(&child);
        store.stop(name);
    }
    assert_eq!(std::fs::read_to_string(&conf).expect("read the configuration"), before);
    // By the rules a base must not run while it is one.
    store.ok(["rm", "base"]);
    store.ok(["rm", "base-child"]);
    cluster.ctl("start");
    assert_eq!(pg.psql(&at, "postgres", "SELECT count(*) FROM t").expect_ok().trim(), "1000");
    cluster.ctl("stop");
    store.start("from");
    assert_eq!(psql(&store, "from", "SELECT count(*) FROM t"), "1000");
    store.stop("from");
}
