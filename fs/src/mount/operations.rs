//! FUSE's operations: each takes its request apart, calls the core, and writes
//! its answer.
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

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::convert::{Refusal, bare_directory, perm, stat};
use super::server::{CLOSED, FORK_NAME, IN_FORK, Outcome, Place, Server, TOP_ATTR, file};
use super::wire::{Body, FSYNC_FDATASYNC, Malformed, Message, fattr, opcode, time};
use crate::attr::{Kind as FileKind, Make, RenameMode, Seek, SetAttr, SetTime};
use crate::error::Error;
use crate::forks::Fork;
use crate::ids::FileId;
use crate::stats::Kind;

/// Files are told apart by node id alone, so a handle has nothing to say.
const NO_HANDLE: u64 = 0;

const STATFS_BLOCK: u64 = 4096;

/// One COPY_FILE_RANGE copies at most this; the caller asks again for the rest.
const COPY_BYTES: u64 = 64 << 20;

impl Server {
    /// Does what a request asks for. What a READ has read goes to `room`, for it may be
    /// much, and its length is returned; the body of any other answer goes to `body`,
    /// which is empty. An errno refuses. `None`: the kernel waits for no answer.
    fn answer(&self, request: &Message, body: &mut Vec<u8>, room: &mut [u8]) -> Option<Result<usize, i32>> {
        let Some(kind) = kind(request.opcode()) else {
            return match request.opcode() {
                // No file system can undo what it has begun.
                opcode::INTERRUPT => None,
                opcode::DESTROY => Some(Ok(0)),
                _ => Some(Err(libc::ENOSYS)),
            };
        };
        let begun = Instant::now();
        if kind == Kind::Forget {
            self.store.stats().served(kind, begun.elapsed());
            return None;
        }
        let open = self.open.read();
        let (place, done) = match (*open).then(|| self.find(request.node())) {
            Some(Ok(place)) => {
                let done = self.carry_out(kind, request, Ok(&place), body, room);
                (place, done)
            }
            Some(Err(refusal)) => (None, self.carry_out(kind, request, Err(refusal), body, room)),
            None => (None, Err(CLOSED)),
        };
        let done = done.map_err(|refusal| {
            body.clear();
            refusal.answer(kind, request.node())
        });
        let took = begun.elapsed();
        self.store.stats().served(kind, took);
        if let Some((fork, _)) = &place {
            fork.stats().served(kind, took);
        }
        Some(done)
    }

    /// [`Server::answer`], with an empty `body`; a panic there is answered with EIO, and
    /// whoever asked does not wait for ever.
    pub fn serve(
        &self,
        request: &Message,
        body: &mut Vec<u8>,
        room: &mut [u8],
    ) -> Option<Result<usize, i32>> {
        body.clear();
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer(request, body, room)));
        answered.unwrap_or_else(|_| {
            log::error!("operation {} of node {} panicked", request.opcode(), request.node());
            body.clear();
            Some(Err(libc::EIO))
        })
    }

    /// `place` is what the request's node id stands for, or why it stands for nothing,
    /// which matters only to those who look at it. Returns how much is in `room`.
    fn carry_out(
        &self,
        kind: Kind,
        request: &Message,
        place: Outcome<&Place>,
        body: &mut Vec<u8>,
        room: &mut [u8],
    ) -> Outcome<usize> {
        match kind {
            Kind::Read => self.read(request, file(place)?, room),
            _ => self.operate(kind, request, place, body).map(|()| 0),
        }
    }

    fn read(&self, request: &Message, (fork, file): (&Fork, FileId), room: &mut [u8]) -> Outcome<usize> {
        let wanted = request.u32(16)? as usize;
        // The kernel was told how much it may ask for.
        let room = room.get_mut(..wanted).ok_or(Refusal::Mount(libc::EIO))?;
        let read = fork.read_into(file, request.u64(8)?, room)?;
        fork.count(|amounts| &amounts.read_bytes, read as u64);
        Ok(read)
    }

    fn operate(
        &self,
        kind: Kind,
        request: &Message,
        place: Outcome<&Place>,
        bytes: &mut Vec<u8>,
    ) -> Outcome<()> {
        let mut body = Body(bytes);
        match kind {
            Kind::Write => {
                let (fork, file) = file(place)?;
                let size = request.u32(16)?;
                fork.write(file, request.u64(8)?, request.data(size as usize)?)?;
                fork.count(|amounts| &amounts.write_bytes, size.into());
                body.u32(size).u32(0);
            }
            Kind::Fsync | Kind::Fsyncdir => {
                // A fork is durable before it is listed in the top directory.
                if let Some((fork, file)) = place? {
                    fork.sync(*file, request.u32(8)? & FSYNC_FDATASYNC != 0)?;
                }
            }
            Kind::Getattr => {
                match place? {
                    None => body.attr(TOP_ATTR, &self.top_attr()),
                    Some((fork, file)) => body.attr(IN_FORK, &stat(fork.id(), &fork.attr(*file)?)),
                };
            }
            Kind::Lookup => self.lookup(request, place?, &mut body)?,
            Kind::Setattr => self.setattr(request, file(place)?, &mut body)?,
            Kind::Readlink => {
                let (fork, file) = file(place)?;
                body.0.extend_from_slice(&fork.read_link(file)?);
            }
            Kind::Mknod => {
                let what = match request.u32(0)? & libc::S_IFMT {
                    libc::S_IFREG => Make::File,
                    libc::S_IFIFO => Make::Node(FileKind::Fifo, 0),
                    libc::S_IFSOCK => Make::Node(FileKind::Socket, 0),
                    libc::S_IFCHR => Make::Node(FileKind::CharDevice, request.u32(4)?),
                    libc::S_IFBLK => Make::Node(FileKind::BlockDevice, request.u32(4)?),
                    _ => return Err(Refusal::Mount(libc::EINVAL)),
                };
                let made = self.made(request, file(place)?, request.name()?, what, request.u32(0)?)?;
                body.entry(IN_FORK, IN_FORK, &made);
            }
            Kind::Mkdir => {
                let made =
                    self.made(request, file(place)?, request.name()?, Make::Directory, request.u32(0)?)?;
                body.entry(IN_FORK, IN_FORK, &made);
            }
            Kind::Symlink => {
                let (name, target) = request.two_names()?;
                let made = self.made(request, file(place)?, name, Make::Symlink(target.to_vec()), 0o777)?;
                body.entry(IN_FORK, IN_FORK, &made);
            }
            Kind::Unlink => {
                let (fork, dir) = file(place)?;
                fork.unlink(dir, request.name()?)?;
            }
            Kind::Rmdir => {
                let (fork, dir) = file(place)?;
                fork.rmdir(dir, request.name()?)?;
            }
            Kind::Rename => self.rename(request, file(place)?)?,
            Kind::Link => {
                let (fork, dir) = file(place)?;
                let file = self.file_in(fork, request.u64(0)?)?;
                body.entry(IN_FORK, IN_FORK, &stat(fork.id(), &fork.link(file, dir, request.name()?)?));
            }
            Kind::Open => {
                let (fork, file) = file(place)?;
                fork.open(file)?;
                body.opened(NO_HANDLE, self.open_flags);
            }
            Kind::Create => {
                let (fork, dir) = file(place)?;
                let attr = match self.make(request, (fork, dir), request.name()?, Make::File, request.u32(4)?)
                {
                    // The kernel asks only for names that it believes free. Looking
                    // the name up afresh, it then opens what is there.
                    Err(Refusal::Core(Error::Exists)) if request.u32(0)? & libc::O_EXCL as u32 == 0 => {
                        return Err(Error::Stale.into());
                    }
                    made => made?,
                };
                fork.open(attr.file)?;
                body.entry(IN_FORK, IN_FORK, &stat(fork.id(), &attr)).opened(NO_HANDLE, self.open_flags);
            }
            Kind::Release => {
                let (fork, file) = file(place)?;
                fork.release(file);
            }
            Kind::Opendir => {
                place?;
                body.opened(self.directories.open(), 0);
            }
            Kind::Readdir | Kind::Readdirplus => {
                self.readdir(kind == Kind::Readdirplus, request, place?, &mut body)?
            }
            Kind::Releasedir => self.directories.close(request.u64(0)?),
            Kind::Statfs => self.statfs(place?, &mut body)?,
            Kind::Fallocate => {
                let (fork, file) = file(place)?;
                fork.fallocate(file, request.u32(24)? as i32, request.u64(8)?, request.u64(16)?)?;
                self.drop_set_id(request, fork, file)?;
            }
            Kind::Lseek => {
                let (fork, file) = file(place)?;
                let what = match request.u32(16)? as i32 {
                    libc::SEEK_DATA => Seek::Data,
                    libc::SEEK_HOLE => Seek::Hole,
                    _ => return Err(Refusal::Mount(libc::EINVAL)),
                };
                let offset = i64::try_from(request.u64(8)?).map_err(|_| Error::NoData)?;
                let found = fork.seek(file, offset as u64, what)?;
                body.u64(i64::try_from(found).map_err(|_| Refusal::Mount(libc::EOVERFLOW))? as u64);
            }
            Kind::CopyFileRange => {
                // From one fork to another: EXDEV, whereupon the kernel copies by itself.
                let (fork, source) = file(place)?;
                let target = self.file_in(fork, request.u64(16)?)?;
                let len = request.u64(40)?.min(COPY_BYTES);
                let copied = fork.copy_range(source, request.u64(8)?, target, request.u64(32)?, len)?;
                // At most COPY_BYTES.
                body.u32(copied as u32).u32(0);
            }
            Kind::Ioctl => return Err(Refusal::Mount(libc::ENOTTY)),
            // What is not offered. ENOSYS tells the kernel not to ask again: it
            // keeps locks, polls and closes by itself, and answers EOPNOTSUPP for
            // extended attributes. (Otherwise it would ask for the attribute
            // "security.capability" before each write.)
            Kind::Setxattr
            | Kind::Getxattr
            | Kind::Listxattr
            | Kind::Removexattr
            | Kind::Flush
            | Kind::Access
            | Kind::Getlk
            | Kind::Setlk
            | Kind::Bmap
            | Kind::Poll => return Err(Refusal::Mount(libc::ENOSYS)),
            // Answered by nobody, and by `read`.
            Kind::Forget | Kind::Read => {}
        }
        Ok(())
    }

    fn lookup(&self, request: &Message, place: &Place, body: &mut Body) -> Outcome<()> {
        let name = request.name()?;
        match place {
            None => body.entry(FORK_NAME, IN_FORK, &self.fork_by_name(name)?),
            Some((fork, dir)) => match fork.lookup(*dir, name) {
                Ok(attr) => body.entry(IN_FORK, IN_FORK, &stat(fork.id(), &attr)),
                // Node id 0: the kernel remembers that there is no such name.
                // PostgreSQL asks again and again for files that never come,
                // such as the visibility maps of small tables.
                Err(Error::NotFound) => body.entry(IN_FORK, IN_FORK, &bare_directory(0)),
                Err(error) => return Err(error.into()),
            },
        };
        Ok(())
    }

    fn setattr(&self, request: &Message, (fork, file): (&Fork, FileId), body: &mut Body) -> Outcome<()> {
        let valid = request.u32(0)?;
        let has = |bit| valid & bit != 0;
        let number = |bit, at| if has(bit) { request.u32(at).map(Some) } else { Ok(None) };
        let stamp = |bit, now, seconds, nanos| -> Result<Option<SetTime>, Malformed> {
            Ok(match (has(bit), has(now)) {
                (false, _) => None,
                (true, true) => Some(SetTime::Now),
                (true, false) => Some(SetTime::To(time(request.u64(seconds)?, request.u32(nanos)?))),
            })
        };
        let set = SetAttr {
            perm: number(fattr::MODE, 68)?.map(perm),
            uid: number(fattr::UID, 76)?,
            gid: number(fattr::GID, 80)?,
            size: if has(fattr::SIZE) { Some(request.u64(16)?) } else { None },
            atime: stamp(fattr::ATIME, fattr::ATIME_NOW, 32, 56)?,
            mtime: stamp(fattr::MTIME, fattr::MTIME_NOW, 40, 60)?,
        };
        body.attr(IN_FORK, &stat(fork.id(), &fork.set_attr(file, set)?));
        Ok(())
    }

    fn rename(&self, request: &Message, (fork, dir): (&Fork, FileId)) -> Outcome<()> {
        let flags = if request.opcode() == opcode::RENAME2 { request.u32(8)? } else { 0 };
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Refusal::Mount(libc::EINVAL)),
        };
        let (name, new_name) = request.two_names()?;
        let new_dir = self.file_in(fork, request.u64(0)?)?;
        Ok(fork.rename(dir, name, new_dir, new_name, mode)?)
    }

    fn readdir(&self, plus: bool, request: &Message, place: &Place, body: &mut Body) -> Outcome<()> {
        let (handle, offset, size) = (request.u64(0)?, request.u64(8)?, request.u32(16)? as usize);
        let listing = self.directories.listing(handle, offset == 0, || self.list(request.node(), place))?;
        // An entry's offset is its position, counted from 1.
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, entry) in (1u64..).zip(listing.iter()).skip(skip) {
            let found = match plus {
                true => match self.look_up_listed(place, entry)? {
                    Some(found) => Some(found),
                    None => continue,
                },
                false => None,
            };
            let (node, mode) = found.map_or((entry.node, entry.mode), |(.., stat)| (stat.node, stat.mode));
            if !body.listed(size, found, next, node, mode, &entry.name) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self, place: &Place, body: &mut Body) -> Outcome<()> {
        let space = self.store.space(place.as_ref().map(|(fork, _)| &**fork))?;
        let (total, available) = (space.total / STATFS_BLOCK, space.available / STATFS_BLOCK);
        body.u64(total).u64(available).u64(available).u64(space.files).u64(space.files_free);
        body.u32(STATFS_BLOCK as u32).u32(libc::NAME_MAX as u32).u32(STATFS_BLOCK as u32).u32(0);
        // Reserved.
        for _ in 0..6 {
            body.u32(0);
        }
        Ok(())
    }
}

/// What an operation is counted as; `None` for what is none of a file's.
fn kind(operation: u32) -> Option<Kind> {
    Some(match operation {
        opcode::LOOKUP => Kind::Lookup,
        opcode::FORGET | opcode::BATCH_FORGET => Kind::Forget,
        opcode::GETATTR => Kind::Getattr,
        opcode::SETATTR => Kind::Setattr,
        opcode::READLINK => Kind::Readlink,
        opcode::SYMLINK => Kind::Symlink,
        opcode::MKNOD => Kind::Mknod,
        opcode::MKDIR => Kind::Mkdir,
        opcode::UNLINK => Kind::Unlink,
        opcode::RMDIR => Kind::Rmdir,
        opcode::RENAME | opcode::RENAME2 => Kind::Rename,
        opcode::LINK => Kind::Link,
        opcode::OPEN => Kind::Open,
        opcode::READ => Kind::Read,
        opcode::WRITE => Kind::Write,
        opcode::STATFS => Kind::Statfs,
        opcode::RELEASE => Kind::Release,
        opcode::FSYNC => Kind::Fsync,
        opcode::SETXATTR => Kind::Setxattr,
        opcode::GETXATTR => Kind::Getxattr,
        opcode::LISTXATTR => Kind::Listxattr,
        opcode::REMOVEXATTR => Kind::Removexattr,
        opcode::FLUSH => Kind::Flush,
        opcode::OPENDIR => Kind::Opendir,
        opcode::READDIR => Kind::Readdir,
        opcode::READDIRPLUS => Kind::Readdirplus,
        opcode::RELEASEDIR => Kind::Releasedir,
        opcode::FSYNCDIR => Kind::Fsyncdir,
        opcode::GETLK => Kind::Getlk,
        opcode::SETLK | opcode::SETLKW => Kind::Setlk,
        opcode::ACCESS => Kind::Access,
        opcode::CREATE => Kind::Create,
        opcode::BMAP => Kind::Bmap,
        opcode::IOCTL => Kind::Ioctl,
        opcode::POLL => Kind::Poll,
        opcode::FALLOCATE => Kind::Fallocate,
        opcode::LSEEK => Kind::Lseek,
        opcode::COPY_FILE_RANGE => Kind::CopyFileRange,
        _ => return None,
    })
}
