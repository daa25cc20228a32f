//! The definitions in a database, as pg_dump writes them.

use std::path::Path;
use std::process::Stdio;

use super::connect::{Address, connect, refused, wait};
use crate::error::{Context, Error, Kind, Result};

/// The databases of a server that hold anything of its users.
pub fn databases(address: &Address) -> Result<Vec<String>> {
    let query = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1";
    let failed = |e| refused("cannot ask for the databases", &e);
    wait(address, async || {
        let rows = connect(address).await?.query(query, &[]).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0).map_err(failed)).collect()
    })
}

/// `pg_dump --schema-only` of a database, without what differs each time.
pub fn dump(pg_dump: &Path, address: &Address, database: &str) -> Result<String> {
    let mut command = address.user.command(pg_dump);
    command
        .env("PGHOST", address.socket_dir)
        .env("PGPORT", address.port.to_string())
        .env("PGUSER", address.role)
        .env("PGDATABASE", database)
        .arg("--schema-only")
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(password) = address.password {
        command.env("PGPASSWORD", password);
    }
    let output = command.output().context(|| format!("cannot run {}", pg_dump.display()))?;
    if !output.status.success() {
        return Err(Error::new(Kind::Postgres, format!("pg_dump of database {database:?} failed"))
            .cause(output.status.to_string())
            .detail(String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // A key that is made anew for each dump, and the versions of both programs.
    let varies = |line: &&str| {
        ["\\restrict ", "\\unrestrict ", "-- Dumped "].iter().any(|word| line.starts_with(word))
    };
    Ok(text.lines().filter(|line| !varies(line)).map(|line| format!("{line}\n")).collect())
}
