//! The file `STORE`: what a directory is, in which format, and its identity.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::map::schema::STORE_VERSION;

/// Its name in the store's directory.
pub const NAME: &str = "STORE";
/// Its length.
pub const BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"pgcowfs\n";

pub(super) fn bad_store(path: &Path, reason: impl Into<String>) -> Error {
    Error::BadStore { path: path.to_path_buf(), reason: reason.into() }
}

/// The file of the store with that id.
pub fn encode(id: &[u8; 16]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&STORE_VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(id);
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The id of the store, and the version of its format, which is known; or why
/// this program cannot use it.
pub fn decode(bytes: &[u8]) -> Result<([u8; 16], u32), String> {
    let (Some(head), Some(version)) = (bytes.first_chunk::<8>(), bytes.get(8..12)) else {
        return Err("it is too short to be a STORE file".into());
    };
    if head != MAGIC {
        return Err("it is not a STORE file".into());
    }
    let version = version.iter().rev().fold(0u32, |n, &b| n << 8 | u32::from(b));
    if !(1..=STORE_VERSION).contains(&version) {
        return Err(format!(
            "the store has format {version}, written by a newer program; this one knows formats up to {STORE_VERSION}"
        ));
    }
    let intact = bytes.len() == BYTES && bytes[28..] == crc32fast::hash(&bytes[..28]).to_le_bytes();
    match bytes.get(12..28).and_then(|id| id.try_into().ok()) {
        Some(id) if intact => Ok((id, version)),
        _ => Err("it is damaged".into()),
    }
}

/// Reads it: the id and the version.
pub fn read(dir: &Path) -> Result<([u8; 16], u32)> {
    let path = dir.join(NAME);
    let read = || {
        let file =
            File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path)?;
        let mut bytes = Vec::new();
        // One more than it has, to tell a longer one.
        file.take(BYTES as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    match read() {
        Ok(bytes) => decode(&bytes).map_err(|reason| bad_store(&path, reason)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => {
            Err(bad_store(dir, "this directory is not a pgcowfs store: it has no STORE file"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(bad_store(dir, "there is no store here")),
        Err(e) => Err(bad_store(&path, e.to_string())),
    }
}

/// Writes that of this format, in one step.
pub fn write(dir: &Path, id: &[u8; 16]) -> Result<()> {
    let temporary = dir.join("STORE.tmp");
    let write = || {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        let mut file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&temporary)?;
        file.write_all(&encode(id))?;
        file.sync_all()?;
        std::fs::rename(&temporary, dir.join(NAME))?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| Error::io("writing STORE.tmp", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_bytes_and_refuses_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let bytes = encode(&[0xab; 16]);
        assert_eq!(&bytes[..12], b"pgcowfs\n\x03\0\0\0");
        assert_eq!(bytes[12..28], [0xab; 16]);
        assert_eq!(u32::from_le_bytes(*bytes.last_chunk().unwrap()), 152_447_348);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(dir.path()).unwrap(), ([0xab; 16], 3));
        let mut older = bytes;
        for version in 1..STORE_VERSION {
            older[8] = version as u8;
            let crc = crc32fast::hash(&older[..28]);
            older[28..].copy_from_slice(&crc.to_le_bytes());
            std::fs::write(&path, older).unwrap();
            assert_eq!(read(dir.path()).unwrap(), ([0xab; 16], version));
        }
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(dir.path()).unwrap_err().to_string()
        };
        let mut newer = bytes;
        newer[8] = 4;
        assert!(refused(&newer).contains("format 4, written by a newer program"));
        for bit in 12 * 8..BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&bad).contains("damaged"), "bit {bit}");
        }
        assert!(refused(b"short").contains("too short"));
        assert!(refused(&[0; 32]).contains("not a STORE file"));
        std::fs::remove_file(&path).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("no STORE file"));
    }
}
