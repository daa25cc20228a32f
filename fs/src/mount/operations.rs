//! FUSE's operations: each decodes its request, calls the core, and replies.
//!
//! What the kernel does by itself, so that nothing here has to:
//! - It checks permissions (`default_permissions`) and applies the umask.
//! - It drops set-id bits on write, truncate and chown by asking for the
//!   change of mode (no HANDLE_KILLPRIV), and set-group-id on chmod by one who
//!   is not in the group.
//! - It keeps `flock` and `fcntl` locks (no FLOCK_LOCKS, no POSIX_LOCKS).
//! - It turns a write to a file opened with O_SYNC or O_DSYNC into the write
//!   and an FSYNC, and O_TRUNC into a SETATTR (no ATOMIC_O_TRUNC, with which it
//!   would leave the set-id bits to us).
//! - It forgets what its own requests outdate: size and times of a file that
//!   was written, attributes of a directory whose entries changed, and the
//!   cached pages of a range that was truncated, punched, zeroed or the
//!   target of `copy_file_range`. So none of them needs a notification.
//!
//! Reads of a file that is written only through this mount thus stay cached
//! for good: FOPEN_KEEP_CACHE over opens, EXPLICIT_INVAL_DATA over writes.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{Refusal, bare_directory, file_attr, perm, set_time};
use super::negotiate::negotiate;
use super::requests::Kind;
use super::server::{Answer, FORK_NAME, IN_FORK, Server, TOP_ATTR, empty};
use crate::attr::{Kind as FileKind, Make, RenameMode, Seek, SetAttr};
use crate::error::Error;

/// Files are told apart by node id alone, so a handle has nothing to say.
const NO_HANDLE: FileHandle = FileHandle(0);

/// A node id never stands for a second file.
const GENERATION: Generation = Generation(0);

const STATFS_BLOCK: u64 = 4096;

thread_local! {
    /// The data of the READ being answered by this thread.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, self.plain);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.serve(Kind::Lookup, parent, || match self.find(parent)? {
            None => Ok((self.fork_by_name(name)?, FORK_NAME)),
            Some((fork, dir)) => match fork.lookup(dir, name.as_bytes()) {
                Ok(attr) => Ok((file_attr(fork.id(), &attr), IN_FORK)),
                // Node id 0: the kernel remembers that there is no such name.
                // PostgreSQL asks again and again for files that never come,
                // such as the visibility maps of small tables.
                Err(Error::NotFound) => Ok((bare_directory(0), IN_FORK)),
                Err(error) => Err(error.into()),
            },
        });
        match found {
            Ok((attr, name_ttl)) => reply.entry_with_ttls(&IN_FORK, &name_ttl, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.counters.add(Kind::Forget);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.serve(Kind::Getattr, ino, || match self.find(ino)? {
            None => Ok((self.top_attr(), TOP_ATTR)),
            Some((fork, file)) => Ok((file_attr(fork.id(), &fork.attr(file)?), IN_FORK)),
        });
        match attr {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attr = self.serve(Kind::Setattr, ino, || {
            let (fork, file) = self.file(ino)?;
            let set = SetAttr {
                perm: mode.map(perm),
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
            };
            Ok(file_attr(fork.id(), &fork.set_attr(file, set)?))
        });
        match attr {
            Ok(attr) => reply.attr(&IN_FORK, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.serve(Kind::Readlink, ino, || {
            let (fork, file) = self.file(ino)?;
            Ok(fork.read_link(file)?)
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let what = match mode & libc::S_IFMT {
            libc::S_IFREG => Ok(Make::File),
            libc::S_IFIFO => Ok(Make::Node(FileKind::Fifo, 0)),
            libc::S_IFSOCK => Ok(Make::Node(FileKind::Socket, 0)),
            libc::S_IFCHR => Ok(Make::Node(FileKind::CharDevice, rdev)),
            libc::S_IFBLK => Ok(Make::Node(FileKind::BlockDevice, rdev)),
            _ => Err(Refusal::Mount(libc::EINVAL)),
        };
        entry(reply, self.serve(Kind::Mknod, parent, || self.made(request, parent, name, what?, mode)));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made =
            self.serve(Kind::Mkdir, parent, || self.made(request, parent, name, Make::Directory, mode));
        entry(reply, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.serve(Kind::Unlink, parent, || {
            let (fork, dir) = self.file(parent)?;
            Ok(fork.unlink(dir, name.as_bytes())?)
        });
        empty(reply, done);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.serve(Kind::Rmdir, parent, || {
            let (fork, dir) = self.file(parent)?;
            Ok(fork.rmdir(dir, name.as_bytes())?)
        });
        empty(reply, done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let what = Make::Symlink(target.as_os_str().as_bytes().to_vec());
        entry(reply, self.serve(Kind::Symlink, parent, || self.made(request, parent, name, what, 0o777)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.serve(Kind::Rename, parent, || {
            let mode = if flags.is_empty() {
                RenameMode::Replace
            } else if flags == RenameFlags::RENAME_NOREPLACE {
                RenameMode::NoReplace
            } else if flags == RenameFlags::RENAME_EXCHANGE {
                RenameMode::Exchange
            } else {
                return Err(Refusal::Mount(libc::EINVAL));
            };
            let (fork, dir, new_dir) = self.two_files(parent, new_parent)?;
            Ok(fork.rename(dir, name.as_bytes(), new_dir, new_name.as_bytes(), mode)?)
        });
        empty(reply, done);
    }

    fn link(&self, _: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let linked = self.serve(Kind::Link, ino, || {
            let (fork, file, dir) = self.two_files(ino, new_parent)?;
            Ok(file_attr(fork.id(), &fork.link(file, dir, new_name.as_bytes())?))
        });
        entry(reply, linked);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.serve(Kind::Open, ino, || {
            let (fork, file) = self.file(ino)?;
            Ok(fork.open(file)?)
        });
        match opened {
            Ok(()) => reply.opened(NO_HANDLE, self.open_flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.serve(Kind::Create, parent, || {
            let (fork, attr) = match self.make(request, parent, name, Make::File, mode) {
                // The kernel asks only for names that it believes free. Looking
                // the name up afresh, it then opens what is there.
                Err(Refusal::Core(Error::Exists)) if flags & libc::O_EXCL == 0 => {
                    return Err(Error::Stale.into());
                }
                made => made?,
            };
            fork.open(attr.file)?;
            Ok(file_attr(fork.id(), &attr))
        });
        match created {
            Ok(attr) => reply.created(&IN_FORK, &attr, GENERATION, NO_HANDLE, self.open_flags),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            let read = self.serve(Kind::Read, ino, || {
                let (fork, file) = self.file(ino)?;
                Ok(fork.read(file, offset, size as usize, buffer)?)
            });
            match read {
                Ok(()) => {
                    self.counters.add_read_bytes(buffer.len());
                    reply.data(buffer);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.serve(Kind::Write, ino, || {
            let (fork, file) = self.file(ino)?;
            Ok(fork.write(file, offset, data)?)
        });
        match written {
            Ok(()) => {
                self.counters.add_write_bytes(data.len());
                // A WRITE has at most a mebibyte.
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let done = self.serve(Kind::Release, ino, || {
            let (fork, file) = self.file(ino)?;
            fork.release(file);
            Ok(())
        });
        empty(reply, done);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.sync(Kind::Fsync, ino, data_only, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.sync(Kind::Fsyncdir, ino, data_only, reply);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.serve(Kind::Opendir, ino, || {
            self.find(ino)?;
            Ok(FileHandle(self.directories.open()))
        });
        match opened {
            Ok(handle) => reply.opened(handle, fuser::FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing =
            self.serve(Kind::Readdir, ino, || self.directories.listing(fh.0, offset == 0, || self.list(ino)));
        let listing = match listing {
            Ok(listing) => listing,
            Err(errno) => return reply.error(errno),
        };
        for (next, entry) in (1u64..).zip(listing.iter()).skip(skipped(offset)) {
            if reply.add(INodeNo(entry.node), next, entry.kind, OsStr::from_bytes(&entry.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.serve(Kind::Readdirplus, ino, || {
            let listing = self.directories.listing(fh.0, offset == 0, || self.list(ino))?;
            let place = self.find(ino)?;
            for (next, entry) in (1u64..).zip(listing.iter()).skip(skipped(offset)) {
                let Some((attr, ttl)) = self.look_up_listed(&place, entry)? else { continue };
                if reply.add(attr.ino, next, OsStr::from_bytes(&entry.name), &ttl, &attr, GENERATION) {
                    break;
                }
            }
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.counters.add(Kind::Releasedir);
        self.directories.close(fh.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let space = self.serve(Kind::Statfs, ino, || {
            let fork = self.find(ino)?.map(|(fork, _)| fork);
            Ok(self.store.space(fork.as_deref())?)
        });
        match space {
            Ok(space) => reply.statfs(
                space.total / STATFS_BLOCK,
                space.available / STATFS_BLOCK,
                space.available / STATFS_BLOCK,
                space.files,
                space.files_free,
                STATFS_BLOCK as u32,
                libc::NAME_MAX as u32,
                STATFS_BLOCK as u32,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.serve(Kind::Fallocate, ino, || {
            let (fork, file) = self.file(ino)?;
            fork.fallocate(file, mode, offset, length)?;
            self.drop_set_id(request, &fork, file)
        });
        empty(reply, done);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.serve(Kind::Lseek, ino, || {
            let (fork, file) = self.file(ino)?;
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Refusal::Mount(libc::EINVAL)),
            };
            let offset = u64::try_from(offset).map_err(|_| Error::NoData)?;
            let found = fork.seek(file, offset, what)?;
            i64::try_from(found).map_err(|_| Refusal::Mount(libc::EOVERFLOW))
        });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    /// From one fork to another: EXDEV, whereupon the kernel copies by itself.
    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.copy((ino_in, offset_in), (ino_out, offset_out), len, reply);
    }

    // What is not offered. ENOSYS tells the kernel not to ask again: it keeps
    // locks, polls and closes by itself, and answers EOPNOTSUPP for extended
    // attributes. (Otherwise it would ask for the attribute
    // "security.capability" before each write.)

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(self.not_offered(Kind::Flush));
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(self.not_offered(Kind::Access));
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(self.not_offered(Kind::Setxattr));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(self.not_offered(Kind::Getxattr));
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(self.not_offered(Kind::Listxattr));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.not_offered(Kind::Removexattr));
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _type: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(self.not_offered(Kind::Getlk));
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _type: i32,
        _pid: u32,
        _wait: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(self.not_offered(Kind::Setlk));
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(self.not_offered(Kind::Bmap));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.counters.add(Kind::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(self.not_offered(Kind::Poll));
    }
}

fn entry(reply: ReplyEntry, made: Answer<FileAttr>) {
    match made {
        Ok(attr) => reply.entry(&IN_FORK, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// How many entries of a listing an offset has gone past: an entry's offset
/// is its position, counted from 1.
fn skipped(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
