//! One recording and its cuts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::args::Args;
use super::cuts::{Cut, Runs};
use super::rig::{Place, Recorded, Replayed};
use super::server;
use super::writer;
use crate::common::process::run;
use crate::common::random::Random;
use crate::common::scratch::Scratch;
use crate::harness::Settings;

/// Cuts of each control.
const CONTROL_CUTS: usize = 6;
/// Flushes that the forgetful disk of the control has lost.
const FORGOTTEN_FLUSHES: usize = 32;

/// How a recording's cuts ended. (That there is no verdict is an error.)
pub enum Outcome {
    /// Nothing was found.
    Clean,
    /// Something was, and has been printed.
    Found,
}

/// What was done.
#[derive(Default)]
pub struct Sums {
    library: Counted,
    server: Counted,
    recoveries: Counted,
}

#[derive(Default)]
struct Counted {
    recordings: u64,
    events: u64,
    flushes: u64,
    longest: u64,
    cuts: u64,
    /// Events after the last flush, of all cuts together.
    in_flight: u64,
    found: u64,
    seconds: f64,
}

impl Sums {
    /// All cuts.
    pub fn cuts(&self) -> u64 {
        self.library.cuts + self.server.cuts + self.recoveries.cuts
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "-".repeat(96);
        writeln!(f, "{line}")?;
        writeln!(
            f,
            "{:<22} {:>10} {:>9} {:>8} {:>8} {:>6} {:>10} {:>6} {:>8}",
            "workload", "recordings", "events", "flushes", "longest", "cuts", "in flight", "found", "s a cut"
        )?;
        for (name, c) in [
            ("library", &self.library),
            ("PostgreSQL", &self.server),
            ("PostgreSQL, recovered", &self.recoveries),
        ] {
            let cuts = c.cuts.max(1) as f64;
            writeln!(
                f,
                "{name:<22} {:>10} {:>9} {:>8} {:>8} {:>6} {:>10.1} {:>6} {:>8.2}",
                c.recordings,
                c.events,
                c.flushes,
                c.longest,
                c.cuts,
                c.in_flight as f64 / cuts,
                c.found,
                c.seconds / cuts
            )?;
        }
        write!(f, "{line}")
    }
}

impl Counted {
    fn recording(&mut self, events: u64, runs: &Runs) {
        let (flushes, longest) = runs.sizes();
        self.recordings += 1;
        self.events += events;
        self.flushes += flushes as u64;
        self.longest = self.longest.max(longest);
    }

    /// Judges all cuts; those that show something are printed.
    fn run(
        &mut self,
        what: &str,
        disk: &mut Replayed,
        cuts: &[Cut],
        judge: impl Fn(&Cut) -> Vec<String>,
    ) -> Result<(), String> {
        for (n, cut) in cuts.iter().enumerate() {
            let begin = Instant::now();
            let wrong = look(disk, cut, &judge)?;
            self.seconds += begin.elapsed().as_secs_f64();
            self.cuts += 1;
            self.in_flight += cut.at - cut.durable;
            if !wrong.is_empty() {
                self.found += 1;
                println!("{what}: cut {cut} FOUND");
                wrong.iter().take(10).for_each(|line| println!("  {line}"));
            }
            if (n + 1) % 50 == 0 {
                println!("{what}: {} of {} cuts, {} found", n + 1, cuts.len(), self.found);
            }
        }
        Ok(())
    }
}

/// Judges one cut. Err: the rig did not hold.
fn look(disk: &mut Replayed, cut: &Cut, judge: impl Fn(&Cut) -> Vec<String>) -> Result<Vec<String>, String> {
    for _ in 0..3 {
        let mounted = match disk.cut(cut) {
            Ok(mounted) => mounted,
            Err(why) => return Ok(vec![format!("the host's file system: {why}")]),
        };
        let wrong = judge(cut);
        if wrong.is_empty() || mounted.is_there() {
            return Ok(wrong);
        }
        println!("cut {cut}: somebody has unmounted the disk meanwhile; once more");
    }
    Err("somebody keeps unmounting the disk".to_owned())
}

/// Ends a session: what showed something is left to be looked at.
fn outcome(found: u64, mut scratch: Scratch, args: &Args) -> Outcome {
    if found == 0 {
        return Outcome::Clean;
    }
    scratch.keep();
    let rig = scratch.join("rig");
    println!("the recording is left in {}", rig.display());
    println!(
        "the store after a cut: scripts/powercut --host {} --show {} \"CUT\"",
        args.host.name(),
        rig.display()
    );
    println!("again (the log of another run will differ): scripts/powercut {args}");
    Outcome::Found
}

fn place(args: &Args, megabytes: u64) -> Result<(Scratch, Place), String> {
    let scratch = Scratch::new();
    let place = Place::new(&scratch.subdir_of("rig", None), args.host, megabytes)?;
    Ok((scratch, place))
}

/// Copies the store out that a cut of an earlier run's recording leaves.
pub fn show(args: &Args, rig: &Path, cut: &str) -> Result<PathBuf, String> {
    let cut = Cut::parse(cut).ok_or(format!("{cut:?} is no cut"))?;
    let place = Place::left_in(rig, args.host)?;
    let mut disk = Replayed::start(&place)?;
    let _mounted = disk.cut(&cut)?;
    let copy = rig.join("after-cut");
    let _ = std::fs::remove_dir_all(&copy);
    let done = run(Command::new("cp").arg("-a").arg(place.store()).arg(&copy));
    if done.ok() { Ok(copy) } else { Err(done.report()) }
}

/// The library at work.
pub fn writer(args: &Args, number: u64, sums: &mut Sums) -> Result<Outcome, String> {
    let seed = args.common.seed.wrapping_add(number);
    let (scratch, place) = place(args, 1024)?;
    let disk = Recorded::start(&place)?;
    let writer::Recording { made, from, to, histories } =
        writer::record(&place.store(), &disk.clock(), args.operations, seed);
    let log = disk.finish()?;
    let runs = Runs::find(&log.events, from, to);
    sums.library.recording(to - from, &runs);
    let (flushes, longest) = runs.sizes();
    println!(
        "library, recording {number}: {} events, {flushes} flushes, at most {longest} between",
        to - from
    );

    let mut random = Random::part(seed, 1);
    let mut disk = Replayed::start(&place)?;
    let mut noticed = 0;
    for cut in runs.forgetful(CONTROL_CUTS, FORGOTTEN_FLUSHES, &mut random) {
        let _mounted = disk.cut(&cut)?;
        noticed += u64::from(!writer::judge(&place.store(), &histories, cut.at).is_empty());
    }
    println!(
        "control: a disk that forgets {FORGOTTEN_FLUSHES} flushes: {noticed} of {CONTROL_CUTS} cuts noticed"
    );
    if noticed < CONTROL_CUTS as u64 / 2 {
        return Err("forgotten flushes were not noticed".to_owned());
    }

    // First as soon as the store has been made.
    let mut cuts = vec![Runs::find(&log.events, 0, made).last()];
    cuts.extend(runs.choose(args.cuts, &mut random));
    let before = sums.library.found;
    sums.library.run("library", &mut disk, &cuts, |cut| {
        let mut wrong = writer::judge(&place.store(), &histories, cut.at);
        if wrong.is_empty() && cut.seed % 4 == 0 {
            wrong = writer::go_on(&place.store());
        }
        wrong
    })?;
    drop(disk);
    Ok(outcome(sums.library.found - before, scratch, args))
}

/// PostgreSQL at work.
pub fn server(args: &Args, number: u64, sums: &mut Sums) -> Result<Outcome, String> {
    let seed = args.common.seed.wrapping_add(number);
    let settings = Settings {
        full_page_writes: args.common.full_page_writes.unwrap_or(number % 2 == 1),
        checksums: args.common.checksums.unwrap_or(number / 2 % 2 == 1),
    };
    let (scratch, place) = place(args, 3072)?;
    let disk = Recorded::start(&place)?;
    let recording = server::record(&place, &disk, settings, args.commits, seed);
    let log = disk.finish()?;
    let runs = Runs::find(&log.events, recording.from, recording.to);
    sums.server.recording(recording.to - recording.from, &runs);
    sums.recoveries.recording(recording.to - recording.from, &runs);
    let (flushes, longest) = runs.sizes();
    println!(
        "PostgreSQL, recording {number}: {settings:?}, {} events, {flushes} flushes, at most {longest} between",
        recording.to - recording.from
    );

    let mut random = Random::part(seed, 2);
    let mut disk = Replayed::start(&place)?;
    let careless = Runs::find(&log.events, recording.careless_from, recording.careless_to);
    let lost = {
        let cut = careless.last();
        let _mounted = disk.cut(&cut)?;
        recording.careless_lost(&place, &cut)?
    };
    println!("control: PostgreSQL with fsync=off: {lost} clients miss commits");
    if lost == 0 {
        return Err("commits that were never flushed are there".to_owned());
    }

    let before = sums.server.found + sums.recoveries.found;
    let cuts = runs.choose(args.server_cuts, &mut random);
    sums.server.run("PostgreSQL", &mut disk, &cuts, |cut| recording.judge(&place, cut))?;
    let cuts = runs.choose(args.recoveries, &mut random);
    sums.recoveries
        .run("PostgreSQL, recovered", &mut disk, &cuts, |cut| recording.judge_with_server(&place, cut))?;
    drop(disk);
    Ok(outcome(sums.server.found + sums.recoveries.found - before, scratch, args))
}
