//! What `expire` reports.

use std::time::Duration;

use serde::Serialize;

use super::Report;
use crate::ui::{duration_text, left_text};

/// `expire`
#[derive(Debug, Serialize)]
pub struct ExpireReport {
    /// The fork.
    pub name: String,
    /// When it is removed; null: at no certain time.
    pub expires_at: Option<String>,
    /// After how many seconds without a session it is removed; null: never.
    pub idle_s: Option<u64>,
}

impl Report for ExpireReport {
    fn human(&self, _color: bool) -> String {
        let name = &self.name;
        match expiry_remarks(self.expires_at.as_deref(), self.idle_s).as_slice() {
            [] => format!("{name} stays until it is removed"),
            remarks => format!("{name} {}", remarks.join(", ")),
        }
    }
}

/// "expires in 2 h 0 min", "goes when idle for 30 min 0 s".
pub fn expiry_remarks(expires_at: Option<&str>, idle_s: Option<u64>) -> Vec<String> {
    let at = expires_at.map(|at| format!("expires in {}", left_text(at)));
    let idle = idle_s.map(|s| format!("goes when idle for {}", duration_text(Duration::from_secs(s))));
    at.into_iter().chain(idle).collect()
}
