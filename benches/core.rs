//! The core without FUSE, on a real directory: `cargo bench --bench core`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pgcowfs::{FileId, Fork, Make, Options, Store};

const B: u64 = 8192;
/// Blocks of the file that is read and written: 64 MiB.
const BLOCKS: u64 = 8192;

struct Rig {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    main: Arc<Fork>,
    file: FileId,
}

/// A store with one fork and one relation of 64 MiB, forked `depth` times with
/// a changed page each.
fn rig(depth: u64) -> Rig {
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
    for i in 0..depth {
        let name = format!("d{i}");
        store.fork("main", &name, b"", &mut |_| Ok(())).expect("a fork");
        main.write(file, i % BLOCKS * B, &[1; B as usize]).expect("a write");
    }
    main.sync_all().expect("a sync");
    Rig { _dir: dir, store, main, file }
}

/// Blocks in an order that no readahead likes.
fn scattered(i: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS
}

fn pages(c: &mut Criterion) {
    for depth in [1, 1000] {
        let rig = rig(depth);
        let mut i = 0;
        c.bench_function(&format!("page read, depth {depth}"), |b| {
            let mut out = Vec::with_capacity(B as usize);
            b.iter(|| {
                i += 1;
                out.clear();
                rig.main.read(rig.file, scattered(i) * B, B as usize, &mut out).expect("a read");
                black_box(&out);
            })
        });
        c.bench_function(&format!("page write, depth {depth}"), |b| {
            b.iter(|| {
                i += 1;
                rig.main.write(rig.file, scattered(i) * B, &[i as u8; B as usize]).expect("a write");
            })
        });
        rig.store.close().expect("a clean end");
    }
}

fn commits(c: &mut Criterion) {
    let rig = rig(1);
    let mut i = 0;
    c.bench_function("commit of 100 random pages", |b| {
        b.iter_batched(
            || {
                for _ in 0..100 {
                    i += 1;
                    rig.main.write(rig.file, scattered(i) * B, &[i as u8; B as usize]).expect("a write");
                }
            },
            |()| rig.main.sync_all().expect("a sync"),
            BatchSize::PerIteration,
        )
    });
    rig.store.close().expect("a clean end");
}

fn forks(c: &mut Criterion) {
    let rig = rig(1);
    let mut n = 0;
    c.bench_function("fork and remove", |b| {
        b.iter(|| {
            n += 1;
            let name = format!("f{n}");
            rig.store.fork("main", &name, b"", &mut |_| Ok(())).expect("a fork");
            rig.store.remove(&name).expect("a removal");
        })
    });
    rig.store.close().expect("a clean end");
}

criterion_group!(benches, pages, commits, forks);
criterion_main!(benches);
