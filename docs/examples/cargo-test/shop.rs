//! The program under test. It asks psql, to need no crate; yours has a client library.

use std::process::Command;

/// The answer to a query.
pub fn ask(url: &str, query: &str) -> String {
    let psql = Command::new("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", url, "-c", query]).output();
    let psql = psql.expect("psql in PATH");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    String::from_utf8_lossy(&psql.stdout).trim_end().to_owned()
}
