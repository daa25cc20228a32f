//! PostgreSQL's load on `main`: updates that leave the database as large as it was.

use std::process::{Child, Stdio};

use nix::sys::signal::Signal::{SIGCONT, SIGKILL, SIGSTOP};

use crate::common::pg::{Endpoint, Postgres};
use crate::common::process::signal;
use crate::common::scratch::Scratch;
use crate::common::sql::Sql;

/// Settings of the server: it writes its pages early and checkpoints often, so that there is always something on its
/// way when a fork comes; vacuum keeps the tables at their size.
pub const SETTINGS: &str = "shared_buffers = 16MB\n\
    bgwriter_delay = 20ms\n\
    min_wal_size = 32MB\n\
    max_wal_size = 64MB\n\
    checkpoint_timeout = 30s\n\
    autovacuum_naptime = 5s\n\
    max_connections = 20\n";

/// One transaction: money moves, and no row is added.
const SCRIPT: &str = "\\set aid random(1, 100000 * :scale)\n\
    \\set tid random(1, 10 * :scale)\n\
    \\set delta random(-5000, 5000)\n\
    BEGIN;\n\
    UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n\
    UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;\n\
    END;\n";

/// Clients.
const CLIENTS: &str = "2";
/// Rows of a unit of pgbench's scale are 100,000.
const SCALE: &str = "2";

/// pgbench at work.
pub struct Load {
    child: Child,
    sql: Sql,
}

impl Load {
    /// Makes the tables and starts the clients: `rate` transactions per second, as many as they can if that is 0.
    pub fn start(at: &Endpoint, scratch: &Scratch, rate: u64) -> Load {
        let pg = Postgres::get();
        let made = crate::common::process::run(
            pg.client("pgbench", at).args(["-i", "-q", "-s", SCALE]).arg("postgres"),
        );
        made.expect_ok();
        let sql = Sql::connect(at, "postgres").expect("connect to the server");
        sql.run("CREATE EXTENSION amcheck").expect("make the extension");
        let script = scratch.join("load.sql");
        std::fs::write(&script, SCRIPT).expect("write the load's script");
        let mut command = pg.client("pgbench", at);
        command.args(["-n", "-c", CLIENTS, "-j", "1", "-T", "10000000", "-f"]).arg(&script);
        if rate > 0 {
            command.args(["-R", &rate.to_string()]);
        }
        // Into a file: nobody reads a pipe while it runs.
        let log = std::fs::File::create(scratch.join("pgbench.log")).expect("make pgbench's log");
        let errors = log.try_clone().expect("two ends of one file");
        let child = command.arg("postgres").stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Load { child: child.expect("start pgbench"), sql }
    }

    /// Err if it has ended by itself.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(format!("pgbench has ended ({status}); pgbench.log beside the store tells why"))
            }
            Err(e) => Err(format!("pgbench: {e}")),
        }
    }

    /// Transactions so far.
    pub fn transactions(&self) -> Result<u64, String> {
        let count = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
        self.sql.number(count).map_err(|e| e.to_string())
    }

    /// Holds the clients, and has the server write what it has.
    pub fn pause(&self) -> Result<(), String> {
        signal(self.child.id(), SIGSTOP);
        self.sql.run("CHECKPOINT").map_err(|e| e.to_string())
    }

    /// Lets the clients go on.
    pub fn go_on(&self) {
        signal(self.child.id(), SIGCONT);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        signal(self.child.id(), SIGKILL);
        let _ = self.child.wait();
    }
}

/// Whether a database is as whole as the load keeps it: each transfer is in both tables or in none.
pub fn verify(at: &Endpoint) -> Result<(), String> {
    let sql = Sql::connect(at, "postgres").map_err(|e| e.to_string())?;
    let balanced =
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers)";
    match sql.value(balanced) {
        Ok(answer) if answer == "t" => {}
        Ok(_) => return Err("the balances of accounts and tellers differ".to_owned()),
        Err(e) => return Err(e.to_string()),
    }
    let amcheck = Postgres::get().amcheck(at, "postgres");
    if amcheck.ok() { Ok(()) } else { Err(amcheck.report()) }
}
