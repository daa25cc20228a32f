//! A store in memory, for tests of the core.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::sync::Arc;

use pgcowfs::device::mem::MemDevice;
use pgcowfs::forks::Parts;
use pgcowfs::map::Map;
use pgcowfs::map::mem::MemMap;
use pgcowfs::{Attr, Error, FileId, Fork, Make, Options, Store};

/// The size of a block in bytes.
pub const B: u64 = 8192;

/// The parts of a store that outlive it.
pub struct Parts3 {
    pub map: MemMap,
    pub delta: MemDevice,
    pub inplace: MemDevice,
}

impl Parts3 {
    pub fn new() -> Self {
        Parts3 { map: MemMap::new(), delta: MemDevice::new(), inplace: MemDevice::new() }
    }

    pub fn open(&self) -> Arc<Store> {
        self.open_keeping(0)
    }

    pub fn open_keeping(&self, keep_free_bytes: u64) -> Arc<Store> {
        self.open_with(Options { keep_free_bytes, ..Options::default() }).unwrap()
    }

    pub fn try_open(&self) -> Result<Arc<Store>, Error> {
        self.open_with(Options::default())
    }

    fn open_with(&self, options: Options) -> Result<Arc<Store>, Error> {
        self.open_on(Arc::new(self.map.clone()), options)
    }

    /// Opens with a map that stands before this one.
    pub fn open_on(&self, map: Arc<dyn Map>, options: Options) -> Result<Arc<Store>, Error> {
        let parts = Parts {
            dir: "/nowhere".into(),
            id: [7; 16],
            map,
            delta: Arc::new(self.delta.clone()),
            inplace: Arc::new(self.inplace.clone()),
        };
        Store::open_parts(parts, options, None)
    }

    /// The same parts once more.
    pub fn share(&self) -> Self {
        Parts3 { map: self.map.clone(), delta: self.delta.clone(), inplace: self.inplace.clone() }
    }

    /// The same, to be changed on its own.
    pub fn copy(&self) -> Self {
        Parts3 {
            map: self.map.crash_image(),
            delta: self.delta.crash_image(&mut || true),
            inplace: self.inplace.crash_image(&mut || true),
        }
    }

    /// What a loss of power leaves if nothing unflushed gets through.
    pub fn worst_crash(&self) -> Self {
        Parts3 {
            map: self.map.crash_image(),
            delta: self.delta.crash_image(&mut || false),
            inplace: self.inplace.crash_image(&mut || false),
        }
    }
}

/// A root fork with the directories that give files their class.
pub fn cluster(store: &Store, name: &str) -> Arc<Fork> {
    let fork = store.create(name, 0, 0, b"").unwrap();
    for path in ["base", "base/5", "pg_wal", "log"] {
        make(&fork, path, Make::Directory);
    }
    store.publish(name).unwrap();
    fork
}

/// Makes a file or directory by path.
pub fn make(fork: &Fork, path: &str, what: Make) -> Attr {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = fork.resolve(dir).unwrap().file;
    fork.make(dir, name.as_bytes(), what, 0o700, 0, 0).unwrap()
}

/// Makes a regular file by path.
pub fn file(fork: &Fork, path: &str) -> FileId {
    make(fork, path, Make::File).file
}

/// Bytes of a file.
pub fn read(fork: &Fork, file: FileId, offset: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    fork.read(file, offset, len as usize, &mut out).unwrap();
    out
}

/// One block of a byte.
pub fn page(byte: u8) -> Vec<u8> {
    vec![byte; B as usize]
}

/// Forks, and returns the child.
pub fn fork(store: &Store, parent: &str, child: &str) -> Arc<Fork> {
    store.fork(parent, child, b"", &mut |_| Ok(())).unwrap();
    store.by_name(child).unwrap()
}

/// Brings all work about space to its end; the bytes that went back to the device.
pub fn collect(store: &Store) -> u64 {
    let mut bytes = 0;
    let done = store.collect_all(&mut |so_far| {
        bytes = so_far;
        true
    });
    assert!(done.unwrap(), "it was not stopped");
    bytes
}
