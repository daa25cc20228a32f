//! A new timeline at a fork's first start, whoever starts it, and wherever.
//!
//! With recovery.signal PostgreSQL recovers as from an archive. One that has nothing ends
//! the recovery where the fork's own WAL ends, and begins a new timeline. It removes
//! recovery.signal then and runs a last command, which removes the settings of that
//! recovery. Until then nobody is let in, who would find a server that is read-only.

use super::conf::quote;

/// What is at the end of each of those settings.
const MARK: &str = "# until the new timeline";

/// The settings, for the end of the file `name`.
pub fn lines(name: &str) -> String {
    let settings = [
        ("restore_command", "exit 1".to_string()),
        ("recovery_end_command", format!("sed -i \"/{MARK}/d\" {name}")),
        ("hot_standby", "off".to_string()),
        // Whatever somebody has recovered to in this cluster before.
        ("recovery_target", String::new()),
        ("recovery_target_name", String::new()),
        ("recovery_target_time", String::new()),
        ("recovery_target_xid", String::new()),
        ("recovery_target_lsn", String::new()),
        ("recovery_target_timeline", "latest".to_string()),
    ];
    settings.iter().map(|(name, value)| format!("{name} = {} {MARK}\n", quote(value))).collect()
}

/// Whether they are in a file: the first start is still to come.
pub fn is_prepared(text: &str) -> bool {
    text.contains(MARK)
}

/// A file without them.
pub fn without(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.contains(MARK)).collect()
}
