//! Compares the end with the beginning.

use super::args::Args;
use super::sample::Sample;
use super::tree::PAGE;

/// How much more a figure may be in the end: a fifth.
const MORE: f64 = 1.2;
/// Tables of RocksDB that wait to be compacted, of one memtable each: four of a few megabytes, however many records
/// there are.
const WAITING_TABLES: f64 = (16 << 20) as f64;
/// What the daemon's caches grow to, however old the store: RocksDB's block cache and three memtables of 16 MiB each.
const CACHES: f64 = (64 << 20) as f64;
/// Delta files take at most so many times what their pages do: a file grows by a quarter of its size, and while forks
/// come and go there are more pages than in the end.
const DELTA_MORE: u64 = 2;
/// Host files of WAL that a fork may have on average. How many there are follows from how much WAL is written between
/// two forks: a segment lies in up to sixteen, and forks of about the same age share them.
const INPLACE_EACH: u64 = 5;
/// As the number of in-place files goes up and down, so does that of open files.
const INPLACE_OPEN: f64 = 64.0;
/// The least that a delta file takes.
const DELTA_MIN: u64 = 256 << 10;

/// What becomes of a figure that has grown.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    /// The run has failed.
    Fails,
    /// The same, but not a short one: it comes in large pieces, or slowly to where it stays.
    FailsLong,
    /// It is only told: other work on the machine does that as well.
    Told,
    /// The same, and less of it is worse.
    ToldIfLess,
}

use Rule::{Fails, FailsLong, Told, ToldIfLess};

/// A figure: its name, the rule, what is allowed besides, and where it is.
type Figure = (&'static str, Rule, f64, fn(&Sample) -> f64);

/// In megabytes.
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

const FIGURES: &[Figure] = &[
    ("map, MB", Fails, WAITING_TABLES / 1e6, |s| mb(s.map_bytes)),
    ("delta files, MB", FailsLong, 0.0, |s| mb(s.delta_bytes)),
    ("in-place files, MB", Told, 0.0, |s| mb(s.inplace_bytes)),
    ("store, MB", Told, 0.0, |s| mb(s.store_bytes)),
    ("delta files", Fails, 4.0, |s| s.delta_files as f64),
    ("in-place files", Told, 0.0, |s| s.inplace_files as f64),
    ("layers", Fails, 4.0, |s| s.layers as f64),
    ("records", Fails, 0.0, |s| s.records.unwrap_or(0) as f64),
    ("pages", Fails, 0.0, |s| s.pages.unwrap_or(0) as f64),
    ("page table entries", Fails, 0.0, |s| s.map_entries as f64),
    ("page tables, MB", Fails, 0.1, |s| mb(s.page_table_bytes)),
    ("daemon's memory, MB", Fails, CACHES / 1e6, |s| mb(s.rss_bytes)),
    ("threads", Fails, 4.0, |s| s.threads as f64),
    ("open files", FailsLong, INPLACE_OPEN, |s| s.open_files as f64),
    ("fork, ms", Told, 0.0, |s| s.fork_ms),
    ("removal, ms", Told, 0.0, |s| s.remove_ms),
    ("open in a fresh fork, us", Told, 0.0, |s| s.open_us),
    ("cold read in a fresh fork, us", Told, 0.0, |s| s.read_fork_cold_us),
    ("warm read in a fresh fork, us", Told, 0.0, |s| s.read_fork_warm_us),
    ("cold read in main, us", Told, 0.0, |s| s.read_main_cold_us),
    ("warm read in main, us", Told, 0.0, |s| s.read_main_warm_us),
    ("cold scan of main, MB/s", ToldIfLess, 0.0, |s| s.scan_cold_mb_s),
    ("warm scan of main, MB/s", ToldIfLess, 0.0, |s| s.scan_warm_mb_s),
    ("flush of the disk itself, ms", Told, 0.0, |s| s.disk_ms),
];

/// Shows all figures at two moments, both with the background work at its end. Err names those that have grown, and
/// what is more than there should ever be.
pub fn judge(args: &Args, first: &Sample, last: &Sample, all: &[Sample]) -> Result<(), Vec<String>> {
    let mut wrong = Vec::new();
    println!("{:<30} {:>14} {:>14} {:>7}", "after cycles", first.cycle, last.cycle, "ratio");
    for (name, rule, allowance, of) in FIGURES {
        let (before, after) = (of(first), of(last));
        let grown = match rule {
            ToldIfLess => after * MORE < before,
            _ => after > before * MORE + allowance,
        };
        let word = match (grown, rule) {
            (false, _) => "",
            (true, Told | ToldIfLess) => "worse",
            (true, Fails | FailsLong) => "more",
        };
        let ratio = if before > 0.0 { after / before } else { 1.0 };
        println!("{name:<30} {before:>14.1} {after:>14.1} {ratio:>7.2} {word}");
        if grown && (*rule == Fails || *rule == FailsLong && args.common.long) {
            let (first, last) = (first.cycle, last.cycle);
            wrong.push(format!("{name}: {before:.1} after {first} cycles, {after:.1} after {last}"));
        }
    }
    for sample in [first, last] {
        if sample.backlog > 0 {
            wrong.push(format!("{} layers too many are left after {} cycles", sample.backlog, sample.cycle));
        }
    }
    wrong.extend(all.iter().filter_map(|sample| too_much(args, sample)));
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// What is more than it should be at any time.
fn too_much(args: &Args, sample: &Sample) -> Option<String> {
    let Sample { cycle, layers, backlog, delta_bytes, .. } = *sample;
    // Each fork has its head, what it was made from, and may have forks of its own although it is gone.
    let most = 3 * (args.living as u64 + 1) + 1;
    if layers - backlog > most {
        return Some(format!(
            "{layers} layers after {cycle} cycles, {backlog} of them to go: more than {most}"
        ));
    }
    let most = INPLACE_EACH * (args.living as u64 + 1);
    if sample.inplace_files > most {
        return Some(format!(
            "{} in-place files after {cycle} cycles: more than {most}",
            sample.inplace_files
        ));
    }
    let most = DELTA_MORE * (sample.pages? * PAGE as u64 + sample.delta_files * DELTA_MIN);
    (delta_bytes > most).then(|| {
        let pages = sample.pages.unwrap_or(0);
        format!("{delta_bytes} bytes in delta files for {pages} pages after {cycle} cycles")
    })
}
