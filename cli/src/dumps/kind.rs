//! What kind of dump a path is, by its first bytes: one of ours, one of pg_dump's
//! archives, or a script of pg_dump's or pg_dumpall's.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::manifest;
use crate::error::{Context, Error, Kind, Result};

/// So much of a script's beginning says what it is, and so much of its end whether that
/// is there.
const HEAD: u64 = 1 << 20;
const TAIL: u64 = 4 << 10;

/// A kind of dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpKind {
    /// A directory of `pgcowfs dump`'s.
    Ours,
    /// Something for pg_restore: its custom, directory or tar format.
    Archive,
    /// SQL.
    Script(Script),
}

/// What a script says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The major version of the server that it comes from.
    pub server: Option<u32>,
    /// That of the pg_dump that has written it.
    pub pg_dump: Option<u32>,
}

/// Looks at a dump.
pub fn look(path: &Path) -> Result<DumpKind> {
    let meta = fs::metadata(path).at("look at", path)?;
    if meta.is_dir() {
        return match (path.join(manifest::NAME).exists(), path.join("toc.dat").exists()) {
            (true, _) => Ok(DumpKind::Ours),
            (false, true) => Ok(DumpKind::Archive),
            (false, false) => Err(no_dump(path, "the directory has neither pgcowfs-dump.json nor toc.dat")),
        };
    }
    if !meta.is_file() {
        return Err(no_dump(path, "it is neither a file nor a directory"));
    }
    let mut file = File::open(path).at("open", path)?;
    let mut head = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut head).at("read", path)?;
    file.seek(SeekFrom::Start(meta.len().saturating_sub(TAIL))).at("read", path)?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).at("read", path)?;
    of_bytes(path, &head, &tail)
}

fn of_bytes(path: &Path, head: &[u8], tail: &[u8]) -> Result<DumpKind> {
    if head.is_empty() {
        return Err(no_dump(path, "it is empty"));
    }
    // A tar file's first member has its name at the beginning, and the magic in its header.
    if head.starts_with(b"PGDMP")
        || (head.starts_with(b"toc.dat\0") && head.get(257..262).is_some_and(|magic| magic == b"ustar"))
    {
        return Ok(DumpKind::Archive);
    }
    let packed: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gunzip"),
        (b"\x28\xb5\x2f\xfd", "unzstd"),
        (b"\xfd7zXZ", "unxz"),
        (b"BZh", "bunzip2"),
        (b"\x04\x22\x4d\x18", "unlz4"),
    ];
    if let Some((_, program)) = packed.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(no_dump(path, "it is compressed as a whole")
            .hint(format!("unpack it first: {program} {}", path.display())));
    }
    let text = String::from_utf8_lossy(head);
    let title = |line: &str| line.starts_with("-- PostgreSQL database ");
    let begins = text.lines().take(20).any(|line| title(line) && line.ends_with("dump"));
    if !begins || head.contains(&0) {
        return Err(no_dump(path, "it does not begin as pg_dump's and pg_dumpall's files do"));
    }
    let tail = String::from_utf8_lossy(tail);
    if !tail.lines().any(|line| title(line) && line.ends_with("dump complete")) {
        return Err(no_dump(path, "its end is missing: the last lines do not say that it is complete"));
    }
    let version = |what: &str| text.lines().find_map(|line| major(line.strip_prefix(what)?));
    Ok(DumpKind::Script(Script {
        server: version("-- Dumped from database version "),
        pg_dump: version("-- Dumped by pg_dump version "),
    }))
}

/// 15 from `15.18 (Debian 15.18-0+deb12u1)`, 9 from `9.6.24`.
pub fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

fn no_dump(path: &Path, why: &str) -> Error {
    Error::new(Kind::BadInput, format!("{} is no whole dump of PostgreSQL", path.display()))
        .cause(why)
        .hint("give what `pgcowfs dump`, pg_dump or pg_dumpall has made")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(head: &[u8]) -> Result<DumpKind> {
        of_bytes(Path::new("x"), head, head)
    }

    #[test]
    fn archives() {
        assert_eq!(of(b"PGDMP\x01\x0e\x00").unwrap(), DumpKind::Archive);
        let mut tar = [0; 512];
        tar[..7].copy_from_slice(b"toc.dat");
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(of(&tar).unwrap(), DumpKind::Archive);
        tar[..7].copy_from_slice(b"toc.txt");
        assert!(of(&tar).is_err());
    }

    #[test]
    fn scripts() {
        let script = "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\n\
                      -- Dumped from database version 13.4 (Debian 13.4-1)\n\
                      -- Dumped by pg_dump version 15.18\n\nSELECT 1;\n";
        assert!(of(script.as_bytes()).unwrap_err().causes[0].contains("end is missing"));
        let whole = format!("{script}--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n");
        let script = Script { server: Some(13), pg_dump: Some(15) };
        assert_eq!(of(whole.as_bytes()).unwrap(), DumpKind::Script(script));
        let cluster =
            "--\n-- PostgreSQL database cluster dump\n--\n\n-- PostgreSQL database cluster dump complete\n";
        assert_eq!(of(cluster.as_bytes()).unwrap(), DumpKind::Script(Script::default()));
    }

    #[test]
    fn anything_else() {
        for bytes in [&b""[..], b"\x1f\x8b\x08", b"-- MySQL dump 10.13\n", b"\x7fELF", b"PGDM", b"SELECT 1;"]
        {
            let error = of(bytes).unwrap_err();
            assert!(error.kind == Kind::BadInput && error.hint.is_some(), "{bytes:?}");
        }
    }
}
