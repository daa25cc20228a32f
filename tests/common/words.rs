//! The command lines of test programs without libtest: `cargo test` starts them with its own options, and scripts with
//! theirs.

/// A word of a command line, when it is one of `cargo test`'s and not the harness's own.
pub enum OfCargoTest {
    /// It changes nothing here.
    Ignore,
    /// It chooses tests by name, and not this one.
    NothingToDo,
}

/// Looks at one word, for the harness `name`.
pub fn of_cargo_test(word: &str, name: &str) -> Option<OfCargoTest> {
    match word {
        "--show-output" | "--nocapture" | "--no-capture" | "-q" | "--quiet" | "--include-ignored"
        | "--exact" | "--test-threads" => Some(OfCargoTest::Ignore),
        "--list" | "--ignored" => Some(OfCargoTest::NothingToDo),
        word if word.starts_with("--test-threads=") => Some(OfCargoTest::Ignore),
        word if word.starts_with('-') => None,
        // The number of threads, or a filter.
        word if word.parse::<u32>().is_ok() || name.contains(word) => Some(OfCargoTest::Ignore),
        _ => Some(OfCargoTest::NothingToDo),
    }
}

/// An option's value that is a number.
pub fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}
