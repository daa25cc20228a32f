//! The log of a disk: every write and flush in the order in which the disk took them.
//!
//! Two files: `index`, a record of 32 bytes for each event, and `data`, the bytes written. A position in the log is a
//! number of records. The record is there before the disk answers: whoever has seen a flush return finds it in the
//! log by then.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const RECORD_BYTES: usize = 32;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written, which lie at `data` in the file of that name.
    Write { offset: u64, len: u64, data: u64 },
    /// Everything written before is on the disk for good.
    Flush,
    /// A range became zeros.
    Zero { offset: u64, len: u64 },
}

/// The log while it grows.
pub struct Writer {
    index: File,
    data: File,
    data_len: u64,
}

impl Writer {
    /// A new log in `dir`.
    pub fn create(dir: &Path) -> io::Result<Writer> {
        Ok(Writer { index: File::create(index_of(dir))?, data: File::create(dir.join("data"))?, data_len: 0 })
    }

    /// Notes a write.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = self.data_len;
        self.data.write_all_at(bytes, at)?;
        self.data_len += bytes.len() as u64;
        self.record([1, offset, bytes.len() as u64, at])
    }

    /// Notes a flush.
    pub fn flush(&mut self) -> io::Result<()> {
        self.record([2, 0, 0, 0])
    }

    /// Notes a range that became zeros.
    pub fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.record([3, offset, len, 0])
    }

    fn record(&mut self, fields: [u64; 4]) -> io::Result<()> {
        let mut record = [0; RECORD_BYTES];
        for (bytes, field) in record.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        // One call: a reader sees whole records only.
        self.index.write_all(&record)
    }
}

/// The index file of the log in `dir`.
pub fn index_of(dir: &Path) -> PathBuf {
    dir.join("index")
}

/// Records in an index file.
pub fn position(index: &File) -> u64 {
    index.metadata().expect("the log's index").len() / RECORD_BYTES as u64
}

/// A finished log.
pub struct Log {
    /// All events.
    pub events: Vec<Event>,
    data: File,
}

impl Log {
    /// Reads the index of the log in `dir`.
    pub fn open(dir: &Path) -> io::Result<Log> {
        let mut bytes = Vec::new();
        File::open(index_of(dir))?.read_to_end(&mut bytes)?;
        let events = bytes
            .chunks_exact(RECORD_BYTES)
            .map(|record| {
                let mut fields = [0u64; 4];
                for (field, bytes) in fields.iter_mut().zip(record.chunks_exact(8)) {
                    *field = bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
                }
                match fields {
                    [1, offset, len, data] => Ok(Event::Write { offset, len, data }),
                    [2, ..] => Ok(Event::Flush),
                    [3, offset, len, _] => Ok(Event::Zero { offset, len }),
                    other => Err(io::Error::other(format!("no record of a log: {other:?}"))),
                }
            })
            .collect::<io::Result<_>>()?;
        Ok(Log { events, data: File::open(dir.join("data"))? })
    }

    /// The bytes of a write.
    pub fn read(&self, data: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        self.data.read_exact_at(&mut bytes, data)?;
        Ok(bytes)
    }
}
