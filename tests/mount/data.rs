//! Contents: reading, writing, sizes, holes, copies, maps, syncs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use pgcowfs::mount::MountOptions;

use crate::{Mounted, check, drop_pages, errno, pattern};

const BLOCK: usize = 8192;

fn open(m: &Mounted, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(m.path(name)).unwrap()
}

fn copy(from: &File, from_offset: i64, to: &File, to_offset: i64, len: usize) -> io::Result<i64> {
    let (mut from_offset, mut to_offset) = (from_offset, to_offset);
    // SAFETY: both offsets outlive the call.
    check(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &mut from_offset, to.as_raw_fd(), &mut to_offset, len, 0)
    } as i64)
}

/// Random changes of a file against a vector.
fn against_a_model(m: &Mounted) {
    let file = open(m, "f");
    let mut model: Vec<u8> = Vec::new();
    let mut random = pattern(7, 6000).into_iter().map(u64::from);
    let mut draw = |limit: u64| {
        let n = (0..3).fold(0, |n, _| n << 8 | random.next().expect("drawn less often"));
        n % limit
    };
    for step in 0..400u64 {
        let offset = draw(300_000);
        let len = [1, 100, 4096, 8192, 8192, 16_384, 70_000][draw(7) as usize];
        // Half of the offsets lie on a block's boundary.
        let offset = if draw(2) == 0 { offset & !(BLOCK as u64 - 1) } else { offset };
        let end = (offset + len) as usize;
        match draw(12) {
            0 => {
                file.set_len(offset).unwrap();
                model.resize(offset as usize, 0);
            }
            1 => {
                let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, mode, offset as i64, len as i64).unwrap();
                let (from, to) = ((offset as usize).min(model.len()), end.min(model.len()));
                model[from..to].fill(0);
            }
            2 => {
                let to = draw(300_000);
                let source = (offset as usize).min(model.len())..end.min(model.len());
                // Within a file the two ranges must not meet.
                if to as usize + len as usize <= source.start || to as usize >= end {
                    let copied = copy(&file, offset as i64, &file, to as i64, len as usize).unwrap() as usize;
                    assert_eq!(copied, source.len(), "step {step}");
                    if copied > 0 {
                        model.resize(model.len().max(to as usize + copied), 0);
                        model.copy_within(source, to as usize);
                    }
                }
            }
            _ => {
                let data = pattern(step, len as usize);
                file.write_all_at(&data, offset).unwrap();
                model.resize(model.len().max(end), 0);
                model[offset as usize..end].copy_from_slice(&data);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "step {step}");
        if step % 7 == 0 {
            // Now and then from the daemon rather than from the page cache.
            if step % 2 == 0 {
                drop_pages(&file);
            }
            assert!(fs::read(m.path("f")).unwrap() == model, "step {step}");
        }
        if step % 50 == 49 {
            file.sync_all().unwrap();
        }
    }
}

#[test]
fn any_offset_and_length() {
    let Some(m) = Mounted::start() else { return };
    against_a_model(&m);
}

#[test]
fn any_offset_and_length_without_newer_kernel_features() {
    let Some(m) = Mounted::with(&MountOptions { plain: true, threads: 1, ..Default::default() }) else {
        return;
    };
    against_a_model(&m);
}

#[test]
fn far_beyond_the_end() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m, "sparse");
    let far = 5 << 40;
    file.write_all_at(b"end", far).unwrap();
    assert_eq!(file.metadata().unwrap().len(), far + 3);
    let mut bytes = [1; 6];
    file.read_exact_at(&mut bytes, far - 3).unwrap();
    assert_eq!(&bytes, b"\0\0\0end");
    file.set_len(0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
}

#[test]
fn appending() {
    let Some(m) = Mounted::start() else { return };
    let open = || OpenOptions::new().append(true).create(true).open(m.path("log")).unwrap();
    let (mut a, mut b) = (open(), open());
    for i in 0..100 {
        let file = if i % 2 == 0 { &mut a } else { &mut b };
        writeln!(file, "line {i}").unwrap();
    }
    let text = fs::read_to_string(m.path("log")).unwrap();
    assert!(text.lines().enumerate().all(|(i, line)| line == format!("line {i}")));
    assert_eq!(text.lines().count(), 100);
}

#[test]
fn truncation() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m, "f");
    let data = pattern(1, 3 * BLOCK);
    file.write_all_at(&data, 0).unwrap();
    for size in [3 * BLOCK - 1, 2 * BLOCK, BLOCK + 1, 100] {
        file.set_len(size as u64).unwrap();
        drop_pages(&file);
        assert!(fs::read(m.path("f")).unwrap() == data[..size]);
    }
    // What was cut off does not come back.
    file.set_len(2 * BLOCK as u64).unwrap();
    drop_pages(&file);
    let read = fs::read(m.path("f")).unwrap();
    assert!(read[..100] == data[..100] && read[100..].iter().all(|b| *b == 0));
    nix::unistd::truncate(&m.path("f"), 7).unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), data[..7]);
    assert_eq!(errno(nix::unistd::truncate(&m.path("."), 7).map_err(io::Error::from)), libc::EISDIR);
}

#[test]
fn allocation() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m, "f");
    let alloc = |mode, offset, len| fallocate(&file, mode, offset, len).map_err(io::Error::from);
    let size = || file.metadata().unwrap().len();
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let data = pattern(2, 4 * BLOCK);
    file.write_all_at(&data, 0).unwrap();

    alloc(FallocateFlags::empty(), 0, 6 * BLOCK as i64).unwrap();
    assert_eq!(size(), 6 * BLOCK as u64);
    alloc(keep, 0, 100 * BLOCK as i64).unwrap();
    assert_eq!(size(), 6 * BLOCK as u64);
    let mut expected = data;
    expected.resize(6 * BLOCK, 0);

    alloc(FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, 5000, BLOCK as i64 + 7000).unwrap();
    expected[5000..12_000 + BLOCK].fill(0);
    assert!(fs::read(m.path("f")).unwrap() == expected, "the page cache follows");
    drop_pages(&file);
    assert!(fs::read(m.path("f")).unwrap() == expected);

    alloc(FallocateFlags::FALLOC_FL_ZERO_RANGE, 3 * BLOCK as i64 + 1, 10 * BLOCK as i64).unwrap();
    expected[3 * BLOCK + 1..].fill(0);
    expected.resize(13 * BLOCK + 1, 0);
    assert!(fs::read(m.path("f")).unwrap() == expected);
    drop_pages(&file);
    assert!(fs::read(m.path("f")).unwrap() == expected);

    assert_eq!(errno(alloc(FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, BLOCK as i64)), libc::EOPNOTSUPP);
    assert_eq!(errno(alloc(FallocateFlags::FALLOC_FL_PUNCH_HOLE, 0, 1)), libc::EOPNOTSUPP);
    assert_eq!(errno(alloc(FallocateFlags::empty(), 0, 0)), libc::EINVAL);
}

#[test]
fn copying_ranges() {
    let Some(m) = Mounted::start() else { return };
    let (a, b) = (open(&m, "a"), open(&m, "b"));
    let data = pattern(3, 10 * BLOCK + 100);
    a.write_all_at(&data, 0).unwrap();
    let old = pattern(4, 4 * BLOCK);
    b.write_all_at(&old, 0).unwrap();
    assert!(fs::read(m.path("b")).unwrap() == old);

    let n = BLOCK as i64;
    let asked = m.caused("copy_file_range", || assert_eq!(copy(&a, n, &b, 2 * n, 4 * BLOCK).unwrap(), 4 * n));
    assert_eq!(asked, 1);
    let mut expected = old;
    expected.resize(6 * BLOCK, 0);
    expected[2 * BLOCK..].copy_from_slice(&data[BLOCK..5 * BLOCK]);
    assert!(fs::read(m.path("b")).unwrap() == expected, "the page cache follows");

    // Any offsets, and only up to the end of the source.
    assert_eq!(copy(&a, 10 * n - 5, &b, 7, BLOCK).unwrap(), 105);
    expected[7..112].copy_from_slice(&data[10 * BLOCK - 5..]);
    drop_pages(&b);
    assert!(fs::read(m.path("b")).unwrap() == expected);
    assert_eq!(copy(&a, 10 * n + 100, &b, 0, BLOCK).unwrap(), 0);

    // The copy does not follow its source.
    a.write_all_at(&pattern(5, 10 * BLOCK), 0).unwrap();
    drop_pages(&b);
    assert!(fs::read(m.path("b")).unwrap() == expected);
    // Nor the source its copy.
    let source = fs::read(m.path("a")).unwrap();
    b.write_all_at(&[9; 6 * BLOCK], 0).unwrap();
    drop_pages(&a);
    assert!(fs::read(m.path("a")).unwrap() == source);
}

#[test]
fn data_and_holes() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m, "f");
    file.set_len(100 * BLOCK as u64).unwrap();
    file.write_all_at(&[1; 2 * BLOCK], 20 * BLOCK as u64).unwrap();
    let seek = |offset: usize, whence| lseek(&file, offset as i64, whence).map_err(io::Error::from);
    let n = BLOCK as i64;
    assert_eq!(seek(0, Whence::SeekData).unwrap(), 20 * n);
    assert_eq!(seek(20 * BLOCK + 5, Whence::SeekData).unwrap(), 20 * n + 5);
    assert_eq!(seek(20 * BLOCK, Whence::SeekHole).unwrap(), 22 * n);
    assert_eq!(seek(3, Whence::SeekHole).unwrap(), 3);
    assert_eq!(errno(seek(22 * BLOCK, Whence::SeekData)), libc::ENXIO);
    assert_eq!(errno(seek(100 * BLOCK, Whence::SeekHole)), libc::ENXIO);
    file.set_len(21 * BLOCK as u64).unwrap();
    assert_eq!(seek(20 * BLOCK, Whence::SeekHole).unwrap(), 21 * n);
    assert_eq!(seek(0, Whence::SeekEnd).unwrap(), 21 * n);
}

/// A memory map, unmapped when dropped.
struct Map(*mut u8, usize);

impl Map {
    fn new(file: &File, len: usize, shared: bool) -> Map {
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new map at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Map(at.cast(), len)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as self lives, and borrowed from it.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }

    fn sync(&self) {
        // SAFETY: the map of self.
        check(unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) }).unwrap();
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the map of self, which nobody borrows any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Names the file for [`in_another_process`].
const MAPPED_FILE: &str = "PGCOWFS_TEST_MAPPED_FILE";

/// Not in this process, which serves the mount as well: while a fault or an
/// unmap waits for the daemon it holds the lock of the process's memory, which
/// the daemon needs for its own.
#[test]
fn memory_maps() {
    let Some(m) = Mounted::start() else { return };
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "data::in_another_process", "--nocapture"]).env(MAPPED_FILE, m.path("f"));
    let syncs = m.caused("fsync", || {
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    assert_eq!(syncs, 1);
    assert_eq!(m.main.resolve("f").unwrap().size, MAPPED_BYTES as u64);
}

const MAPPED_BYTES: usize = 5 * BLOCK + 11;

/// The child of [`memory_maps`]; by itself it does nothing.
#[test]
fn in_another_process() {
    let Some(path) = std::env::var_os(MAPPED_FILE) else { return };
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut data = pattern(6, MAPPED_BYTES);
    file.write_all_at(&data, 0).unwrap();
    drop_pages(&file);

    let mut private = Map::new(&file, data.len(), false);
    assert!(private.bytes() == data);
    private.bytes()[100] ^= 1;
    assert!(fs::read(&path).unwrap() == data);

    let mut shared = Map::new(&file, data.len(), true);
    shared.bytes()[BLOCK - 3..BLOCK + 3].copy_from_slice(b"shared");
    data[BLOCK - 3..BLOCK + 3].copy_from_slice(b"shared");
    assert!(fs::read(&path).unwrap() == data);
    shared.sync();
    drop_pages(&file);
    assert!(fs::read(&path).unwrap() == data);
    // A write is seen through the map, a store is there after the unmap.
    file.write_all_at(b"write", 20_000).unwrap();
    assert_eq!(&shared.bytes()[20_000..20_005], b"write");
    shared.bytes()[5 * BLOCK + 10] = 77;
    drop(shared);
    drop_pages(&file);
    let read = fs::read(&path).unwrap();
    assert_eq!((read[5 * BLOCK + 10], read.len()), (77, data.len()));
}

#[test]
fn direct_io() {
    let Some(m) = Mounted::start() else { return };
    let file = open(&m, "f");
    file.write_all_at(&[1; 3 * BLOCK], 0).unwrap();
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(m.path("f")).unwrap();
    // Aligned memory for O_DIRECT: one page more than needed.
    let mut space = vec![2; 4096 + BLOCK];
    let start = space.as_ptr().align_offset(4096);
    let block = &mut space[start..start + BLOCK];
    direct.write_all_at(block, BLOCK as u64).unwrap();
    let read = fs::read(m.path("f")).unwrap();
    assert!(read[..BLOCK] == [1; BLOCK] && read[BLOCK..2 * BLOCK] == [2; BLOCK]);
    file.write_all_at(&[3; BLOCK], BLOCK as u64).unwrap();
    direct.read_exact_at(block, BLOCK as u64).unwrap();
    assert!(*block == [3; BLOCK]);
    direct.write_all_at(block, 3 * BLOCK as u64).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4 * BLOCK as u64);
}

#[test]
fn every_sync_reaches_the_daemon() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    let file = open(&m, "d/f");
    let syncs = m.caused("fsync", || {
        file.write_all_at(&[1; BLOCK], 0).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
    });
    assert_eq!(syncs, 3);
    let dir = File::open(m.path("d")).unwrap();
    assert_eq!(m.caused("fsyncdir", || (0..4).for_each(|_| dir.sync_all().unwrap())), 4);
    // The top directory of all forks, too, takes a sync.
    File::open(&m.mnt).unwrap().sync_all().unwrap();

    let durable = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(m.path("d/f")).unwrap();
    assert_eq!(m.caused("fsync", || durable.write_all_at(&[2; BLOCK], 0).unwrap()), 1);
}

#[test]
fn many_syncs_at_a_time() {
    let Some(m) = Mounted::start() else { return };
    // More than there are threads that read requests: reads and writes go on.
    std::thread::scope(|scope| {
        for i in 0..24 {
            let m = &m;
            scope.spawn(move || {
                let file = open(m, &format!("f{i}"));
                for round in 0..20 {
                    file.write_all_at(&pattern(round, BLOCK), round * BLOCK as u64).unwrap();
                    file.sync_data().unwrap();
                    drop_pages(&file);
                    let mut block = vec![0; BLOCK];
                    file.read_exact_at(&mut block, round * BLOCK as u64).unwrap();
                    assert!(block == pattern(round, BLOCK));
                }
            });
        }
    });
    assert_eq!(m.count("fsync"), 24 * 20);
}
