//! What a crash leaves in host files that no record knows of yet.

use super::{Extents, HostFiles, SECTOR, Source, Top};
use crate::block::{BLOCK_BYTES, BLOCK_SIZE, BlockNo};
use crate::error::Result;

/// Reads a block into a page from where the extents have it.
pub type ReadBelow<'a> = dyn Fn(&Extents, BlockNo, &mut [u8]) -> Result<()> + 'a;

/// After a crash: finds the blocks of patterned host files that had been
/// written since the record was made, and completes those of which only some
/// sectors had. `below` reads a block as it was before. What was written beyond
/// `size`, the file's length in bytes as it is durable, is zeroed: it must not
/// show when the file grows again.
///
/// Returns whether blocks were found that no record knew of. The caller has the
/// tops flushed before the next commit.
pub fn resolve_after_crash(
    extents: &mut Extents,
    size: u64,
    files: &HostFiles,
    below: &ReadBelow<'_>,
) -> Result<bool> {
    let mut found = false;
    for top in extents.tops.clone() {
        // It was sealed when the record had all its blocks, and not written since.
        if files.seals.has_host(top.host.id) {
            continue;
        }
        let first = top.chunk * extents.chunk_blocks;
        for block in first..first + top.patterned {
            resolve_block(extents, &top, block, files, below, &mut found)?;
        }
        zero_beyond(extents, &top, size)?;
    }
    Ok(found)
}

/// One block of a patterned host file.
fn resolve_block(
    extents: &mut Extents,
    top: &Top,
    block: BlockNo,
    files: &HostFiles,
    below: &ReadBelow<'_>,
    found: &mut bool,
) -> Result<()> {
    let recorded = extents.lies_in(top, block);
    let offset = u64::from(block % extents.chunk_blocks) * BLOCK_BYTES;
    let mut page = [0; BLOCK_SIZE];
    top.host.read_unsealed(&mut page, offset)?;
    let unwritten = page.chunks_exact(SECTOR).filter(|s| files.is_pattern(s)).count();
    if unwritten == page.len() / SECTOR {
        return Ok(());
    }
    if unwritten > 0 {
        let mut old = [0; BLOCK_SIZE];
        if !recorded {
            below(extents, block, &mut old)?;
        }
        for (sector, was) in page.chunks_exact_mut(SECTOR).zip(old.chunks_exact(SECTOR)) {
            if files.is_pattern(sector) {
                sector.copy_from_slice(was);
            }
        }
        top.host.put(&page, offset)?;
    }
    if !recorded {
        extents.place(block, 1, Source::Host(top.host.clone()));
        *found = true;
    }
    Ok(())
}

/// Zeroes what a top holds beyond `size` bytes of the file.
fn zero_beyond(extents: &Extents, top: &Top, size: u64) -> Result<()> {
    let start = u64::from(top.chunk * extents.chunk_blocks) * BLOCK_BYTES;
    let chunk_end = start + u64::from(extents.chunk_blocks) * BLOCK_BYTES;
    let end = chunk_end.min(start + top.host.len()?);
    let mut at = size.max(start);
    let mut page = [0; BLOCK_SIZE];
    while at < end {
        let block = (at / BLOCK_BYTES) as BlockNo;
        let next = end.min((u64::from(block) + 1) * BLOCK_BYTES);
        let bytes = &mut page[..(next - at) as usize];
        if extents.lies_in(top, block) {
            top.host.read_unsealed(bytes, at - start)?;
            if bytes.iter().any(|b| *b != 0) {
                bytes.fill(0);
                top.host.put(bytes, at - start)?;
            }
        }
        at = next;
    }
    Ok(())
}
