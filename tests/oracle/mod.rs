//! The oracle: clients whose transactions are known in advance, so that any state of the database can be judged.
//!
//! Each client commits transactions numbered 1, 2, 3, ... one after the other. Everything a transaction writes follows
//! from its client and number, and the test remembers in its own memory, never on the file system under test, which
//! numbers it has sent and which were acknowledged. A fork (or what a crash left) is right when, for each client,
//!
//! - it holds exactly the numbers 1..=n, with
//!   *acknowledged before the fork was asked for* <= n <= *sent before the fork returned*;
//! - what each wrote is as it must be, the balances are those that the transfers found add up to, and every scratch
//!   table is in the state of its owner's last transaction;
//! - a transaction that noted another client's newest commit comes with that commit (causality: one instant for all);
//! - heap and indexes agree, by our own counting and by `pg_amcheck`.
//!
//! `controls.rs` proves that each of these can fail.

mod churn;
mod load;
mod verify;

#[allow(unused_imports)]
pub use churn::{Attempt, Churn, Fate, presence, verify_one_of};
#[allow(unused_imports)] // Each test program uses its own part of this.
pub use load::{CLIENTS, Clock, Habits, History, LAZY, Load, Window};
pub use verify::{Kind, report, verify};

use crate::common::pg::Endpoint;
use crate::common::sql::Sql;

/// The database that holds everything.
pub const DATABASE: &str = "oracle";
/// Accounts that money moves between: several hundred pages, more than the smallest shared buffers hold.
pub const ACCOUNTS: u64 = 12_000;
/// What each account begins with.
pub const OPENING_BALANCE: i64 = 1000;
/// Every so many transactions a client drops its scratch table and makes the next one.
pub const SCRATCH_EVERY: u64 = 20;

/// Per client, a number of transactions: the client numbered `i + 1` at index `i`.
pub type Counts = Vec<u64>;

/// Makes the database with its tables. Needs a server without one.
#[track_caller]
pub fn install(at: &Endpoint) {
    let admin = Sql::connect(at, "postgres").unwrap_or_else(|e| panic!("connect: {e}"));
    admin.run(&format!("CREATE DATABASE {DATABASE}")).unwrap_or_else(|e| panic!("create the database: {e}"));
    let sql = Sql::connect(at, DATABASE).unwrap_or_else(|e| panic!("connect: {e}"));
    // External storage: long payloads go to the TOAST table as they are, so that it and its index are under test too.
    sql.run(&format!(
        "CREATE EXTENSION amcheck;
         CREATE TABLE txn (
             client int NOT NULL, seq int NOT NULL, payload text NOT NULL,
             source int NOT NULL, target int NOT NULL, amount int NOT NULL,
             seen_client int NOT NULL, seen_seq int NOT NULL,
             PRIMARY KEY (client, seq));
         ALTER TABLE txn ALTER payload SET STORAGE EXTERNAL;
         CREATE INDEX txn_payload ON txn (md5(payload));
         CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, filler text NOT NULL);
         INSERT INTO account SELECT id, {OPENING_BALANCE}, repeat('x', 150) FROM generate_series(1, {ACCOUNTS}) id;
         ANALYZE;"
    ))
    .unwrap_or_else(|e| panic!("make the tables: {e}"));
}

/// SQL expressions for what transaction `seq` of `client` writes. The same text serves the clients and the verifier;
/// that it is deterministic is all that matters.
mod formula {
    use super::ACCOUNTS;

    /// 32 to 512 bytes, sometimes 4 KiB.
    pub fn payload(client: &str, seq: &str) -> String {
        format!(
            "repeat(md5({client} || ':' || {seq}), CASE WHEN {seq} % 10 = 0 THEN 128 ELSE 1 + {seq} % 16 END)"
        )
    }

    pub fn source(client: &str, seq: &str) -> String {
        format!("(1 + ({client} * 7919::bigint + {seq} * 104729::bigint) % {ACCOUNTS})")
    }

    /// Never the source itself.
    pub fn target(client: &str, seq: &str) -> String {
        let source = source(client, seq);
        let step = format!("(1 + ({client} * 6151::bigint + {seq} * 15485863::bigint) % ({ACCOUNTS} - 1))");
        format!("(1 + ({source} - 1 + {step}) % {ACCOUNTS})")
    }

    pub fn amount(client: &str, seq: &str) -> String {
        format!("(1 + ({client} + {seq} * 31) % 97)")
    }
}
