//! Counts: what the kernel has asked for, how long it took, and what that cost.
//!
//! What a FUSE file system costs is the number of its requests, so the number
//! is part of the interface: tests assert it, `status` and `stats` show it.
//!
//! There is one [`Stats`] for each fork and one for all of a store. Everything in it
//! is a relaxed counter: it says how much, never that something else has happened.
//! Counters that are read together need not fit together to the last request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// What a request of the kernel asks for.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($kind,)* }

        impl Kind {
            /// Every kind, in a fixed order.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

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

/// Buckets of a histogram. Each spans twice the time of the one before it; the last
/// one is for whatever takes longer.
pub const BUCKETS: usize = 24;

/// The first bucket is for what takes less than 2^10 ns.
const FIRST_BITS: u32 = 10;

/// The end of a bucket: what is in it took less time. `None` for the last one.
pub fn bucket_end(bucket: usize) -> Option<Duration> {
    (bucket + 1 < BUCKETS).then(|| Duration::from_nanos(1 << (FIRST_BITS as usize + bucket)))
}

fn bucket_of(nanos: u64) -> usize {
    let bits = u64::BITS - (nanos >> FIRST_BITS).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

/// How many requests of one kind there were, and how long they took.
#[derive(Debug)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// What was asked for.
    pub kind: Kind,
    /// Requests by how long each took; see [`bucket_end`].
    pub buckets: [u64; BUCKETS],
    /// How long all of them took together.
    pub total: Duration,
}

impl Times {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

macro_rules! amounts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What is counted besides requests.
        #[derive(Debug, Default)]
        pub struct Amounts { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl Amounts {
            /// All of them, always in the same order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Relaxed)),)*]
            }
        }
    };
}

amounts! {
    /// Bytes that READ has returned.
    read_bytes,
    /// Bytes that WRITE has taken.
    write_bytes,
    /// Flushes of a host file of a WAL segment (or of scratch) for an fsync.
    wal_flushes,
    /// Commits to the block map.
    map_commits,
    /// Pages that a read found in memory, on their way to the disk.
    memory_pages,
    /// Pages that a read fetched from a delta file.
    delta_pages,
    /// Blocks that a read fetched from a base or from an in-place file.
    other_blocks,
}

/// Counters of a fork, or of all of a store.
#[derive(Debug)]
pub struct Stats {
    /// Made when the first request of the kind comes: a fork sees few kinds, and there
    /// may be thousands of forks.
    times: [OnceLock<Box<Histogram>>; KINDS],
    /// All else.
    pub amounts: Amounts,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats { times: [const { OnceLock::new() }; KINDS], amounts: Amounts::default() }
    }
}

impl Stats {
    /// Counts a request and how long it took.
    pub fn served(&self, kind: Kind, took: Duration) {
        let times = self.times[kind as usize].get_or_init(|| {
            Box::new(Histogram { buckets: [const { AtomicU64::new(0) }; BUCKETS], nanos: AtomicU64::new(0) })
        });
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        times.buckets[bucket_of(nanos)].fetch_add(1, Relaxed);
        times.nanos.fetch_add(nanos, Relaxed);
    }

    /// The kinds of which there were any.
    pub fn times(&self) -> Vec<Times> {
        let kinds = Kind::ALL.iter().filter_map(|&kind| Some((kind, self.times[kind as usize].get()?)));
        kinds
            .map(|(kind, times)| Times {
                kind,
                buckets: std::array::from_fn(|i| times.buckets[i].load(Relaxed)),
                total: Duration::from_nanos(times.nanos.load(Relaxed)),
            })
            .collect()
    }

    /// How many requests of each kind there were, of all kinds, always in the same
    /// order.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        let times = self.times();
        let count = |kind| times.iter().find(|times| times.kind == kind).map_or(0, Times::count);
        Kind::ALL.iter().map(|&kind| (kind.name(), count(kind))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_counter() {
        let stats = Stats::default();
        stats.served(Kind::Fsyncdir, Duration::from_micros(3));
        stats.served(Kind::Fsyncdir, Duration::from_secs(3600));
        stats.served(Kind::CopyFileRange, Duration::ZERO);
        let counted: Vec<_> = stats.requests().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [("fsyncdir", 2), ("copy_file_range", 1)]);
        let [fsyncdir, copy] = stats.times().try_into().expect("two kinds");
        assert_eq!((fsyncdir.buckets[2], fsyncdir.buckets[BUCKETS - 1]), (1, 1));
        assert_eq!(fsyncdir.total, Duration::from_micros(3) + Duration::from_secs(3600));
        assert_eq!((copy.buckets[0], copy.total), (1, Duration::ZERO));
    }

    #[test]
    fn buckets_meet_and_leave_nothing_out() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 0..BUCKETS - 1 {
            let end = bucket_end(bucket).expect("not the last").as_nanos() as u64;
            assert_eq!((bucket_of(end - 1), bucket_of(end)), (bucket, bucket + 1));
        }
        assert_eq!(bucket_end(BUCKETS - 1), None);
    }
}
