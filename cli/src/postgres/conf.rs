//! postgresql.conf: reading settings as PostgreSQL does, and editing lines
//! without touching the others.
//!
//! The grammar is that of guc-file.l: `name [=] value [# comment]`, names
//! without regard to case, values bare or in single quotes with `''` and
//! backslash escapes; and the directives `include`, `include_if_exists` and
//! `include_dir`, which look like settings.

use std::collections::BTreeMap;

use super::tree::{Text, Tree};
use crate::error::{Error, Kind, Result};

/// One setting of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, in lower case.
    pub name: String,
    /// Its value, unquoted.
    pub value: String,
}

impl Entry {
    /// Whether it is a directive that reads another file or directory.
    pub fn is_include(&self) -> bool {
        matches!(self.name.as_str(), "include" | "include_if_exists" | "include_dir")
    }
}

/// What to do with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    Keep,
    /// Make it a comment.
    CommentOut,
    /// Give the setting another value.
    Set(String),
}

/// PostgreSQL knows no other blanks: a no-break space is a letter.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// The setting in a line; None for a blank line, a comment, or something that
/// PostgreSQL itself will complain about.
pub fn parse_line(line: &str) -> Option<Entry> {
    let line = line.trim_start_matches(is_blank);
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$') || !c.is_ascii();
    let end = line.find(|c| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches(is_blank);
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted)?,
        None => {
            let end = rest.find(|c: char| is_blank(c) || c == '#').unwrap_or(rest.len());
            rest[..end].to_string()
        }
    };
    (!value.is_empty() || rest.starts_with('\'')).then(|| Entry { name: name.to_ascii_lowercase(), value })
}

/// The text up to the closing quote; None if there is none.
fn unquote(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    loop {
        match chars.next()? {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                out.push('\'');
            }
            '\'' => {
                // To PostgreSQL it is a text of C.
                out.truncate(out.find('\0').unwrap_or(out.len()));
                return Some(out);
            }
            '\\' => match chars.next()? {
                'b' => out.push('\x08'),
                'f' => out.push('\x0c'),
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                digit @ '0'..='7' => {
                    let mut code = digit.to_digit(8)?;
                    for _ in 0..2 {
                        match chars.peek().and_then(|c| c.to_digit(8)) {
                            Some(next) => {
                                chars.next();
                                code = code * 8 + next;
                            }
                            None => break,
                        }
                    }
                    out.push(char::from_u32(code & 0xff)?);
                }
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
}

/// A value in quotes, as `ALTER SYSTEM` writes it; a quoted text ends with its
/// line, so ends of lines are written as escapes.
pub fn quote(value: &str) -> String {
    let text = value.replace('\\', "\\\\").replace('\'', "''");
    format!("'{}'", text.replace('\n', "\\n").replace('\r', "\\r"))
}

/// The settings of one file, in order.
pub fn entries(text: &str) -> impl Iterator<Item = Entry> + '_ {
    text.lines().filter_map(parse_line)
}

/// Edits a file line by line; lines that `decide` keeps stay as they are.
pub fn edit(text: &str, mut decide: impl FnMut(&Entry) -> Edit) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.split_inclusive('\n') {
        let entry = parse_line(line);
        match entry.as_ref().map_or(Edit::Keep, &mut decide) {
            Edit::Keep => out += line,
            Edit::CommentOut => out += &format!("#pgcowfs: {}", line.trim_start()),
            Edit::Set(value) => {
                // The old line stays as a comment: what was there is the
                // first question of whoever wonders about the new one.
                let name = entry.map(|e| e.name).unwrap_or_default();
                let line = line.trim();
                let separator = if name.starts_with("include") { " " } else { " = " };
                out += &format!("{name}{separator}{}  #pgcowfs: {line}\n", quote(&value));
            }
        }
    }
    out
}

/// The text without the settings that `goes` takes out.
pub fn without(text: &str, goes: impl Fn(&Entry) -> bool) -> String {
    let stays = |line: &&str| !parse_line(line).is_some_and(|entry| goes(&entry));
    text.split_inclusive('\n').filter(stays).collect()
}

/// Replaces settings: earlier lines of those names go, new ones come at the end.
pub fn set_all(text: &str, settings: &[(String, String)]) -> String {
    let replaced = |name: &str| settings.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut out = without(text, |entry| replaced(&entry.name));
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    // Of several settings of one name the last one holds, as in a file.
    for (index, (name, value)) in settings.iter().enumerate() {
        if !settings[index + 1..].iter().any(|(later, _)| later.eq_ignore_ascii_case(name)) {
            out += &format!("{name} = {}\n", quote(value));
        }
    }
    out
}

/// PostgreSQL's own limit for includes in includes.
const INCLUDE_DEPTH: usize = 10;
/// Files that include each other twice over ten levels would be read a thousand
/// times, and with three a million times; so there are limits for all of them.
const FILES_MAX: usize = 1000;
/// The same for their contents.
pub const BYTES_MAX: u64 = 16 << 20;

/// How much of a configuration was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    files: usize,
    bytes: u64,
}

impl Budget {
    /// Counts a file of `bytes`, which others include over `depth` levels;
    /// refuses what no configuration has.
    pub fn take(&mut self, path: &str, bytes: usize, depth: usize) -> Result<()> {
        self.files += 1;
        self.bytes += bytes as u64;
        let (why, hint) = match () {
            () if depth > INCLUDE_DEPTH => (
                format!("{path} is included over more than {INCLUDE_DEPTH} levels"),
                "PostgreSQL allows ten levels of include; look for a file that includes itself",
            ),
            () if self.files > FILES_MAX => (
                format!("it comes to more than {FILES_MAX} files, at {path}"),
                "look for files that include each other several times over",
            ),
            () if self.bytes > BYTES_MAX => (
                format!("it comes to more than {BYTES_MAX} bytes, at {path}"),
                "a configuration has some kilobytes; look into that file",
            ),
            () => return Ok(()),
        };
        Err(Error::new(Kind::BadInput, "the cluster's configuration cannot be used").cause(why).hint(hint))
    }
}

/// The settings that a data directory's configuration adds up to.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
    /// The files they come from, relative, postgresql.auto.conf apart.
    pub files: Vec<String>,
    /// Includes that lead out of the directory, as written.
    pub outside: Vec<String>,
    budget: Budget,
}

impl Settings {
    /// Reads postgresql.conf, what it includes, and postgresql.auto.conf.
    pub fn load(tree: &dyn Tree) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.read_file(tree, "postgresql.conf", 0)?;
        if let Some(bytes) = tree.read("postgresql.auto.conf")? {
            settings.take(entries(&Text::decode(bytes).text));
        }
        Ok(settings)
    }

    /// A setting's value, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether a boolean is on, by PostgreSQL's spelling.
    pub fn is_on(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or("off").to_ascii_lowercase();
        !value.is_empty()
            && (value == "on" || value == "1" || "true".starts_with(&value) || "yes".starts_with(&value))
    }

    fn take(&mut self, entries: impl Iterator<Item = Entry>) {
        self.values.extend(entries.map(|e| (e.name, e.value)));
    }

    fn read_file(&mut self, tree: &dyn Tree, path: &str, depth: usize) -> Result<()> {
        let Some(bytes) = tree.read(path)? else {
            return Ok(());
        };
        self.budget.take(path, bytes.len(), depth)?;
        self.files.push(path.to_string());
        for entry in entries(&Text::decode(bytes).text).collect::<Vec<_>>() {
            if !entry.is_include() {
                self.values.insert(entry.name, entry.value);
                continue;
            }
            match within(path, &entry.value) {
                None => self.outside.push(format!("{} '{}' in {path}", entry.name, entry.value)),
                Some(dir) if entry.name == "include_dir" => {
                    for name in sorted_conf(tree.list(&dir)?) {
                        self.read_file(tree, &in_directory(&dir, &name), depth + 1)?;
                    }
                }
                Some(file) => self.read_file(tree, &file, depth + 1)?,
            }
        }
        Ok(())
    }
}

/// The files of an `include_dir` in PostgreSQL's order.
pub fn sorted_conf(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name.ends_with(".conf") && !name.starts_with('.'));
    names.sort();
    names
}

/// The path of a file in a directory, which may be the data directory itself.
pub fn in_directory(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") }
}

/// The path, relative to the data directory, of `target` as written in the
/// file `from`; None if it leads out.
pub fn within(from: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tree::DirTree;
    use super::*;

    fn entry(line: &str) -> Option<(String, String)> {
        parse_line(line).map(|e| (e.name, e.value))
    }

    fn some(name: &str, value: &str) -> Option<(String, String)> {
        Some((name.into(), value.into()))
    }

    #[test]
    fn lines_as_postgres_reads_them() {
        assert_eq!(entry("port = 5432\t\t# (change requires restart)"), some("port", "5432"));
        assert_eq!(entry("  Port 5433"), some("port", "5433"));
        assert_eq!(entry("port=5433#x"), some("port", "5433"));
        assert_eq!(entry("a = 'it''s' # c"), some("a", "it's"));
        assert_eq!(entry(r"a = 'x\\y\'z\101'"), some("a", r"x\y'zA"));
        assert_eq!(entry("cron.x = ''"), some("cron.x", ""));
        assert_eq!(entry("a = 'b\0c' # c"), some("a", "b"), "a byte 0 ends it");
        assert_eq!(entry(r"a = 'b\000c'"), some("a", "b"), "written as an escape, too");
        assert_eq!(entry("include_dir 'conf.d'"), some("include_dir", "conf.d"));
        assert_eq!(entry("shared_buffers = 128MB\r\n"), some("shared_buffers", "128MB"));
        assert_eq!(entry("a =\u{a0}b"), some("a", "\u{a0}b"), "which is no blank");
        for nothing in ["", "# port = 1", "   ", "= 3", "port =", "a = 'open", "1x = 2"] {
            assert_eq!(entry(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn quoting_is_undone_by_parsing() {
        for value in ["", "a", "it's", r"C:\x", "with # and =", "ü", "two\nlines\r"] {
            assert_eq!(quote(value).lines().count(), 1);
            assert_eq!(entry(&format!("x = {}", quote(value))), some("x", value));
        }
    }

    /// A path may have an end of line in it, and must not become a setting.
    #[test]
    fn a_value_stays_on_its_line() {
        let value = "/m/a\nfsync = off\r\n/b\r";
        let quoted = format!("x = {}", quote(value));
        assert_eq!((entry(&quoted), quoted.lines().count()), (some("x", value), 1));
        let text = set_all("a = 1\n", &[("log_directory".into(), value.into())]);
        assert_eq!(entries(&text).map(|e| e.name).collect::<Vec<_>>(), ["a", "log_directory"]);
        let text = edit("include 'x'", |_| Edit::Set(value.into()));
        assert_eq!(entries(&text).map(|e| e.value).collect::<Vec<_>>(), [value]);
    }

    #[test]
    fn edits_touch_only_their_line() {
        let text = "# head\ndata_directory = '/x' # here\nport = 1\ninclude 'a.conf'\nlast = 2";
        let new = edit(text, |e| match e.name.as_str() {
            "data_directory" => Edit::CommentOut,
            "include" => Edit::Set("b.conf".into()),
            _ => Edit::Keep,
        });
        assert_eq!(
            new,
            "# head\n#pgcowfs: data_directory = '/x' # here\nport = 1\ninclude 'b.conf'  #pgcowfs: include 'a.conf'\nlast = 2"
        );
    }

    #[test]
    fn set_all_replaces_every_earlier_line() {
        let text = "# Do not edit\nport = '1'\nwork_mem = '4MB'\nPORT = 2";
        let set = |list: &[(&str, &str)]| {
            let list: Vec<_> = list.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
            set_all(text, &list)
        };
        assert_eq!(set(&[("port", "7")]), "# Do not edit\nwork_mem = '4MB'\nport = '7'\n");
        assert_eq!(set(&[("a", "1"), ("A", "2")]), format!("{text}\nA = '2'\n"));
        assert_eq!(set_all("", &[("a".into(), "it's".into())]), "a = 'it''s'\n");
    }

    #[test]
    fn settings_add_up_over_includes() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        tree.make_dir("conf.d").unwrap();
        tree.write(
            "postgresql.conf",
            b"a=1\nb=1\ninclude_dir 'conf.d'\ninclude_if_exists 'none'\ninclude '/etc/x'\n",
        )
        .unwrap();
        tree.write("conf.d/20.conf", b"a=20\n").unwrap();
        tree.write("conf.d/10.conf", b"a=10\nb=10\n").unwrap();
        tree.write("conf.d/skipped", b"a=0\n").unwrap();
        tree.write("postgresql.auto.conf", b"b = 'auto'\nssl = on").unwrap();
        let settings = Settings::load(&tree).unwrap();
        assert_eq!((settings.get("a"), settings.get("b")), (Some("20"), Some("auto")));
        assert!(settings.is_on("ssl") && !settings.is_on("none"));
        assert_eq!(settings.files, ["postgresql.conf", "conf.d/10.conf", "conf.d/20.conf"]);
        assert_eq!(settings.outside, ["include '/etc/x' in postgresql.conf"]);
        tree.write("conf.d/10.conf", b"include '10.conf'\n").unwrap();
        assert_eq!(Settings::load(&tree).unwrap_err().kind, Kind::BadInput);
    }

    /// Ten files whose lines all include the next one would be read 40^9 times.
    #[test]
    fn includes_do_not_multiply_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        tree.write("postgresql.conf", b"include '0.conf'\n").unwrap();
        for n in 0..9 {
            let next = format!("include '{}.conf'\n", n + 1).repeat(40);
            tree.write(&format!("{n}.conf"), next.as_bytes()).unwrap();
        }
        tree.write("9.conf", b"a = 1\n").unwrap();
        let error = Settings::load(&tree).unwrap_err();
        assert!(error.kind == Kind::BadInput && error.to_string().contains("more than 1000"), "{error}");
        // A missing file that is included is read as often.
        fs::remove_file(dir.path().join("9.conf")).unwrap();
        assert_eq!(Settings::load(&tree).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn no_configuration_is_read_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let tree = DirTree(dir.path().into());
        let refused = || {
            let error = Settings::load(&tree).unwrap_err();
            assert_eq!(error.kind, Kind::BadInput, "{error}");
            error.to_string()
        };
        // Ten levels of ten includes each.
        for level in 0..10 {
            let text = format!("include 'level{}'\n", level + 1).repeat(10);
            let name = if level == 0 { "postgresql.conf".into() } else { format!("level{level}") };
            tree.write(&name, text.as_bytes()).unwrap();
        }
        tree.write("level10", b"").unwrap();
        assert!(refused().contains("1000 files"));
        tree.write("postgresql.conf", &b"include 'large'\n".repeat(5)).unwrap();
        tree.write("large", &vec![b'#'; 4 << 20]).unwrap();
        assert!(refused().contains("bytes, at large"));
        tree.write("large", &vec![b'#'; 17 << 20]).unwrap();
        assert!(refused().contains("large"));
    }

    #[test]
    fn relative_paths() {
        assert_eq!(within("conf.d/a.conf", "../x.conf").as_deref(), Some("x.conf"));
        assert_eq!(within("postgresql.conf", "./a//b"), Some("a/b".into()));
        assert_eq!(within("postgresql.conf", "../x"), None);
        assert_eq!(within("postgresql.conf", "/x"), None);
    }
}
