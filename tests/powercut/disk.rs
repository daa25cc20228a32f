//! A disk that remembers: one file on a FUSE mount, for a loop device to stand on. It records what is written to it and
//! when it is flushed, and shows what a loss of power would have left.
//!
//! It is a program of its own (`powercut --disk`, with commands on its standard input): a process that waits for a disk
//! served by one of its own threads cannot be killed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};

use super::cuts::{Cut, SECTOR, Style};
use super::log::{Event, Log, Writer};
use crate::common::random::Random;

/// The unit of what is changed after a cut.
const CELL: usize = 4096;
/// Nothing is cached under a name: each cut is another file.
const TTL: Duration = Duration::ZERO;

/// The contents of the disk.
struct Disk {
    bytes: u64,
    image: File,
    /// Recording.
    log: Option<Writer>,
    /// After a cut: what differs from the image.
    changed: HashMap<u64, Box<[u8; CELL]>>,
    /// Which cut this is; the file's name and node go with it.
    number: u64,
}

impl Disk {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let len = len.min(self.bytes.saturating_sub(offset) as usize);
        let mut bytes = vec![0; len];
        self.image.read_exact_at(&mut bytes, offset)?;
        if !self.changed.is_empty() {
            for_cells(offset, len, |cell, within, range| {
                if let Some(changed) = self.changed.get(&cell) {
                    let n = range.len();
                    bytes[range].copy_from_slice(&changed[within..within + n]);
                }
            });
        }
        Ok(bytes)
    }

    /// A write by whoever uses the disk.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match &mut self.log {
            Some(log) => {
                log.write(offset, bytes)?;
                self.image.write_all_at(bytes, offset)
            }
            None => self.change(offset, bytes),
        }
    }

    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.zero(offset, len)?;
            return zero(&self.image, offset, len);
        }
        for at in (offset..offset + len).step_by(CELL) {
            self.change(at, &vec![0; CELL.min((offset + len - at) as usize)])?;
        }
        Ok(())
    }

    /// Changes bytes above the image.
    fn change(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut result = Ok(());
        let (image, changed) = (&self.image, &mut self.changed);
        for_cells(offset, bytes.len(), |cell, within, range| {
            let cell = changed.entry(cell).or_insert_with(|| {
                let mut old = Box::new([0; CELL]);
                result = image.read_exact_at(&mut old[..], cell * CELL as u64);
                old
            });
            cell[within..within + range.len()].copy_from_slice(&bytes[range]);
        });
        result
    }
}

/// Visits the cells of a range: number, offset in the cell, and the part of the range.
fn for_cells(offset: u64, len: usize, mut visit: impl FnMut(u64, usize, std::ops::Range<usize>)) {
    let mut at = 0;
    while at < len {
        let here = offset + at as u64;
        let within = (here % CELL as u64) as usize;
        let n = (CELL - within).min(len - at);
        visit(here / CELL as u64, within, at..at + n);
        at += n;
    }
}

fn zero(image: &File, offset: u64, len: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(image, how, offset as i64, len as i64).map_err(io::Error::from)
}

/// The file system that holds the disk's file.
struct Shelf(&'static Mutex<Disk>);

impl Shelf {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().expect("no request panics")
    }
}

fn attr(ino: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: CELL as u32,
        flags: 0,
    }
}

/// The file of cut `number` has this node.
fn node(number: u64) -> u64 {
    number + 2
}

impl Filesystem for Shelf {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The kernel's default will do as well.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk();
        if name.to_str() == Some(&format!("disk{}", disk.number)) {
            reply.entry(&TTL, &attr(node(disk.number), FileType::RegularFile, disk.bytes), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match ino.0 {
            1 => reply.attr(&TTL, &attr(1, FileType::Directory, 0)),
            ino => reply.attr(&TTL, &attr(ino, FileType::RegularFile, self.disk().bytes)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk().read(offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk().write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A file was closed; that is no flush of the disk.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.disk().log.as_mut().map_or(Ok(()), Writer::flush) {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & (nix::libc::FALLOC_FL_PUNCH_HOLE | nix::libc::FALLOC_FL_ZERO_RANGE) == 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        match self.disk().zero(offset, length) {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

/// Where the disk's program mounts its shelf.
pub fn shelf_of(dir: &Path) -> PathBuf {
    dir.join("shelf")
}

/// The program: `record|replay DIR BYTES`. It ends when its standard input does.
pub fn main(words: &[String]) -> Result<(), String> {
    let [mode, dir, bytes] = words else { return Err("record|replay DIR BYTES".to_owned()) };
    let (dir, bytes) = (PathBuf::from(dir), bytes.parse::<u64>().map_err(|e| e.to_string())?);
    let recording = mode == "record";
    let image = dir.join(if recording { "image" } else { "durable" });
    let image = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&image)
        .map_err(|e| format!("{}: {e}", image.display()))?;
    image.set_len(bytes).map_err(|e| e.to_string())?;
    let log = recording.then(|| Writer::create(&dir)).transpose().map_err(|e| e.to_string())?;
    // For the rest of this process's life.
    let disk: &'static Mutex<Disk> =
        Box::leak(Box::new(Mutex::new(Disk { bytes, image, log, changed: HashMap::new(), number: 0 })));
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("pgcowfs-powercut".to_owned())];
    let shelf = shelf_of(&dir);
    let session = fuser::spawn_mount(Shelf(disk), &shelf, &config)
        .map_err(|e| format!("mounting on {}: {e}", shelf.display()))?;
    let mut replay = if recording { None } else { Some(Replay::open(&dir).map_err(|e| e.to_string())?) };
    println!("ready");
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let answer = match (&mut replay, Cut::parse(&line)) {
            (Some(replay), Some(cut)) => match replay.show(disk, &cut) {
                Ok(number) => format!("disk{number}"),
                Err(error) => format!("error {error}"),
            },
            _ => format!("error no command: {line}"),
        };
        println!("{answer}");
        let _ = io::stdout().flush();
    }
    drop(session);
    Ok(())
}

/// Makes the state after a cut.
struct Replay {
    log: Log,
    /// Events that the image holds.
    applied: u64,
}

impl Replay {
    fn open(dir: &Path) -> io::Result<Replay> {
        Ok(Replay { log: Log::open(dir)?, applied: 0 })
    }

    fn show(&mut self, disk: &Mutex<Disk>, cut: &Cut) -> io::Result<u64> {
        let mut disk = disk.lock().expect("no request panics");
        disk.changed.clear();
        if cut.durable < self.applied {
            disk.image.set_len(0)?;
            disk.image.set_len(disk.bytes)?;
            self.applied = 0;
        }
        for event in &self.log.events[self.applied as usize..cut.durable as usize] {
            match *event {
                Event::Write { offset, len, data } => {
                    disk.image.write_all_at(&self.log.read(data, len)?, offset)?;
                }
                Event::Zero { offset, len } => zero(&disk.image, offset, len)?,
                Event::Flush => {}
            }
        }
        self.applied = cut.durable;
        let mut random = Random::new(cut.seed);
        // Different cuts keep different parts.
        let share = *random.pick(&[10, 50, 90]).expect("not empty");
        for event in &self.log.events[cut.durable as usize..cut.at as usize] {
            let keep = match cut.style {
                Style::None => false,
                Style::All => true,
                Style::Some | Style::Torn => random.percent(share),
            };
            match *event {
                Event::Write { offset, len, data } if keep => {
                    let bytes = self.log.read(data, len)?;
                    if cut.style == Style::Torn && random.percent(50) {
                        for (i, sector) in bytes.chunks(SECTOR).enumerate() {
                            if random.percent(50) {
                                disk.change(offset + (i * SECTOR) as u64, sector)?;
                            }
                        }
                    } else {
                        disk.change(offset, &bytes)?;
                    }
                }
                Event::Zero { offset, len } if keep => disk.zero(offset, len)?,
                _ => {}
            }
        }
        disk.number += 1;
        Ok(disk.number)
    }
}
