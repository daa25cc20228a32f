//! Blocks: PostgreSQL's 8 KiB pages, and how a byte range falls on them.

/// The size of a block in bytes: PostgreSQL's default page (`BLCKSZ`).
pub const BLOCK_SIZE: usize = 8192;

/// [`BLOCK_SIZE`] for byte offsets.
pub const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// Number of a block within its file.
pub type BlockNo = u32;

/// The largest file: 2^32 - 1 blocks, a little under 32 TiB.
pub const MAX_FILE_BYTES: u64 = (u32::MAX as u64) * BLOCK_BYTES;

/// One block of bytes.
pub type Page = [u8; BLOCK_SIZE];

/// A block of zeros.
pub const ZERO_PAGE: Page = [0; BLOCK_SIZE];

/// The part of one block that a byte range covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The block.
    pub block: BlockNo,
    /// First byte within the block.
    pub start: usize,
    /// One past the last byte within the block.
    pub end: usize,
    /// Where the part begins within the range.
    pub at: usize,
}

impl Part {
    /// Whether the whole block is covered.
    pub fn is_whole(&self) -> bool {
        self.end - self.start == BLOCK_SIZE
    }

    /// The part's place within a buffer that holds the whole range.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.at..self.at + (self.end - self.start)
    }
}

/// Splits `len` bytes at `offset` into their blocks. The range must lie below
/// [`MAX_FILE_BYTES`].
pub fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let end = offset + len as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let block = at / BLOCK_BYTES;
        let start = (at % BLOCK_BYTES) as usize;
        let stop = ((end - block * BLOCK_BYTES) as usize).min(BLOCK_SIZE);
        let part = Part { block: block as BlockNo, start, end: stop, at: (at - offset) as usize };
        at = (block + 1) * BLOCK_BYTES;
        Some(part)
    })
}

/// The number of blocks that `bytes` need.
pub fn blocks_for(bytes: u64) -> BlockNo {
    bytes.div_ceil(BLOCK_BYTES) as BlockNo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_at_block_borders() {
        let all: Vec<_> = parts(8000, 8192 + 400).collect();
        assert_eq!(
            all,
            [
                Part { block: 0, start: 8000, end: 8192, at: 0 },
                Part { block: 1, start: 0, end: 8192, at: 192 },
                Part { block: 2, start: 0, end: 208, at: 8384 },
            ]
        );
        assert!(all[1].is_whole() && !all[0].is_whole());
        assert_eq!(parts(0, 0).count(), 0);
        assert_eq!(parts(8192, 8192).count(), 1);
        assert_eq!((blocks_for(0), blocks_for(1), blocks_for(8192), blocks_for(8193)), (0, 1, 1, 2));
    }
}
