//! What a dump that is a directory holds: `pgcowfs-dump.json`, written last. A
//! directory without it is not complete. docs/CLI.md describes it.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use pgcowfs::device::foreign::read_small;
use serde::{Deserialize, Serialize};

use super::staging::checksum;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::Ui;

/// The manifest's name in the directory.
pub const NAME: &str = "pgcowfs-dump.json";
/// What pg_dumpall writes of roles.
pub const GLOBALS: &str = "globals.sql";
/// The directory of the databases' directories.
pub const DATABASES: &str = "databases";

/// Goes up with what a program that knows only this one would get wrong.
pub const VERSION: u32 = 1;

/// A manifest is read as a whole. Each of its files takes some hundred bytes.
const SIZE_MAX: u64 = 256 << 20;

/// What is in front of the manifest's own checksum, and behind it.
const BEFORE_CRC: &str = ",\n  \"manifest_crc32c\": \"";
const AFTER_CRC: &str = "\"\n}\n";

/// What a dump is of, and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// When it was begun, RFC 3339.
    pub made_at: String,
    /// What it is a dump of: a fork, or a server.
    pub source: String,
    /// The server's version, as `server_version` says it.
    pub pg_version: String,
    /// The same as one number, the major one.
    pub pg_major: u32,
    /// The role that initdb made there.
    pub superuser: String,
    /// Whether roles' passwords are in it.
    pub passwords: bool,
    /// Whether there are definitions only.
    pub schema_only: bool,
    /// Patterns of the tables that were chosen; none: all.
    pub tables: Vec<String>,
    /// The databases.
    pub databases: Vec<Database>,
    /// All files but this one.
    pub files: Vec<FileEntry>,
}

/// A database in a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Where it is, from the manifest.
    pub dir: String,
    /// Its encoding.
    pub encoding: String,
    /// Its `LC_COLLATE`.
    pub collate: String,
    /// Its `LC_CTYPE`.
    pub ctype: String,
    /// How many tables with data it has.
    pub tables: u64,
    /// What those took in the server.
    pub bytes: u64,
}

/// A file in a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it is, from the manifest.
    pub path: String,
    /// Its size.
    pub size: u64,
    /// Of all its bytes.
    pub crc32c: u32,
}

impl Manifest {
    /// As the file has it: JSON whose last field is the checksum of all before it.
    pub fn encode(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(Kind::Failed, "cannot write a dump's manifest").cause(e.to_string()))?;
        let body = text.strip_suffix("\n}").unwrap_or(&text);
        Ok(format!("{body}{BEFORE_CRC}{:08x}{AFTER_CRC}", crc32c::crc32c(body.as_bytes())))
    }

    /// From the file's contents.
    pub fn decode(text: &str) -> std::result::Result<Manifest, String> {
        let (body, rest) = text.rsplit_once(BEFORE_CRC).ok_or("its end is missing")?;
        let crc = rest.strip_suffix(AFTER_CRC).ok_or("its end is missing")?;
        if crc != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
            return Err("its checksum does not match".into());
        }
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        match value["version"].as_u64() {
            Some(version) if version > u64::from(VERSION) => {
                return Err(format!("it is of version {version}; this pgcowfs knows {VERSION}"));
            }
            _ => {}
        }
        let manifest: Manifest = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let paths = manifest.files.iter().map(|file| &file.path);
        let dirs = manifest.databases.iter().map(|database| &database.dir);
        match paths.chain(dirs).find(|path| !is_inside(path)) {
            Some(path) => Err(format!("{path:?} leads outside")),
            None => Ok(manifest),
        }
    }

    /// Reads the manifest of a dump.
    pub fn read(dir: &Path) -> Result<Manifest> {
        let path = dir.join(NAME);
        let bytes = read_small(&path, SIZE_MAX).at("read", &path)?;
        Manifest::decode(&String::from_utf8_lossy(&bytes)).map_err(|why| damaged(dir, why, &path))
    }

    /// Reads all files of a dump, and refuses one that is not as it was written.
    pub fn verify(&self, dir: &Path, ui: &Ui) -> Result<()> {
        let mut progress = ui.progress("checking the dump", self.files.iter().map(|f| f.size).sum());
        for entry in &self.files {
            let path = dir.join(&entry.path);
            let mut file = match File::open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(damaged(dir, "a file is missing".into(), &path));
                }
                other => other.at("open", &path)?,
            };
            let size = file.metadata().at("look at", &path)?.len();
            if size != entry.size {
                return Err(damaged(dir, format!("it has {size} bytes, not {}", entry.size), &path));
            }
            if checksum(&mut file).at("read", &path)? != (entry.size, entry.crc32c) {
                return Err(damaged(dir, "its checksum does not match".into(), &path));
            }
            progress.add(size);
        }
        Ok(())
    }
}

fn damaged(dir: &Path, why: String, file: &Path) -> Error {
    Error::new(Kind::BadInput, format!("the dump {} is damaged", dir.display()))
        .cause(format!("{}: {why}", file.display()))
        .hint("take another dump, or another copy of this one")
}

/// Whether a path stays below where it begins.
fn is_inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// A database's directory: its name, with all but the plainest characters escaped.
pub fn directory(database: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-".contains(b);
    let escaped = database.bytes().map(|b| match plain(&b) {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    });
    PathBuf::from(DATABASES).join(escaped.collect::<String>()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        Manifest {
            version: VERSION,
            made_at: "2026-01-02T03:04:05Z".into(),
            source: "fork main".into(),
            pg_version: "15.18".into(),
            pg_major: 15,
            superuser: "postgres".into(),
            passwords: true,
            schema_only: false,
            tables: Vec::new(),
            databases: vec![Database {
                name: "shop".into(),
                dir: "databases/shop".into(),
                encoding: "UTF8".into(),
                collate: "C.UTF-8".into(),
                ctype: "C.UTF-8".into(),
                tables: 2,
                bytes: 8192,
            }],
            files: vec![FileEntry { path: "globals.sql".into(), size: 9, crc32c: 0xe306_9283 }],
        }
    }

    /// What every version must go on to read.
    const GOLDEN: &str = r#"{
  "version": 1,
  "made_at": "2026-01-02T03:04:05Z",
  "source": "fork main",
  "pg_version": "15.18",
  "pg_major": 15,
  "superuser": "postgres",
  "passwords": true,
  "schema_only": false,
  "tables": [],
  "databases": [
    {
      "name": "shop",
      "dir": "databases/shop",
      "encoding": "UTF8",
      "collate": "C.UTF-8",
      "ctype": "C.UTF-8",
      "tables": 2,
      "bytes": 8192
    }
  ],
  "files": [
    {
      "path": "globals.sql",
      "size": 9,
      "crc32c": 3808858755
    }
  ],
  "manifest_crc32c": "7790a2cd"
}
"#;

    #[test]
    fn golden() {
        assert_eq!(sample().encode().unwrap(), GOLDEN);
        assert_eq!(Manifest::decode(GOLDEN).unwrap(), sample());
    }

    #[test]
    fn damage_is_seen() {
        let text = sample().encode().unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::decode(&String::from_utf8_lossy(&bytes)).is_err(), "byte {at}");
            assert!(Manifest::decode(&text[..at]).is_err(), "{at} bytes");
        }
        for (field, path) in [("dir", "../x"), ("dir", "/x"), ("path", ""), ("path", "a/../../b")] {
            let mut manifest = sample();
            match field {
                "dir" => manifest.databases[0].dir = path.into(),
                _ => manifest.files[0].path = path.into(),
            }
            assert!(Manifest::decode(&manifest.encode().unwrap()).unwrap_err().contains("outside"));
        }
        let newer = Manifest { version: VERSION + 1, ..sample() };
        assert!(Manifest::decode(&newer.encode().unwrap()).unwrap_err().contains("version 2"));
    }

    #[test]
    fn directories_of_databases() {
        assert_eq!(directory("shop"), "databases/shop");
        assert_eq!(directory("../a b"), "databases/%2E%2E%2Fa%20b");
        assert_eq!(directory("é%"), "databases/%C3%A9%25");
    }
}
