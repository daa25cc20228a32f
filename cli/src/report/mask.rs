//! What masking reports, within `create` and `fork`.

use serde::Serialize;

use crate::ui::ms_text;

/// So many tables are named.
const NAMED_MAX: usize = 10;

/// What was masked.
#[derive(Clone, Debug, Serialize)]
pub struct MaskedReport {
    /// How long it took, the server's start and stop included.
    pub mask_ms: f64,
    /// The tables that were written anew, each with its database.
    pub tables: Vec<String>,
}

impl MaskedReport {
    /// For people.
    pub fn text(&self, fork: &str) -> String {
        let number = self.tables.len();
        let plural = if number == 1 { "table" } else { "tables" };
        let mut names = self.tables.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        if number > NAMED_MAX {
            names += ", ...";
        }
        let names = if names.is_empty() { names } else { format!(" ({names})") };
        let took = ms_text(self.mask_ms);
        format!("masked {fork} in {took}: {number} {plural} written anew{names}\n")
    }
}
