//! What a cluster still has, in its files, of data that was replaced: old versions of
//! rows, statistics, WAL, logs. Afterwards it is not there.
//!
//! The tables that were changed are written anew, which leaves all old versions behind.
//! Which those are, the server's own counts tell (and columns that were dropped); before
//! version 15 such counts could be lost on their way, so there all tables are.

use std::collections::HashMap;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::Client;

use super::conf::{self, Settings};
use super::connect::{Address, connect, connect_to, refused, wait};
use super::identity::SERVER_DIRS;
use super::tree::Tree;
use crate::error::{Error, Kind, Result};

/// The first major version whose counts are never lost.
const COUNTS_ALL: u32 = 15;

/// How often each table was changed, by database and number.
pub type Counts = HashMap<(String, u32), i64>;

/// What was changed.
pub struct Changed {
    /// The tables that were written anew, with their databases.
    pub tables: Vec<String>,
    /// Files, as paths in the data directory, that belong to no table.
    pub orphans: Vec<String>,
}

const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname";

/// A table's changes: of itself, of what it keeps outside of its rows, and dropped columns.
const TABLES: &str = "\
SELECT t.oid, t.relisshared, format('%I.%I', n.nspname, t.relname), sum(x.changes)::int8 \
FROM (SELECT coalesce(o.oid, c.oid) AS oid, \
             coalesce(s.n_tup_ins + s.n_tup_upd + s.n_tup_del, 0) + \
             (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attisdropped) AS changes \
      FROM pg_class c LEFT JOIN pg_class o ON o.reltoastrelid = c.oid \
      LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid \
      WHERE c.relkind IN ('r', 'm', 't') AND c.relpersistence <> 't') x \
JOIN pg_class t ON t.oid = x.oid JOIN pg_namespace n ON n.oid = t.relnamespace \
GROUP BY 1, 2, 3 ORDER BY 3";

/// Files of tables that nobody knows: a server that crashed, or one that was forked, at work
/// on a new file has left it.
const ORPHANS: &str = "\
WITH d AS (SELECT 'base/' || oid AS dir FROM pg_database WHERE datname = current_database()) \
SELECT d.dir || '/' || f FROM d, pg_ls_dir(d.dir) f WHERE f ~ '^[0-9]+([._]|$)' \
AND substring(f from '^[0-9]+')::oid NOT IN \
    (SELECT pg_relation_filenode(oid) FROM pg_class WHERE pg_relation_filenode(oid) IS NOT NULL)";

/// The statistics that name values.
const STATISTICS: [&str; 2] = ["pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data"];

fn failed(e: tokio_postgres::Error) -> Error {
    refused("cannot clean what the masks have left", &e)
}

/// The tables as they are before anything is changed.
pub fn look(address: &Address) -> Result<Counts> {
    wait(address, async || {
        let mut counts = Counts::new();
        for database in databases(address).await? {
            let client = connect_to(address, &database).await?;
            for table in tables(&client).await? {
                counts.insert((database.clone(), table.oid), table.changes);
            }
        }
        Ok(counts)
    })
}

/// Has PostgreSQL Anonymizer mask all databases that have it.
pub fn anonymize(address: &Address) -> Result<()> {
    wait(address, async || {
        let mut found = false;
        for database in databases(address).await? {
            let client = connect_to(address, &database).await?;
            let there = "SELECT FROM pg_extension WHERE extname = 'anon'";
            if client.query_opt(there, &[]).await.map_err(failed)?.is_none() {
                continue;
            }
            found = true;
            let row = client
                .query_one("SELECT anon.anonymize_database()", &[])
                .await
                .map_err(|e| refused(&format!("PostgreSQL Anonymizer has failed in {database:?}"), &e))?;
            let done: Option<bool> = row.try_get(0).map_err(failed)?;
            if done != Some(true) {
                return Err(Error::new(
                    Kind::Failed,
                    format!("PostgreSQL Anonymizer has masked nothing in {database:?}"),
                )
                .hint("declare masking rules first: SECURITY LABEL FOR anon ON COLUMN ..."));
            }
        }
        match found {
            true => Ok(()),
            false => Err(Error::new(Kind::Environment, "there is no PostgreSQL Anonymizer in this cluster")
                .cause("no database of it has the extension anon")
                .hint("CREATE EXTENSION anon in the cluster, with rules, or give a script of your own to --mask")),
        }
    })
}

/// Ends what sessions there are. Those that a mask has left open see, and so keep, what
/// was before; those that are just ending have their counts to deliver.
pub fn end_sessions(address: &Address) -> Result<()> {
    wait(address, async || end_others(&connect(address).await?).await)
}

/// Writes all tables anew that were changed since `before`, with their statistics.
pub fn rewrite(address: &Address, before: &Counts, major: u32) -> Result<Changed> {
    wait(address, async || {
        let client = connect(address).await?;
        refuse_prepared(&client).await?;
        let mut changed = Changed { tables: Vec::new(), orphans: Vec::new() };
        let mut shared_done = false;
        for database in databases(address).await? {
            let client = connect_to(address, &database).await?;
            let all = tables(&client).await?;
            let is_changed = |table: &Table| {
                major < COUNTS_ALL || before.get(&(database.clone(), table.oid)) != Some(&table.changes)
            };
            let anew: Vec<Table> =
                all.into_iter().filter(|table| is_changed(table) && !(table.shared && shared_done)).collect();
            shared_done = true;
            if anew.is_empty() {
                continue;
            }
            forget_statistics(&client, &anew, major).await?;
            for table in anew.iter().filter(|table| !STATISTICS.contains(&table.name.as_str())) {
                let full = format!("VACUUM (FULL, ANALYZE) {}", table.name);
                client.batch_execute(&full).await.map_err(|e| no_rewrite(table, &e))?;
                if !table.name.starts_with("pg_catalog.") {
                    changed.tables.push(format!("{database}: {}", table.name));
                }
            }
            for table in STATISTICS {
                let full = format!("VACUUM FULL {table}");
                client.batch_execute(&full).await.map_err(failed)?;
            }
        }
        // The files that were left are gone after this; what is there still is nobody's.
        client.batch_execute("CHECKPOINT").await.map_err(failed)?;
        for database in databases(address).await? {
            let client = connect_to(address, &database).await?;
            for row in client.query(ORPHANS, &[]).await.map_err(failed)? {
                changed.orphans.push(row.try_get(0).map_err(failed)?);
            }
        }
        Ok(changed)
    })
}

struct Table {
    oid: u32,
    shared: bool,
    name: String,
    changes: i64,
}

async fn databases(address: &Address<'_>) -> Result<Vec<String>> {
    let rows = connect(address).await?.query(DATABASES, &[]).await.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
}

async fn tables(client: &Client) -> Result<Vec<Table>> {
    let table = |row: &tokio_postgres::Row| {
        Ok(Table {
            oid: row.try_get(0)?,
            shared: row.try_get(1)?,
            name: row.try_get(2)?,
            changes: row.try_get(3)?,
        })
    };
    let rows = client.query(TABLES, &[]).await.map_err(failed)?;
    rows.iter().map(table).collect::<std::result::Result<_, _>>().map_err(failed)
}

fn no_rewrite(table: &Table, e: &tokio_postgres::Error) -> Error {
    let error = refused(&format!("the table {} cannot be written anew", table.name), e);
    let full = e.as_db_error().is_some_and(|db| *db.code() == tokio_postgres::error::SqlState::DISK_FULL);
    if full { Error { kind: Kind::Storage, ..error } } else { error }
}

async fn end_others(client: &Client) -> Result<()> {
    const OTHERS: &str =
        "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for look in 0..400 {
        let left = client.query(&format!("SELECT pid {OTHERS}"), &[]).await.map_err(failed)?;
        if left.is_empty() {
            return Ok(());
        }
        // After some seconds they are not ending by themselves.
        if look % 100 == 99 {
            let end = format!("SELECT pg_terminate_backend(pid) {OTHERS}");
            client.query(&end, &[]).await.map_err(failed)?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Err(Error::new(Kind::Postgres, "a session that the mask has left open does not end"))
}

/// A prepared transaction sees, and so keeps, what was before it.
async fn refuse_prepared(client: &Client) -> Result<()> {
    let rows = client.query("SELECT gid FROM pg_prepared_xacts ORDER BY gid", &[]).await.map_err(failed)?;
    let Some(first) = rows.first() else { return Ok(()) };
    let gid: String = first.try_get(0).map_err(failed)?;
    Err(Error::new(Kind::BadInput, "a prepared transaction keeps what the masks have replaced")
        .cause(format!("{:?} is one of {}", gid, rows.len()))
        .hint("have the mask end them all: COMMIT PREPARED or ROLLBACK PREPARED"))
}

/// Statistics have values of columns in them, also of partitions and in indexes.
async fn forget_statistics(client: &Client, anew: &[Table], major: u32) -> Result<()> {
    let oids: Vec<String> = anew.iter().map(|table| table.oid.to_string()).collect();
    let oids = escape_literal(&format!("{{{}}}", oids.join(",")));
    let affected = format!(
        "WITH RECURSIVE up AS (SELECT unnest({oids}::oid[]) AS oid UNION \
         SELECT inhparent FROM pg_inherits JOIN up ON inhrelid = up.oid)"
    );
    let extended = "(SELECT oid FROM pg_statistic_ext WHERE stxrelid IN (SELECT oid FROM up))";
    let extended = match major {
        COUNTS_ALL.. => format!("DELETE FROM pg_statistic_ext_data WHERE stxoid IN {extended}"),
        14 => format!(
            "UPDATE pg_statistic_ext_data SET stxdmcv = NULL, stxdexpr = NULL WHERE stxoid IN {extended}"
        ),
        _ => format!("UPDATE pg_statistic_ext_data SET stxdmcv = NULL WHERE stxoid IN {extended}"),
    };
    for statement in [
        format!(
            "{affected} DELETE FROM pg_statistic WHERE starelid IN (SELECT oid FROM up UNION \
             SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM up))"
        ),
        format!("{affected} {extended}"),
    ] {
        client.batch_execute(&statement).await.map_err(failed)?;
    }
    let above = format!(
        "{affected} SELECT format('%I.%I', n.nspname, c.relname) FROM up JOIN pg_class c ON c.oid = up.oid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p'"
    );
    for row in client.query(&above, &[]).await.map_err(failed)? {
        let name: String = row.try_get(0).map_err(failed)?;
        client.batch_execute(&format!("ANALYZE {name}")).await.map_err(failed)?;
    }
    Ok(())
}

/// Directories whose contents a server that was shut down does not need.
const DISPENSABLE: [&str; 12] = [
    "pg_stat_tmp",
    "pg_notify",
    "pg_snapshots",
    "pg_dynshmem",
    "pg_replslot",
    "pg_logical/snapshots",
    "pg_logical/mappings",
    "base/pgsql_tmp",
    "log",
    "pg_log",
    "pg_wal/archive_status",
    "pg_wal/summaries",
];

/// Removes from a cluster that was shut down the files that may have data in them and
/// that it does not need: logs, the statements that extensions remember, `orphans`.
pub fn clear(tree: &dyn Tree, orphans: &[String]) -> Result<()> {
    let settings = Settings::load(tree)?;
    let logs = settings.get("log_directory").and_then(|dir| conf::within("postgresql.conf", dir));
    let is_its_own = |dir: &&str| {
        let top = dir.split('/').next().unwrap_or_default();
        !top.is_empty() && !SERVER_DIRS.contains(&top)
    };
    for dir in DISPENSABLE.iter().copied().chain(logs.as_deref().filter(is_its_own)) {
        for name in tree.list(dir)? {
            tree.remove(&format!("{dir}/{name}"))?;
        }
    }
    for name in tree.list("pg_stat")? {
        // The server's own are counts.
        let counts = matches!(name.as_str(), "pgstat.stat" | "global.stat") || name.starts_with("db_");
        if !counts {
            tree.remove(&format!("pg_stat/{name}"))?;
        }
    }
    orphans.iter().try_for_each(|path| tree.remove(path))
}

#[cfg(test)]
mod tests {
    use super::super::tree::DirTree;
    use super::*;

    #[test]
    fn files_that_may_have_data_go() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        let go =
            ["log/x.log", "logs/y.log", "pg_stat/pg_stat_statements.stat", "pg_notify/0000", "base/5/99999"];
        let stay =
            ["base/5/16384", "pg_stat/pgstat.stat", "pg_wal/000000010000000000000001", "pg_stat/db_5.stat"];
        for path in go.iter().chain(&stay) {
            std::fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            tree.write(path, b"x").unwrap();
        }
        tree.write("postgresql.conf", b"log_directory = 'logs'\n").unwrap();
        clear(&tree, &["base/5/99999".into()]).unwrap();
        for path in go {
            assert_eq!(tree.read(path).unwrap(), None, "{path}");
        }
        for path in stay {
            assert!(tree.read(path).unwrap().is_some(), "{path}");
        }
    }
}
