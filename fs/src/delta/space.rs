//! Which slots of a delta file are in use.
//!
//! Two counts are kept of the references to each slot: what the durable map
//! says (`durable`), and what is in use now (`live`), which also counts pages
//! not committed yet and those superseded but perhaps still read or needed
//! after a crash. A slot is free when its live count is zero; always
//! `live >= durable`. A free slot can be taken when it has space on the host
//! ([`super::backing`]).

use std::collections::HashMap;
use std::ops::Range;

use super::backing::{Backing, Found};
use super::bits::Bits;
use crate::block::{BLOCK_BYTES, BlockNo};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::Batch;
use crate::map::schema::{SLOT_MAP_BYTES, SLOTS_PER_RECORD, SharedRecord, Slot, SlotsRecord};

/// The longest run reserved for one file: 64 slots are 512 KiB, enough that a
/// sequential scan is limited by bytes and not by seeks.
const MAX_RUN: u32 = 64;

/// A search for a run looks at this many stretches of free slots.
const TRIES: u32 = 64;

/// A living fork keeps at least 4 MiB of free slots, and a quarter of what it
/// uses: what a checkpoint supersedes is room for the next one.
const KEEP_MIN_SLOTS: u64 = 512;
const KEEP_SHARE: u64 = 4;

/// How much space a delta file keeps for its free slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What has been used since this was asked last, and a share of what is in
    /// use.
    Used,
    /// A few MiB: others need the rest.
    Little,
    /// None.
    Nothing,
}

/// Space to give back.
#[derive(Debug, PartialEq, Eq)]
pub enum Give {
    /// These slots become a hole in the host file.
    Punch(Range<u32>),
    /// The host file is cut before the first of these.
    Cut(Range<u32>),
    /// Nothing yet; the search goes on.
    Look,
    /// There is no more.
    Done,
}

/// One count for each slot: a bit, and more for the few with several.
#[derive(Clone, Debug, Default)]
struct Counts {
    bits: Bits,
    more: HashMap<u32, u32>,
}

impl Counts {
    fn get(&self, index: u32) -> u32 {
        match self.bits.contains(index) {
            true => self.more.get(&index).copied().unwrap_or(1),
            false => 0,
        }
    }

    fn set(&mut self, index: u32, count: u32) {
        self.bits.set(index, count > 0);
        if count > 1 {
            self.more.insert(index, count);
        } else {
            self.more.remove(&index);
        }
    }

    /// Of all slots.
    fn sum(&self) -> u64 {
        self.bits.count() + self.more.values().map(|&count| u64::from(count) - 1).sum::<u64>()
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
    backing: Backing,
    /// Where the search for free slots goes on.
    cursor: u32,
    runs: HashMap<FileId, Run>,
    /// The fewest slots that were spare since [`Keep::Used`] was asked last.
    low: u64,
    /// Slots were freed since somebody looked for space to give back.
    freed: bool,
}

/// Changes of the durable counts, worked out but not yet made.
#[derive(Debug, Default)]
pub struct DurableChange {
    counts: HashMap<u32, u32>,
}

impl SlotSpace {
    /// Takes over one stored bitmap record; each comes once.
    pub fn load_bits(&mut self, chunk: u32, bits: &[u8; SLOT_MAP_BYTES]) {
        self.durable.bits.load(chunk, bits);
        self.live.bits.load(chunk, bits);
    }

    /// Takes over one stored reference count.
    pub fn load_shared(&mut self, index: u32, count: u32) {
        self.durable.set(index, count);
        self.live.set(index, count);
    }

    /// Host space of the free slots.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Tells the length of the host file when it was opened, in slots.
    pub fn measured(&mut self, slots: u32) {
        self.backing.measured(slots);
    }

    /// Tells that space is reserved for `slots`, in use or not.
    pub fn reserved(&mut self, slots: Range<u32>) {
        self.backing.reserved(slots, &self.live.bits);
    }

    /// Tells that reserving it has failed.
    pub fn doubted(&mut self, slots: &Range<u32>) {
        self.backing.doubted(slots);
    }

    /// Tells that free slots have no space, or have lost it.
    pub fn emptied(&mut self, slots: Range<u32>) {
        self.backing.emptied(slots);
    }

    /// See [`Backing::bare_run`].
    pub fn bare_run(&mut self, most: u32, longest: u32) -> Option<Range<u32>> {
        self.backing.bare_run(&self.live.bits, most, longest)
    }

    /// See [`Backing::unknown_run`].
    pub fn unknown_run(&self, most: u32) -> Option<Range<u32>> {
        self.backing.unknown_run(&self.live.bits, most)
    }

    /// Bytes of the slots in use.
    pub fn live_bytes(&self) -> u64 {
        self.live.bits.count() * BLOCK_BYTES
    }

    /// Bytes of the slots that can be taken at once.
    pub fn ready_bytes(&self) -> u64 {
        self.backing.ready().count() * BLOCK_BYTES
    }

    /// Slots that the durable map refers to.
    pub fn durable_slots(&self) -> u64 {
        self.durable.bits.count()
    }

    /// References of the durable map, several to some slots.
    pub fn durable_sum(&self) -> u64 {
        self.durable.sum()
    }

    /// A free slot for `block` of `file`, from the file's run if its blocks come
    /// in order; `None` if space must be reserved first, or `allowed` is 0. No
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
        self.take_all(start..start + len);
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
        self.take_all(start..start + len);
        Some(start)
    }

    /// Takes these slots, which are ready.
    pub fn take_all(&mut self, slots: Range<u32>) {
        self.live.bits.fill(slots.clone(), &Bits::default());
        self.backing.taken(slots);
        self.low = self.low.min(self.spare());
    }

    /// See [`Backing::wide_hole`].
    pub fn wide_hole(&self, slots: u32) -> Option<Range<u32>> {
        self.backing.wide_hole(slots)
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
            self.free(index);
        }
        // The next file goes on where this one ends.
        if self.cursor == run.end {
            self.cursor = run.next;
        }
    }

    fn free(&mut self, index: u32) {
        self.live.set(index, 0);
        self.backing.freed(index);
        self.freed = true;
    }

    /// The next stretch of ready slots, of `want` slots or the longest seen
    /// within a bounded search.
    fn find(&mut self, want: u32) -> Option<(u32, u32)> {
        let ready = self.backing.ready();
        let mut best: Option<(u32, u32)> = None;
        let (mut at, mut wrapped) = (self.cursor, false);
        for _ in 0..TRIES {
            let start = match ready.next(at) {
                None if wrapped => break,
                None => {
                    wrapped = true;
                    ready.next(0)?
                }
                Some(start) => start,
            };
            if wrapped && start >= self.cursor && best.is_some() {
                break;
            }
            let len = (1..want).take_while(|i| ready.contains(start.saturating_add(*i))).count() as u32 + 1;
            if best.is_none_or(|(_, longest)| len > longest) {
                best = Some((start, len));
            }
            if len == want {
                break;
            }
            at = start + len;
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
        match count {
            0 => {}
            1 => self.free(index),
            _ => self.live.set(index, count - 1),
        }
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
                let bits = maps.entry(chunk).or_insert_with(|| self.durable.bits.bitmap(chunk));
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

    /// Durable count of a slot, for checks.
    pub fn durable_references(&self, index: u32) -> u32 {
        self.durable.get(index)
    }

    // ---- giving space back ----------------------------------------------

    /// Free slots that have space on the host, or may have it.
    pub fn spare(&self) -> u64 {
        self.backing.spare(&self.live.bits)
    }

    /// How many of them are more than what is kept.
    pub fn surplus(&mut self, keep: Keep) -> u64 {
        if keep != Keep::Used {
            self.end_runs();
        }
        let spare = self.spare();
        match keep {
            Keep::Nothing => spare,
            Keep::Little => spare.saturating_sub(KEEP_MIN_SLOTS),
            Keep::Used => {
                let unused = std::mem::replace(&mut self.low, spare).min(spare);
                unused.saturating_sub(KEEP_MIN_SLOTS.max(self.live.bits.count() / KEEP_SHARE))
            }
        }
    }

    /// Whether there may be space to give back since this was asked last.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.freed) || !self.backing.is_measured()
    }

    /// Makes [`SlotSpace::take_news`] say so.
    pub fn ask_again(&mut self) {
        self.freed = true;
    }

    /// The next stretch of at most `most` slots to give back, which is going from
    /// now on, and how many of them may have space. First the end of the file;
    /// then what is below `below`, in runs of at least `min` free slots: with no
    /// `min`, nothing.
    pub fn give(&mut self, below: &mut u32, min: Option<u32>, most: u32) -> Result<(Give, u64)> {
        let live = &self.live.bits;
        let give = match (self.backing.free_tail(live, most), min) {
            (Some(tail), _) => Give::Cut(tail),
            (None, None) => Give::Done,
            (None, Some(min)) => match self.backing.free_run(live, *below, min, most) {
                Found::Slots(slots) => Give::Punch(slots),
                Found::Below(0) => Give::Done,
                Found::Below(further) => {
                    *below = further;
                    Give::Look
                }
            },
        };
        let (Give::Cut(slots) | Give::Punch(slots)) = &give else { return Ok((give, 0)) };
        *below = slots.start;
        // It would be data loss.
        if let Some(slot) = self.durable.bits.last_below(slots.end).filter(|slot| *slot >= slots.start) {
            return Err(Error::Damaged(format!("slot {slot} is counted as free, and a record refers to it")));
        }
        let spare = self.backing.go(slots.clone());
        Ok((give, spare))
    }

    /// Whether the end of the file is going: it must not grow.
    pub fn is_end_going(&self) -> bool {
        self.backing.is_end_going()
    }

    /// Ends what [`SlotSpace::give`] has begun.
    pub fn given(&mut self, give: &Give, done: bool) {
        match give {
            Give::Punch(_) if done => self.backing.gone(),
            Give::Cut(_) if done => self.backing.cut(),
            Give::Punch(_) | Give::Cut(_) => self.backing.stayed(),
            Give::Look | Give::Done => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Change;

    #[test]
    fn sequential_blocks_get_sequential_slots() {
        let mut space = SlotSpace::default();
        space.reserved(0..1000);
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
        space.reserved(0..3);
        let all: Vec<_> = [9, 4, 7].iter().map(|&b| space.take(FileId(1), b, u32::MAX).unwrap()).collect();
        assert_eq!(space.take(FileId(1), 1, u32::MAX), None);
        assert!(space.release(all[1]));
        assert_eq!(space.take(FileId(1), 2, u32::MAX), Some(all[1]));
    }

    #[test]
    fn stored_bitmaps_come_back_as_they_were() {
        let mut space = SlotSpace::default();
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
        space.reserved(0..4096);
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
