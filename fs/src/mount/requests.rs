//! Counts of the requests served.
//!
//! What a FUSE file system costs is the number of its requests, so the number
//! is part of the interface: tests assert it, `status` shows it.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($kind,)* }

        impl Kind {
            const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// The kind's name in the FUSE protocol, in lower case.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Readlink "readlink",
    Symlink "symlink",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Rename "rename",
    Link "link",
    Open "open",
    Read "read",
    Write "write",
    Statfs "statfs",
    Release "release",
    Fsync "fsync",
    Setxattr "setxattr",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Removexattr "removexattr",
    Flush "flush",
    Opendir "opendir",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Releasedir "releasedir",
    Fsyncdir "fsyncdir",
    Getlk "getlk",
    Setlk "setlk",
    Access "access",
    Create "create",
    Bmap "bmap",
    Ioctl "ioctl",
    Poll "poll",
    Fallocate "fallocate",
    Lseek "lseek",
    CopyFileRange "copy_file_range",
}

const KINDS: usize = Kind::ALL.len();

/// One counter for each kind of request, and for the bytes read and written.
///
/// Relaxed: a counter says how much, never that something else has happened.
#[derive(Debug)]
pub struct Counters {
    requests: [AtomicU64; KINDS],
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
}

impl Counters {
    pub fn new() -> Counters {
        Counters {
            requests: [const { AtomicU64::new(0) }; KINDS],
            read_bytes: AtomicU64::new(0),
            write_bytes: AtomicU64::new(0),
        }
    }

    pub fn add(&self, kind: Kind) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn add_read_bytes(&self, n: usize) {
        self.read_bytes.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub fn add_write_bytes(&self, n: usize) {
        self.write_bytes.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// All counters, always in the same order.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let requests = Kind::ALL.iter().map(|&k| (k.name(), &self.requests[k as usize]));
        let bytes = [("read_bytes", &self.read_bytes), ("write_bytes", &self.write_bytes)];
        requests.chain(bytes).map(|(name, n)| (name, n.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_counter() {
        let counters = Counters::new();
        counters.add(Kind::Fsyncdir);
        counters.add(Kind::Fsyncdir);
        counters.add(Kind::CopyFileRange);
        counters.add_write_bytes(8192);
        let counted: Vec<_> = counters.snapshot().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("fsyncdir", 2), ("copy_file_range", 1), ("write_bytes", 8192)]);
    }
}
