//! Everything that can go wrong in the core, and the one place that turns it
//! into an errno.

use std::io;
use std::path::PathBuf;

/// The result of a core operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the store or of one of its forks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No entry of that name, or no file of that id.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("file exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A file name over 255 bytes.
    #[error("file name too long")]
    NameTooLong,
    /// An argument that the operation cannot take.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// More than `LINK_MAX` names for one file.
    #[error("too many links")]
    TooManyLinks,
    /// Beyond the largest file size.
    #[error("file too large")]
    TooLarge,
    /// No data or hole beyond the offset (`lseek`).
    #[error("no data at or after that offset")]
    NoData,
    /// An operation this file system does not offer.
    #[error("operation not supported")]
    Unsupported,
    /// Two forks in one operation.
    #[error("the files are in different forks")]
    CrossFork,
    /// The file's fork has been removed.
    #[error("the fork has been removed")]
    Stale,
    /// The host's disk has no room.
    #[error("no space left on the store's disk")]
    NoSpace,
    /// The fork's quota is used up.
    #[error("the fork's quota is used up")]
    Quota,
    /// A flush of this fork failed earlier; nothing more is accepted from it.
    #[error("fork {0:?} stopped after a failed flush: {1}")]
    Poisoned(String, String),
    /// A host file of which an earlier flush has failed: nobody knows what of
    /// it is on the disk.
    #[error("an earlier flush failed: {0}")]
    FlushFailed(String),
    /// Stored bytes that are not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A base directory that changed underneath.
    #[error("base file {path} changed: {what}")]
    BaseChanged {
        /// The file, absolute.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// The host refused an operation on a file of the store.
    #[error("{context}: {source}")]
    Io {
        /// What was tried, on which file.
        context: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The block map's database failed.
    #[error("block map: {0}")]
    Map(String),
    /// No fork of that name.
    #[error("there is no fork {0:?}")]
    NoSuchFork(String),
    /// A fork of that name exists.
    #[error("a fork {0:?} exists already")]
    ForkExists(String),
    /// No snapshot of that label.
    #[error("fork {0:?} has no snapshot {1:?}")]
    NoSuchSnapshot(String, String),
    /// A snapshot of that label exists.
    #[error("fork {0:?} has a snapshot {1:?} already")]
    SnapshotExists(String, String),
    /// A fork that was not made from another one, or nobody knows from what.
    #[error("fork {0:?} was made from no other fork")]
    NoOrigin(String),
    /// A name that cannot be a fork's.
    #[error("{name:?} cannot be a fork's name: {reason}")]
    BadForkName {
        /// The name as given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A label that cannot be a snapshot's.
    #[error("{label:?} cannot be a snapshot's label: {reason}")]
    BadLabel {
        /// The label as given.
        label: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Not a store, or not one this program can use.
    #[error("{path}: {reason}")]
    BadStore {
        /// The store's directory.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// Another process has the store open.
    #[error("{path}: the store is in use by process {pid}")]
    StoreBusy {
        /// The store's directory.
        path: PathBuf,
        /// The process that holds its lock; 0 if unknown.
        pid: i32,
    },
    /// A directory that cannot be a base.
    #[error("{path}: {reason}")]
    BadBase {
        /// The directory or file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
}

impl Error {
    /// Wraps a host error, keeping ENOSPC and EDQUOT recognisable.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace,
            _ => Error::Io { context: context.into(), source },
        }
    }

    /// Whether only space is missing: the operation is refused, and nothing is
    /// wrong with the store.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::NoSpace | Error::Quota)
    }

    /// The errno that the kernel gets for this error.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound | Error::NoSuchFork(_) | Error::NoSuchSnapshot(..) => libc::ENOENT,
            Error::Exists | Error::ForkExists(_) | Error::SnapshotExists(..) => libc::EEXIST,
            Error::NotDirectory => libc::ENOTDIR,
            Error::IsDirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::Invalid(_) | Error::BadForkName { .. } | Error::BadLabel { .. } | Error::NoOrigin(_) => {
                libc::EINVAL
            }
            Error::TooManyLinks => libc::EMLINK,
            Error::TooLarge => libc::EFBIG,
            Error::NoData => libc::ENXIO,
            Error::Unsupported => libc::EOPNOTSUPP,
            Error::CrossFork => libc::EXDEV,
            Error::Stale => libc::ESTALE,
            // PostgreSQL knows ENOSPC ("disk full", SQLSTATE 53100); EDQUOT is an
            // internal error to it.
            Error::NoSpace | Error::Quota => libc::ENOSPC,
            Error::StoreBusy { .. } => libc::EBUSY,
            Error::Poisoned(..)
            | Error::FlushFailed(_)
            | Error::Damaged(_)
            | Error::BaseChanged { .. }
            | Error::Io { .. }
            | Error::Map(_)
            | Error::BadStore { .. }
            | Error::BadBase { .. } => libc::EIO,
        }
    }
}
