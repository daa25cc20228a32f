//! The verdict.

use super::{ACCOUNTS, Counts, DATABASE, OPENING_BALANCE, SCRATCH_EVERY, Window, formula};
use crate::common::pg::{Endpoint, Postgres};
use crate::common::sql::{Sql, SqlError};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An acknowledged transaction is missing.
    Lost,
    /// A transaction is there that had not been sent.
    Future,
    /// A client's numbers are not 1..=n.
    Gap,
    /// A transaction's own row is not what it wrote.
    Payload,
    /// A balance is not the sum of the transfers found.
    Balance,
    /// A transaction is there without one that it had seen committed.
    Causality,
    /// A table and its index disagree.
    Index,
    /// A scratch table is missing, left over, or in another state than its owner's last transaction left it in.
    Scratch,
    /// `pg_amcheck` found something.
    Amcheck,
    /// The server failed to answer.
    Unreadable,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What.
    pub kind: Kind,
    /// Where, for the message.
    pub detail: String,
}

/// All violations as lines, for a failure message.
pub fn report(violations: &[Violation]) -> String {
    violations.iter().map(|v| format!("\n  {:?}: {}", v.kind, v.detail)).collect()
}

/// Judges the state that a server shows. Ok carries the number of transactions found, per client.
pub fn verify(at: &Endpoint, window: &Window) -> Result<Counts, Vec<Violation>> {
    let mut violations = Vec::new();
    let mut found = Counts::new();
    match Sql::connect(at, DATABASE) {
        Ok(sql) => match judge(&sql, window, &mut violations) {
            Ok(counts) => found = counts,
            Err(error) => violations.push(Violation { kind: Kind::Unreadable, detail: error.to_string() }),
        },
        Err(error) => {
            violations.push(Violation { kind: Kind::Unreadable, detail: format!("connect: {error}") })
        }
    }
    let amcheck = Postgres::get().amcheck(at, DATABASE);
    if !amcheck.ok() || !amcheck.stdout.is_empty() {
        violations.push(Violation { kind: Kind::Amcheck, detail: amcheck.report() });
    }
    if violations.is_empty() { Ok(found) } else { Err(violations) }
}

/// All checks by SQL.
fn judge(sql: &Sql, window: &Window, violations: &mut Vec<Violation>) -> Result<Counts, SqlError> {
    sql.run("SET jit = off; SET max_parallel_workers_per_gather = 0")?;
    // Sequential scans only: an index that lost entries must not hide the same loss in the heap.
    use_heap(sql)?;
    let found = transactions(sql, window, violations)?;
    rows_as_written(sql, violations)?;
    balances(sql, violations)?;
    causality(sql, &found, violations)?;
    scratch_tables(sql, &found, violations)?;
    for (table, columns) in [("txn", "client, seq"), ("account", "id")] {
        index_equals_heap(sql, table, columns, violations)?;
    }
    Ok(found)
}

fn use_heap(sql: &Sql) -> Result<(), SqlError> {
    sql.run("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; SET enable_seqscan = on")
}

fn use_index(sql: &Sql) -> Result<(), SqlError> {
    sql.run("SET enable_indexscan = on; SET enable_indexonlyscan = on; SET enable_bitmapscan = off; SET enable_seqscan = off")
}

/// acknowledged <= found <= sent, without gaps.
fn transactions(sql: &Sql, window: &Window, violations: &mut Vec<Violation>) -> Result<Counts, SqlError> {
    let rows = sql.rows("SELECT client, count(*), count(DISTINCT seq), min(seq), max(seq) FROM txn GROUP BY client ORDER BY client")?;
    let mut found = vec![0; window.acked.len()];
    for row in rows {
        let numbers: Vec<u64> = row.iter().map(|field| field.parse().unwrap_or(0)).collect();
        let [client, count, distinct, min, max] = numbers[..] else {
            unreachable!("five columns were asked for")
        };
        let Some(slot) =
            usize::try_from(client).ok().and_then(|c| c.checked_sub(1)).and_then(|i| found.get_mut(i))
        else {
            violations.push(Violation {
                kind: Kind::Future,
                detail: format!("rows of a client {client} that never was"),
            });
            continue;
        };
        *slot = max;
        if min != 1 || count != max || distinct != max {
            violations.push(Violation {
                kind: Kind::Gap,
                detail: format!("client {client}: {count} rows, {distinct} numbers, from {min} to {max}"),
            });
        }
    }
    for (index, n) in found.iter().enumerate() {
        let (client, acked, sent) = (index + 1, window.acked[index], window.sent[index]);
        if *n < acked {
            violations.push(Violation {
                kind: Kind::Lost,
                detail: format!("client {client}: {acked} acknowledged, {n} found"),
            });
        }
        if *n > sent {
            violations.push(Violation {
                kind: Kind::Future,
                detail: format!("client {client}: {sent} sent, {n} found"),
            });
        }
    }
    Ok(found)
}

/// Each row is what its client and number say.
fn rows_as_written(sql: &Sql, violations: &mut Vec<Violation>) -> Result<(), SqlError> {
    let (payload, source) = (formula::payload("client", "seq"), formula::source("client", "seq"));
    let (target, amount) = (formula::target("client", "seq"), formula::amount("client", "seq"));
    let wrong = sql.rows(&format!(
        "SELECT client, seq FROM txn
         WHERE payload <> {payload} OR source <> {source} OR target <> {target} OR amount <> {amount} ORDER BY 1, 2 LIMIT 5"
    ))?;
    if !wrong.is_empty() {
        violations.push(Violation {
            kind: Kind::Payload,
            detail: format!("rows that nobody wrote (client, number): {wrong:?}"),
        });
    }
    Ok(())
}

/// Each balance follows from the transfers found: also half a transfer shows, which the total alone might not.
fn balances(sql: &Sql, violations: &mut Vec<Violation>) -> Result<(), SqlError> {
    let wrong = sql.rows(&format!(
        "WITH moved AS (
             SELECT id, sum(amount) AS amount
             FROM (SELECT source AS id, -amount AS amount FROM txn UNION ALL SELECT target, amount FROM txn) moves GROUP BY id)
         SELECT id, balance, {OPENING_BALANCE} + coalesce(amount, 0)
         FROM account FULL JOIN moved USING (id)
         WHERE balance IS DISTINCT FROM {OPENING_BALANCE} + coalesce(amount, 0) ORDER BY 1 LIMIT 5"
    ))?;
    if !wrong.is_empty() {
        violations.push(Violation {
            kind: Kind::Balance,
            detail: format!("(account, balance, by the transfers): {wrong:?}"),
        });
    }
    let total = sql.rows("SELECT count(*), coalesce(sum(balance), 0) FROM account")?;
    let want = vec![vec![
        ACCOUNTS.to_string(),
        (i64::try_from(ACCOUNTS).unwrap_or(0) * OPENING_BALANCE).to_string(),
    ]];
    if total != want {
        violations.push(Violation {
            kind: Kind::Balance,
            detail: format!("(accounts, their total) is {total:?}, not {want:?}"),
        });
    }
    Ok(())
}

/// Whoever saw a commit comes with it.
fn causality(sql: &Sql, found: &Counts, violations: &mut Vec<Violation>) -> Result<(), SqlError> {
    for row in sql.rows("SELECT seen_client, max(seen_seq) FROM txn GROUP BY 1 ORDER BY 1")? {
        let (client, seen): (usize, u64) = (row[0].parse().unwrap_or(0), row[1].parse().unwrap_or(0));
        let there = client.checked_sub(1).and_then(|i| found.get(i)).copied().unwrap_or(0);
        if seen > there {
            violations.push(Violation {
                kind: Kind::Causality,
                detail: format!("someone saw client {client} commit {seen}, {there} found"),
            });
        }
    }
    Ok(())
}

/// Exactly the scratch tables that the transactions found leave behind, with their contents.
fn scratch_tables(sql: &Sql, found: &Counts, violations: &mut Vec<Violation>) -> Result<(), SqlError> {
    let mut want: Vec<String> = Vec::new();
    for (index, n) in found.iter().enumerate() {
        if *n >= SCRATCH_EVERY {
            want.push(format!("scratch_{}_{}", index + 1, n / SCRATCH_EVERY));
        }
    }
    want.sort();
    let rows = sql.rows(r"SELECT relname FROM pg_class WHERE relname LIKE 'scratch\_%' AND relkind = 'r'")?;
    let mut have: Vec<String> = rows.into_iter().filter_map(|row| row.into_iter().next()).collect();
    have.sort();
    if have != want {
        violations.push(Violation { kind: Kind::Scratch, detail: format!("tables {have:?}, not {want:?}") });
        return Ok(());
    }
    for (index, n) in found.iter().enumerate().filter(|(_, n)| **n >= SCRATCH_EVERY) {
        let table = format!("scratch_{}_{}", index + 1, n / SCRATCH_EVERY);
        let want = if n % SCRATCH_EVERY < SCRATCH_EVERY / 2 { "100 5050 s" } else { "40 820 t" };
        let have = sql.value(&format!(
            "SELECT concat_ws(' ', count(*), sum(n), string_agg(DISTINCT left(filler, 1), ',')) FROM {table}"
        ))?;
        if have != want {
            violations.push(Violation {
                kind: Kind::Scratch,
                detail: format!("{table} after transaction {n} holds {have:?}, not {want:?}"),
            });
        }
    }
    Ok(())
}

/// The same rows by the index alone as by the heap alone.
fn index_equals_heap(
    sql: &Sql,
    table: &str,
    columns: &str,
    violations: &mut Vec<Violation>,
) -> Result<(), SqlError> {
    // Every column of the key takes part, so that the index alone can answer.
    let query = format!("SELECT count(*), sum(hashtextextended(concat_ws(':', {columns}), 0)) FROM {table}");
    let mut answers = Vec::new();
    for (scan, choose) in [("Seq Scan", use_heap as fn(&Sql) -> _), ("Index Only Scan", use_index)] {
        choose(sql)?;
        let plan = sql.rows(&format!("EXPLAIN (COSTS OFF) {query}"))?;
        // Without this the comparison could be of the heap with itself.
        if !plan.iter().any(|row| row[0].contains(scan)) {
            return Err(SqlError {
                state: None,
                text: format!("the plan for {table} has no {scan}: {plan:?}"),
            });
        }
        answers.push(sql.rows(&query)?);
    }
    use_heap(sql)?;
    if answers[0] != answers[1] {
        violations.push(Violation {
            kind: Kind::Index,
            detail: format!(
                "{table}: (rows, hash) {:?} in the heap, {:?} in the index",
                answers[0], answers[1]
            ),
        });
    }
    Ok(())
}
