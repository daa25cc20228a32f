//! Which free slots of a delta file have space on the host.
//!
//! A slot in use always has it. A free one is *ready*, or a *hole* (it was
//! punched), or nothing is known of it: so it is with all free slots of a store
//! that was just opened. Whoever wants a slot that is not ready has space
//! reserved for it first; space that is there already costs nothing then.
//!
//! Space is given back outside of the lock. Meanwhile its slots are *going*: they
//! are neither ready nor can they be made so.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bits::Bits;

/// The most bitmap records (of 8 MiB of slots) that one search looks at.
const SEARCH_CHUNKS: u32 = 1024;

/// See above. `live` is the set of slots in use, everywhere here.
#[derive(Debug, Default)]
pub struct Backing {
    ready: Bits,
    holes: Ranges,
    going: Range<u32>,
    /// The host file's length, once it was measured.
    end: Option<u32>,
    /// Where the search for slots to be made ready goes on.
    cursor: u32,
}

/// What a search for space to give back has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// These slots.
    Slots(Range<u32>),
    /// Nothing; it goes on below this slot.
    Below(u32),
}

fn count(range: &Range<u32>) -> u64 {
    u64::from(range.end.saturating_sub(range.start))
}

impl Backing {
    /// Slots of the host file; none before it was measured.
    pub fn end(&self) -> u32 {
        self.end.unwrap_or(0)
    }

    /// Whether the host file was measured.
    pub fn is_measured(&self) -> bool {
        self.end.is_some()
    }

    /// Notes that the host file has so many slots.
    pub fn measured(&mut self, slots: u32) {
        self.end = Some(slots);
        // The end of a damaged file may be missing.
        self.ready.clear(slots..u32::MAX);
    }

    /// Free slots that can be taken at once.
    pub fn ready(&self) -> &Bits {
        &self.ready
    }

    /// Free slots that have space on the host, or may have it.
    pub fn spare(&self, live: &Bits) -> u64 {
        self.ready.count() + self.unknown(live)
    }

    fn unknown(&self, live: &Bits) -> u64 {
        self.bare(live).saturating_sub(self.holes.len)
    }

    /// Free slots that are not ready and could be made so.
    fn bare(&self, live: &Bits) -> u64 {
        u64::from(self.end()).saturating_sub(live.count() + self.ready.count() + count(&self.going))
    }

    /// Notes that these ready slots are in use.
    pub fn taken(&mut self, slots: Range<u32>) {
        self.ready.clear(slots);
    }

    /// Notes that a slot is in use no longer.
    pub fn freed(&mut self, slot: u32) {
        if self.end.is_none_or(|end| slot < end) {
            self.ready.set(slot, true);
        }
    }

    /// Notes that space is reserved for `slots`, whatever they were.
    pub fn reserved(&mut self, slots: Range<u32>, live: &Bits) {
        self.holes.remove(&slots);
        self.end = Some(self.end().max(slots.end));
        self.ready.fill(slots, live);
    }

    /// Notes that reserving space for `slots` has failed half way, perhaps.
    pub fn doubted(&mut self, slots: &Range<u32>) {
        self.holes.remove(slots);
    }

    /// Notes that the space of ready slots was given back at once.
    pub fn emptied(&mut self, slots: Range<u32>) {
        self.ready.clear(slots.clone());
        self.holes.insert(slots);
    }

    fn next_bare(&self, live: &Bits, from: u32, chunks: u32) -> Result<u32, u32> {
        match self.ready.next_gap(live, from, chunks)? {
            slot if self.going.contains(&slot) => self.ready.next_gap(live, self.going.end, chunks),
            slot => Ok(slot),
        }
    }

    /// A stretch to reserve space for: at most `most` slots in it are free and
    /// not ready, the others stay what they are. The search is bounded.
    pub fn bare_run(&mut self, live: &Bits, most: u32, longest: u32) -> Option<Range<u32>> {
        if most == 0 || self.bare(live) == 0 {
            return None;
        }
        let mut from = self.cursor;
        for _ in 0..2 {
            match self.next_bare(live, from, SEARCH_CHUNKS) {
                Ok(start) if start < self.end() => {
                    let mut end = self.end().min(start.saturating_add(longest));
                    if start < self.going.start {
                        end = end.min(self.going.start);
                    }
                    self.cursor = start;
                    let mut bare = 0;
                    while bare < most
                        && let Ok(slot) = self.ready.next_gap(live, self.cursor, SEARCH_CHUNKS)
                        && slot < end
                    {
                        bare += 1;
                        self.cursor = slot + 1;
                    }
                    return Some(start..self.cursor);
                }
                Err(next) if next < self.end() => {
                    self.cursor = next;
                    return None;
                }
                _ => from = 0,
            }
        }
        self.cursor = 0;
        None
    }

    /// A stretch of at most `most` slots of which nothing is known.
    pub fn unknown_run(&self, live: &Bits, most: u32) -> Option<Range<u32>> {
        let mut from = 0;
        while self.unknown(live) > 0
            && let Ok(start) = self.next_bare(live, from, u32::MAX)
            && start < self.end()
        {
            match self.holes.around(start) {
                Some(hole) => from = hole.end,
                None => {
                    let known = |slot: &u32| {
                        live.contains(*slot)
                            || self.ready.contains(*slot)
                            || self.going.contains(slot)
                            || self.holes.around(*slot).is_some()
                    };
                    let end = self.end().min(start.saturating_add(most));
                    return Some(start..(start..end).find(known).unwrap_or(end));
                }
            }
        }
        None
    }

    /// So many slots of a hole, if there is one of that size among the first.
    pub fn wide_hole(&self, slots: u32) -> Option<Range<u32>> {
        let mut holes = self.holes.ends.iter().take(SEARCH_CHUNKS as usize);
        holes.find(|(start, end)| *end - *start >= slots).map(|(&start, _)| start..start + slots)
    }

    /// How far the host file can be cut, if at most `most` slots are given back
    /// that may have space; holes are free.
    pub fn free_tail(&self, live: &Bits, most: u32) -> Option<Range<u32>> {
        let end = self.end();
        let used = live.last_below(end).map_or(0, |last| last + 1);
        let (mut at, mut left) = (end, most);
        while at > used {
            let hole = self.holes.last_below(at).unwrap_or(0..0);
            if hole.end >= at {
                at = hole.start.max(used);
                continue;
            }
            let start = hole.end.max(used);
            if at - start > left {
                at -= left;
                break;
            }
            left -= at - start;
            at = start;
        }
        (at < end).then_some(at..end)
    }

    /// The highest stretch below `below` that may have space, as a part of a run
    /// of at least `min` free slots; at most `most` of it. The search is bounded.
    pub fn free_run(&self, live: &Bits, below: u32, min: u32, most: u32) -> Found {
        let top = match live.last_gap_below(below.min(self.end()), SEARCH_CHUNKS) {
            Ok(top) => top,
            Err(further) => return Found::Below(further),
        };
        let start = live.last_below(top).map_or(0, |last| last + 1);
        let end = live.next(top).unwrap_or(u32::MAX).min(self.end());
        if end - start < min {
            return Found::Below(start);
        }
        let mut at = top + 1;
        while at > start {
            let hole = self.holes.last_below(at).unwrap_or(0..0);
            if hole.end < at {
                return Found::Slots(hole.end.max(start).max(at.saturating_sub(most))..at);
            }
            at = hole.start.max(start);
        }
        Found::Below(start)
    }

    /// Begins to give the space of free slots back; how many of them may have
    /// any. One stretch at a time.
    pub fn go(&mut self, slots: Range<u32>) -> u64 {
        let empty = self.holes.remove(&slots);
        self.ready.clear(slots.clone());
        let spare = count(&slots) - empty;
        self.going = slots;
        spare
    }

    /// Whether the end of the file is going: it must not grow.
    pub fn is_end_going(&self) -> bool {
        !self.going.is_empty() && self.going.end == self.end()
    }

    /// Notes that what was going has lost its space.
    pub fn gone(&mut self) {
        let slots = std::mem::take(&mut self.going);
        self.holes.insert(slots);
    }

    /// Notes that what was going is cut off.
    pub fn cut(&mut self) {
        self.end = Some(std::mem::take(&mut self.going).start);
    }

    /// Notes that nobody knows what has become of what was going.
    pub fn stayed(&mut self) {
        self.going = 0..0;
    }
}

/// Ranges that do not touch each other.
#[derive(Debug, Default)]
struct Ranges {
    /// The end of each by its start.
    ends: BTreeMap<u32, u32>,
    len: u64,
}

impl Ranges {
    /// The last one that begins below `end`.
    fn last_below(&self, end: u32) -> Option<Range<u32>> {
        self.ends.range(..end).next_back().map(|(&start, &end)| start..end)
    }

    /// The one that `slot` is in.
    fn around(&self, slot: u32) -> Option<Range<u32>> {
        self.last_below(slot.checked_add(1)?).filter(|range| range.contains(&slot))
    }

    fn insert(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        self.remove(&range);
        let (mut start, mut end) = (range.start, range.end);
        if let Some(before) = self.last_below(start).filter(|before| before.end == start) {
            start = before.start;
        }
        if let Some(after) = self.ends.remove(&end) {
            end = after;
        }
        self.ends.insert(start, end);
        self.len += count(&range);
    }

    /// Takes a range out; how many there were.
    fn remove(&mut self, range: &Range<u32>) -> u64 {
        let mut removed = 0;
        while let Some(old) = self.last_below(range.end).filter(|old| old.end > range.start) {
            self.ends.remove(&old.start);
            if old.start < range.start {
                self.ends.insert(old.start, range.start);
            }
            if old.end > range.end {
                self.ends.insert(range.end, old.end);
            }
            removed += count(&(old.start.max(range.start)..old.end.min(range.end)));
        }
        self.len -= removed;
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(ranges: &[Range<u32>]) -> Bits {
        let mut bits = Bits::default();
        ranges.iter().for_each(|range| bits.fill(range.clone(), &Bits::default()));
        bits
    }

    fn measured(slots: u32) -> Backing {
        let mut backing = Backing::default();
        backing.measured(slots);
        backing
    }

    #[test]
    fn ranges_merge_and_split() {
        let mut ranges = Ranges::default();
        for range in [10..20, 30..40, 20..30, 5..5] {
            ranges.insert(range);
        }
        assert_eq!((ranges.ends.len(), ranges.len), (1, 30));
        assert_eq!(ranges.remove(&(15..35)), 20);
        assert_eq!(
            (ranges.around(14), ranges.around(15), ranges.around(35)),
            (Some(10..15), None, Some(35..40))
        );
        ranges.insert(0..100);
        assert_eq!((ranges.last_below(u32::MAX), ranges.len), (Some(0..100), 100));
        assert_eq!(ranges.remove(&(0..100)), 100);
        assert!(ranges.ends.is_empty() && ranges.len == 0);
    }

    #[test]
    fn nothing_is_ready_before_space_is_reserved() {
        let mut backing = measured(5000);
        let live = bits(&[0..100, 200..4000]);
        assert_eq!((backing.ready().count(), backing.spare(&live)), (0, 1100));
        // One call serves scattered slots: what is in use has space anyhow.
        assert_eq!(backing.bare_run(&live, 150, 8192), Some(100..4050));
        backing.reserved(100..4050, &live);
        assert_eq!((backing.ready().count(), backing.spare(&live)), (150, 1100));
        assert_eq!(backing.bare_run(&live, 10_000, 8192), Some(4050..5000));
        backing.reserved(4050..5000, &live);
        assert_eq!(backing.bare_run(&live, 10_000, 8192), None);
        // The search wraps.
        backing.go(120..130);
        backing.gone();
        assert_eq!(backing.bare_run(&live, 10_000, 8192), Some(120..130));
    }

    #[test]
    fn what_is_going_stays_alone() {
        let mut backing = measured(300);
        let live = bits(&[0..50, 50..100]);
        backing.reserved(0..300, &live);
        assert_eq!(backing.go(150..250), 100);
        assert_eq!((backing.spare(&live), backing.ready().count()), (100, 100));
        assert_eq!(backing.bare_run(&live, 1000, 1000), None);
        backing.gone();
        assert_eq!((backing.spare(&live), backing.ready().count()), (100, 100));
        assert_eq!(backing.bare_run(&live, 1000, 1000), Some(150..250));
        // A failure leaves slots of which nothing is known.
        backing.go(100..150);
        backing.stayed();
        assert_eq!((backing.spare(&live), backing.ready().count()), (100, 50));
        assert_eq!(backing.unknown_run(&live, 20), Some(100..120));
        backing.reserved(100..120, &live);
        backing.emptied(100..120);
        assert_eq!(backing.unknown_run(&live, 200), Some(120..150));
        assert_eq!(backing.wide_hole(20), Some(100..120));
        assert_eq!(backing.wide_hole(101), None);
        backing.reserved(120..150, &live);
        assert_eq!(backing.unknown_run(&live, 200), None);
    }

    #[test]
    fn the_highest_runs_first_and_short_ones_not() {
        let mut backing = measured(1000);
        let live = bits(&[0..10, 15..100, 300..310, 900..1000]);
        assert_eq!(backing.free_tail(&live, 1000), None);
        let mut found = Vec::new();
        let mut below = u32::MAX;
        while below > 0 {
            match backing.free_run(&live, below, 16, 400) {
                Found::Slots(slots) => {
                    below = slots.start;
                    backing.go(slots.clone());
                    backing.gone();
                    found.push(slots);
                }
                Found::Below(further) => below = further,
            }
        }
        assert_eq!(found, [500..900, 310..500, 100..300]);
        assert_eq!(backing.spare(&live), 5);
        // Freed between holes, a single slot makes a run with them.
        let live = bits(&[0..10, 15..100, 300..305, 306..310, 900..1000]);
        backing.freed(305);
        assert_eq!(backing.free_run(&live, 900, 16, 400), Found::Below(310));
        assert_eq!(backing.free_run(&live, 310, 16, 400), Found::Below(305));
        let live = bits(&[0..10, 15..100, 900..1000]);
        (300..310).for_each(|slot| backing.freed(slot));
        assert_eq!(backing.free_run(&live, 900, 16, 400), Found::Slots(300..310));
    }

    #[test]
    fn the_tail_is_cut_as_far_as_it_may_be() {
        let mut backing = measured(1000);
        let live = bits(&[0..50, 50..100]);
        assert_eq!(backing.free_tail(&live, 300), Some(700..1000));
        backing.go(500..600);
        backing.gone();
        assert_eq!(backing.free_tail(&live, 450), Some(450..1000), "holes are free");
        assert_eq!(backing.free_tail(&live, 400), Some(500..1000));
        assert_eq!(backing.go(450..1000), 450);
        assert!(backing.is_end_going());
        backing.cut();
        assert_eq!((backing.end(), backing.spare(&live)), (450, 350));
        assert!(!backing.is_end_going());
        assert_eq!(backing.free_tail(&bits(&[]), u32::MAX), Some(0..450));
    }
}
