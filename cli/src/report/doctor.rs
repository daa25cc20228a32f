//! What `doctor` reports.

use std::path::PathBuf;

use serde::Serialize;

use super::Report;
use crate::error::one_line;
use crate::ui::Cell;

/// How a check has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Nothing to say.
    Ok,
    /// Something could be better.
    Note,
    /// Something may go wrong.
    Warning,
    /// It cannot work so.
    Problem,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub state: Finding,
    /// What was found.
    pub found: String,
    /// How to mend it.
    pub mend: Option<String>,
}

/// `doctor`
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// Whether there is no problem.
    pub ok: bool,
    /// The store, whether or not it is there.
    pub store: PathBuf,
    /// All checks.
    pub checks: Vec<Checked>,
}

impl DoctorReport {
    /// From the checks.
    pub fn new(store: PathBuf, checks: Vec<Checked>) -> DoctorReport {
        DoctorReport { ok: checks.iter().all(|check| check.state != Finding::Problem), store, checks }
    }
}

impl Report for DoctorReport {
    fn human(&self, color: bool) -> String {
        let rows = self.checks.iter().map(|check| {
            let (word, paint) = match check.state {
                Finding::Ok => ("ok", "32"),
                Finding::Note => ("note", "36"),
                Finding::Warning => ("warning", "33"),
                Finding::Problem => ("problem", "31"),
            };
            let word = Cell::colored(format!("{word:7}"), color.then_some(paint)).painted();
            let mend =
                check.mend.as_ref().map_or(String::new(), |mend| format!("\n  mend: {}", one_line(mend)));
            (check.name, format!("{word}  {}", one_line(&check.found)), mend)
        });
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        rows.map(|(name, text, mend)| format!("{name:width$}  {text}{mend}\n")).collect()
    }
}
