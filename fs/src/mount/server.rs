//! What the request handlers share: finding the fork and file of a node id,
//! the top directory, and the rules that are POSIX's rather than the core's
//! (set-group-id directories, `..`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};

use super::convert::{self, Refusal, stat};
use super::listing::{Listed, OpenDirectories};
use super::node;
use super::wire::{Found, Message, Stat};
use crate::attr::{Attr, Make};
use crate::error::Error;
use crate::forks::{Fork, Store};
use crate::ids::{FileId, ForkId};

pub type Outcome<T> = std::result::Result<T, Refusal>;

/// A fork and a file of it; `None` is the top directory.
pub type Place = Option<(Arc<Fork>, FileId)>;

/// How long the kernel may trust a name or attributes inside a fork. Nothing
/// but this mount changes a fork, and the kernel itself drops what each of its
/// requests outdates, so this could be for ever; a day bounds the harm of a
/// mistake.
pub const IN_FORK: Duration = Duration::from_secs(24 * 3600);

/// Forks come and go without the kernel: their names are looked up each time.
/// That costs one request for each absolute path, and PostgreSQL, which works
/// in its data directory, uses relative ones.
pub const FORK_NAME: Duration = Duration::ZERO;

/// Attributes of the top directory. Little about them changes or matters.
pub const TOP_ATTR: Duration = Duration::from_secs(1);

/// The answer once the store is closed to the kernel: as from a mount whose
/// daemon is gone.
pub const CLOSED: Refusal = Refusal::Mount(libc::ENOTCONN);

/// Serves the kernel's requests from a store. [`super::operations`] has what
/// each of them does.
pub struct Server {
    pub store: Arc<Store>,
    /// Whether requests may reach the store. Each holds this while it is
    /// served; once it is false, none is under way and none will be.
    pub open: Arc<RwLock<bool>>,
    pub directories: OpenDirectories,
    /// What each OPEN and CREATE answers.
    pub open_flags: u32,
    pub top: Arc<Top>,
}

/// The top directory, which lists the forks.
pub struct Top {
    pub uid: u32,
    pub gid: u32,
    /// When a fork last came or went; the time of the mount before that.
    pub changed: Mutex<SystemTime>,
}

/// The fork and file of a place. Nothing can be made, changed or removed in the top
/// directory: EPERM.
pub fn file(place: Outcome<&Place>) -> Outcome<(&Fork, FileId)> {
    match place? {
        Some((fork, file)) => Ok((fork, *file)),
        None => Err(Refusal::Mount(libc::EPERM)),
    }
}

impl Server {
    pub fn fork(&self, id: ForkId) -> Outcome<Arc<Fork>> {
        self.store.by_id(id).map_err(|error| match error {
            // The kernel can only know the id of a fork that was there.
            Error::NoSuchFork(_) | Error::NotFound => Error::Stale.into(),
            error => error.into(),
        })
    }

    /// What a node id stands for.
    pub fn find(&self, node: u64) -> Outcome<Place> {
        match node::parts(node) {
            None => Ok(None),
            Some((fork, file)) => Ok(Some((self.fork(fork)?, file))),
        }
    }

    /// Another file of a fork, by its node id.
    pub fn file_in(&self, fork: &Fork, node: u64) -> Outcome<FileId> {
        match node::parts(node) {
            None => Err(Refusal::Mount(libc::EPERM)),
            Some((id, file)) if id == fork.id() => Ok(file),
            // Of a fork that is gone: ESTALE.
            Some((id, _)) => Err(self.fork(id).map_or_else(|stale| stale, |_| Error::CrossFork.into())),
        }
    }

    pub fn top_attr(&self) -> Stat {
        let changed = *self.top.changed.lock();
        Stat {
            mtime: changed,
            ctime: changed,
            atime: changed,
            uid: self.top.uid,
            gid: self.top.gid,
            // A server's user passes through; the names of forks are the
            // owner's business.
            mode: libc::S_IFDIR | 0o711,
            ..convert::bare_directory(node::TOP)
        }
    }

    /// The top directory of the fork of that name.
    pub fn fork_by_name(&self, name: &[u8]) -> Outcome<Stat> {
        // Fork names are ASCII, so any other name is one that is not there.
        let name = std::str::from_utf8(name).map_err(|_| Error::NotFound)?;
        let fork = self.store.by_name(name).map_err(|error| match error {
            Error::BadForkName { .. } => Error::NotFound,
            error => error,
        })?;
        Ok(stat(fork.id(), &fork.attr(FileId::ROOT)?))
    }

    /// Makes a directory entry as the requesting user. The kernel has applied
    /// the umask; a set-group-id directory hands down its group, and the bit
    /// itself to directories.
    pub fn make(
        &self,
        request: &Message,
        (fork, dir): (&Fork, FileId),
        name: &[u8],
        what: Make,
        mode: u32,
    ) -> Outcome<Attr> {
        let mut perm = convert::perm(mode);
        let mut gid = request.gid();
        let holder = fork.attr(dir)?;
        if u32::from(holder.perm) & libc::S_ISGID != 0 {
            gid = holder.gid;
            if matches!(what, Make::Directory) {
                perm |= libc::S_ISGID as u16;
            }
        }
        Ok(fork.make(dir, name, what, perm, request.uid(), gid)?)
    }

    /// All entries of a directory at this instant.
    pub fn list(&self, node: u64, place: &Place) -> Outcome<Vec<Listed>> {
        let directory = |node, name: &[u8]| Listed { node, mode: libc::S_IFDIR, name: name.into() };
        let Some((fork, dir)) = place else {
            // Whoever makes one knows its name.
            let forks = self.store.entries().into_iter().filter(|f| !f.incomplete);
            let forks = forks.map(|f| directory(node::of(f.id, FileId::ROOT), f.name.as_bytes()));
            return Ok([directory(node::TOP, b"."), directory(node::TOP, b"..")]
                .into_iter()
                .chain(forks)
                .collect());
        };
        let parent = match *dir {
            FileId::ROOT => node::TOP,
            dir => node::of(fork.id(), fork.parent_dir(dir)?),
        };
        let entries = fork.read_dir(*dir)?;
        let mut listing = Vec::with_capacity(entries.len() + 2);
        listing.extend([directory(node, b"."), directory(parent, b"..")]);
        listing.extend(entries.into_iter().map(|entry| Listed {
            node: node::of(fork.id(), entry.file),
            mode: convert::file_type(entry.kind),
            name: entry.name,
        }));
        Ok(listing)
    }

    /// What a listing with attributes says of an entry; `None` if the entry is
    /// gone. The kernel takes it for the answer to a LOOKUP, so it must be the
    /// name's file now, not when the list was made.
    pub fn look_up_listed(&self, place: &Place, entry: &Listed) -> Outcome<Option<Found>> {
        if matches!(*entry.name, [b'.'] | [b'.', b'.']) {
            return Ok(Some((IN_FORK, IN_FORK, convert::bare_directory(entry.node))));
        }
        let looked_up = match place {
            None => self.fork_by_name(&entry.name).map(|stat| (FORK_NAME, IN_FORK, stat)),
            Some((fork, dir)) => match fork.lookup(*dir, &entry.name) {
                Ok(attr) => Ok((IN_FORK, IN_FORK, stat(fork.id(), &attr))),
                Err(error) => Err(error.into()),
            },
        };
        match looked_up {
            Ok(found) => Ok(Some(found)),
            Err(Refusal::Core(Error::NotFound | Error::NoSuchFork(_))) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Clears the set-id bits of a file that a user without the right to keep
    /// them has changed by `fallocate`. The kernel does this by itself for
    /// write, truncate and chown, and for fallocate since 6.1 only.
    pub fn drop_set_id(&self, request: &Message, fork: &Fork, file: FileId) -> Outcome<()> {
        if request.uid() == 0 {
            return Ok(());
        }
        let attr = fork.attr(file)?;
        let old = u32::from(attr.perm);
        let mut new = old & !libc::S_ISUID;
        // Without the right to execute, the bit stays for members of the group
        // only; of those we know just the caller's main one.
        if old & libc::S_IXGRP != 0 || request.gid() != attr.gid {
            new &= !libc::S_ISGID;
        }
        if new != old {
            let set = crate::attr::SetAttr { perm: Some(convert::perm(new)), ..Default::default() };
            fork.set_attr(file, set)?;
        }
        Ok(())
    }

    /// [`Server::make`] for the requests that answer with an entry.
    pub fn made(
        &self,
        request: &Message,
        (fork, dir): (&Fork, FileId),
        name: &[u8],
        what: Make,
        mode: u32,
    ) -> Outcome<Stat> {
        let attr = self.make(request, (fork, dir), name, what, mode)?;
        Ok(stat(fork.id(), &attr))
    }
}
