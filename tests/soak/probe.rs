//! Takes the figures of a sample: from the host's files, from /proc, and by reading.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::sample::{Sample, ms, percentile, us};
use super::tree::{PAGE, TABLE, Tree, forget_cached};
use crate::common::random::Random;

/// Random pages that are read.
const READS: u64 = 200;
/// Flushes of the disk.
const FLUSHES: u8 = 15;
/// Bytes of one read of a scan.
const SCAN_BYTES: usize = 256 << 10;

/// Host bytes and number of the files in a directory whose names pass.
fn space(dir: &Path, which: impl Fn(&str) -> bool) -> io::Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // Files come and go meanwhile.
        let Ok(meta) = entry.metadata() else { continue };
        if which(&entry.file_name().to_string_lossy()) {
            bytes += meta.blocks() * 512;
            files += 1;
        }
    }
    Ok((bytes, files))
}

/// What the store takes on its disk.
pub fn space_of(store: &Path, sample: &mut Sample) -> io::Result<()> {
    (sample.map_bytes, sample.map_files) = space(&store.join("map"), |_| true)?;
    (sample.map_log_bytes, _) = space(&store.join("map"), |name| name.ends_with(".log"))?;
    (sample.delta_bytes, sample.delta_files) = space(&store.join("delta"), |_| true)?;
    (sample.inplace_bytes, sample.inplace_files) = space(&store.join("inplace"), |_| true)?;
    sample.store_bytes = sample.map_bytes + sample.delta_bytes + sample.inplace_bytes;
    sample.log_bytes = std::fs::metadata(store.join("daemon.log"))?.len();
    Ok(())
}

/// What a process takes of the machine.
pub fn process(pid: u32, sample: &mut Sample) -> io::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    sample.rss_bytes = field("VmRSS") << 10;
    sample.anon_bytes = field("RssAnon") << 10;
    sample.threads = field("Threads");
    sample.open_files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(())
}

/// Flushes of the host's disk.
pub fn disk(dir: &Path, sample: &mut Sample) -> io::Result<()> {
    let path = dir.join("flushed");
    let file = File::create(&path)?;
    let flush = |n| {
        file.write_all_at(&[n; PAGE], u64::from(n) * PAGE as u64)?;
        let begin = Instant::now();
        file.sync_data().map(|()| begin.elapsed())
    };
    let times: io::Result<Vec<Duration>> = (0..FLUSHES).map(flush).collect();
    sample.disk_ms = ms(percentile(&times?, 50));
    std::fs::remove_file(path)
}

/// Takes everything that may be read from the store out of the host's cache.
fn forget_store(store: &Path) -> io::Result<()> {
    for part in ["delta", "inplace"] {
        for entry in std::fs::read_dir(store.join(part))? {
            // A file that is gone meanwhile is in no cache.
            if let Ok(file) = File::open(entry?.path()) {
                forget_cached(&file)?;
            }
        }
    }
    Ok(())
}

/// Opens each of the files of one database of PostgreSQL in a fresh fork, for the first time.
pub fn open_files(pgdata: &Path, sample: &mut Sample) -> io::Result<()> {
    let mut times = Vec::new();
    for entry in std::fs::read_dir(pgdata.join("base/1"))? {
        let path = entry?.path();
        let begin = Instant::now();
        let file = File::open(&path)?;
        times.push(begin.elapsed());
        drop(file);
    }
    sample.open_us = us(percentile(&times, 50));
    Ok(())
}

/// Reads random pages of the table twice, cold and then warm; the medians.
pub fn read_pages(store: &Path, tree: &Tree, random: &mut Random) -> io::Result<[Duration; 2]> {
    let file = File::open(tree.path(TABLE))?;
    let pages = file.metadata()?.len() / PAGE as u64;
    forget_cached(&file)?;
    forget_store(store)?;
    let blocks: Vec<u64> = (0..READS).map(|_| random.below(pages)).collect();
    let mut page = vec![0; PAGE];
    let mut read_all = || {
        let read = |block: &u64| {
            let begin = Instant::now();
            file.read_exact_at(&mut page, block * PAGE as u64).map(|()| begin.elapsed())
        };
        let times: io::Result<Vec<Duration>> = blocks.iter().map(read).collect();
        times.map(|times| percentile(&times, 50))
    };
    Ok([read_all()?, read_all()?])
}

/// Reads all of the table twice, cold and then warm; megabytes per second.
pub fn scan(store: &Path, tree: &Tree) -> io::Result<[f64; 2]> {
    let file = File::open(tree.path(TABLE))?;
    let bytes = file.metadata()?.len();
    forget_cached(&file)?;
    forget_store(store)?;
    let mut buffer = vec![0; SCAN_BYTES];
    let mut scan = || {
        let begin = Instant::now();
        let mut at = 0;
        while at < bytes {
            let now = SCAN_BYTES.min((bytes - at) as usize);
            file.read_exact_at(&mut buffer[..now], at)?;
            at += now as u64;
        }
        Ok::<f64, io::Error>(bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
    };
    Ok([scan()?, scan()?])
}

/// The times that the cycles have taken down.
pub fn times(of: &super::forest::Times, sample: &mut Sample) {
    sample.cycle_ms = ms(percentile(&of.cycles, 50));
    sample.fork_ms = ms(percentile(&of.forks, 50));
    sample.fork_p99_ms = ms(percentile(&of.forks, 99));
    sample.stall_max_ms = ms(percentile(&of.stalls, 100));
    sample.fork_call_ms = ms(percentile(&of.fork_calls, 50));
    sample.remove_ms = ms(percentile(&of.removals, 50));
    sample.remove_p99_ms = ms(percentile(&of.removals, 99));
}
