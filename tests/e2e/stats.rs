//! What the daemon counts, and how `stats` shows it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::common::pg::Postgres;
use crate::common::process::signal;
use crate::common::store::{QUIET, Store, number, real};
use crate::common::turn_on_a_mount;

/// Requests of one kind, from `stats --json`.
#[track_caller]
fn count(of: &Value, kind: &str) -> u64 {
    of["requests"].get(kind).map_or(0, |times| number(times, "count"))
}

#[test]
fn stats_of_each_fork_and_in_all() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "1"]);
    // Else a fork may have room where pages have yet to come.
    store.sql("main", "postgres").run("CHECKPOINT").expect("a checkpoint");
    store.ok(["fork", "main", "busy"]);
    store.ok(["fork", "main", "idle"]);
    store.start("busy");

    let of = |name: &str| store.json(["stats", name])["forks"][0].clone();
    let (busy, idle) = (of("busy"), of("idle"));
    const TRANSACTIONS: u64 = 300;
    store.pgbench("busy", ["-n", "-c", "1", "-t", &TRANSACTIONS.to_string()]);
    let later = of("busy");
    let more = |what: fn(&Value) -> u64| what(&later) - what(&busy);
    assert!(more(|f| count(f, "fsync")) >= TRANSACTIONS, "{busy} {later}");
    assert!(more(|f| count(f, "write")) >= TRANSACTIONS, "{busy} {later}");
    // Each commit flushes the WAL, and makes no commit to the block map.
    assert!(more(|f| number(f, "wal_flushes")) >= TRANSACTIONS, "{busy} {later}");
    assert!(more(|f| number(f, "map_commits")) <= TRANSACTIONS / 4, "{busy} {later}");
    assert!(more(|f| number(f, "write_bytes")) >= TRANSACTIONS * 8192, "{busy} {later}");
    // Another fork has no part in it.
    assert_eq!(count(&of("idle"), "write"), count(&idle, "write"));

    // Every request is in one bucket, and took some time.
    let fsync = &later["requests"]["fsync"];
    let buckets: u64 = fsync["buckets"].as_array().expect("buckets").iter().filter_map(Value::as_u64).sum();
    assert_eq!(buckets, number(fsync, "count"));
    assert!(real(fsync, "total_ms") > 0.0 && real(fsync, "p50_us") <= real(fsync, "p99_us"), "{fsync}");

    // Reading a fork's files from the disk, past the kernel's cache, which knows none of them.
    let path = store.sql("main", "postgres").value("SELECT pg_relation_filepath('pgbench_accounts')");
    let size =
        std::fs::read(store.path("idle").join(path.expect("path"))).expect("read a table").len() as u64;
    let cold = of("idle");
    assert!(number(&cold, "read_bytes") - number(&idle, "read_bytes") >= size, "{cold}");
    let pages = |f: &Value| number(f, "delta_pages") + number(f, "memory_pages");
    assert!(pages(&cold) - pages(&idle) >= size / 8192, "{idle} {cold}");

    // All of it is the sum of the forks, and what was asked of the mount's top; a removed fork stays in it.
    let writes = |all: &Value| {
        let forks = all["forks"].as_array().expect("forks");
        (count(&all["all"], "write"), forks.iter().map(|fork| count(fork, "write")).sum::<u64>())
    };
    let (all, sum) = writes(&store.json(["stats"]));
    assert!(all >= sum && sum > 0, "{all} {sum}");
    assert!(store.requests("write") >= all);
    store.ok(["rm", "--force", "busy"]);
    let (after, left) = writes(&store.json(["stats"]));
    assert!(after >= all && left < sum, "{after} of {all}, {left} of {sum}");

    // For people, and for Prometheus.
    let text = store.ok(["stats"]);
    assert!(text.contains("all forks") && text.contains("P99") && !text.contains('\x1b'), "{text}");
    let text = store.ok(["stats", "--prometheus"]);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        assert!(name.starts_with("pgcowfs_") && value.parse::<f64>().is_ok(), "{line}");
    }
    assert!(text.contains("pgcowfs_fork_request_seconds_bucket{fork=\"main\",kind=\"fsync\",le=\"+Inf\"}"));

    assert_eq!(store.run(["stats", "nobody"]).code, 3);
    store.stop("main");
}

/// An interval has what came in it, one line of JSON each; who stops reading ends it.
#[test]
fn stats_by_interval() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let mut command = store.command(["stats", "main", "--watch", "0.3", "--json"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().expect("start watching");
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    let file = store.path("main").join("notes");
    let mut seen = 0;
    while seen < 3 {
        std::fs::write(&file, "x").expect("write a file");
        let line = lines.next().expect("another line").expect("read");
        let report: Value = serde_json::from_str(&line).expect("a line of JSON");
        assert_eq!(real(&report, "interval_s"), 0.3);
        seen += count(&report["forks"][0], "write");
    }
    drop(lines);
    let ended = watch.wait().expect("wait for its end");
    assert!(ended.success(), "{ended}");
}

/// What is going on, of each fork and in all.
#[test]
fn top_shows_who_is_busy() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.ok(["fork", "main", "calm"]);
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "1"]);
    let at = store.endpoint("main");
    let mut busy = Postgres::get().client("pgbench", &at);
    busy.args(["-n", "-c", "1", "-T", "600", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut busy = busy.spawn().expect("start pgbench");
    let mut command = store.command(["top", "--interval", "0.5", "--json"]);
    let mut top = command.stdout(Stdio::piped()).spawn().expect("start top");
    let mut lines = BufReader::new(top.stdout.take().expect("its output")).lines();
    loop {
        let line = lines.next().expect("another line").expect("read");
        let report: Value = serde_json::from_str(&line).expect("a line of JSON");
        let forks = report["forks"].as_array().expect("forks");
        if real(&forks[0], "fsyncs_per_s") > 0.0 {
            assert_eq!(
                (&forks[0]["name"], &forks[0]["state"]),
                (&"main".into(), &"running".into()),
                "{report}"
            );
            assert!(
                real(&forks[0], "write_bytes_per_s") > 8192.0 && real(&forks[0], "mean_us") > 0.0,
                "{report}"
            );
            // The two are not looked at in the same moment.
            let (all, main) = (real(&report["all"], "requests_per_s"), real(&forks[0], "requests_per_s"));
            assert!(all >= 0.9 * main, "{report}");
            assert_eq!(forks[1]["name"], "calm", "{report}");
            break;
        }
    }
    drop(lines);
    assert!(top.wait().expect("wait for its end").success());
    signal(busy.id(), nix::sys::signal::Signal::SIGTERM);
    busy.wait().expect("wait for pgbench");
    let said = store.ok(["top", "--once", "--interval", "0.1"]);
    assert!(said.starts_with("FORK") && said.contains("calm") && !said.contains('\x1b'), "{said}");
    store.stop("main");
}
