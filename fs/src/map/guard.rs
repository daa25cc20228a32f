//! The number of the last change that was made durable, in a file beside
//! RocksDB's own.
//!
//! RocksDB's log has no end mark: a damaged record there looks like one that was
//! being written when the power went, and what follows it is dropped. This file
//! tells the two apart. It is written after every commit, into the kernel's page
//! cache only: a killed process loses nothing of it, and a loss of power leaves
//! an older number, which is true as well. So the map may hold more than the
//! file says, and never less.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Its name, within the map's directory. RocksDB leaves names alone that are
/// not its own.
pub const NAME: &str = "COMMITTED";
const MAGIC: &[u8; 8] = b"pgcowcm1";
/// Its length: all within one sector, which a disk writes wholly or not at all.
pub const BYTES: usize = 20;

/// The file, kept open.
pub struct Guard {
    file: File,
    last: Mutex<u64>,
}

/// The file with that number in it.
pub fn encode(number: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The number in a file; `None` if it is damaged.
pub fn decode(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == encode(number)).then_some(number)
}

impl Guard {
    /// The number in `dir`; `None` if there is no such file.
    pub fn read(dir: &Path) -> Result<Option<u64>> {
        let path = dir.join(NAME);
        let mut bytes = Vec::new();
        // One more than it has, to tell a longer one.
        match File::open(&path).and_then(|f| f.take(BYTES as u64 + 1).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        }
        match decode(&bytes) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::Damaged(format!(
                "{}: it does not match its CRC; everything else may be whole",
                path.display()
            ))),
        }
    }

    /// Opens the file in `dir`, or makes it durably with `number` in it.
    pub fn open(dir: &Path, number: u64) -> Result<Guard> {
        let path = dir.join(NAME);
        let error = |e| Error::io(format!("opening {}", path.display()), e);
        let mut options = File::options();
        options.write(true).mode(0o600);
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Under another name first: a file without its contents would
                // be taken for a damaged one.
                let temporary = dir.join(format!("{NAME}.tmp"));
                let file = options.create(true).truncate(true).open(&temporary).map_err(error)?;
                file.write_all_at(&encode(number), 0)
                    .and_then(|()| file.sync_all())
                    .and_then(|()| std::fs::rename(&temporary, &path))
                    .and_then(|()| File::open(dir)?.sync_all())
                    .map_err(error)?;
                file
            }
            Err(e) => return Err(error(e)),
        };
        Ok(Guard { file, last: Mutex::new(0) })
    }

    /// Changes up to `number` are durable.
    pub fn advance(&self, number: u64) {
        let mut last = self.last.lock();
        if number <= *last {
            return;
        }
        match self.file.write_all_at(&encode(number), 0) {
            Ok(()) => *last = number,
            // An older number guards less, and is not wrong.
            Err(e) => log::warn!("{NAME} of the block map: {e}"),
        }
    }

    /// Makes the number durable.
    pub fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(format!("flushing {NAME} of the block map"), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_bytes_and_every_flipped_bit_is_found() {
        let bytes = encode(0x0102_0304);
        assert_eq!(bytes[..16], *b"pgcowcm1\x04\x03\x02\x01\0\0\0\0");
        assert_eq!(u32::from_le_bytes(*bytes.last_chunk().unwrap()), crc32fast::hash(&bytes[..16]));
        assert_eq!(decode(&bytes), Some(0x0102_0304));
        for bit in 0..BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
        for len in 0..BYTES {
            assert_eq!(decode(&bytes[..len]), None);
        }
    }

    #[test]
    fn it_only_rises_and_outlives_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Guard::read(dir.path()).unwrap(), None);
        let guard = Guard::open(dir.path(), 5).unwrap();
        assert_eq!(Guard::read(dir.path()).unwrap(), Some(5));
        guard.advance(9);
        guard.advance(7);
        drop(guard);
        assert_eq!(Guard::read(dir.path()).unwrap(), Some(9));
        Guard::open(dir.path(), 100).unwrap();
        assert_eq!(Guard::read(dir.path()).unwrap(), Some(9), "what is there stays");
    }
}
