//! Connection strings of libpq, both kinds: `host=db1 user=app` and
//! `postgresql://app@db1/`. They are handed to PostgreSQL's own programs as they
//! are; here it is only seen whether they carry a secret, and what `pg_basebackup`
//! writes of them for a standby is taken apart.

use crate::error::{Error, Kind, Result};

/// What nobody should write on a command line.
const SECRETS: [&str; 2] = ["password", "sslpassword"];

/// Refuses a connection string with a password in it: every user of the machine sees
/// the command lines of all.
pub fn check(url: &str) -> Result<()> {
    if url.is_empty() || url.contains(['\0', '\n', '\r']) {
        return Err(Error::new(Kind::Usage, "the connection string is empty, or has more than one line")
            .hint("give one such as postgresql://user@host:5432/postgres or \"host=db1 user=repl\""));
    }
    let secret = match uri_rest(url) {
        Some(rest) => uri_has_secret(rest),
        None if url.contains('=') => {
            let options = parse(url).ok_or_else(|| {
                Error::new(Kind::Usage, "the connection string cannot be understood")
                    .cause("it is neither postgresql://... nor a list of keyword=value")
                    .hint("give one such as postgresql://user@host:5432/postgres or \"host=db1 user=repl\"")
            })?;
            options.iter().any(|(name, _)| SECRETS.contains(&name.as_str()))
        }
        None => false,
    };
    match secret {
        false => Ok(()),
        true => Err(Error::new(Kind::Usage, "the connection string has a password in it")
            .cause("command lines are seen by every user of the machine")
            .hint(
                "leave it away; put it into ~/.pgpass (HOST:PORT:*:USER:PASSWORD, mode 0600), or into the \
                 environment as PGPASSWORD or PGPASSFILE",
            )),
    }
}

/// The same connection, and one thing more about it.
pub fn with(url: &str, name: &str, value: &str) -> String {
    match uri_rest(url) {
        Some(rest) => {
            let joint = if rest.contains('?') { '&' } else { '?' };
            format!("{url}{joint}{name}={value}")
        }
        None if url.contains('=') => format!("{url} {name}={}", quote(value)),
        // The name of a database alone.
        None => format!("dbname={} {name}={}", quote(url), quote(value)),
    }
}

/// The pairs of a string of keywords and values; None if it is none.
pub fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace())?;
        let name = Some(&rest[..end]).filter(|name| !name.is_empty())?;
        rest = rest[end..].trim_start().strip_prefix('=')?.trim_start();
        let quoted = rest.starts_with('\'');
        let mut value = String::new();
        let mut chars = rest.char_indices().skip(usize::from(quoted));
        let end = loop {
            match chars.next() {
                None if quoted => return None,
                None => break rest.len(),
                Some((at, '\'')) if quoted => break at + 1,
                Some((at, c)) if !quoted && c.is_ascii_whitespace() => break at,
                Some((_, '\\')) => value.extend(chars.next().map(|(_, c)| c)),
                Some((_, c)) => value.push(c),
            }
        };
        found.push((name.to_string(), value));
        rest = rest[end..].trim_start();
    }
    Some(found)
}

/// A string of keywords and values.
pub fn build(options: &[(String, String)]) -> String {
    let pair = |(name, value): &(String, String)| format!("{name}={}", quote(value));
    options.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn quote(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,*".contains(c);
    match !value.is_empty() && value.chars().all(is_plain) {
        true => value.to_string(),
        false => format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
    }
}

/// Whether a text is a URI, and so no path.
pub fn is_uri(text: &str) -> bool {
    uri_rest(text).is_some()
}

/// The database that a URI names.
pub fn database(uri: &str) -> Option<String> {
    let (_, path, query) = uri_parts(uri);
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let named = pairs.rev().find(|(name, _)| *name == "dbname").map(|(_, value)| decode(value));
    named.or_else(|| Some(decode(path.trim_start_matches('/')))).filter(|name| !name.is_empty())
}

/// The same server's URI with another database.
pub fn with_database(uri: &str, database: &str) -> String {
    let (server, _, query) = uri_parts(uri);
    let others: Vec<&str> = query.split('&').filter(|p| !p.is_empty() && !p.starts_with("dbname=")).collect();
    let query = if others.is_empty() { String::new() } else { format!("?{}", others.join("&")) };
    format!("{server}/{}{query}", crate::meta::escape(database))
}

/// What comes before the path, the path, and the query.
fn uri_parts(uri: &str) -> (&str, &str, &str) {
    let authority = uri.find("://").map_or(0, |at| at + 3);
    let end = uri[authority..].find(['/', '?']).map_or(uri.len(), |at| authority + at);
    let (server, rest) = uri.split_at(end);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    (server, path, query)
}

fn uri_rest(url: &str) -> Option<&str> {
    url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://"))
}

fn uri_has_secret(rest: &str) -> bool {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let in_user = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let names = query.split('&').map(|pair| decode(pair.split('=').next().unwrap_or_default()));
    in_user || names.into_iter().any(|name| SECRETS.contains(&name.as_str()))
}

/// Percent signs taken out; what is none stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_refused() {
        for url in [
            "postgresql://u:p@h/d",
            "postgres://u:@h",
            "postgresql://h?a=b&pass%77ord=x",
            "postgresql://h/d?user=u&password=p",
            "postgresql://h/d?pass%77ord=p",
            "host=h password=p",
            "host = h  password = 'a b'",
            "host=h sslpassword=p",
        ] {
            let error = check(url).unwrap_err();
            assert!(error.kind == Kind::Usage && error.message.contains("password"), "{url}: {error}");
        }
        for url in ["", "a\nb", "host", "host=h user", "host='h", "=x", "user=u host"] {
            let refused = check(url).is_err();
            assert_eq!(refused, url != "host", "{url:?}");
        }
        for url in [
            "postgresql://u@h:5432/d",
            "postgresql://h1:1,h2:2/?target_session_attrs=any",
            "postgresql:///d?host=/var/run/postgresql",
            "postgresql://[::1]:5432/a?host=/x:y",
            "host=h user=u passfile=/x",
            "service=prod",
            "shop",
        ] {
            check(url).unwrap();
        }
    }

    #[test]
    fn databases() {
        for (uri, name) in [
            ("postgresql://db", None),
            ("postgresql://db/", None),
            ("postgresql://db/shop", Some("shop")),
            ("postgresql://u@db:1/a%20b%2Fc?sslmode=require", Some("a b/c")),
            ("postgresql://?host=/run&dbname=x", Some("x")),
            ("postgresql:///100%", Some("100%")),
        ] {
            assert_eq!(database(uri).as_deref(), name, "{uri}");
        }
        assert_eq!(
            with_database("postgresql://u@db:1/old?dbname=x&sslmode=require", "a b"),
            "postgresql://u@db:1/a%20b?sslmode=require"
        );
        assert_eq!(with_database("postgres://db", "x"), "postgres://db/x");
        assert!(is_uri("postgres:///") && !is_uri("/srv/postgresql://x") && !is_uri("shop.dump"));
    }

    #[test]
    fn one_thing_more() {
        assert_eq!(with("postgresql://h/d", "replication", "true"), "postgresql://h/d?replication=true");
        assert_eq!(
            with("postgresql://h/?a=b", "replication", "true"),
            "postgresql://h/?a=b&replication=true"
        );
        assert_eq!(with("host=h", "replication", "true"), "host=h replication=true");
        assert_eq!(with("it's", "replication", "true"), "dbname='it\\'s' replication=true");
    }

    #[test]
    fn taken_apart_and_put_together() {
        let text = r"user=repl passfile='/a b/c' x='it\'s \\' host=h1,h2 e=''";
        let options = parse(text).unwrap();
        assert_eq!(options[1].1, "/a b/c");
        assert_eq!((options[2].1.as_str(), options[4].1.as_str()), (r"it's \", ""));
        assert_eq!(parse(&build(&options)).unwrap(), options);
    }
}
