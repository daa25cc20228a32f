//! A set of slots, kept by bitmap record, so that memory goes with what is in it.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::map::schema::{SLOT_MAP_BYTES, SLOTS_PER_RECORD};

/// Words of the bits of one bitmap record.
const WORDS: usize = SLOTS_PER_RECORD as usize / 64;

type Chunk = [u64; WORDS];

/// Slot numbers in order.
#[derive(Clone, Debug, Default)]
pub struct Bits {
    /// Those with a bit set, by number.
    chunks: BTreeMap<u32, Chunk>,
    len: u64,
}

/// The bits of the word numbered `word` of a chunk that stand for slots of `range`.
fn mask(chunk: u32, word: usize, range: &Range<u32>) -> u64 {
    let first = u64::from(chunk) * u64::from(SLOTS_PER_RECORD) + word as u64 * 64;
    let below = |end: u32| match u64::from(end).saturating_sub(first) {
        n @ 0..64 => (1 << n) - 1,
        _ => u64::MAX,
    };
    below(range.end) & !below(range.start)
}

fn lowest(words: &Chunk, chunk: u32) -> Option<u32> {
    let word = words.iter().position(|&word| word != 0)?;
    Some(chunk * SLOTS_PER_RECORD + word as u32 * 64 + words[word].trailing_zeros())
}

fn highest(words: &Chunk, chunk: u32) -> Option<u32> {
    let word = words.iter().rposition(|&word| word != 0)?;
    Some(chunk * SLOTS_PER_RECORD + word as u32 * 64 + words[word].ilog2())
}

fn masked(words: &Chunk, chunk: u32, range: &Range<u32>) -> Chunk {
    std::array::from_fn(|i| words[i] & mask(chunk, i, range))
}

/// The chunks that a range touches.
fn chunks_of(range: &Range<u32>) -> Range<u32> {
    range.start / SLOTS_PER_RECORD..range.end.div_ceil(SLOTS_PER_RECORD)
}

impl Bits {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.len
    }

    /// Whether `index` is among them.
    pub fn contains(&self, index: u32) -> bool {
        let bit = index % SLOTS_PER_RECORD;
        self.chunks
            .get(&(index / SLOTS_PER_RECORD))
            .is_some_and(|words| words[bit as usize / 64] & (1 << (bit % 64)) != 0)
    }

    /// Takes over the slots of one bitmap record, of which there are none yet.
    pub fn load(&mut self, chunk: u32, bits: &[u8; SLOT_MAP_BYTES]) {
        let mut words: Chunk = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let more: u32 = words.iter().map(|word| word.count_ones()).sum();
        if more > 0 {
            self.len += u64::from(more);
            self.chunks.insert(chunk, words);
        }
    }

    /// Puts `index` in, or takes it out.
    pub fn set(&mut self, index: u32, to: bool) {
        let (chunk, bit) = (index / SLOTS_PER_RECORD, index % SLOTS_PER_RECORD);
        if !to && !self.chunks.contains_key(&chunk) {
            return;
        }
        let words = self.chunks.entry(chunk).or_default();
        let (word, bit) = (&mut words[bit as usize / 64], 1u64 << (bit % 64));
        match (*word & bit != 0, to) {
            (false, true) => self.len += 1,
            (true, false) => self.len -= 1,
            _ => return,
        }
        *word ^= bit;
        if !to && words.iter().all(|&word| word == 0) {
            self.chunks.remove(&chunk);
        }
    }

    /// Puts in all of `range` that is in neither this nor the other set.
    pub fn fill(&mut self, range: Range<u32>, others: &Bits) {
        for chunk in chunks_of(&range) {
            let other = others.chunks.get(&chunk);
            let words = self.chunks.entry(chunk).or_default();
            for (i, word) in words.iter_mut().enumerate() {
                let new = mask(chunk, i, &range) & !*word & !other.map_or(0, |words| words[i]);
                *word |= new;
                self.len += u64::from(new.count_ones());
            }
            if words.iter().all(|&word| word == 0) {
                self.chunks.remove(&chunk);
            }
        }
    }

    /// Takes all of `range` out.
    pub fn clear(&mut self, range: Range<u32>) {
        let touched: Vec<u32> = self.chunks.range(chunks_of(&range)).map(|(&chunk, _)| chunk).collect();
        for chunk in touched {
            let Some(words) = self.chunks.get_mut(&chunk) else { continue };
            for (i, word) in words.iter_mut().enumerate() {
                let gone = *word & mask(chunk, i, &range);
                *word ^= gone;
                self.len -= u64::from(gone.count_ones());
            }
            if words.iter().all(|&word| word == 0) {
                self.chunks.remove(&chunk);
            }
        }
    }

    /// The lowest one from `from` on.
    pub fn next(&self, from: u32) -> Option<u32> {
        // The second chunk has one, if the first has none above `from`.
        self.chunks
            .range(from / SLOTS_PER_RECORD..)
            .find_map(|(&chunk, words)| lowest(&masked(words, chunk, &(from..u32::MAX)), chunk))
    }

    /// The highest one below `end`.
    pub fn last_below(&self, end: u32) -> Option<u32> {
        self.chunks
            .range(..=end / SLOTS_PER_RECORD)
            .rev()
            .find_map(|(&chunk, words)| highest(&masked(words, chunk, &(0..end)), chunk))
    }

    /// The highest number below `end` that is not among them, if it is among
    /// `chunks` chunks; else where to go on looking.
    pub fn last_gap_below(&self, end: u32, chunks: u32) -> Result<u32, u32> {
        let mut end = end;
        for _ in 0..chunks {
            let Some(last) = end.checked_sub(1) else { break };
            let chunk = last / SLOTS_PER_RECORD;
            let Some(words) = self.chunks.get(&chunk) else { return Ok(last) };
            let gaps: Chunk = std::array::from_fn(|i| !words[i] & mask(chunk, i, &(0..end)));
            match highest(&gaps, chunk) {
                Some(gap) => return Ok(gap),
                None => end = chunk * SLOTS_PER_RECORD,
            }
        }
        Err(end)
    }

    /// The lowest number from `from` on that is neither here nor in the other
    /// set, if it is among `chunks` chunks; else where to go on looking.
    pub fn next_gap(&self, others: &Bits, from: u32, chunks: u32) -> Result<u32, u32> {
        let mut from = from;
        for _ in 0..chunks {
            let chunk = from / SLOTS_PER_RECORD;
            let (a, b) = (self.chunks.get(&chunk), others.chunks.get(&chunk));
            let gaps: Chunk = std::array::from_fn(|i| {
                !(a.map_or(0, |words| words[i]) | b.map_or(0, |words| words[i]))
                    & mask(chunk, i, &(from..u32::MAX))
            });
            match lowest(&gaps, chunk) {
                Some(gap) => return Ok(gap),
                None => from = (chunk + 1).saturating_mul(SLOTS_PER_RECORD),
            }
        }
        Err(from)
    }

    /// The bits of one chunk, as they are stored.
    pub fn bitmap(&self, chunk: u32) -> [u8; SLOT_MAP_BYTES] {
        let mut bits = [0; SLOT_MAP_BYTES];
        let words = self.chunks.get(&chunk).copied().unwrap_or_default();
        for (word, bytes) in words.iter().zip(bits.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Everything against a set of numbers, around the borders of words and chunks.
    #[test]
    fn like_a_set_of_numbers() {
        let mut seed = 7u64;
        let mut random = |n: u32| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as u32 % n
        };
        let (mut bits, mut other, mut set, mut others) =
            (Bits::default(), Bits::default(), BTreeSet::new(), BTreeSet::new());
        for _ in 0..4000 {
            let at = random(5000);
            let range = at..at + [1, 63, 64, 65, 1500][random(5) as usize];
            match random(6) {
                0 => {
                    bits.set(at, true);
                    set.insert(at);
                }
                1 => {
                    bits.set(at, false);
                    set.remove(&at);
                }
                2 => {
                    other.set(at, true);
                    others.insert(at);
                }
                3 => {
                    bits.fill(range.clone(), &other);
                    set.extend(range.filter(|i| !others.contains(i)));
                }
                4 => {
                    bits.clear(range.clone());
                    set.retain(|i| !range.contains(i));
                }
                _ => {
                    assert_eq!(bits.next(at), set.range(at..).next().copied());
                    assert_eq!(bits.last_below(at), set.range(..at).next_back().copied());
                    let gap = (0..at).rev().find(|i| !set.contains(i));
                    assert_eq!(bits.last_gap_below(at, 100), gap.ok_or(0));
                    let gap = (at..).find(|i| !set.contains(i) && !others.contains(i)).unwrap();
                    assert_eq!(bits.next_gap(&other, at, 100), Ok(gap));
                }
            }
            assert_eq!((bits.count(), bits.contains(at)), (set.len() as u64, set.contains(&at)));
        }
        bits.clear(0..u32::MAX);
        assert!(bits.chunks.is_empty() && bits.count() == 0);
    }

    #[test]
    fn a_search_is_bounded_and_goes_on() {
        let (mut bits, none) = (Bits::default(), Bits::default());
        bits.fill(1024..9000, &none);
        assert_eq!(bits.last_gap_below(9000, 3), Err(6144));
        assert_eq!(bits.last_gap_below(6144, 100), Ok(1023));
        assert_eq!(bits.next_gap(&none, 1024, 3), Err(4096));
        assert_eq!(bits.next_gap(&none, 4096, 100), Ok(9000));
        bits.fill(u32::MAX - 10..u32::MAX, &none);
        assert_eq!(bits.last_below(u32::MAX), Some(u32::MAX - 1));
    }
}
