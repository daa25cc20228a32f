//! Node ids: the numbers by which the kernel knows files.
//!
//! ```text
//! 1                              the top directory, which lists the forks
//! fork id << 36 | file id        a file of a fork (file id 1: its top directory)
//! ```
//!
//! A node id says all that is needed to find its file, so there is no table of
//! inodes to keep, to lock or to lose: FORGET has nothing to do. A fork's id is
//! never used again, so neither is a node id: whatever the kernel still holds
//! of a removed or reset fork can only meet ESTALE, never another file. The
//! same number is `st_ino`; it stays over restarts, and all names of a hard
//! link share it.

use crate::ids::{FileId, ForkId};

const FILE_BITS: u32 = 36;

/// The top directory's node id, as FUSE has it for every file system.
pub const TOP: u64 = 1;

/// The node id of a fork's file.
pub fn of(fork: ForkId, file: FileId) -> u64 {
    debug_assert!(fork.0 >= 1 && u64::from(fork.0) < 1 << (64 - FILE_BITS));
    debug_assert!(file.0 >= 1 && file.0 < 1 << FILE_BITS);
    u64::from(fork.0) << FILE_BITS | file.0
}

/// The fork and the file of a node id; `None` for the top directory.
pub fn parts(node: u64) -> Option<(ForkId, FileId)> {
    // The upper part has 28 bits, so it fits.
    let fork = (node >> FILE_BITS) as u32;
    (fork != 0).then_some((ForkId(fork), FileId(node & ((1 << FILE_BITS) - 1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let largest = (ForkId((1 << 28) - 1), FileId((1 << 36) - 1));
        for (fork, file) in [(ForkId(1), FileId::ROOT), (ForkId(7), FileId(99)), largest] {
            assert_eq!(parts(of(fork, file)), Some((fork, file)));
        }
        assert_eq!(parts(TOP), None);
        assert_eq!(of(largest.0, largest.1), u64::MAX);
    }
}
