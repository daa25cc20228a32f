//! Where the power goes, and what of the writes under way reaches the disk.

use super::log::Event;
use crate::common::random::Random;

/// What a disk writes wholly or not at all.
pub const SECTOR: usize = 512;

/// What becomes of the writes since the last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// None of them gets through.
    None,
    /// All.
    All,
    /// Some, whatever their order.
    Some,
    /// Some, and of some of those only some sectors.
    Torn,
}

const STYLES: [(&str, Style); 4] =
    [("none", Style::None), ("all", Style::All), ("some", Style::Some), ("torn", Style::Torn)];

/// One loss of power.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Events of the log that are on the disk for certain.
    pub durable: u64,
    /// Events that had happened.
    pub at: u64,
    /// What becomes of those between.
    pub style: Style,
    /// For what is left to chance.
    pub seed: u64,
}

impl Cut {
    /// From [`Cut`]'s display.
    pub fn parse(line: &str) -> Option<Cut> {
        let words: Vec<&str> = line.split(' ').collect();
        let [durable, at, style, seed] = words[..] else { return None };
        Some(Cut {
            durable: durable.parse().ok()?,
            at: at.parse().ok()?,
            style: STYLES.iter().find(|(name, _)| *name == style)?.1,
            seed: seed.parse().ok()?,
        })
    }
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let style = STYLES.iter().find(|(_, style)| *style == self.style).map_or("", |(name, _)| name);
        write!(f, "{} {} {style} {}", self.durable, self.at, self.seed)
    }
}

/// A stretch of the log without a flush: the events from `start` to `end` (a flush, or the end of the log).
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
}

/// The stretches of a log, between two positions.
pub struct Runs(Vec<Run>);

impl Runs {
    /// Finds them.
    pub fn find(events: &[Event], from: u64, to: u64) -> Runs {
        let mut runs = Vec::new();
        let before = events[..from as usize].iter().rposition(|event| *event == Event::Flush);
        let mut start = before.map_or(0, |i| i as u64 + 1);
        for at in from..to {
            if events[at as usize] == Event::Flush {
                runs.push(Run { start, end: at });
                start = at + 1;
            }
        }
        runs.push(Run { start, end: to });
        Runs(runs)
    }

    /// How many there are, and events in the longest of them.
    pub fn sizes(&self) -> (usize, u64) {
        (self.0.len(), self.0.iter().map(|run| run.end - run.start).max().unwrap_or(0))
    }

    /// So many cuts, in the order of the log. Uniform ones would mostly meet short stretches, with hardly a write under
    /// way: half of them go where the most writes are, a quarter to the ends of the longest stretches, where the most
    /// has not been flushed, and a quarter anywhere.
    pub fn choose(&self, count: u64, random: &mut Random) -> Vec<Cut> {
        let mut longest = self.0.clone();
        longest.sort_by_key(|run| std::cmp::Reverse(run.end - run.start));
        longest.truncate((longest.len() / 10).max(1));
        let events: u64 = self.0.iter().map(|run| run.end - run.start).sum();
        let mut cuts: Vec<Cut> = (0..count)
            .map(|_| {
                let (run, at) = match random.below(4) {
                    0 => {
                        let run = *random.pick(&longest).expect("a log has a stretch");
                        (run, run.end)
                    }
                    1 => {
                        let run = *random.pick(&self.0).expect("a log has a stretch");
                        (run, random.between(run.start, run.end + 1))
                    }
                    _ => {
                        let mut left = random.below(events);
                        let run = self.0.iter().find(|run| {
                            let here = left < run.end - run.start;
                            left = left.saturating_sub(run.end - run.start);
                            here
                        });
                        let run = *run.unwrap_or(&self.0[0]);
                        // More towards the end, where more is under way.
                        let at = random.between(run.start, run.end + 1);
                        (run, at.max(random.between(run.start, run.end + 1)))
                    }
                };
                let style = random.pick(&STYLES).expect("not empty").1;
                Cut { durable: run.start, at, style, seed: random.number() }
            })
            .collect();
        cuts.sort_by_key(|cut| (cut.durable, cut.at));
        cuts
    }

    /// For controls: the end, and nothing since the last flush got through.
    pub fn last(&self) -> Cut {
        let run = self.0[self.0.len() - 1];
        Cut { durable: run.start, at: run.end, style: Style::None, seed: 0 }
    }

    /// For controls: cuts as if the last `flushes` flushes had done nothing, and nothing since had got through.
    pub fn forgetful(&self, count: usize, flushes: usize, random: &mut Random) -> Vec<Cut> {
        let mut ends: Vec<usize> =
            (0..count).map(|_| random.between(flushes as u64, self.0.len() as u64) as usize).collect();
        ends.sort_unstable();
        let cut = |i: usize| Cut {
            durable: self.0[i.saturating_sub(flushes)].start,
            at: self.0[i].end,
            style: Style::None,
            seed: 0,
        };
        ends.into_iter().map(cut).collect()
    }
}
