//! What the end-to-end tests stand on: directories, processes, PostgreSQL's programs, a store driven through its
//! command line.
//!
//! Everything here drives the product from outside, as a user does: through the `pgcowfs` program, PostgreSQL's own
//! tools and the mounted files. Nothing but `check` imports the core, so a mistake there cannot hide itself here.

pub mod check;
pub mod disk;
pub mod pg;
pub mod plain;
pub mod process;
pub mod random;
pub mod scratch;
pub mod sql;
pub mod store;

use std::io::Write;
use std::sync::{Mutex, MutexGuard};

/// Serialises the tests that run a PostgreSQL server: on a small machine two at once mostly wait for each other, and
/// stores that run side by side would pick each other's ports.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits for the turn of a test that starts servers.
pub fn take_turn() -> MutexGuard<'static, ()> {
    // A test that failed while it held the turn says nothing about the next one.
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Says that a test did not run, and why, past libtest's capturing: a skipped test must not look like a passed one.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    // Not `eprintln!`: libtest swallows that for tests that end well.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name}: {why}");
}

/// How often a test repeats what is left to chance: a few times for each commit, `PGCOWFS_TEST_ROUNDS` times in a long
/// run.
pub fn rounds(few: usize) -> usize {
    match std::env::var("PGCOWFS_TEST_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("PGCOWFS_TEST_ROUNDS is a number"),
        Err(_) => few,
    }
}

/// True for uid 0.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ends the test as skipped unless PostgreSQL and FUSE are there.
///
/// Returns the turn, to be held until the end of the test.
pub fn turn_on_a_mount() -> Option<MutexGuard<'static, ()>> {
    if !std::path::Path::new("/dev/fuse").exists() {
        skipped("no /dev/fuse");
        return None;
    }
    if !is_root() && process::in_path("fusermount3").is_none() {
        skipped("no fusermount3");
        return None;
    }
    turn_on_postgres()
}

/// Ends the test as skipped unless an ordinary user can mount here.
pub fn ordinary_users_mount() -> bool {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata("/dev/fuse").map(|device| device.permissions().mode());
    if !mode.is_ok_and(|mode| mode & 0o006 == 0o006) {
        skipped("/dev/fuse is closed to ordinary users (chmod 666 /dev/fuse, as distributions have it)");
        return false;
    }
    if process::in_path("fusermount3").is_none() {
        skipped("no fusermount3");
        return false;
    }
    true
}

/// Ends the test as skipped unless PostgreSQL is there.
pub fn turn_on_postgres() -> Option<MutexGuard<'static, ()>> {
    if let Err(why) = pg::Postgres::find() {
        skipped(&why);
        return None;
    }
    Some(take_turn())
}
