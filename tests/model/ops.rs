//! Operations on the files of a fork, done to the fork and to its model.

use pgcowfs::{Error, FileId, Fork, Make, RenameMode, SetAttr};

use super::files::{B, Files, Moments, NAMES, find};

/// An operation; numbers choose among what is there.
#[derive(Clone, Debug)]
pub enum Op {
    Write {
        fork: u8,
        name: u8,
        offset: u64,
        len: u64,
        byte: u8,
    },
    /// Merge all layers that can be, and give all free space back.
    Collect,
    /// Write scattered pages together.
    Sort,
    /// Drop all page tables from memory that can be.
    DropTables,
    Snapshot {
        fork: u8,
        label: u8,
    },
    /// Fork a snapshot.
    ForkSnapshot {
        fork: u8,
        label: u8,
    },
    /// Put a fork back to a snapshot.
    Reset {
        fork: u8,
        label: u8,
    },
    /// Put a fork back to what it was made from.
    ResetToOrigin {
        fork: u8,
    },
    /// Make a fork what its parent is.
    ResetToParent {
        fork: u8,
    },
    /// Make a fork what another one is.
    ResetToFork {
        fork: u8,
        other: u8,
    },
    RemoveSnapshot {
        fork: u8,
        label: u8,
    },
    Promote {
        fork: u8,
    },
    /// Give a fork another name.
    RenameFork {
        fork: u8,
    },
    Truncate {
        fork: u8,
        name: u8,
        size: u64,
    },
    Allocate {
        fork: u8,
        name: u8,
        offset: u64,
        len: u64,
    },
    Punch {
        fork: u8,
        name: u8,
        offset: u64,
        len: u64,
    },
    Copy {
        fork: u8,
        from: u8,
        to: u8,
        from_block: u64,
        to_block: u64,
        len: u64,
    },
    Unlink {
        fork: u8,
        name: u8,
    },
    Rename {
        fork: u8,
        from: u8,
        to: u8,
    },
    Link {
        fork: u8,
        from: u8,
        to: u8,
    },
    SyncFile {
        fork: u8,
        name: u8,
        data_only: bool,
    },
    Sync {
        fork: u8,
    },
    Fork {
        parent: u8,
    },
    /// Make a fork that ends with the store's closing.
    ForkEphemeral {
        parent: u8,
    },
    /// Make a fork that is published only when something was written to it.
    ForkInSteps {
        parent: u8,
        byte: u8,
    },
    Remove {
        fork: u8,
    },
    /// Gives the WAL segments at rest their CRCs.
    Seal,
    Restart,
    /// The daemon dies: what it wrote to its files is there.
    Kill,
    /// Power is lost: what it did not flush is there or not, by sectors.
    Crash,
}

/// Directory and name of a path.
pub fn split(fork: &Fork, path: &'static str) -> (FileId, &'static [u8]) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (fork.resolve(dir).expect("a directory").file, name.as_bytes()),
        None => (FileId::ROOT, path.as_bytes()),
    }
}

/// Moments between the steps of an operation go to `moments`.
pub fn apply_to_files(op: &Op, fork: &Fork, files: &mut Files, moments: &mut Moments) -> Result<(), Error> {
    match *op {
        Op::Write { name, offset, len, byte, .. } => {
            let name = name as usize;
            let mut bytes = vec![byte; len as usize];
            for (i, b) in bytes.iter_mut().enumerate() {
                *b = b.wrapping_add((i / 512) as u8);
            }
            // PostgreSQL writes whole blocks to paged files; parts of them are
            // staged, which has tests of its own.
            let (offset, bytes) = if files.paged(name) {
                bytes.resize(len.next_multiple_of(B) as usize, byte);
                (offset / B * B, bytes)
            } else {
                (offset, bytes)
            };
            let file = match find(fork, NAMES[name]) {
                Some(file) => file,
                None => {
                    let (dir, entry) = split(fork, NAMES[name]);
                    files.open(name);
                    moments.push(files.clone());
                    fork.make(dir, entry, Make::File, 0o600, 0, 0)?.file
                }
            };
            files.write(name, offset as usize, &bytes);
            fork.write(file, offset, &bytes)?;
        }
        Op::Truncate { name, size, .. } => {
            let name = name as usize;
            let Some(file) = find(fork, NAMES[name]) else { return Ok(()) };
            files.open(name).resize(size as usize, 0);
            fork.set_attr(file, SetAttr { size: Some(size), ..SetAttr::default() })?;
        }
        Op::Allocate { name, offset, len, .. } => {
            let name = name as usize;
            let Some(file) = find(fork, NAMES[name]) else { return Ok(()) };
            let contents = files.open(name);
            let end = (offset + len) as usize;
            if contents.len() < end {
                contents.resize(end, 0);
            }
            fork.fallocate(file, 0, offset, len)?;
        }
        Op::Punch { name, offset, len, .. } => {
            let name = name as usize;
            let Some(file) = find(fork, NAMES[name]) else { return Ok(()) };
            // Parts of blocks of paged files wait for the rest.
            let (offset, len) = match files.paged(name) {
                true => (offset / B * B, len.next_multiple_of(B)),
                false => (offset, len),
            };
            let contents = files.open(name);
            let end = ((offset + len) as usize).min(contents.len());
            if (offset as usize) < end {
                contents[offset as usize..end].fill(0);
            }
            fork.fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)?;
        }
        Op::Copy { from, to, from_block, to_block, len, .. } => {
            let (from, to) = (from as usize, to as usize);
            let (Some(source), Some(target)) = (find(fork, NAMES[from]), find(fork, NAMES[to])) else {
                return Ok(());
            };
            if source == target {
                return Ok(());
            }
            // Parts of blocks of paged files wait for the rest.
            let there = (files.get(from).expect("found").len() as u64).saturating_sub(from_block * B);
            let len = if files.paged(to) { len.next_multiple_of(B).min(there / B * B) } else { len };
            let (mut done, from_offset, to_offset) = (0, from_block * B, to_block * B);
            while done < len {
                // The model cannot know how far an error got: it is a step of
                // its own.
                let copied =
                    fork.copy_range(source, from_offset + done, target, to_offset + done, len - done);
                let start = (from_offset + done) as usize;
                let there = files.get(from).expect("found").get(start..).unwrap_or_default();
                let n = match copied {
                    Ok(n) => n,
                    Err(e) => {
                        // What is written in place may have got there in part.
                        let bytes = there[..there.len().min((len - done) as usize)].to_vec();
                        if files.in_place(to) {
                            files.write(to, (to_offset + done) as usize, &bytes);
                        }
                        return Err(e);
                    }
                };
                if n == 0 {
                    break;
                }
                let bytes = there[..n as usize].to_vec();
                files.write(to, (to_offset + done) as usize, &bytes);
                moments.push(files.clone());
                done += n;
            }
        }
        Op::Unlink { name, .. } => {
            let (dir, entry) = split(fork, NAMES[name as usize]);
            let there = files.names.remove(&(name as usize)).is_some();
            expect(fork.unlink(dir, entry), there)?;
        }
        Op::Rename { from, to, .. } => {
            let (from, to) = (from as usize, to as usize);
            let ((dir, name), (new_dir, new_name)) = (split(fork, NAMES[from]), split(fork, NAMES[to]));
            let file = files.names.get(&from).copied();
            // Two names of one file: rename does nothing (POSIX).
            if let Some(file) = file.filter(|f| files.names.get(&to) != Some(f)) {
                files.names.remove(&from);
                files.names.insert(to, file);
            }
            expect(fork.rename(dir, name, new_dir, new_name, RenameMode::Replace), file.is_some())?;
        }
        Op::Link { from, to, .. } => {
            let (from, to) = (from as usize, to as usize);
            let Some(file) = find(fork, NAMES[from]) else { return Ok(()) };
            let (dir, name) = split(fork, NAMES[to]);
            let free = !files.names.contains_key(&to);
            if free {
                let number = files.names[&from];
                files.names.insert(to, number);
            }
            expect(fork.link(file, dir, name).map(|_| ()), free)?;
        }
        _ => unreachable!("not an operation on files"),
    }
    Ok(())
}

/// An operation that must succeed, or must be refused for what is there.
fn expect(result: Result<(), Error>, possible: bool) -> Result<(), Error> {
    match (result, possible) {
        (Err(Error::NotFound | Error::Exists), false) => Ok(()),
        (Ok(()), false) => panic!("done although it is impossible"),
        (other, _) => other,
    }
}
