//! Between the core's types and FUSE's.

use std::time::UNIX_EPOCH;

use super::node;
use super::wire::{Malformed, Stat};
use crate::attr::{Attr, Kind};
use crate::error::Error;
use crate::ids::ForkId;
use crate::stats::Kind as Request;

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

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Refusal {
        Refusal::Mount(libc::EIO)
    }
}

impl Refusal {
    /// The errno for the kernel. What the user cannot have caused is logged:
    /// a process that gets EIO is told nothing more.
    pub fn answer(self, request: Request, node: u64) -> i32 {
        let error = match self {
            Refusal::Mount(errno) => return errno,
            // A request by node id found the fork but not the file: what the
            // kernel knew of it is out of date. It looks the name up again.
            Refusal::Core(Error::NotFound) if !takes_name(request) => Error::Stale,
            Refusal::Core(error) => error,
        };
        let errno = error.errno();
        if errno == libc::EIO {
            match node::parts(node) {
                Some((fork, file)) => {
                    log::error!("{} of file {file} in fork {fork}: {error}", request.name())
                }
                None => log::error!("{}: {error}", request.name()),
            }
        }
        errno
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
pub fn stat(fork: ForkId, attr: &Attr) -> Stat {
    Stat {
        node: node::of(fork, attr.file),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        mode: file_type(attr.kind) | u32::from(attr.perm),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
    }
}

/// A directory about which only its node id is known or wanted: in a listing
/// the kernel looks at nothing else of `.` and `..`.
pub fn bare_directory(node: u64) -> Stat {
    Stat {
        node,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        mode: libc::S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
    }
}

/// The type bits of a mode.
pub fn file_type(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Directory => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

/// Permission, set-id and sticky bits of a mode.
pub fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_stale_and_a_missing_name_is_not() {
        let node = node::of(ForkId(1), crate::ids::FileId(5));
        let not_found = || Refusal::from(Error::NotFound);
        assert_eq!(not_found().answer(Request::Read, node), libc::ESTALE);
        assert_eq!(not_found().answer(Request::Unlink, node), libc::ENOENT);
        assert_eq!(Refusal::Mount(libc::EPERM).answer(Request::Mkdir, node), libc::EPERM);
    }
}
