//! The terminal: results on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::{Context, Error, Kind, Result, one_line};
use crate::report::Report;

/// How to talk to the user.
#[derive(Clone, Debug)]
pub struct Ui {
    json: bool,
    quiet: bool,
    color_out: bool,
    color_err: bool,
}

impl Ui {
    /// From the command line and the environment (`NO_COLOR`, pipes).
    pub fn new(json: bool, quiet: bool) -> Ui {
        let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Ui {
            json,
            quiet,
            color_out: color && io::stdout().is_terminal(),
            color_err: color && io::stderr().is_terminal(),
        }
    }

    /// Whether stdout is for JSON alone.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a command's result.
    pub fn print<R: Report>(&self, report: &R) -> Result<()> {
        let mut text = if self.json {
            serde_json::to_string_pretty(report).map_err(not_json)?
        } else {
            report.human(self.color_out)
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        self.print_text(text)
    }

    /// Prints a result that is text already.
    pub fn print_text(&self, text: String) -> Result<()> {
        self.write_out(&text).map(|_| ())
    }

    /// Prints one of several results: on a terminal in the place of the one before,
    /// else after it. JSON has one line for each. False if nobody reads them any more.
    pub fn print_next<R: Report>(&self, report: &R) -> Result<bool> {
        let text = match self.json {
            true => serde_json::to_string(report).map_err(not_json)? + "\n",
            // Home, and clear what is below.
            false if io::stdout().is_terminal() => {
                format!("\x1b[H\x1b[2J{}", report.human(self.color_out))
            }
            false => report.human(false) + "\n",
        };
        self.write_out(&text)
    }

    /// False if the reader has seen enough (`| head`).
    fn write_out(&self, text: &str) -> Result<bool> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true).context(|| "cannot write the result to stdout"),
        }
    }

    /// A result beside what a command of the user prints: on stderr, and as JSON on
    /// one line.
    pub fn aside<R: Report>(&self, report: &R) -> Result<()> {
        match self.json {
            true => self.stderr(&serde_json::to_string(report).map_err(not_json)?),
            false => report.human(self.color_err).lines().for_each(|line| self.note(line)),
        }
        Ok(())
    }

    /// A remark about what is going on.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.stderr(&one_line(text.as_ref()));
        }
    }

    /// Something the user should know although the command goes on.
    pub fn warn(&self, text: impl AsRef<str>) {
        let (yellow, off) = if self.color_err { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        self.stderr(&format!("{yellow}warning:{off} {}", one_line(text.as_ref())));
    }

    /// The reason for a failure.
    pub fn error(&self, error: &Error) {
        let text = if self.json {
            let mut value = serde_json::json!({ "error": error });
            value["error"]["exit_code"] = error.kind.exit_code().into();
            value.to_string()
        } else {
            error.render(self.color_err)
        };
        self.stderr(&text);
    }

    fn stderr(&self, text: &str) {
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Shows how far a copy of `total` bytes is.
    pub fn progress(&self, label: &str, total: u64) -> Progress {
        let bar = (!self.quiet && io::stderr().is_terminal()).then(|| {
            let style = "{msg} {bar:24} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left";
            let bar = ProgressBar::new(total).with_message(label.to_string());
            match ProgressStyle::with_template(style) {
                Ok(style) => bar.with_style(style),
                // The template is a constant; indicatif's own look is as good.
                Err(_) => bar,
            }
        });
        let now = Instant::now();
        Progress { ui: self.clone(), label: label.to_string(), total, done: 0, bar, started: now, said: now }
    }

    /// Tells of a wait that takes more than a moment.
    pub fn waiting(&self) -> Waiting {
        let bar = (!self.quiet && io::stderr().is_terminal()).then(ProgressBar::new_spinner);
        let now = Instant::now();
        Waiting { ui: self.clone(), bar, started: now, said: now }
    }
}

/// A copy under way. On a terminal a bar; else a line every few seconds.
pub struct Progress {
    ui: Ui,
    label: String,
    total: u64,
    done: u64,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Instant,
}

const SAY_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// What is being done has another name now.
    pub fn relabel(&mut self, label: &str) {
        self.label = label.to_string();
        if let Some(bar) = &self.bar {
            bar.set_message(self.label.clone());
        }
    }

    /// That many more bytes are done.
    pub fn add(&mut self, bytes: u64) {
        self.done += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        } else if self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            let rate = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
            let left = self.total.saturating_sub(self.done) as f64 / rate.max(1.0);
            self.ui.note(format!(
                "{}: {} of {}, {}/s, {} left",
                self.label,
                bytes_text(self.done),
                bytes_text(self.total),
                bytes_text(rate as u64),
                duration_text(Duration::from_secs_f64(left.min(1e9))),
            ));
        }
    }

    /// It is all done.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let took = self.started.elapsed();
        let rate = self.done as f64 / took.as_secs_f64().max(1e-3);
        self.ui.note(format!(
            "{}: {} in {} ({}/s)",
            self.label,
            bytes_text(self.done),
            duration_text(took),
            bytes_text(rate as u64)
        ));
    }
}

/// A wait under way.
pub struct Waiting {
    ui: Ui,
    bar: Option<ProgressBar>,
    started: Instant,
    said: Instant,
}

impl Waiting {
    /// Shows `what()` if the wait is long enough to wonder.
    pub fn tell(&mut self, what: impl FnOnce() -> String) {
        let waited = self.started.elapsed();
        if let Some(bar) = self.bar.as_ref().filter(|_| waited > Duration::from_secs(1)) {
            bar.set_message(format!("{} ({})", one_line(&what()), duration_text(waited)));
            bar.tick();
        } else if self.bar.is_none() && self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            self.ui.note(format!("{} ({})", what(), duration_text(waited)));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn not_json(e: serde_json::Error) -> Error {
    Error::new(Kind::Failed, "cannot write the result as JSON").cause(e.to_string())
}

/// `1.5 GB`; units of 1024, as PostgreSQL counts.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `230 ms`, `4.1 s`, `3 min 20 s`, `7 d`.
pub fn duration_text(duration: Duration) -> String {
    let (s, whole) = (duration.as_secs_f64(), duration.as_secs());
    let two = |large: u64, unit: &str, small: u64, of: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {of}"),
    };
    match s {
        _ if s < 1.0 => format!("{:.0} ms", s * 1e3),
        _ if s < 60.0 => format!("{s:.1} s"),
        _ if s < 3600.0 => two(whole / 60, "min", whole % 60, "s"),
        _ if s < 48.0 * 3600.0 => two(whole / 3600, "h", whole / 60 % 60, "min"),
        _ => two(whole / 86_400, "d", whole / 3600 % 24, "h"),
    }
}

/// The same for a number of milliseconds.
pub fn ms_text(ms: f64) -> String {
    duration_text(Duration::from_secs_f64(ms / 1e3))
}

/// How long ago an RFC 3339 time was.
pub fn age_text(time: &str) -> String {
    let Ok(then) = time.parse::<jiff::Timestamp>() else { return "-".into() };
    // Clocks are set back now and then.
    let age = Duration::try_from(jiff::Timestamp::now().duration_since(then)).unwrap_or_default();
    match age.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s => duration_text(Duration::from_secs(s)),
    }
}

/// How long it is until an RFC 3339 time.
pub fn left_text(time: &str) -> String {
    let Ok(then) = time.parse::<jiff::Timestamp>() else { return "-".into() };
    // It may be over, and its consequences on their way.
    let left = Duration::try_from(then.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    duration_text(Duration::from_secs(left.as_secs()))
}

/// Columns under headings; `right` says which are numbers. A cell may carry a
/// colour, which does not count for the width.
pub fn table(head: &[&str], right: &[bool], rows: &[Vec<Cell>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].text.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<Cell> = head.iter().map(|h| Cell::plain(*h)).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.text.chars().count());
            let (text, gap) = (cell.painted(), if column == 0 { "" } else { "  " });
            line += &if right[column] { format!("{gap}{pad}{text}") } else { format!("{gap}{text}{pad}") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Names and values, one pair a line.
pub fn pairs(pairs: &[(&str, Cell)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().map(|(name, value)| format!("{name:width$}  {}\n", value.painted())).collect()
}

/// A text with a colour of its own.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    color: Option<&'static str>,
}

impl Cell {
    /// Without a colour.
    pub fn plain(text: impl Into<String>) -> Cell {
        Cell { text: one_line(&text.into()).into_owned(), color: None }
    }

    /// With an SGR colour such as "32", where colours are wanted.
    pub fn colored(text: impl Into<String>, color: Option<&'static str>) -> Cell {
        Cell { text: text.into(), color }
    }

    /// As the terminal shows it.
    pub fn painted(&self) -> String {
        match self.color {
            Some(color) => format!("\x1b[{color}m{}\x1b[0m", self.text),
            None => self.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes_text(1023), "1023 B");
        assert_eq!(bytes_text(1536), "1.5 kB");
        assert_eq!(bytes_text(1 << 30), "1.0 GB");
        assert_eq!(bytes_text((1 << 30) - 1), "1.0 GB");
        assert_eq!(duration_text(Duration::from_millis(230)), "230 ms");
        assert_eq!(duration_text(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(duration_text(Duration::from_secs(7260)), "2 h 1 min");
        assert_eq!(duration_text(Duration::from_secs(7 * 86_400)), "7 d");
        assert_eq!(duration_text(Duration::from_secs(49 * 3600)), "2 d 1 h");
        assert_eq!(
            (age_text("1970-01-01").as_str(), age_text("9000-01-01T00:00:00Z").as_str()),
            ("-", "0 s")
        );
    }

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let rows = vec![
            vec![Cell::plain("main"), Cell::colored("running", Some("32")), Cell::plain("1")],
            vec![Cell::plain("a"), Cell::plain("stopped"), Cell::plain("100")],
        ];
        let text = table(&["NAME", "STATE", "N"], &[false, false, true], &rows);
        assert_eq!(text, "NAME  STATE      N\nmain  \x1b[32mrunning\x1b[0m    1\na     stopped  100\n");
    }
}
