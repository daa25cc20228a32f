//! Exact counts: requests, bytes. They do not depend on how fast or busy the machine is.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::common::store::{QUIET, Store, number};
use crate::common::turn_on_a_mount;

/// A warm pgbench run reads from the kernel's cache, not from the daemon; its fsyncs do reach the daemon.
#[test]
fn requests_of_a_warm_run() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    // Small shared buffers: PostgreSQL reads pages again and again, from below.
    store.create("main", &format!("{QUIET}\nshared_buffers = 2MB"));
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "3"]);
    store.pgbench("main", ["-n", "-c", "4", "-j", "2", "-t", "250"]);

    let kinds = ["read", "write", "fsync", "fsyncdir"];
    const TRANSACTIONS: u64 = 4 * 500;
    let run = || {
        let before: Vec<u64> = kinds.iter().map(|kind| store.requests(kind)).collect();
        let output = store.pgbench("main", ["-n", "-c", "4", "-j", "2", "-t", "500"]);
        assert!(output.contains("number of transactions actually processed: 2000/2000"), "{output}");
        let after: Vec<u64> = kinds.iter().map(|kind| store.requests(kind)).collect();
        std::array::from_fn::<u64, 4, _>(|i| after[i] - before[i])
    };
    // The kernel may take pages out of its cache at any time, and some do so
    // unasked: of several runs, the one that it left alone counts.
    let runs: Vec<[u64; 4]> = (0..5).map(|_| run()).collect();
    let [reads, writes, fsyncs, _] = runs.iter().copied().min().expect("five");
    assert!(reads * 50 <= TRANSACTIONS, "READ, WRITE, FSYNC in {TRANSACTIONS} warm transactions: {runs:?}");
    // Group commit lets several transactions share one, never more than there are clients.
    assert!(fsyncs >= TRANSACTIONS / 4, "{fsyncs} FSYNC requests for {TRANSACTIONS} commits of 4 clients");
    assert!(writes >= fsyncs, "{writes} WRITE requests, {fsyncs} FSYNC requests");

    // A directory's fsync arrives: ALTER SYSTEM renames a file durably.
    let sql = store.sql("main", "postgres");
    let before = store.requests("fsyncdir");
    sql.run("ALTER SYSTEM SET work_mem = '5MB'").expect("ALTER SYSTEM");
    assert!(store.requests("fsyncdir") > before, "the fsync of a directory did not reach the daemon");

    // Control: reads are counted at all. A fork's files are new to the kernel.
    let table = sql.value("SELECT pg_relation_filepath('pgbench_accounts')").expect("path");
    store.ok(["fork", "main", "cold"]);
    let before = store.requests("read");
    let size = std::fs::read(store.path("cold").join(&table)).expect("read a table").len() as u64;
    let reads = store.requests("read") - before;
    assert!(reads >= size >> 20, "{reads} READ requests for {size} bytes that were not cached");
    store.stop("main");
}

/// What a commit costs: one write of WAL and one flush of it. Nothing else is asked for once a session has begun.
#[test]
fn requests_of_a_commit() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    // All pages stay in shared buffers, and nobody but the session writes.
    let settings =
        "shared_buffers = 128MB\nbgwriter_lru_maxpages = 0\nwal_writer_delay = 10s\ncheckpoint_timeout = 1h";
    store.create("main", &format!("{QUIET}\n{settings}"));
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "1"]);
    store.ok(["fork", "main", "child"]);
    store.start("child");
    store.pgbench("child", ["-n", "-c", "1", "-t", "200"]);

    const TRANSACTIONS: u64 = 1000;
    let all = || -> BTreeMap<String, u64> {
        let status = store.status();
        let requests = status["requests"].as_object().expect("requests");
        let kinds = requests.iter().filter(|(kind, _)| !kind.ends_with("_bytes"));
        kinds.map(|(kind, n)| (kind.clone(), n.as_u64().expect("a number"))).collect()
    };
    let before = all();
    store.pgbench("child", ["-n", "-c", "1", "-t", &TRANSACTIONS.to_string()]);
    let caused: BTreeMap<String, u64> = all()
        .into_iter()
        .map(|(kind, n)| (kind.clone(), n - before[&kind]))
        .filter(|(_, n)| *n > 0)
        .collect();
    let of = |kind: &str| caused.get(kind).copied().unwrap_or(0);
    let others: u64 =
        caused.iter().filter(|(kind, _)| !["write", "fsync"].contains(&kind.as_str())).map(|(_, n)| n).sum();
    // A few records of WAL end on another page, and tables grow now and then.
    assert!(
        (TRANSACTIONS..=TRANSACTIONS * 11 / 10).contains(&of("write")),
        "{TRANSACTIONS} transactions: {caused:?}"
    );
    assert!(
        (TRANSACTIONS..=TRANSACTIONS * 21 / 20).contains(&of("fsync")),
        "{TRANSACTIONS} transactions: {caused:?}"
    );
    assert!(others <= TRANSACTIONS / 10, "{TRANSACTIONS} transactions: {caused:?}");
    store.stop("child");
    store.stop("main");
}

/// After one changed row a fork holds a few pages of its own, however big its parent is.
#[test]
fn delta_of_one_changed_row() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    store.pgbench("main", ["-i", "-q", "-s", "10"]);
    store.stop("main");
    store.ok(["fork", "main", "child"]);
    let fresh = store.show("child");
    assert_eq!(number(&fresh, "wal_bytes"), 0, "a fork that has not started shares all WAL");
    assert!(number(&fresh, "delta_bytes") <= 64 << 10, "a fork that nobody has touched holds bytes: {fresh}");

    store.start("child");
    let sql = store.sql("child", "postgres");
    // What starting, a first connection and a checkpoint write by themselves.
    sql.run("SELECT count(*) FROM pgbench_tellers; UPDATE pgbench_tellers SET filler = 'x' WHERE tid = 1; CHECKPOINT").expect("warm up");
    let wal = number(&store.show("child"), "wal_bytes");
    assert!(wal > 0 && wal.is_multiple_of(16 << 20), "{wal} bytes of WAL segments");
    let before = page_bytes(&store, "child");
    sql.run("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 70000; CHECKPOINT")
        .expect("update one row");
    let after = page_bytes(&store, "child");
    let grown = after - before;
    // The row's heap page, its index page when the page was full, visibility and free space map; the rest was the
    // fork's own already.
    assert!((8 << 10..=64 << 10).contains(&grown), "one changed row made {grown} bytes");

    // The same page again: it is the fork's own now.
    sql.run("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = 70001; CHECKPOINT")
        .expect("update its neighbour");
    let again = page_bytes(&store, "child") - after;
    assert!(again <= 16 << 10, "a change on a page of its own made {again} bytes more");

    // Control: many pages do count. 10 % of the rows are spread over 10 % of the pages.
    sql.run("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= 100000; CHECKPOINT")
        .expect("update many");
    let many = page_bytes(&store, "child") - after;
    assert!(many > 100_000 / 64 * 8192, "100,000 changed rows made {many} bytes");
    let logical = number(&store.show("child"), "logical_bytes");
    assert!(logical > 100 << 20, "the fork's size is that of all its files: {logical}");
    store.stop("child");
}

/// Bytes of pages that only this fork holds: all but its WAL segments.
#[track_caller]
fn page_bytes(store: &Store, name: &str) -> u64 {
    let show = store.show(name);
    number(&show, "delta_bytes") - number(&show, "wal_bytes")
}

/// A fork costs the same whatever the size of its parent.
#[test]
fn cost_of_a_fork_does_not_depend_on_size() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("a", QUIET);
    // Two roots that differ in nothing but their size; names of equal length.
    store.create("b", QUIET);
    for (name, scale) in [("a", "1"), ("b", "10")] {
        store.start(name);
        store.pgbench(name, ["-i", "-q", "-s", scale]);
        store.stop(name);
    }
    let sizes = [number(&store.show("a"), "logical_bytes"), number(&store.show("b"), "logical_bytes")];
    assert!(sizes[1] > 3 * sizes[0], "one is much bigger: {sizes:?}");
    let bytes: Vec<u64> = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")]
        .iter()
        .map(|(parent, child)| number(&store.json(["fork", parent, child]), "map_bytes"))
        .collect();
    assert!(bytes[0] > 0 && bytes[0] <= 64 << 10, "a fork wrote {bytes:?} bytes");
    assert_eq!((bytes[0], bytes[2]), (bytes[1], bytes[3]), "equal for 10 times the rows");
}

/// Full pages only: what a program writes piece by piece comes back as one, also through a fork.
#[test]
fn pieces_of_a_page() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    let file: PathBuf = store.path("main").join("pieces");
    let mut want = vec![0_u8; 100_000];
    let open = std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .read(true)
        .open(&file)
        .expect("create a file");
    // Pieces of every alignment, some of them over the edge of a page.
    for n in 0..500_usize {
        let (at, len) = ((n * 7919) % 95_000, 1 + (n * 31) % 4000);
        let piece: Vec<u8> = (0..len).map(|i| ((n + i) % 251) as u8).collect();
        open.write_all_at(&piece, at as u64).expect("write a piece");
        want[at..at + len].copy_from_slice(&piece);
        if n == 250 {
            open.sync_all().expect("fsync");
        }
    }
    let size = std::fs::metadata(&file).expect("stat").len() as usize;
    want.truncate(size);
    assert!(std::fs::read(&file).expect("read back") == want, "the file is not what was written");
    store.ok(["fork", "main", "child"]);
    open.write_all_at(&[0xee; 50_000], 10).expect("change the parent");
    assert!(
        std::fs::read(store.path("child").join("pieces")).expect("read in the fork") == want,
        "the fork is not what the parent was"
    );
}
