//! Names: directories, links, and the life of a file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::attr::{Attr, DirEntry, Kind, Make, RenameMode, SetAttr, SetTime};
use crate::class::{self, Class, Role};
use crate::error::{Error, Result};
use crate::ids::{FILE_NAME_MAX, FileId, check_file_name};
use crate::inplace::Extents;
use crate::layer::{Body, Inode, NameKey, Pages, Table};
use crate::map::schema::Time;

use super::fork::{Fork, Head, Orphan, REMOVED_DIRS};

/// The most names of one file (as ext4).
const LINK_MAX: u32 = 65_000;

/// The state, and what a name in it leads to.
type Found<'a> = (MutexGuard<'a, Head>, Option<(FileId, Kind)>);

fn key(dir: FileId, name: &[u8]) -> NameKey {
    (dir, name.into())
}

impl Head {
    fn find(&self, dir: FileId, name: &[u8]) -> Result<(FileId, Kind)> {
        self.directory(dir)?;
        self.state.names.get(&key(dir, name)).copied().ok_or(Error::NotFound)
    }

    fn entries(&self, dir: FileId) -> impl Iterator<Item = (&NameKey, &(FileId, Kind))> {
        self.state.names.range(key(dir, b"")..key(FileId(dir.0 + 1), b""))
    }

    fn is_empty_dir(&self, dir: FileId) -> bool {
        self.entries(dir).next().is_none()
    }

    fn bind(&mut self, dir: FileId, name: &[u8], file: FileId, kind: Kind) {
        self.state.names.insert(key(dir, name), (file, kind));
        self.pending.names.insert(key(dir, name));
    }

    fn unbind(&mut self, dir: FileId, name: &[u8]) {
        self.state.names.remove(&key(dir, name));
        self.pending.names.insert(key(dir, name));
    }

    fn add_links(&mut self, file: FileId, more: i32) -> Result<()> {
        let inode = self.inode_mut(file)?;
        inode.nlink = inode.nlink.saturating_add_signed(more);
        inode.ctime = Time::now();
        self.changed(file);
        Ok(())
    }

    /// Takes one name away from a file that is no directory; the last one takes
    /// the file with it.
    fn drop_link(&mut self, file: FileId, fork: &Fork) -> Result<()> {
        self.add_links(file, -1)?;
        if self.inode(file)?.nlink == 0 {
            self.drop_file(file, fork);
        }
        Ok(())
    }

    /// Takes a file out of the state. Its pages go with the next commit, or
    /// with its last open handle.
    fn drop_file(&mut self, file: FileId, fork: &Fork) {
        let Some(inode) = self.state.inodes.remove(&file) else { return };
        let inode = Arc::unwrap_or_clone(inode);
        self.state.scratch_dirs.remove(&file);
        if inode.kind == Kind::File {
            self.state.logical_bytes = self.state.logical_bytes.wrapping_sub(inode.size);
        }
        if inode.kind == Kind::Directory {
            self.removed_dirs.push_back(inode.attr(file));
            if self.removed_dirs.len() > REMOVED_DIRS {
                self.removed_dirs.pop_front();
            }
        }
        let staged: Vec<_> = self.staged.range((file, 0)..=(file, u32::MAX)).map(|(key, _)| *key).collect();
        for block in staged {
            self.staged.remove(&block);
        }
        let is_open = self.open.contains_key(&file);
        let orphan = Orphan { inode, layer: self.layer };
        let mut dropped = Vec::new();
        let mut hidden = 0;
        if let Body::Pages(pages) = &orphan.inode.body
            && let Some(table) = pages.loaded()
        {
            table.tree.visit(0, 1 << 32, self.layer, &mut |block, entry, owned| {
                if owned {
                    dropped.push((block, entry.slot));
                } else {
                    hidden += 1;
                }
                true
            });
        }
        self.hidden += hidden;
        self.pages = self.pages.saturating_sub(dropped.len() as u64);
        let change = self.pending.file(file);
        change.blocks.clear();
        change.cleared.clear();
        change.dropped.extend(dropped.iter().map(|(block, _)| block));
        for (_, slot) in &dropped {
            if is_open {
                // The open file keeps it, beyond the commit that lets it go.
                fork.core.delta(slot.delta()).space().share(slot.index());
            }
            self.pending.release(*slot);
        }
        if is_open {
            self.orphans.insert(file, orphan);
        }
    }
}

impl Fork {
    /// The file of a name.
    pub fn lookup(&self, dir: FileId, name: &[u8]) -> Result<Attr> {
        if name.len() > FILE_NAME_MAX {
            return Err(Error::NameTooLong);
        }
        let head = self.head()?;
        let (file, _) = head.find(dir, name)?;
        Ok(head.inode(file)?.attr(file))
    }

    /// The directory that holds `dir`; the top directory holds itself.
    pub fn parent_dir(&self, dir: FileId) -> Result<FileId> {
        Ok(self.head()?.directory(dir)?.parent)
    }

    /// A symbolic link's target.
    pub fn read_link(&self, file: FileId) -> Result<Vec<u8>> {
        match &self.head()?.inode(file)?.body {
            Body::Link(target) => Ok(target.to_vec()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// All entries of a directory at this instant, without `.` and `..`, by
    /// name.
    pub fn read_dir(&self, dir: FileId) -> Result<Vec<DirEntry>> {
        let state = {
            let head = self.head()?;
            head.directory(dir)?;
            head.state.clone()
        };
        Ok(state
            .names
            .range(key(dir, b"")..key(FileId(dir.0 + 1), b""))
            .map(|((_, name), &(file, kind))| DirEntry { name: name[..].into(), file, kind })
            .collect())
    }

    /// Makes a file, directory, link or node. `perm` has the umask applied
    /// already. Fails with [`Error::Exists`] if the name is taken.
    pub fn make(&self, dir: FileId, name: &[u8], what: Make, perm: u16, uid: u32, gid: u32) -> Result<Attr> {
        check_file_name(name)?;
        if let Make::Symlink(target) = &what
            && target.len() >= libc::PATH_MAX as usize
        {
            return Err(Error::NameTooLong);
        }
        let file = FileId(self.core.ids.next_file()?);
        let mut head = self.head_mut()?;
        let dir_inode = head.directory(dir)?;
        let dir_role = dir_inode.role;
        if dir_inode.nlink == 0 || head.is_orphan(dir) {
            return Err(Error::NotFound);
        }
        if head.find(dir, name).is_ok() {
            return Err(Error::Exists);
        }
        if matches!(what, Make::Directory) && dir_inode.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        let now = Time::now();
        let layer = head.layer;
        let mut inode = Inode {
            kind: Kind::File,
            role: Role::Other,
            class: Class::Plain,
            perm: perm & 0o7777,
            uid,
            gid,
            nlink: 1,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            parent: dir,
            meta_seq: 0,
            body: Body::Empty,
        };
        match what {
            Make::File => {
                inode.class = Class::of_new(dir_role, name);
                inode.body = if inode.class.is_in_place() {
                    Body::InPlace(Arc::new(Extents::new(inode.class, layer)), None)
                } else {
                    Body::Pages(Pages::empty())
                };
            }
            Make::Directory => {
                inode.kind = Kind::Directory;
                inode.role = dir_role.of_child(name);
                inode.nlink = 2;
            }
            Make::Symlink(target) => {
                inode.kind = Kind::Symlink;
                inode.size = target.len() as u64;
                inode.body = Body::Link(target.into());
            }
            Make::Node(kind, rdev) => {
                inode.kind = kind;
                inode.rdev = rdev;
            }
        }
        let (kind, role) = (inode.kind, inode.role);
        let attr = inode.attr(file);
        head.state.inodes.insert(file, Arc::new(inode));
        head.changed(file);
        head.bind(dir, name, file, kind);
        if kind == Kind::Directory {
            head.add_links(dir, 1)?;
            if role == Role::Scratch {
                head.state.scratch_dirs.insert(file);
            }
        }
        head.stamp(dir)?;
        Ok(attr)
    }

    /// The state once the file under a name, which the operation may drop, has
    /// its page table in memory; and that file.
    fn head_with_name(&self, dir: FileId, name: &[u8]) -> Result<Found<'_>> {
        loop {
            let head = self.head_mut()?;
            let found = match head.find(dir, name) {
                Ok(found) => found,
                Err(Error::NotFound) => return Ok((head, None)),
                Err(e) => return Err(e),
            };
            let cold = match &head.inode(found.0)?.body {
                Body::Pages(Pages { table: Table::Cold(cold), .. }) if cold.table.get().is_none() => {
                    cold.clone()
                }
                _ => return Ok((head, Some(found))),
            };
            drop(head);
            self.warm(cold)?;
        }
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, dir: FileId, name: &[u8]) -> Result<()> {
        let (mut head, found) = self.head_with_name(dir, name)?;
        let (file, kind) = found.ok_or(Error::NotFound)?;
        if kind == Kind::Directory {
            return Err(Error::IsDirectory);
        }
        head.unbind(dir, name);
        head.drop_link(file, self)?;
        head.stamp(dir)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, dir: FileId, name: &[u8]) -> Result<()> {
        let mut head = self.head_mut()?;
        let (file, kind) = head.find(dir, name)?;
        if kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        if !head.is_empty_dir(file) {
            return Err(Error::NotEmpty);
        }
        head.unbind(dir, name);
        head.inode_mut(file)?.nlink = 0;
        head.drop_file(file, self);
        head.add_links(dir, -1)?;
        head.stamp(dir)
    }

    /// Gives a file one more name.
    pub fn link(&self, file: FileId, new_dir: FileId, new_name: &[u8]) -> Result<Attr> {
        check_file_name(new_name)?;
        self.settle_for(file, new_dir, new_name)?;
        let mut head = self.head_mut()?;
        if head.is_orphan(file) {
            return Err(Error::NotFound);
        }
        let (kind, nlink) = {
            let inode = head.inode(file)?;
            (inode.kind, inode.nlink)
        };
        if kind == Kind::Directory {
            return Err(Error::IsDirectory);
        }
        if nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        if head.find(new_dir, new_name).is_ok() {
            return Err(Error::Exists);
        }
        head.directory(new_dir)?;
        if head.is_orphan(new_dir) {
            return Err(Error::NotFound);
        }
        head.bind(new_dir, new_name, file, kind);
        head.add_links(file, 1)?;
        head.stamp(new_dir)?;
        Ok(head.inode(file)?.attr(file))
    }

    /// Moves a name.
    pub fn rename(
        &self,
        dir: FileId,
        name: &[u8],
        new_dir: FileId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_file_name(new_name)?;
        let moving = self.head()?.find(dir, name)?.0;
        self.settle_for(moving, new_dir, new_name)?;
        let (mut head, target) = self.head_with_name(new_dir, new_name)?;
        let (file, kind) = head.find(dir, name)?;
        if mode == RenameMode::Exchange
            && let Some((other, _)) = target
        {
            drop(head);
            self.settle_for(other, dir, name)?;
            head = self.head_mut()?;
        }
        head.directory(new_dir)?;
        if head.is_orphan(new_dir) {
            return Err(Error::NotFound);
        }
        if kind == Kind::Directory && head.is_inside(new_dir, file) {
            return Err(Error::Invalid("a directory cannot move into itself"));
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
            (RenameMode::Exchange, None) => return Err(Error::NotFound),
            (RenameMode::Exchange, Some((other, other_kind))) => {
                if other_kind == Kind::Directory && head.is_inside(dir, other) {
                    return Err(Error::Invalid("a directory cannot move into itself"));
                }
                head.bind(dir, name, other, other_kind);
                head.moved(other, other_kind, new_dir, dir, name)?;
            }
            (_, Some((other, _))) if other == file => return Ok(()),
            (_, Some((other, other_kind))) => {
                match (kind, other_kind) {
                    (Kind::Directory, Kind::Directory) => {
                        if !head.is_empty_dir(other) {
                            return Err(Error::NotEmpty);
                        }
                        head.inode_mut(other)?.nlink = 0;
                        head.drop_file(other, self);
                        head.add_links(new_dir, -1)?;
                    }
                    (Kind::Directory, _) => return Err(Error::NotDirectory),
                    (_, Kind::Directory) => return Err(Error::IsDirectory),
                    _ => head.drop_link(other, self)?,
                }
                head.unbind(dir, name);
            }
            (_, None) => head.unbind(dir, name),
        }
        head.bind(new_dir, new_name, file, kind);
        head.moved(file, kind, dir, new_dir, new_name)?;
        head.recycled(file)?;
        head.stamp(dir)?;
        if dir != new_dir {
            head.stamp(new_dir)?;
        }
        Ok(())
    }

    /// Settles what `file` holds of scratch before it is named `name` in `dir`,
    /// if forks inherit it there.
    fn settle_for(&self, file: FileId, dir: FileId, name: &[u8]) -> Result<()> {
        let (kind, was, role) = {
            let head = self.head()?;
            let inode = head.inode(file)?;
            (inode.kind, inode.role, head.directory(dir)?.role)
        };
        match kind {
            Kind::Directory if was == Role::Scratch && role.of_child(name) != Role::Scratch => {
                self.settle_tree(file)
            }
            Kind::File if !class::left_out_of_fork(role, name, kind) => self.settle(file),
            _ => Ok(()),
        }
    }

    fn settle_tree(&self, dir: FileId) -> Result<()> {
        // No recursion, here and below: directories nest as deep as their
        // owner likes.
        let mut dirs = vec![dir];
        while let Some(dir) = dirs.pop() {
            for entry in self.read_dir(dir)? {
                match entry.kind {
                    Kind::Directory => dirs.push(entry.file),
                    Kind::File => self.settle(entry.file)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Changes attributes.
    pub fn set_attr(&self, file: FileId, set: SetAttr) -> Result<Attr> {
        if let Some(size) = set.size {
            self.set_len(file, size)?;
        }
        let mut head = self.head_mut()?;
        let now = Time::now();
        let time = |t| match t {
            SetTime::Now => now,
            SetTime::To(t) => Time::from_system(t),
        };
        let inode = head.inode_mut(file)?;
        let before = (inode.perm, inode.uid, inode.gid);
        if let Some(perm) = set.perm {
            inode.perm = perm & 0o7777;
        }
        if let Some(uid) = set.uid {
            inode.uid = uid;
        }
        if let Some(gid) = set.gid {
            inode.gid = gid;
        }
        if let Some(t) = set.atime {
            inode.atime = time(t);
        }
        if let Some(t) = set.mtime {
            inode.mtime = time(t);
        }
        inode.ctime = now;
        if before == (inode.perm, inode.uid, inode.gid) {
            head.touched(file);
        } else {
            head.changed(file);
        }
        Ok(head.inode(file)?.attr(file))
    }

    /// Takes out what belongs to the parent's running server, on behalf of a
    /// new fork.
    pub(super) fn leave_server_behind(&self) -> Result<()> {
        let (top, scratch) = {
            let head = self.head()?;
            let top: Vec<_> = head
                .entries(FileId::ROOT)
                .filter(|((_, name), (_, kind))| class::left_out_of_fork(Role::Top, name, *kind))
                .map(|((_, name), &(_, kind))| (FileId::ROOT, name.clone(), kind))
                .collect();
            (top, head.state.scratch_dirs.iter().copied().collect::<Vec<_>>())
        };
        for (dir, name, kind) in top {
            self.remove_entry(dir, &name, kind)?;
        }
        for dir in scratch {
            // A directory inside another one may be gone by now.
            for entry in self.read_dir(dir).unwrap_or_default() {
                self.remove_entry(dir, &entry.name, entry.kind)?;
            }
        }
        Ok(())
    }

    /// Removes a name, with everything below it if it is a directory.
    pub(super) fn remove_entry(&self, dir: FileId, name: &[u8], kind: Kind) -> Result<()> {
        if kind != Kind::Directory {
            return self.unlink(dir, name);
        }
        let mut left: Vec<(FileId, Box<[u8]>, FileId)> =
            vec![(dir, name.into(), self.lookup(dir, name)?.file)];
        while let Some((dir, name, file)) = left.last() {
            let (dir, name, file) = (*dir, name.clone(), *file);
            let mut empty = true;
            for entry in self.read_dir(file)? {
                if entry.kind == Kind::Directory {
                    left.push((file, entry.name, entry.file));
                    empty = false;
                } else {
                    self.unlink(file, &entry.name)?;
                }
            }
            // Seen again once everything above it on the stack is gone.
            if empty {
                self.rmdir(dir, &name)?;
                left.pop();
            }
        }
        Ok(())
    }

    /// Whether the fork is gone.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }
}

impl Head {
    /// Whether `dir` is `ancestor` or lies below it.
    fn is_inside(&self, dir: FileId, ancestor: FileId) -> bool {
        let mut at = dir;
        loop {
            if at == ancestor {
                return true;
            }
            match self.inode(at) {
                Ok(inode) if inode.parent != at => at = inode.parent,
                _ => return false,
            }
        }
    }

    /// Gives a directory its role, and those below it theirs.
    fn set_role(&mut self, dir: FileId, role: Role) -> Result<()> {
        let mut left = vec![(dir, role)];
        while let Some((dir, role)) = left.pop() {
            if self.inode(dir)?.role == role {
                continue;
            }
            self.inode_mut(dir)?.role = role;
            self.changed(dir);
            if role == Role::Scratch {
                self.state.scratch_dirs.insert(dir);
            } else {
                self.state.scratch_dirs.remove(&dir);
            }
            let below = self.entries(dir).filter(|(_, (_, kind))| *kind == Kind::Directory);
            left.extend(below.map(|((_, name), (file, _))| (*file, role.of_child(name))));
        }
        Ok(())
    }

    /// A WAL segment that gets another name is kept for later, to be written
    /// from its start. Its seal goes with the commit of the name, so that the
    /// first write need not wait for one.
    fn recycled(&mut self, file: FileId) -> Result<()> {
        let layer = self.owner_layer(file);
        let inode = self.inode(file)?;
        let Body::InPlace(extents, _) = &inode.body else { return Ok(()) };
        if inode.class == Class::Wal {
            let tops = extents.tops_of(layer);
            for host in tops {
                host.await_writes();
                self.pending.unseal.insert(host.id);
            }
        }
        Ok(())
    }

    /// Notes that a file has moved between directories.
    fn moved(&mut self, file: FileId, kind: Kind, from: FileId, to: FileId, name: &[u8]) -> Result<()> {
        if kind == Kind::Directory {
            let role = self.directory(to)?.role.of_child(name);
            if from != to {
                self.add_links(from, -1)?;
                self.add_links(to, 1)?;
            }
            self.inode_mut(file)?.parent = to;
            self.set_role(file, role)?;
        }
        self.inode_mut(file)?.ctime = Time::now();
        self.changed(file);
        Ok(())
    }
}
