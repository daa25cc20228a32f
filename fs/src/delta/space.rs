//! Which slots of a delta file are in use.
//!
//! Two counts are kept of the references to each slot: what the durable map
//! says (`durable`), and what is in use now (`live`), which also counts pages
//! not committed yet and those superseded but perhaps still read or needed
//! after a crash. A slot is free when its live count is zero; always
//! `live >= durable`.

use std::collections::HashMap;

use crate::block::{BLOCK_BYTES, BlockNo};
use crate::ids::FileId;
use crate::map::Batch;
use crate::map::schema::{SLOT_MAP_BYTES, SLOTS_PER_RECORD, SharedRecord, Slot, SlotsRecord};

/// The longest run reserved for one file: 64 slots are 512 KiB, enough that a
/// sequential scan is limited by bytes and not by seeks.
const MAX_RUN: u32 = 64;

/// Words of the bits of one bitmap record.
const WORDS: usize = SLOTS_PER_RECORD as usize / 64;

/// One count for each slot: a bit, and more for the few with several. Kept by
/// bitmap record, so that memory goes with what is in use.
#[derive(Clone, Debug, Default)]
struct Counts {
    bits: HashMap<u32, [u64; WORDS]>,
    more: HashMap<u32, u32>,
    used: u64,
}

impl Counts {
    fn get(&self, index: u32) -> u32 {
        if self.word(index) & (1 << (index % 64)) == 0 {
            return 0;
        }
        self.more.get(&index).copied().unwrap_or(1)
    }

    /// The 64 bits that `index` is among.
    fn word(&self, index: u32) -> u64 {
        let words = self.bits.get(&(index / SLOTS_PER_RECORD));
        words.map_or(0, |words| words[(index % SLOTS_PER_RECORD) as usize / 64])
    }

    /// Takes over the bits of one bitmap record, each of them one reference.
    fn load(&mut self, chunk: u32, words: [u64; WORDS]) {
        self.used += words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        self.bits.insert(chunk, words);
    }

    fn set(&mut self, index: u32, count: u32) {
        let words = self.bits.entry(index / SLOTS_PER_RECORD).or_default();
        let word = &mut words[(index % SLOTS_PER_RECORD) as usize / 64];
        let bit = 1u64 << (index % 64);
        let was = *word & bit != 0;
        match (was, count > 0) {
            (false, true) => self.used += 1,
            (true, false) => self.used -= 1,
            _ => {}
        }
        if count > 0 {
            *word |= bit;
        } else {
            *word &= !bit;
        }
        if count > 1 {
            self.more.insert(index, count);
        } else {
            self.more.remove(&index);
        }
    }
}

/// Slots reserved for the next blocks of one file.
#[derive(Clone, Copy, Debug)]
struct Run {
    next: u32,
    end: u32,
    len: u32,
    last_block: BlockNo,
}

/// The slots of one delta file.
#[derive(Debug, Default)]
pub struct SlotSpace {
    live: Counts,
    durable: Counts,
    /// Slots below this one have space on the host.
    host_slots: u32,
    /// Where the search for free slots goes on.
    cursor: u32,
    runs: HashMap<FileId, Run>,
}

/// Changes of the durable counts, worked out but not yet made.
#[derive(Debug, Default)]
pub struct DurableChange {
    counts: HashMap<u32, u32>,
}

impl SlotSpace {
    /// Takes over one stored bitmap record; each comes once.
    pub fn load_bits(&mut self, chunk: u32, bits: &[u8; SLOT_MAP_BYTES]) {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        self.durable.load(chunk, words);
        self.live.load(chunk, words);
    }

    /// Takes over one stored reference count.
    pub fn load_shared(&mut self, index: u32, count: u32) {
        self.durable.set(index, count);
        self.live.set(index, count);
    }

    /// Tells how many slots have space on the host.
    pub fn set_host_slots(&mut self, slots: u32) {
        self.host_slots = slots;
    }

    /// How many slots have space on the host.
    pub fn host_slots(&self) -> u32 {
        self.host_slots
    }

    /// Bytes of the slots in use.
    pub fn live_bytes(&self) -> u64 {
        self.live.used * BLOCK_BYTES
    }

    /// Slots that the durable map refers to.
    pub fn durable_slots(&self) -> u64 {
        self.durable.used
    }

    /// A free slot for `block` of `file`, from the file's run if its blocks come
    /// in order; `None` if the host file must grow first, or `allowed` is 0. No
    /// more than `allowed` slots are put to use.
    pub fn take(&mut self, file: FileId, block: BlockNo, allowed: u32) -> Option<u32> {
        let mut want = 1;
        if let Some(run) = self.runs.get_mut(&file) {
            let in_order = block == run.last_block.wrapping_add(1);
            run.last_block = block;
            if in_order && run.next < run.end {
                run.next += 1;
                return Some(run.next - 1);
            }
            if in_order {
                want = (run.len * 2).min(MAX_RUN);
            }
        }
        let want = want.min(allowed);
        let (start, len) = if want > 0 { self.find(want)? } else { return None };
        for index in start..start + len {
            self.live.set(index, 1);
        }
        let run = Run { next: start + 1, end: start + len, len: want, last_block: block };
        if let Some(old) = self.runs.insert(file, run) {
            self.give_back(old);
        }
        Some(start)
    }

    /// Free slots next to each other, `want` of them.
    pub fn take_run(&mut self, want: u32) -> Option<u32> {
        let cursor = self.cursor;
        let (start, len) = self.find(want)?;
        if len < want {
            self.cursor = cursor;
            return None;
        }
        for index in start..start + len {
            self.live.set(index, 1);
        }
        Some(start)
    }

    /// Ends the run of a file that is no longer written.
    pub fn end_run(&mut self, file: FileId) {
        if let Some(run) = self.runs.remove(&file) {
            self.give_back(run);
        }
    }

    /// Ends all runs: space is short.
    pub fn end_runs(&mut self) {
        for run in std::mem::take(&mut self.runs).into_values() {
            self.give_back(run);
        }
    }

    fn give_back(&mut self, run: Run) {
        for index in run.next..run.end {
            self.live.set(index, 0);
        }
    }

    /// The next stretch of free slots, of `want` slots or the longest seen
    /// within a bounded search.
    fn find(&mut self, want: u32) -> Option<(u32, u32)> {
        let mut best: Option<(u32, u32)> = None;
        let mut at = self.cursor;
        let mut left = self.host_slots;
        let mut tried = 0;
        while left > 0 && tried < 64 {
            if at >= self.host_slots {
                at = 0;
            }
            // Whole words of used slots are skipped at once.
            if at.is_multiple_of(64) && self.live.word(at) == u64::MAX {
                at = at.saturating_add(64);
                left = left.saturating_sub(64);
                continue;
            }
            if self.live.get(at) != 0 {
                at += 1;
                left -= 1;
                continue;
            }
            let mut len = 1;
            while len < want && at + len < self.host_slots && self.live.get(at + len) == 0 {
                len += 1;
            }
            if best.is_none_or(|(_, longest)| len > longest) {
                best = Some((at, len));
            }
            if len == want {
                break;
            }
            tried += 1;
            at += len;
            left = left.saturating_sub(len);
        }
        let (start, len) = best?;
        self.cursor = start + len;
        Some((start, len))
    }

    /// One more live reference.
    pub fn share(&mut self, index: u32) {
        let count = self.live.get(index);
        self.live.set(index, count.saturating_add(1));
    }

    /// One live reference less; returns whether the slot is free now.
    pub fn release(&mut self, index: u32) -> bool {
        let count = self.live.get(index);
        debug_assert!(count > 0, "slot {index} released more often than taken");
        self.live.set(index, count.saturating_sub(1));
        count <= 1
    }

    /// Live references to a slot.
    pub fn references(&self, index: u32) -> u32 {
        self.live.get(index)
    }

    /// Works out the durable counts after `added` and `released` references,
    /// and puts the records that change into `batch`.
    pub fn plan(&self, delta: u32, added: &[u32], released: &[u32], batch: &mut Batch) -> DurableChange {
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for &index in added {
            let count = counts.entry(index).or_insert_with(|| self.durable.get(index));
            *count = count.saturating_add(1);
        }
        for &index in released {
            let count = counts.entry(index).or_insert_with(|| self.durable.get(index));
            debug_assert!(*count > 0, "slot {index} has no durable reference to release");
            *count = count.saturating_sub(1);
        }
        let mut maps: HashMap<u32, [u8; SLOT_MAP_BYTES]> = HashMap::new();
        for (&index, &count) in &counts {
            let was = self.durable.get(index);
            if (was > 0) != (count > 0) {
                let chunk = index / SLOTS_PER_RECORD;
                let bits = maps.entry(chunk).or_insert_with(|| self.bitmap(chunk));
                let (byte, bit) = ((index % SLOTS_PER_RECORD) as usize / 8, 1u8 << (index % 8));
                if count > 0 {
                    bits[byte] |= bit;
                } else {
                    bits[byte] &= !bit;
                }
            }
            let slot = Slot::new(delta, index);
            if count > 1 {
                batch.put(SharedRecord::encode(slot, count));
            } else if was > 1 {
                batch.delete(SharedRecord::key(slot));
            }
        }
        for (chunk, bits) in maps {
            if bits.iter().all(|&b| b == 0) {
                batch.delete(SlotsRecord::key(delta, chunk));
            } else {
                batch.put(SlotsRecord::encode(delta, chunk, &bits));
            }
        }
        DurableChange { counts }
    }

    /// Makes a change whose batch has been committed.
    pub fn apply(&mut self, change: DurableChange) {
        for (index, count) in change.counts {
            self.durable.set(index, count);
        }
    }

    fn bitmap(&self, chunk: u32) -> [u8; SLOT_MAP_BYTES] {
        let mut bits = [0; SLOT_MAP_BYTES];
        let words = self.durable.bits.get(&chunk).copied().unwrap_or_default();
        for (word, bytes) in words.iter().zip(bits.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bits
    }

    /// Durable count of a slot, for checks.
    pub fn durable_references(&self, index: u32) -> u32 {
        self.durable.get(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Change;

    #[test]
    fn sequential_blocks_get_sequential_slots() {
        let mut space = SlotSpace::default();
        space.set_host_slots(1000);
        let slots: Vec<u32> = (0..200).map(|b| space.take(FileId(7), b, u32::MAX).unwrap()).collect();
        let breaks = slots.windows(2).filter(|w| w[1] != w[0] + 1).count();
        assert_eq!(breaks, 0, "{slots:?}");
        // Another file's random writes take single slots.
        let a = space.take(FileId(8), 5, u32::MAX).unwrap();
        let b = space.take(FileId(8), 900, u32::MAX).unwrap();
        assert_ne!(a, b);
    }

    #[test]
    fn a_full_file_must_grow_and_released_slots_come_back() {
        let mut space = SlotSpace::default();
        space.set_host_slots(3);
        let all: Vec<_> = [9, 4, 7].iter().map(|&b| space.take(FileId(1), b, u32::MAX).unwrap()).collect();
        assert_eq!(space.take(FileId(1), 1, u32::MAX), None);
        assert!(space.release(all[1]));
        assert_eq!(space.take(FileId(1), 2, u32::MAX), Some(all[1]));
    }

    #[test]
    fn stored_bitmaps_come_back_as_they_were() {
        let mut space = SlotSpace::default();
        space.set_host_slots(4096);
        let slots: Vec<u32> = [1, 7, 900, 2000, 2047].to_vec();
        let mut batch = Batch::default();
        let change = space.plan(3, &slots, &[], &mut batch);
        space.apply(change);
        let mut loaded = SlotSpace::default();
        for change in batch.changes {
            let Change::Put(key, value) = change else { panic!("{change:?}") };
            let (_, chunk, bits) = SlotsRecord::decode(&key, &value).unwrap();
            loaded.load_bits(chunk, &bits);
        }
        assert_eq!((loaded.durable_slots(), loaded.live_bytes()), (5, 5 * BLOCK_BYTES));
        let used: Vec<u32> = (0..4096).filter(|&i| loaded.references(i) == 1).collect();
        assert_eq!(used, slots);
        assert!(used.iter().all(|&i| loaded.durable_references(i) == 1));
    }

    #[test]
    fn durable_counts_follow_the_batches() {
        let mut space = SlotSpace::default();
        space.set_host_slots(4096);
        let slot = space.take(FileId(1), 0, u32::MAX).unwrap();
        let mut batch = Batch::default();
        let change = space.plan(3, &[slot, slot], &[], &mut batch);
        assert_eq!(batch.changes.len(), 2, "a bitmap and a reference count");
        space.share(slot);
        space.apply(change);
        assert_eq!(space.durable_references(slot), 2);
        let mut batch = Batch::default();
        let change = space.plan(3, &[], &[slot], &mut batch);
        assert_eq!(batch.changes, [Change::Delete(SharedRecord::key(Slot::new(3, slot)))]);
        space.apply(change);
        let mut batch = Batch::default();
        let change = space.plan(3, &[], &[slot], &mut batch);
        space.apply(change);
        assert_eq!(batch.changes, [Change::Delete(SlotsRecord::key(3, 0))]);
        assert_eq!(space.durable_slots(), 0);
    }
}
