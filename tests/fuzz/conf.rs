//! postgresql.conf, against a second reader that takes a line apart into tokens
//! as PostgreSQL's does (guc-file.l): what PostgreSQL reads is what we read, and
//! what an edit has set is what PostgreSQL reads.

use super::super::target::{Bytes, piece};
use crate::postgres::conf::{Edit, Entry, edit, entries, parse_line, set_all};
use crate::postgres::tree::Text;

/// Names that an edit sets.
const NAMES: [&str; 4] = ["port", "hba_file", "cron.launch_active_jobs", "include"];

/// A file, and what to do to it.
pub fn run(input: &[u8]) {
    let mut input = Bytes(input);
    let choices = input.piece();
    let (name, value) = (NAMES[usize::from(input.u8()) % NAMES.len()], input.piece());
    let Ok(value) = std::str::from_utf8(value) else { return };
    // No file name and no setting has a byte 0 in it.
    let value = value.replace('\0', "");
    let file = input.0.to_vec();
    let text = Text::decode(file.clone());
    assert_eq!(text.encode(), file);
    let text = &text.text;
    for line in text.split('\n') {
        if let Some((name, value)) = as_postgres(line) {
            let ours = parse_line(line).unwrap_or_else(|| panic!("{name} is not seen in {line:?}"));
            assert_eq!((ours.name, ours.value), (name, value), "{line:?}");
        }
    }
    check_edit(text, choices, &value);
    check_set_all(text, name, &value);
}

/// Each setting is kept, taken out, or changed, and no other is touched.
fn check_edit(text: &str, choices: &[u8], value: &str) {
    assert_eq!(edit(text, |_| Edit::Keep), text);
    let (mut number, mut want) = (0, Vec::new());
    let edited = edit(text, |entry| {
        let choice = choices.get(number).copied().unwrap_or(0) % 3;
        number += 1;
        match choice {
            0 => {
                want.push(entry.clone());
                Edit::Keep
            }
            1 => Edit::CommentOut,
            _ => {
                want.push(Entry { name: entry.name.clone(), value: value.to_string() });
                Edit::Set(value.to_string())
            }
        }
    });
    assert_eq!(entries(&edited).collect::<Vec<_>>(), want, "{text:?}");
    // What nobody has touched may be as wrong as it was; what is new may not.
    let new: Vec<_> = edited.split('\n').filter(|line| !text.split('\n').any(|old| old == *line)).collect();
    for line in new {
        let line = line.trim_matches(BLANK);
        let nothing = line.is_empty() || line.starts_with('#');
        // Nothing that PostgreSQL knows has such a name; it complains as before.
        let nothing = nothing || parse_line(line).is_some_and(|entry| !is_name(&entry.name));
        assert!(nothing || as_postgres(line).is_some(), "PostgreSQL cannot read {line:?}");
    }
}

/// The setting has its value, whatever was there, and the others are as before.
fn check_set_all(text: &str, name: &str, value: &str) {
    let list = [(name.to_string(), "before".to_string()), (name.to_uppercase(), value.to_string())];
    let set = set_all(text, &list);
    let kept = entries(text).filter(|entry| entry.name != name);
    let last = Entry { name: name.into(), value: value.into() };
    assert_eq!(entries(&set).collect::<Vec<_>>(), kept.chain([last]).collect::<Vec<_>>(), "{text:?}");
    let seen = set.split('\n').filter_map(as_postgres).rfind(|(n, _)| n == name);
    assert_eq!(seen, Some((name.to_string(), value.to_string())), "{set:?}");
    assert_eq!(set_all(&set, &list), set, "the second time it changes nothing");
}

/// The setting that PostgreSQL reads in a line; `None` for an empty line and for
/// one that it complains about.
pub fn as_postgres(line: &str) -> Option<(String, String)> {
    let line = line.trim_start_matches(BLANK);
    let name_end = line.find(|c| !in_word(c) && c != '.').unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    // The longest token counts: these go on where a name ends.
    if rest.starts_with(['-', ':', '/']) || !is_name(name) {
        return None;
    }
    let rest = rest.trim_start_matches(BLANK);
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches(BLANK);
    let (value, rest) = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted)?,
        None => {
            let end = rest.find(|c| !in_word(c) && !"-+._:/".contains(c)).unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            (is_bare(value).then(|| value.to_string())?, rest)
        }
    };
    let rest = rest.trim_start_matches(BLANK);
    (rest.is_empty() || rest.starts_with('#')).then(|| (name.to_ascii_lowercase(), value))
}

const BLANK: [char; 3] = [' ', '\t', '\r'];

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii()
}

/// One word, or two with a dot between. (Those that begin with other letters than
/// ASCII's are names of nothing.)
fn is_name(name: &str) -> bool {
    let word = |w: &str| w.starts_with(|c: char| !c.is_ascii_digit()) && w.chars().all(in_word);
    let mut words = name.split('.');
    name.starts_with(|c: char| c.is_ascii())
        && word(words.next().unwrap_or_default())
        && words.next().is_none_or(word)
        && words.next().is_none()
}

/// A value without quotes: a word, or a number with its unit. Two words with one
/// dot are a name, and no value.
fn is_bare(value: &str) -> bool {
    if value.starts_with(|c: char| in_word(c) && !c.is_ascii_digit()) {
        let two_words = value.contains('.') && is_name(value);
        return !value.contains('+') && !two_words;
    }
    let digits = value.strip_prefix(['-', '+']).unwrap_or(value);
    match digits.strip_prefix("0x") {
        Some(hex) => {
            hex.starts_with(|c: char| c.is_ascii_hexdigit()) && hex.bytes().all(|b| b.is_ascii_alphanumeric())
        }
        None => {
            let unit = digits.trim_start_matches(|c: char| c.is_ascii_digit());
            unit.len() < digits.len() && unit.bytes().all(|b| b.is_ascii_alphabetic())
        }
    }
}

/// What a text in quotes stands for, and what follows it. The text ends at a byte
/// 0, for it is C's.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut out, mut rest) = (String::new(), text);
    loop {
        let mut chars = rest.chars();
        let c = chars.next()?;
        rest = chars.as_str();
        match c {
            '\'' => match rest.strip_prefix('\'') {
                Some(after) => {
                    out.push('\'');
                    rest = after;
                }
                None => break,
            },
            '\\' => {
                let escaped = rest.chars().next()?;
                let octal = rest.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                if octal > 0 {
                    let code = u32::from_str_radix(&rest[..octal], 8).ok()? as u8;
                    // What a byte beyond ASCII stands for depends on the file.
                    out.push(code.is_ascii().then_some(code.into())?);
                    rest = &rest[octal..];
                    continue;
                }
                rest = &rest[escaped.len_utf8()..];
                out.push(match escaped {
                    'b' => '\x08',
                    'f' => '\x0c',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                });
            }
            c => out.push(c),
        }
    }
    let end = out.find('\0').unwrap_or(out.len());
    out.truncate(end);
    Some((out, rest))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |choices: &[u8], value: &str, file: &[u8]| {
        [piece(choices), vec![0], piece(value.as_bytes()), file.to_vec()].concat()
    };
    let own = "# Do not edit\ndata_directory = '/x' # here\nport=5433#x\nPORT 1\n  a.b = 'it''s\\n\\101' # c\n\
               include_dir 'conf.d'\nshared_buffers = 128MB\r\nwork_mem -1\nx = on\nlast = 0x1F";
    vec![
        seed(&[0, 1, 2, 0, 1, 2], "/m/pr42/pg_hba.conf", own.as_bytes()),
        seed(&[2, 2], "it's \\ a \"value\" # = ü", b"port = 1\n\n\thba_file = 'gr\xfc\xdfe' # \xe4\n"),
        seed(&[1], "", b""),
    ]
}
