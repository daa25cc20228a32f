//! What the harness is asked for.

use std::fmt;
use std::path::PathBuf;

use crate::harness::{Common, number};

/// The options of `scripts/soak`.
pub const USAGE: &str = "usage: scripts/soak [OPTION]...
  --cycles N                     forks made and removed (default 10000)
  --living N                     forks that live at a time (default 50)
  --pages N                      pages written in each of parent and child, each cycle (default 100)
  --table-pages N                pages of the table that they are in (default 16384, 128 MiB)
  --sample N                     cycles between two samples (default 100)
  --baseline N                   cycles before the sample that the last one is compared with (default 500: before, the
                                 living forks are all young and share more pages and WAL than later)
  --load TPS                     transactions per second of PostgreSQL's load; 0: as many as it can (default 50)
  --no-postgres                  no server runs, and no load
  --minutes N                    end after the cycle that reaches so many minutes, if not all are done by then
  --out DIR                      where soak.jsonl, soak.svg and soak.png go (default docs/benchmarks)
  --full-page-writes on|off      (default: on)
  --checksums on|off             PostgreSQL's page checksums (default: on)
  --seed S                       for what is left to chance (default: of the clock)
  --dir D                        where the store goes (default /var/tmp)
  -h, --help                     this text
exit status: 0 nothing found, 1 something found, 2 bad arguments, 3 set-up failed: no verdict";

/// The options, parsed.
#[derive(Debug)]
pub struct Args {
    /// What every harness is asked for.
    pub common: Common,
    /// Forks to make and remove.
    pub cycles: u64,
    /// Forks that live at a time, `main` not counted.
    pub living: usize,
    /// Pages that a cycle writes on each side.
    pub pages: u64,
    /// Pages of the table.
    pub table_pages: u32,
    /// Cycles between two samples.
    pub sample: u64,
    /// Cycles before the first of the two samples that are compared.
    pub baseline: u64,
    /// Transactions per second; 0: no limit.
    pub load: u64,
    /// Whether there is a server at all.
    pub postgres: bool,
    /// No more cycles after so many minutes.
    pub minutes: Option<u64>,
    /// Where the samples go.
    pub out: Option<PathBuf>,
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let (mut cycles, mut living, mut pages, mut table_pages) = (10_000, 50, 100, 16_384);
        let (mut sample, mut baseline, mut load, mut postgres) = (100, 500, 50, true);
        let (mut minutes, mut out) = (None, None);
        let common = Common::parse("soak", USAGE, words, |option, value| {
            match option {
                "--cycles" => cycles = number(&value()?)?,
                "--living" => living = number(&value()?)?,
                "--pages" => pages = number(&value()?)?,
                "--table-pages" => table_pages = number(&value()?)?,
                "--sample" => sample = number(&value()?)?.max(1),
                "--baseline" => baseline = number(&value()?)?,
                "--load" => load = number(&value()?)?,
                "--no-postgres" => postgres = false,
                "--minutes" => minutes = Some(number(&value()?)?),
                "--out" => out = Some(PathBuf::from(value()?)),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let Some(common) = common else { return Ok(None) };
        if !common.long {
            // There are as many snapshots as there will be after 60 cycles.
            (cycles, living, pages, table_pages) = (180, 8, 20, 1024);
            (sample, baseline, load, minutes) = (30, 60, 20, None);
        }
        let living = usize::try_from(living).map_err(|_| "too many forks".to_owned())?;
        let table_pages =
            u32::try_from(table_pages).map_err(|_| "the table has too many pages".to_owned())?;
        if living == 0 || table_pages == 0 || baseline < living as u64 || cycles <= baseline {
            return Err("there must be a fork and a page, and --living <= --baseline < --cycles".to_owned());
        }
        Ok(Some(Args {
            common,
            cycles,
            living,
            pages,
            table_pages,
            sample,
            baseline,
            load,
            postgres,
            minutes,
            out,
        }))
    }
}

/// The options that repeat this run.
impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--cycles {} --living {} --pages {} --table-pages {} --sample {} --baseline {} --load {} ",
            self.cycles, self.living, self.pages, self.table_pages, self.sample, self.baseline, self.load
        )?;
        if !self.postgres {
            write!(f, "--no-postgres ")?;
        }
        if let Some(minutes) = self.minutes {
            write!(f, "--minutes {minutes} ")?;
        }
        write!(f, "{}", self.common)
    }
}
