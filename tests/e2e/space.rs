//! Space that nothing needs goes back to the disk, by itself and when it is asked for.

use crate::common::store::{QUIET, Store, number};
use crate::common::turn_on_a_mount;
use crate::e2e::lifecycle::psql;

/// Rows of 8 kB: about 40 MB of them.
const FILL: &str = "ALTER TABLE filler ALTER t SET STORAGE EXTERNAL; \
    INSERT INTO filler SELECT n, repeat('f', 7500) FROM generate_series(1, 5000) n; CHECKPOINT";
const FILLER_BYTES: u64 = 35 << 20;

#[test]
fn dropped_tables_and_removed_forks() {
    let Some(_turn) = turn_on_a_mount() else {
        return;
    };
    let store = Store::new();
    store.create("main", QUIET);
    store.start("main");
    psql(&store, "main", "CREATE TABLE kept AS SELECT n FROM generate_series(1, 10000) n; CHECKPOINT");
    let status = |field: &str| number(&store.status(), field);
    assert_eq!(status("shared_bytes"), 0, "there is one fork");
    store.ok(["fork", "main", "child", "--start"]);
    assert!(status("shared_bytes") > 20 << 20, "a cluster's pages: {}", store.status());

    // A table of main's own comes and goes; PostgreSQL removes its file at the checkpoint.
    psql(&store, "main", &format!("CREATE TABLE filler (n int, t text); {FILL}"));
    let (full, used) = (status("store_bytes"), status("used_bytes"));
    psql(&store, "main", "DROP TABLE filler");
    psql(&store, "main", "CHECKPOINT");
    assert!(status("used_bytes") + FILLER_BYTES < used, "{used} before: {}", store.status());
    assert!(status("reclaimable_bytes") > FILLER_BYTES, "{}", store.status());
    let before = status("reclaimed_bytes");
    let given = store.json(["gc", "--wait"]);
    assert_eq!(given["done"], true);
    assert!(number(&given, "reclaimed_bytes") > FILLER_BYTES, "{given}");
    assert!(number(&given, "store_bytes") + FILLER_BYTES < full, "{given}, {full} bytes before");
    assert!(status("reclaimed_bytes") >= before + number(&given, "reclaimed_bytes"));
    let again = store.ok(["gc", "--wait"]);
    assert!(again.starts_with("gave ") && again.contains("the store takes"), "{again}");

    // A removed fork goes without being asked; this only waits for it.
    psql(&store, "child", &format!("CREATE TABLE filler (n int, t text); {FILL}"));
    let full = status("store_bytes");
    store.ok(["rm", "--force", "child"]);
    let soon = store.ok(["gc"]);
    assert!(soon.contains("from now on"), "{soon}");
    store.ok(["gc", "--wait"]);
    assert!(status("store_bytes") + FILLER_BYTES < full, "{full} before: {}", store.status());
    assert_eq!(status("shared_bytes"), 0);

    assert_eq!(psql(&store, "main", "SELECT sum(n) FROM kept"), "50005000");
    store.stop("main");
    store.ok(["scrub"]);
}
