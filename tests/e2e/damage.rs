//! A damaged page, as a user meets it.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::common::pg::Postgres;
use crate::common::store::{QUIET, Store, number, text};
use crate::common::turn_on_a_mount;

use super::lifecycle::psql;

/// Rows of one page, found again in the store's files by what they say.
const MARK: &str = "the row whose page is damaged";

/// A page that only the child has rots on the disk: SELECT fails with EIO, the log and `scrub` name fork, file and
/// block, the parent has nothing to do with it, and its version of the page can be brought back.
#[test]
fn a_damaged_page_is_an_error_with_a_name() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(
        &store,
        "main",
        "CREATE TABLE t (n int, what text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 5000) i",
    );
    psql(&store, "main", "CHECKPOINT");
    store.ok(["fork", "main", "child"]);
    store.start("child");
    psql(&store, "child", &format!("UPDATE t SET what = '{MARK}' WHERE n = 4"));
    psql(&store, "child", "CHECKPOINT");
    let at = psql(
        &store,
        "child",
        &format!(
            "SELECT pg_relation_filepath('t'), (ctid::text::point)[0]::int FROM t WHERE what = '{MARK}'"
        ),
    );
    let (path, block) = at.split_once('|').expect("a path and a block");
    let (path, block) = (path.to_owned(), block.parse::<u64>().expect("a number"));
    assert!(store.json(["scrub", "--pg"])["findings"].as_array().is_some_and(Vec::is_empty));
    for name in ["child", "main"] {
        store.stop(name);
    }
    store.ok(["umount"]);

    let mut flipped = 0;
    for entry in std::fs::read_dir(store.dir().join("delta")).expect("the store's pages") {
        let file = entry.expect("a file").path();
        let bytes = std::fs::read(&file).expect("read the pages");
        for (i, page) in bytes.chunks_exact(8192).enumerate() {
            if page.windows(MARK.len()).any(|w| w == MARK.as_bytes()) {
                let host = std::fs::File::options().write(true).open(&file).expect("open the pages");
                host.write_all_at(&[page[8000] ^ 4], i as u64 * 8192 + 8000).expect("flip a bit");
                flipped += 1;
            }
        }
    }
    // Earlier versions of the page may lie in slots that are free.
    assert!(flipped > 0, "no page has that row");

    store.start("child");
    let at = store.endpoint("child");
    let failed = Postgres::get().psql(&at, "postgres", "SELECT count(*) FROM t");
    assert!(!failed.ok() && failed.stderr.contains("Input/output error"), "{}", failed.report());
    // Version 18 speaks of several blocks, also of one.
    let words =
        [format!("could not read block {block} "), format!("could not read blocks {block}..{block} ")];
    assert!(words.iter().any(|words| failed.stderr.contains(words)), "{}", failed.report());
    store.start("main");
    assert_eq!(psql(&store, "main", "SELECT count(*), count(DISTINCT what) FROM t"), "5000|1");
    let log = std::fs::read_to_string(store.dir().join("daemon.log")).expect("the daemon's log");
    let named = |line: &&str| {
        line.contains("\"child\"") && line.contains(&path) && line.contains(&format!("block {block}:"))
    };
    assert!(log.lines().any(|line| named(&line)), "nothing about {path}, block {block} in {log}");

    let done = store.run(["scrub", "--json"]);
    assert_eq!(done.code, 8, "{}", done.report());
    let found: serde_json::Value = serde_json::from_str(&done.stdout).expect("JSON");
    let findings = found["findings"].as_array().expect("findings");
    assert_eq!(findings.len(), 1, "{found}");
    assert_eq!((text(&findings[0], "kind"), text(&findings[0], "path")), ("page", path.as_str()));
    assert_eq!((number(&findings[0], "block"), findings[0]["forks"][0].as_str()), (block, Some("child")));
    assert!(number(&found, "pages_read") > 500, "{found}");
    let done = store.run(["scrub", "child"]);
    assert!(done.code == 8 && done.stdout.contains("--restore"), "{}", done.report());
    assert_eq!(store.run(["scrub", "main", "--pg"]).code, 0);
    assert_eq!(store.run(["check"]).code, 0, "the records are whole");
    assert_eq!(store.run(["scrub", "nobody"]).code, 3);

    let page = format!("{path}:{block}");
    let done = store.run(["scrub", "child", "--restore", &page]);
    assert_eq!(done.code, 5, "its server runs: {}", done.report());
    // Its last checkpoint cannot read the page either way.
    store.ok(["stop", "child", "--mode", "immediate"]);
    store.ok(["scrub", "child", "--restore", &page]);
    store.ok(["scrub"]);
    store.start("child");
    assert_eq!(psql(&store, "child", "SELECT what FROM t WHERE n = 5"), "old");

    // Without a daemon, also when none can serve.
    for name in ["child", "main"] {
        store.stop(name);
    }
    let busy = store.run(["check", "--repair"]);
    assert_eq!(busy.code, 5, "{}", busy.report());
    store.ok(["umount"]);
    assert!(store.ok(["check", "--repair"]).contains("0 records counted anew"));
    let id = store.dir().join("STORE");
    let mut bytes = std::fs::read(&id).expect("STORE");
    bytes[20] ^= 1;
    std::fs::write(&id, bytes).expect("damage STORE");
    let done = store.run(["check"]);
    assert!(done.code == 8 && done.stdout.contains("STORE"), "{}", done.report());
}

/// Every page of a real server is right, of every kind of index and map; one that was changed on its way to pgcowfs is
/// named, also in a fork's own layer, and nothing else is.
#[test]
fn a_page_that_is_wrong_for_postgres_is_named() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.create_without_checksums("plain", QUIET);
    for name in ["main", "plain"] {
        store.start(name);
        psql(
            &store,
            name,
            "CREATE TABLE t (n int PRIMARY KEY, a int[], p point, s text); \
             INSERT INTO t SELECT i, ARRAY[i, i + 1], point(i, i), repeat('s', i % 1000) \
             FROM generate_series(1, 3000) i; \
             CREATE INDEX ON t USING hash (n); CREATE INDEX ON t USING gin (a); CREATE INDEX ON t USING gist (p); \
             CREATE INDEX ON t USING spgist (s); CREATE INDEX ON t USING brin (n); CREATE UNLOGGED TABLE u (n serial)",
        );
        psql(&store, name, "VACUUM t");
        psql(&store, name, "CHECKPOINT");
    }
    store.ok(["fork", "main", "child"]);
    store.start("child");
    psql(&store, "child", "UPDATE t SET s = '' WHERE n % 100 = 0");
    let path = psql(&store, "child", "SELECT pg_relation_filepath('t')");
    assert_eq!(psql(&store, "plain", "SELECT pg_relation_filepath('t')"), path, "made in the same way");
    for name in ["child", "main", "plain"] {
        store.stop(name);
    }
    let scrub = |code: i32| {
        let done = store.run(["scrub", "--pg", "--json"]);
        assert_eq!(done.code, code, "{}", done.report());
        serde_json::from_str::<serde_json::Value>(&done.stdout).expect("JSON")
    };
    let right = scrub(0);
    assert!(number(&right, "pages_read") > 3000, "{right}");

    let flip = |file: &Path, at: u64| {
        let open = std::fs::File::options().read(true).write(true).open(file).expect("open a relation");
        let mut page = [0; 8192];
        open.read_exact_at(&mut page, at / 8192 * 8192).expect("read a page");
        page[(at % 8192) as usize] ^= 0x10;
        open.write_all_at(&page, at / 8192 * 8192).and_then(|()| open.sync_all()).expect("write it");
    };
    // In the middle of a page it takes a checksum to see; the header says more.
    flip(&store.path("child").join(&path), 22 * 8192 + 5000);
    flip(&store.path("main").join(&path), 3 * 8192 + 17);
    let other = store.path("plain").join(&path);
    flip(&other, 4 * 8192 + 5000);
    flip(&other, 5 * 8192 + 19);
    let found = scrub(8);
    let mut named: Vec<(String, u64, String)> = found["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .map(|f| {
            assert_eq!((text(f, "kind"), text(f, "path")), ("postgres", path.as_str()), "{f}");
            let why = ["checksum", "out of order", "page size"];
            let why = why.into_iter().find(|why| text(f, "message").contains(why)).unwrap_or("another");
            (f["forks"][0].as_str().expect("a fork").to_owned(), number(f, "block"), why.to_owned())
        })
        .collect();
    named.sort();
    let wanted = [("child", 22, "checksum"), ("main", 3, "out of order"), ("plain", 5, "page size")];
    assert_eq!(named, wanted.map(|(fork, block, why)| (fork.to_owned(), block, why.to_owned())), "{found}");
}
