//! Many forks at work at once.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::{Mounted, pattern};

const FORKS: u64 = 200;
const THREADS: u64 = 10;
const BLOCK: usize = 8192;
/// Blocks of the relation that all forks inherit.
const SHARED: usize = 64;

fn relation(m: &Mounted, fork: &str) -> PathBuf {
    m.mnt.join(fork).join("base/5/1")
}

fn name(n: u64) -> String {
    format!("f{n:03}")
}

/// What fork `n` writes to block `at` in a round.
fn block(n: u64, at: usize, round: u64) -> Vec<u8> {
    pattern(n << 32 | (at as u64) << 8 | round, BLOCK)
}

/// Which blocks fork `n` writes.
fn own(n: u64) -> impl Iterator<Item = usize> {
    (0..8).map(move |i| (n as usize * 7 + i * 5) % SHARED)
}

/// 200 forks of one parent, each written, read and synced by a thread of ten while the others do the same: relations,
/// WAL and new files. Each has what was written to it and nothing of the others, before and after a restart.
#[test]
fn two_hundred_forks_at_once() {
    let Some(m) = Mounted::start() else { return };
    for dir in ["base", "base/5", "pg_wal"] {
        fs::create_dir(m.path(dir)).unwrap();
    }
    let parent = pattern(7, SHARED * BLOCK);
    fs::write(m.path("base/5/1"), &parent).unwrap();
    let wal = "pg_wal/000000010000000000000001";
    for n in 0..FORKS {
        m.store.fork("main", &name(n), b"", &mut |_| Ok(())).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let m = &m;
            scope.spawn(move || {
                // All forks of this thread are open and in the middle of something at a time.
                let mine: Vec<u64> = (0..FORKS).filter(|n| n % THREADS == thread).collect();
                let open =
                    |n: &u64| OpenOptions::new().read(true).write(true).open(relation(m, &name(*n))).unwrap();
                let files: Vec<File> = mine.iter().map(open).collect();
                for round in 0..3 {
                    for (n, file) in mine.iter().zip(&files) {
                        for at in own(*n) {
                            file.write_all_at(&block(*n, at, round), (at * BLOCK) as u64).unwrap();
                        }
                        if round == 1 {
                            file.sync_data().unwrap();
                        }
                    }
                    for (n, file) in mine.iter().zip(&files) {
                        for at in own(*n) {
                            let mut read = vec![0; BLOCK];
                            file.read_exact_at(&mut read, (at * BLOCK) as u64).unwrap();
                            assert!(read == block(*n, at, round), "fork {n}, block {at}, round {round}");
                        }
                        let home = m.mnt.join(name(*n));
                        let (temporary, last) = (home.join("new.tmp"), home.join("new"));
                        fs::write(&temporary, format!("{n} {round}")).unwrap();
                        File::open(&temporary).unwrap().sync_all().unwrap();
                        fs::rename(&temporary, &last).unwrap();
                    }
                }
                // A few write WAL; each of those takes a host file of 16 MiB.
                for n in mine.iter().filter(|n| *n % 20 == 3) {
                    let segment = m.mnt.join(name(*n)).join(wal);
                    let segment =
                        File::options().create(true).truncate(false).write(true).open(segment).unwrap();
                    segment.write_all_at(&block(*n, 0, 9), BLOCK as u64).unwrap();
                    segment.sync_data().unwrap();
                }
            });
        }
    });
    let verify = |n: u64, read: &dyn Fn(&str) -> Vec<u8>| {
        let mut wanted = parent.clone();
        for at in own(n) {
            wanted[at * BLOCK..][..BLOCK].copy_from_slice(&block(n, at, 2));
        }
        assert!(read("base/5/1") == wanted, "fork {n}");
        assert_eq!(read("new"), format!("{n} 2").as_bytes(), "fork {n}");
    };
    for n in 0..FORKS {
        verify(n, &|path| fs::read(m.mnt.join(name(n)).join(path)).unwrap());
    }
    assert!(fs::read(m.path("base/5/1")).unwrap() == parent, "the parent");
    assert_eq!(m.store.check(true).unwrap(), Vec::<String>::new());
    // The store itself, past the kernel's cache.
    for n in 0..FORKS {
        let fork = m.store.by_name(&name(n)).unwrap();
        assert_eq!(fork.fault(), None);
        verify(n, &|path| fork.read_file(path).unwrap());
    }
    // Half of them go; the others stay.
    for n in (0..FORKS).step_by(2) {
        m.store.remove(&name(n)).unwrap();
    }
    m.store.wait_for_collection();
    assert_eq!(m.store.check(true).unwrap(), Vec::<String>::new());
}
