//! Which table or index a file of a cluster belongs to.

use std::collections::HashMap;

use pgcowfs::class::relation_file;
use tokio_postgres::Row;

use super::connect::{Address, connect, connect_to, refused, wait};
use crate::error::Result;

/// A table, index or other relation. It is told by its name: an index that is made anew
/// has another OID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Relation {
    /// Its database; none for what all databases share.
    pub database: Option<String>,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// table, index, toast, sequence, materialized view, or what PostgreSQL calls it.
    pub kind: String,
    /// The table that an index or toast table serves, with its schema.
    pub table: Option<String>,
}

/// What a server says of its relations.
#[derive(Default)]
pub struct Names {
    /// By tablespace (0: the default one), database (0: shared) and number.
    relations: HashMap<(u32, u32, u32), Relation>,
    databases: HashMap<u32, String>,
}

/// The OID of the tablespace whose directory is `base`.
const DEFAULT_TABLESPACE: u32 = 1663;

const DATABASES: &str = "SELECT oid, datname, datallowconn FROM pg_database";

const RELATIONS: &str = "\
SELECT pg_relation_filenode(c.oid), c.relisshared, \
       coalesce(nullif(c.reltablespace, 0), (SELECT dattablespace FROM pg_database WHERE datname = current_database())), \
       n.nspname, c.relname, c.relkind::text, tn.nspname || '.' || t.relname, o.oid IS NOT NULL \
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
LEFT JOIN pg_index i ON i.indexrelid = c.oid \
LEFT JOIN pg_class o ON o.reltoastrelid = coalesce(i.indrelid, c.oid) \
LEFT JOIN pg_class t ON t.oid = coalesce(o.oid, i.indrelid) \
LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace \
WHERE pg_relation_filenode(c.oid) IS NOT NULL";

/// Asks a server for the names of everything that has files.
pub fn names(address: &Address) -> Result<Names> {
    let failed = |e| refused("cannot ask for the names of tables", &e);
    wait(address, async || {
        let mut names = Names::default();
        let databases = connect(address).await?.query(DATABASES, &[]).await.map_err(failed)?;
        for row in &databases {
            let (oid, name, open): (u32, String, bool) = (
                row.try_get(0).map_err(failed)?,
                row.try_get(1).map_err(failed)?,
                row.try_get(2).map_err(failed)?,
            );
            names.databases.insert(oid, name.clone());
            // template0: nobody may connect, and so nobody changes anything.
            if open {
                let client = connect_to(address, &name).await?;
                for row in client.query(RELATIONS, &[]).await.map_err(failed)? {
                    names.enter(oid, &name, &row).map_err(failed)?;
                }
            }
        }
        Ok(names)
    })
}

impl Names {
    fn enter(&mut self, database: u32, in_database: &str, row: &Row) -> Result<(), tokio_postgres::Error> {
        let (node, shared, tablespace): (u32, bool, u32) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let key = match (shared, tablespace) {
            (true, _) => (0, 0, node),
            (false, DEFAULT_TABLESPACE) => (0, database, node),
            (false, tablespace) => (tablespace, database, node),
        };
        let kind: String = row.try_get(5)?;
        let of_toast: bool = row.try_get(7)?;
        let kind = match (kind.as_str(), of_toast) {
            ("r", _) => "table",
            ("i", true) => "toast index",
            ("i", false) => "index",
            ("t", _) => "toast",
            ("S", _) => "sequence",
            ("m", _) => "materialized view",
            (other, _) => other,
        };
        let relation = Relation {
            database: (!shared).then(|| in_database.to_string()),
            schema: row.try_get(3)?,
            name: row.try_get(4)?,
            kind: kind.to_string(),
            table: row.try_get(6)?,
        };
        self.relations.insert(key, relation);
        Ok(())
    }

    /// The relation that a file belongs to.
    pub fn relation(&self, path: &str) -> Option<&Relation> {
        let file = relation_file(path)?;
        self.relations.get(&(file.tablespace, file.database, file.node))
    }

    /// The database that a file belongs to.
    pub fn database(&self, path: &str) -> Option<&String> {
        self.databases.get(&relation_file(path)?.database)
    }
}
