//! Tests that run side by side, each with a database that no other uses meanwhile.

use std::sync::Mutex;

use shop::ask;

/// One of the databases of `pgcowfs run --count`. A test gives it back at its end, for the next one: that finds what
/// this one has changed and not rolled back.
struct Database {
    number: usize,
    url: String,
}

/// Those that were given back, and how many have been taken besides.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl Database {
    fn take() -> Database {
        let mut free = FREE.lock().unwrap();
        let number = free.0.pop().unwrap_or_else(|| {
            free.1 += 1;
            free.1
        });
        let url = std::env::var(format!("DATABASE_URL_{number}"));
        Database { number, url: url.expect("as many databases as threads: use ./test") }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        FREE.lock().unwrap().0.push(self.number);
    }
}

#[test]
fn orders_can_be_deleted() {
    let database = Database::take();
    assert_eq!(ask(&database.url, "BEGIN; DELETE FROM orders; SELECT count(*) FROM orders"), "0");
}

#[test]
fn orders_are_there() {
    let database = Database::take();
    assert_eq!(ask(&database.url, "SELECT count(*) > 0 FROM orders"), "t");
}

#[test]
fn an_order_can_be_added() {
    let database = Database::take();
    let added = ask(&database.url, "INSERT INTO orders (id, total) VALUES (1000000, 5) RETURNING total");
    assert_eq!(added, "5");
}
