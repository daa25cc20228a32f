//! Between the core's types and FUSE's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use super::node;
use super::requests::Kind as Request;
use crate::attr::{Attr, Kind, SetTime};
use crate::error::Error;
use crate::ids::ForkId;

/// Why a request is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The core's answer.
    Core(Error),
    /// What only the mount knows, as an errno.
    Mount(i32),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal::Core(error)
    }
}

impl Refusal {
    /// The errno for the kernel. What the user cannot have caused is logged:
    /// a process that gets EIO is told nothing more.
    pub fn answer(self, request: Request, node: INodeNo) -> Errno {
        let error = match self {
            Refusal::Mount(errno) => return Errno::from_i32(errno),
            // A request by node id found the fork but not the file: what the
            // kernel knew of it is out of date. It looks the name up again.
            Refusal::Core(Error::NotFound) if !takes_name(request) => Error::Stale,
            Refusal::Core(error) => error,
        };
        let errno = error.errno();
        if errno == libc::EIO {
            match node::parts(node.0) {
                Some((fork, file)) => {
                    log::error!("{} of file {file} in fork {fork}: {error}", request.name())
                }
                None => log::error!("{}: {error}", request.name()),
            }
        }
        Errno::from_i32(errno)
    }
}

/// Whether ENOENT of this request can be about a name.
fn takes_name(request: Request) -> bool {
    use Request::*;
    matches!(
        request,
        Lookup | Create | Mknod | Mkdir | Symlink | Link | Unlink | Rmdir | Rename | Readdir | Readdirplus
    )
}

/// A core file's attributes as FUSE has them.
pub fn file_attr(fork: ForkId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node::of(fork, attr.file)),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        // Not 8 KiB: the kernel takes this as the inode's block size, which
        // its page cache wants to be at most a page.
        blksize: 4096,
        flags: 0,
    }
}

/// A directory about which only its node id is known or wanted: in a listing
/// the kernel looks at nothing else of `.` and `..`.
pub fn bare_directory(node: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// Permission, set-id and sticky bits of a mode.
pub fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// A time stamp to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::To(undo_decoding(time)),
    }
}

/// fuser 0.18.0 decodes a time before 1970, `s` seconds (negative) and `ns`
/// nanoseconds after the epoch, as `|s|` seconds *and* `ns` before it. The one
/// number of seconds that cannot be negated is left out on the way.
fn undo_decoding(time: SystemTime) -> SystemTime {
    let Err(before) = time.duration_since(UNIX_EPOCH) else { return time };
    let off = before.duration();
    UNIX_EPOCH
        .checked_sub(Duration::from_secs(off.as_secs().min(i64::MAX as u64)))
        .and_then(|t| t.checked_add(Duration::from_nanos(off.subsec_nanos().into())))
        .unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970() {
        let meant = UNIX_EPOCH - Duration::new(0, 500_000_000);
        let decoded = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(undo_decoding(decoded), meant);
        let whole = UNIX_EPOCH - Duration::from_secs(7);
        assert_eq!(undo_decoding(whole), whole);
        let first = UNIX_EPOCH - Duration::from_secs(1 << 63);
        assert_eq!(undo_decoding(first), first + Duration::from_secs(1));
        let later = UNIX_EPOCH + Duration::new(7, 9);
        assert_eq!(undo_decoding(later), later);
    }

    #[test]
    fn a_missing_file_is_stale_and_a_missing_name_is_not() {
        let node = INodeNo(node::of(ForkId(1), crate::ids::FileId(5)));
        let not_found = || Refusal::from(Error::NotFound);
        assert_eq!(not_found().answer(Request::Read, node), Errno::ESTALE);
        assert_eq!(not_found().answer(Request::Unlink, node), Errno::ENOENT);
        assert_eq!(Refusal::Mount(libc::EPERM).answer(Request::Mkdir, node), Errno::EPERM);
    }
}
