//! What one fork costs: the same bytes, allocations and copied nodes, whatever
//! the cluster's size and number of files. And what its removal costs the one who
//! asks for it.

#[path = "common/mem.rs"]
mod mem;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mem::{B, Parts3, cluster, collect, file, make, page, read};
use pgcowfs::Make;
use pgcowfs::layer::tree;

/// Counts what each thread allocates and frees.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static FREED: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // As above.
        let _ = FREED.try_with(|n| n.set(n.get() + 1));
        // SAFETY: `ptr` came from `alloc` above with the same layout.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Debug, PartialEq, Eq)]
struct Cost {
    map_bytes: u64,
    allocations: u64,
    nodes: u64,
}

/// The cost of forking a cluster with that many relations and that many bytes
/// in one of them.
fn cost(relations: u32, bytes: u64) -> Cost {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let big = file(&main, "base/5/9");
    let seed = file(&main, "base/5/8");
    for i in 0..64 {
        main.write(seed, i * B, &page(i as u8)).unwrap();
    }
    // Shared pages fill the page table as copied ones would, without the bytes.
    let mut at = 0;
    while at < bytes {
        at += main.copy_range(seed, 0, big, at, 64 * B).unwrap();
    }
    for i in 0..relations {
        file(&main, &format!("base/5/{}", 1000 + i));
    }
    make(&main, "global", Make::Directory);
    main.sync_all().unwrap();
    // The first fork makes the identifiers' next step durable.
    store.fork("main", "warm", b"", &mut |_| Ok(())).unwrap();

    let nodes = tree::memory().nodes;
    let allocations = ALLOCATIONS.with(Cell::get);
    let report = store.fork("main", "child", b"", &mut |_| Ok(())).unwrap();
    let cost = Cost {
        map_bytes: report.map_bytes,
        allocations: ALLOCATIONS.with(Cell::get) - allocations,
        nodes: tree::memory().nodes - nodes,
    };
    let child = store.by_name("child").unwrap();
    assert_eq!(read(&child, big, bytes - B, B), read(&main, big, bytes - B, B));
    assert_eq!(child.read_dir(child.resolve("base/5").unwrap().file).unwrap().len() as u32, relations + 2);
    store.close().unwrap();
    cost
}

// One test, for the counters of nodes are the process's.
#[test]
fn forks_and_removals_cost_the_same_at_any_size() {
    a_fork_costs_the_same_at_any_size();
    who_removes_a_fork_does_not_wait_for_its_memory();
}

fn a_fork_costs_the_same_at_any_size() {
    let small = cost(1_000, 100 << 20);
    println!("{small:?}");
    assert_eq!(small.nodes, 0, "no page table is touched");
    assert!(small.map_bytes <= 2_000, "{small:?}");
    assert_eq!(cost(1_000, 2 << 30), small, "2 GiB against 100 MiB");
    // Listing the top directory keeps a stack as deep as the tree of names.
    let many = cost(100_000, 100 << 20);
    assert!(many.allocations <= small.allocations + 4, "{many:?} against {small:?}");
    assert_eq!(Cost { allocations: small.allocations, ..many }, small, "100,000 relations against 1,000");
}

/// The pieces of memory that the one who removes a big fork frees: of a cluster
/// with that many relations, all of them the fork's own and its pages unsynced.
fn freed_by_removal(relations: u64) -> u64 {
    let parts = Parts3::new();
    let store = parts.open();
    cluster(&store, "main");
    store.fork("main", "child", b"", &mut |_| Ok(())).unwrap();
    let child = store.by_name("child").unwrap();
    let open = file(&child, "base/5/9");
    child.open(open).unwrap();
    for i in 0..relations {
        let rel = file(&child, &format!("base/5/{}", 1000 + i));
        child.write(rel, 0, &page(i as u8)).unwrap();
        child.write(open, i * B, &page(i as u8)).unwrap();
    }
    child.unlink(child.resolve("base/5").unwrap().file, b"9").unwrap();
    drop(child);
    let freed = FREED.with(Cell::get);
    store.remove("child").unwrap();
    let freed = FREED.with(Cell::get) - freed;
    // And it is freed.
    collect(&store);
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
    assert_eq!(pgcowfs::device::Device::list(&parts.delta).unwrap(), Vec::<String>::new());
    store.close().unwrap();
    freed
}

fn who_removes_a_fork_does_not_wait_for_its_memory() {
    let (small, big) = (freed_by_removal(10), freed_by_removal(10_000));
    assert!(big <= small + 10, "{big} against {small}");
}
