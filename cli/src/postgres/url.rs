//! Connection URLs, as far as they must be looked into: libpq does the rest.

use crate::error::{Error, Kind, Result};

/// Whether a text is one.
pub fn is_url(text: &str) -> bool {
    ["postgresql://", "postgres://"].iter().any(|scheme| text.starts_with(scheme))
}

/// Refuses a URL with a password in it: every user of the machine sees command lines.
pub fn refuse_password(url: &str) -> Result<()> {
    let (authority, rest) = parts(url);
    let in_user = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let names = query.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, _)| unescape(name));
    if !in_user && !names.into_iter().any(|name| ["password", "sslpassword"].contains(&name.as_str())) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "the URL has a password in it")
        .cause("every user of this machine can see it in the list of processes")
        .hint("leave it away, and put it into ~/.pgpass (or PGPASSFILE), or into PGPASSWORD"))
}

/// The database that it names.
pub fn database(url: &str) -> Option<String> {
    let (_, rest) = parts(url);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let pair = query.split('&').filter_map(|pair| pair.split_once('='));
    let named = pair.rev().find(|(name, _)| *name == "dbname").map(|(_, value)| unescape(value));
    named.or_else(|| Some(unescape(path.trim_start_matches('/')))).filter(|name| !name.is_empty())
}

/// The same server's URL with another database.
pub fn with_database(url: &str, database: &str) -> String {
    let scheme = url.find("://").map_or(0, |at| at + 3);
    let (authority, rest) = parts(url);
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let others: Vec<&str> = query.split('&').filter(|p| !p.is_empty() && !p.starts_with("dbname=")).collect();
    let query = if others.is_empty() { String::new() } else { format!("?{}", others.join("&")) };
    format!("{}{authority}/{}{query}", &url[..scheme], escape(database))
}

/// What is between the scheme and the path, and the path with the query.
fn parts(url: &str) -> (&str, &str) {
    let after = url.split_once("://").map_or(url, |(_, after)| after);
    after.split_at(after.find(['/', '?']).unwrap_or(after.len()))
}

fn escape(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        let mut ahead = bytes.clone();
        match (b, hex(ahead.next()), hex(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                bytes = ahead;
            }
            _ => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords() {
        for url in [
            "postgresql://app:secret@db/shop",
            "postgres://app:@db",
            "postgresql://db/shop?password=x",
            "postgresql://db?a=b&pass%77ord=x",
        ] {
            assert_eq!(refuse_password(url).unwrap_err().kind, Kind::Usage, "{url}");
        }
        for url in ["postgresql://app@db:5432/shop", "postgres:///", "postgresql://[::1]:5432/a?host=/x:y"] {
            refuse_password(url).unwrap();
            assert!(is_url(url));
        }
        assert!(!is_url("/srv/postgresql://x") && !is_url("shop.dump"));
    }

    #[test]
    fn databases() {
        for (url, name) in [
            ("postgresql://db", None),
            ("postgresql://db/", None),
            ("postgresql://db/shop", Some("shop")),
            ("postgresql://u@db:1/a%20b%2Fc?sslmode=require", Some("a b/c")),
            ("postgresql://?host=/run&dbname=x", Some("x")),
            ("postgresql:///100%", Some("100%")),
        ] {
            assert_eq!(database(url).as_deref(), name, "{url}");
        }
        assert_eq!(
            with_database("postgresql://u@db:1/old?dbname=x&sslmode=require", "a b"),
            "postgresql://u@db:1/a%20b?sslmode=require"
        );
        assert_eq!(with_database("postgres://db", "x"), "postgres://db/x");
    }
}
