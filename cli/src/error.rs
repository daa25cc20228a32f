//! How a command fails: what happened, why, and what to do next, under one of
//! a few kinds that scripts can tell apart by the exit code.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The result of everything in this program.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure. Each has its own exit code; the codes are part of the
/// interface (`docs/CLI.md`) and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Anything without a kind of its own.
    Failed,
    /// A command line that cannot be carried out, whatever the store holds.
    Usage,
    /// A fork, snapshot, store or directory that is not there.
    NotFound,
    /// A fork, snapshot or store that is there already.
    Exists,
    /// The wrong moment: running, stopped, mounted or in use.
    State,
    /// Something is missing on this machine, or permission for it.
    Environment,
    /// Input that cannot be used: no PGDATA, no store, another block size.
    BadInput,
    /// The disk under the store: full, read-only, failing, damaged.
    Storage,
    /// PostgreSQL itself did not do what it was asked.
    Postgres,
    /// Something took more than its user allowed.
    Budget,
}

impl Kind {
    /// Every kind, in the order of the exit codes.
    pub const ALL: [Kind; 10] = [
        Kind::Failed,
        Kind::Usage,
        Kind::NotFound,
        Kind::Exists,
        Kind::State,
        Kind::Environment,
        Kind::BadInput,
        Kind::Storage,
        Kind::Postgres,
        Kind::Budget,
    ];

    /// The exit code of a program that failed so.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Exists => 4,
            Kind::State => 5,
            Kind::Environment => 6,
            Kind::BadInput => 7,
            Kind::Storage => 8,
            Kind::Postgres => 9,
            Kind::Budget => 10,
        }
    }

    /// The line that `--help` and the documentation have for it.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Failed => "any other failure",
            Kind::Usage => "bad command line, bad name of a fork or snapshot",
            Kind::NotFound => "no such fork, snapshot, store or directory",
            Kind::Exists => "the fork, snapshot or store exists already",
            Kind::State => "wrong state: running, stopped, mounted, protected, port or store in use",
            Kind::Environment => "missing on this machine: FUSE, PostgreSQL binaries, a user, permission",
            Kind::BadInput => {
                "unusable input: no PGDATA, no store, block size, tablespace outside, changed base"
            }
            Kind::Storage => "the disk is full, read-only, failing or damaged",
            Kind::Postgres => "PostgreSQL failed, or was not ready in time",
            Kind::Budget => "a budget of footprint is exceeded",
        }
    }
}

/// A failure as its user sees it. It crosses the daemon's socket unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What sort of failure.
    pub kind: Kind,
    /// What happened, naming the thing; no capital, no full stop.
    pub message: String,
    /// Why, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Text from elsewhere that belongs to it: the end of a server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Error {
    /// A failure of that kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), causes: Vec::new(), hint: None, detail: None }
    }

    /// A failure of the host's, with what was tried.
    pub fn io(what: impl Into<String>, source: &io::Error) -> Error {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS | libc::EIO) => Kind::Storage,
            Some(libc::EACCES | libc::EPERM) => Kind::Environment,
            Some(libc::ENOENT | libc::ENOTDIR) => Kind::NotFound,
            Some(libc::ELOOP | libc::ENAMETOOLONG) => Kind::BadInput,
            // `device::foreign`: a pipe, or too long; or a NUL in a path.
            None if matches!(source.kind(), ErrorKind::InvalidInput | ErrorKind::FileTooLarge) => {
                Kind::BadInput
            }
            _ => Kind::Failed,
        };
        Error::new(kind, what).cause(source.to_string())
    }

    /// Adds a reason.
    pub fn cause(mut self, cause: impl Into<String>) -> Error {
        self.causes.push(cause.into());
        self
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Adds text from elsewhere, if there is any.
    pub fn detail(mut self, detail: impl Into<String>) -> Error {
        let detail = detail.into();
        self.detail = (!detail.trim().is_empty()).then_some(detail);
        self
    }

    /// Puts what was being done in front; the old message becomes the cause.
    pub fn within(mut self, what: impl Into<String>) -> Error {
        let inner = std::mem::replace(&mut self.message, what.into());
        self.causes.insert(0, inner);
        self
    }

    /// The error for people, on several lines, without a final newline.
    pub fn render(&self, color: bool) -> String {
        let (red, bold, off) = if color { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut out = format!("{red}error:{off} {}", one_line(&self.message));
        for cause in &self.causes {
            out += &format!("\n  {bold}why:{off} {}", one_line(cause));
        }
        if let Some(detail) = &self.detail {
            for line in detail.trim_end().lines() {
                out += &format!("\n  | {}", one_line(line));
            }
        }
        if let Some(hint) = &self.hint {
            out += &format!("\n  {bold}hint:{off} {}", one_line(hint));
        }
        out
    }
}

/// Of a text that is longer than both together, so much is shown of its
/// beginning and of its end: a path, and what is wrong with it.
const HEAD_CHARS: usize = 3000;
const TAIL_CHARS: usize = 1000;

/// A text as a terminal and a log can take it: on one line, and without
/// sequences that a terminal would act on. File names can hold both, and a file
/// that is taken for something else lines of any length.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_control() || c == '\t';
    let escape = |text: &str| -> String {
        let escaped = |c: char| match is_plain(c) {
            true => c.to_string(),
            false => c.escape_default().to_string(),
        };
        text.chars().map(escaped).collect()
    };
    // A character has four bytes at most.
    if text.len() > 4 * (HEAD_CHARS + TAIL_CHARS) || text.chars().count() > HEAD_CHARS + TAIL_CHARS {
        let head: String = text.chars().take(HEAD_CHARS).collect();
        let tail: String = text.chars().rev().take(TAIL_CHARS).collect();
        let tail: String = tail.chars().rev().collect();
        return format!("{} ... {}", escape(&head), escape(&tail)).into();
    }
    match text.chars().all(is_plain) {
        true => text.into(),
        false => escape(text).into(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Error {}

/// Says what was tried when the host refuses it.
pub trait Context<T> {
    /// The result, its error preceded by `what`.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
    /// The same for the common "VERB PATH".
    fn at(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::io(what(), &e))
    }

    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.context(|| format!("cannot {verb} {}", path.display()))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::io(what(), &e.into()))
    }

    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.context(|| format!("cannot {verb} {}", path.display()))
    }
}

/// The one place that gives the core's errors a kind and a next step.
impl From<pgcowfs::Error> for Error {
    fn from(error: pgcowfs::Error) -> Error {
        use pgcowfs::Error as Core;
        let message = error.to_string();
        match error {
            Core::NoSuchFork(name) if name.contains('@') => Error::new(Kind::NotFound, message)
                .hint(format!("to use a snapshot, fork it: pgcowfs fork {name} NEW")),
            Core::NoSuchFork(_) => Error::new(Kind::NotFound, message).hint("`pgcowfs list` shows the forks of the store"),
            Core::NoSuchSnapshot(fork, _) => Error::new(Kind::NotFound, message)
                .hint(format!("`pgcowfs snapshots {fork}` shows those it has")),
            Core::NoOrigin(fork) => Error::new(Kind::State, message)
                .hint(format!("a root can only be put back to one of its snapshots: pgcowfs snapshots {fork}")),
            Core::SnapshotExists(fork, label) => Error::new(Kind::Exists, message)
                .hint(format!("choose another label, or remove it: pgcowfs rm {fork}@{label}")),
            Core::ForkExists(name) => Error::new(Kind::Exists, message)
                .hint(format!("choose another name, or remove it: pgcowfs rm {name}")),
            Core::BadForkName { .. } | Core::BadLabel { .. } => Error::new(Kind::Usage, message)
                .hint("a name has 1 to 63 ASCII letters, digits, '.', '_' and '-' and begins with a letter or digit"),
            Core::BadStore { .. } => Error::new(Kind::BadInput, message)
                .hint("choose another store with --store DIR, or make a new one: pgcowfs --store DIR init"),
            Core::StoreBusy { .. } => Error::new(Kind::State, message)
                .hint("one daemon serves a store; end the other one first (pgcowfs umount, or SIGTERM)"),
            Core::BadBase { .. } => Error::new(Kind::BadInput, message)
                .hint("--base wants a stopped cluster's data directory that this user can read"),
            Core::BaseChanged { .. } => Error::new(Kind::BadInput, message).hint(
                "a base must stay as it was when the fork was made; restore it, or remove its forks and make them anew",
            ),
            Core::NoSpace => Error::new(Kind::Storage, message)
                .hint("free some space on it, for instance with `pgcowfs rm FORK`; nothing is lost"),
            Core::Quota => Error::new(Kind::Storage, message)
                .hint("give it more (pgcowfs quota FORK SIZE), or remove data in it; nothing is lost"),
            Core::Poisoned(..) | Core::FlushFailed(_) | Core::Damaged(_) | Core::Map(_) => {
                Error::new(Kind::Storage, message)
                    .hint("look at the store's daemon.log and the kernel's log for errors of the disk")
            }
            Core::Io { context, source } => Error::io(context, &source),
            Core::NotFound
            | Core::Exists
            | Core::NotDirectory
            | Core::IsDirectory
            | Core::NotEmpty
            | Core::NameTooLong
            | Core::Invalid(_)
            | Core::TooManyLinks
            | Core::TooLarge
            | Core::NoData
            | Core::Unsupported
            | Core::CrossFork
            | Core::Stale => Error::new(Kind::Failed, message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_why_detail_and_hint() {
        let error = Error::new(Kind::State, "fork \"a\" is running")
            .cause("process 12 serves it")
            .detail("line 1\nline 2\n")
            .hint("stop it");
        assert_eq!(
            error.render(false),
            "error: fork \"a\" is running\n  why: process 12 serves it\n  | line 1\n  | line 2\n  hint: stop it"
        );
        assert!(error.render(true).contains("\x1b[1;31merror:"));
        assert_eq!(error.to_string(), "fork \"a\" is running: process 12 serves it");
    }

    #[test]
    fn nothing_of_a_name_reaches_the_terminal_but_text() {
        let error = Error::new(Kind::BadInput, "no \x1b[2J\nfork").detail("a\tb\n\u{9b}31m").hint("\x07");
        assert_eq!(
            error.render(false),
            "error: no \\u{1b}[2J\\nfork\n  | a\tb\n  | \\u{9b}31m\n  hint: \\u{7}"
        );
        assert_eq!(one_line("grüße"), "grüße");
        let long = format!("head{}tail", "x\n".repeat(1 << 20));
        let shown = one_line(&long);
        assert!(shown.len() < 10_000 && shown.starts_with("headx") && shown.ends_with("\\ntail"), "{shown}");
    }

    #[test]
    fn crosses_the_socket_unchanged() {
        let error = Error::new(Kind::BadInput, "x").hint("y");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(text, r#"{"kind":"bad_input","message":"x","hint":"y"}"#);
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
    }

    #[test]
    fn full_and_read_only_disks_are_storage() {
        for errno in [libc::ENOSPC, libc::EROFS, libc::EDQUOT] {
            let error = Error::io("cannot write x", &io::Error::from_raw_os_error(errno));
            assert_eq!(error.kind, Kind::Storage);
        }
        let missing: Error = pgcowfs::Error::NoSuchFork("q".into()).into();
        assert_eq!((missing.kind, missing.kind.exit_code()), (Kind::NotFound, 3));
        assert!(missing.hint.is_some());
    }

    #[test]
    fn exit_codes_are_distinct_and_documented() {
        let documentation = include_str!("../../docs/CLI.md");
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(usize::from(kind.exit_code()), index + 1);
            let row = format!("| {} | {} |", kind.exit_code(), kind.meaning());
            assert!(documentation.contains(&row), "docs/CLI.md lacks {row:?}");
        }
    }
}
