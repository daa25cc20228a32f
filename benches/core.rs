//! The core without FUSE, on a real directory: `cargo bench --bench core`.
//!
//! Everything is measured on forks that stand on 1, 10, 100 and 1,000 layers: what a
//! page, a commit or a fork costs must not depend on the number of ancestors.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use pgcowfs::{FileId, Fork, Make, Options, Store};

const B: u64 = 8192;
/// Blocks of the file that is read and written: 64 MiB.
const BLOCKS: u64 = 8192;
/// Pages of it that each layer changes.
const CHANGED: u64 = 8;
const DEPTHS: [u64; 4] = [1, 10, 100, 1000];

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    file: FileId,
}

/// A store that somebody uses.
struct Opened {
    store: Arc<Store>,
    main: Arc<Fork>,
}

impl Rig {
    /// A store with one fork and one relation of 64 MiB, forked `depth` times,
    /// each time with some pages changed afterwards. The children stay, so that the
    /// layers do.
    fn new(depth: u64) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("store");
        Store::init(&path).expect("a new store");
        let store = Store::open(&path, Options::default()).expect("the store opens");
        let main = store.create("main", 0, 0, b"").expect("a root fork");
        let base = main.make(FileId::ROOT, b"base", Make::Directory, 0o700, 0, 0).expect("a directory").file;
        let db = main.make(base, b"5", Make::Directory, 0o700, 0, 0).expect("a directory").file;
        let file = main.make(db, b"16384", Make::File, 0o600, 0, 0).expect("a file").file;
        for block in 0..BLOCKS {
            main.write(file, block * B, &[block as u8; B as usize]).expect("a write");
        }
        store.publish("main").expect("a complete fork");
        for layer in 0..depth {
            store.fork("main", &format!("d{layer}"), b"", &mut |_| Ok(())).expect("a fork");
            for page in 0..CHANGED {
                main.write(file, scattered(layer * CHANGED + page) * B, &[1; B as usize]).expect("a write");
            }
        }
        main.sync_all().expect("a sync");
        store.close().expect("a clean end");
        Rig { _dir: dir, path, file }
    }

    fn open(&self) -> Opened {
        let store = Store::open(&self.path, Options::default()).expect("the store opens");
        let main = store.by_name("main").expect("the fork");
        Opened { store, main }
    }
}

impl Opened {
    fn close(self) {
        self.store.close().expect("a clean end");
    }
}

/// Blocks in an order that no readahead likes.
fn scattered(i: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS
}

fn core(c: &mut Criterion) {
    for depth in DEPTHS {
        let rig = Rig::new(depth);
        // What leaves the layers as they are comes first.
        map_load(c, &rig, depth);
        let opened = rig.open();
        page_read(c, &rig, &opened, depth);
        fork(c, &opened, depth);
        page_write(c, &rig, &opened, depth);
        commit(c, &rig, &opened, depth);
        opened.close();
    }
}

/// The page table of a file, from the block map, when the file is first read after
/// a start, with that read.
fn map_load(c: &mut Criterion, rig: &Rig, depth: u64) {
    c.benchmark_group("map load").sample_size(10).bench_function(BenchmarkId::from_parameter(depth), |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            let mut out = Vec::with_capacity(B as usize);
            for i in 0..times {
                let opened = rig.open();
                opened.main.attr(rig.file).expect("the file");
                let begin = Instant::now();
                out.clear();
                opened.main.read(rig.file, scattered(i) * B, B as usize, &mut out).expect("a read");
                took += begin.elapsed();
                opened.close();
            }
            took
        })
    });
}

fn page_read(c: &mut Criterion, rig: &Rig, opened: &Opened, depth: u64) {
    let mut i = 0;
    c.benchmark_group("page read").bench_function(BenchmarkId::from_parameter(depth), |b| {
        let mut out = Vec::with_capacity(B as usize);
        b.iter(|| {
            i += 1;
            out.clear();
            opened.main.read(rig.file, scattered(i) * B, B as usize, &mut out).expect("a read");
            black_box(&out);
        })
    });
}

fn page_write(c: &mut Criterion, rig: &Rig, opened: &Opened, depth: u64) {
    let mut i = 0;
    c.benchmark_group("page write").bench_function(BenchmarkId::from_parameter(depth), |b| {
        b.iter(|| {
            i += 1;
            opened.main.write(rig.file, scattered(i) * B, &[i as u8; B as usize]).expect("a write");
        })
    });
}

fn commit(c: &mut Criterion, rig: &Rig, opened: &Opened, depth: u64) {
    let mut i = 0;
    c.benchmark_group("commit of 100 random pages").bench_function(BenchmarkId::from_parameter(depth), |b| {
        b.iter_batched(
            || {
                for _ in 0..100 {
                    i += 1;
                    opened.main.write(rig.file, scattered(i) * B, &[i as u8; B as usize]).expect("a write");
                }
            },
            |()| opened.main.sync_all().expect("a sync"),
            BatchSize::PerIteration,
        )
    });
}

/// The fork alone; it is removed again outside of the time.
fn fork(c: &mut Criterion, opened: &Opened, depth: u64) {
    c.benchmark_group("fork").bench_function(BenchmarkId::from_parameter(depth), |b| {
        b.iter_custom(|times| {
            let mut took = Duration::ZERO;
            for _ in 0..times {
                let begin = Instant::now();
                opened.store.fork("main", "measured", b"", &mut |_| Ok(())).expect("a fork");
                took += begin.elapsed();
                opened.store.remove("measured").expect("a removal");
            }
            took
        })
    });
}

criterion_group!(benches, core);
criterion_main!(benches);
