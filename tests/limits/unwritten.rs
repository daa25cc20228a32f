//! Pages that wait to be written, on a disk that takes none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pgcowfs::device::{Device, DeviceFile, DirectBuf};
use pgcowfs::forks::Parts;
use pgcowfs::{Options, Store};

use super::MIB;
use super::mem::{B, Parts3, cluster, file, page, read};

const FORKS: u64 = 20;
/// Below what one fork may have.
const BLOCKS: u64 = 15 * MIB / B;
/// A watchdog, not a requirement on speed.
const HUNG: Duration = Duration::from_secs(120);

/// Keeps everybody waiting who writes pages, while it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut closed = self.closed.lock();
        while *closed {
            self.opened.wait(&mut closed);
        }
    }

    fn set(&self, closed: bool) {
        *self.closed.lock() = closed;
        self.opened.notify_all();
    }
}

/// A device behind a gate.
struct Gated<T: ?Sized> {
    gate: Arc<Gate>,
    inner: Arc<T>,
}

impl Device for Gated<dyn Device> {
    fn open(&self, name: &str, create: bool) -> io::Result<Arc<dyn DeviceFile>> {
        let inner = self.inner.open(name, create)?;
        Ok(Arc::new(Gated { gate: self.gate.clone(), inner }))
    }
    fn remove(&self, name: &str) -> io::Result<u64> {
        self.inner.remove(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn flush_names(&self) -> io::Result<()> {
        self.inner.flush_names()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
}

impl DeviceFile for Gated<dyn DeviceFile> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }
    fn read_direct(&self, buf: &mut DirectBuf, len: usize, offset: u64) -> io::Result<()> {
        self.inner.read_direct(buf, len, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass();
        self.inner.write_at(buf, offset)
    }
    fn write_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate.pass();
        self.inner.write_direct(buf, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.allocate(offset, len)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.inner.truncate(len)
    }
    fn allocated(&self) -> io::Result<u64> {
        self.inner.allocated()
    }
}

/// Many forks write at once to a disk that takes nothing, each less than it may have by itself. Returns the most that
/// was only in memory, and whether all of it was taken before the disk went on.
fn most_unwritten(options: Options) -> (u64, bool) {
    let parts = Parts3::new();
    let gate = Arc::new(Gate::default());
    let delta: Arc<dyn Device> = Arc::new(parts.delta.clone());
    let store = Store::open_parts(
        Parts {
            dir: "/nowhere".into(),
            id: [7; 16],
            map: Arc::new(parts.map.clone()),
            delta: Arc::new(Gated { gate: gate.clone(), inner: delta }),
            inplace: Arc::new(parts.inplace.clone()),
        },
        options.clone(),
        None,
    )
    .unwrap();
    let forks: Vec<_> = (0..FORKS)
        .map(|n| {
            let fork = cluster(&store, &format!("f{n}"));
            let rel = file(&fork, "base/5/1");
            (fork, rel)
        })
        .collect();
    gate.set(true);
    let written = AtomicU64::new(0);
    let mut most = 0;
    let mut all_taken = false;
    std::thread::scope(|scope| {
        for (n, (fork, rel)) in forks.iter().enumerate() {
            let written = &written;
            scope.spawn(move || {
                for block in 0..BLOCKS {
                    fork.write(*rel, block * B, &page(n as u8 + 1)).unwrap();
                    written.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Until nobody goes on: all is taken, or the bound is reached and has held for a while.
        let began = Instant::now();
        let mut held = 0;
        while held < 30 && !all_taken {
            assert!(
                began.elapsed() < HUNG,
                "{} of {} bytes were written",
                written.load(Ordering::SeqCst) * B,
                most
            );
            std::thread::sleep(Duration::from_millis(10));
            most = most.max(store.unwritten_bytes());
            all_taken = written.load(Ordering::SeqCst) == FORKS * BLOCKS;
            held += u32::from(most >= options.dirty_total_bytes);
        }
        gate.set(false);
    });
    for (n, (fork, rel)) in forks.iter().enumerate() {
        fork.sync_all().unwrap();
        for block in [0, BLOCKS / 2, BLOCKS - 1] {
            assert_eq!(read(fork, *rel, block * B, B), page(n as u8 + 1), "block {block} of fork {n}");
        }
    }
    assert_eq!(store.unwritten_bytes(), 0, "all is written");
    store.close().unwrap();
    (most, all_taken)
}

/// 256 MiB for all forks together, but for the page that each of the writers has under way.
#[test]
fn all_forks_together_are_bounded() {
    let bound = 256 * MIB;
    let (most, all_taken) = most_unwritten(Options::default());
    assert!(!all_taken && most >= bound && most <= bound + FORKS * B, "{most} bytes were only in memory");
    // The same without a bound for all of them: it is that which holds, not another.
    let without = Options { dirty_total_bytes: u64::MAX, ..Options::default() };
    let (most, all_taken) = most_unwritten(without);
    assert!(all_taken && most == FORKS * BLOCKS * B, "{most} bytes were only in memory");
}
