//! The run: set-up, cycles, samples, and the verdict at the end.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::args::Args;
use super::control::Control;
use super::forest::{Forest, MAIN, Times};
use super::load::{self, Load};
use super::probe;
use super::sample::{HEADER, Sample, us};
use super::verdict;
use crate::common::check::check_store;
use crate::common::random::Random;
use crate::common::store::{Store, number, text};
use crate::harness::Settings;

/// Nothing changes for so long when the background work is at its end: it looks every five seconds.
const STEADY: Duration = Duration::from_secs(7);
/// How long that may take.
const SETTLED_AFTER: Duration = Duration::from_secs(900);
/// One in so many samples counts the records, which the map has to be read for.
const CHECK_EVERY: u64 = 10;
/// The table's header is repeated after so many lines.
const HEADER_EVERY: usize = 25;

/// A store under soak.
pub struct Run<'a> {
    args: &'a Args,
    /// Before the store, so that it ends first.
    load: Option<Load>,
    control: Control,
    store: Store,
    settings: Settings,
    forest: Forest,
    random: Random,
    begin: Instant,
    samples: Vec<Sample>,
    out: Option<File>,
}

impl<'a> Run<'a> {
    /// Makes the store, the cluster and the tables, and starts the load. Panics where that fails.
    pub fn set_up(args: &'a Args) -> Run<'a> {
        let out = args.out.as_ref().map(|dir| {
            std::fs::create_dir_all(dir).expect("make the directory for the samples");
            File::create(dir.join("soak.jsonl")).expect("make soak.jsonl")
        });
        let settings = Settings {
            full_page_writes: args.common.full_page_writes.unwrap_or(true),
            checksums: args.common.checksums.unwrap_or(true),
        };
        let store = Store::bare(None);
        // A port for each fork, whether its server runs or not.
        let first = 20_000 + std::process::id() % 100 * 100;
        let ports = args.living as u32 + 20;
        store.ok(["init", "--port-range", &format!("{first}-{}", first + ports)]);
        match settings.checksums {
            true => store.create(MAIN, load::SETTINGS),
            false => store.create_without_checksums(MAIN, load::SETTINGS),
        }
        let load = args.postgres.then(|| {
            let at = settings.start(&store, MAIN).unwrap_or_else(|why| panic!("{why}"));
            Load::start(&at, store.scratch(), args.load)
        });
        let mount = PathBuf::from(text(&store.status(), "mountpoint"));
        let forest = Forest::make(&mount, args);
        let control = Control::open(store.dir());
        let random = Random::new(args.common.seed);
        let (begin, samples) = (Instant::now(), Vec::new());
        Run { args, load, control, store, settings, forest, random, begin, samples, out }
    }

    /// Leaves the store where it is; its directory.
    pub fn keep(mut self) -> PathBuf {
        self.store.keep();
        self.store.dir().to_owned()
    }

    /// All cycles and the verdict. Err has what was found.
    pub fn all(&mut self) -> Result<(), Vec<String>> {
        let one = |why: String| vec![why];
        let mut baseline = None;
        let mut cycle = 0;
        let mut done = false;
        while !done {
            cycle += 1;
            self.forest.cycle(&mut self.control, self.args, &mut self.random).map_err(one)?;
            if let Some(load) = &mut self.load {
                load.check().map_err(one)?;
            }
            done = cycle == self.args.cycles || self.is_late() && baseline.is_some();
            if cycle == self.args.baseline {
                baseline = Some(self.sample_settled(cycle).map_err(one)?);
            } else if cycle % self.args.sample == 0 && !done {
                self.sample(cycle, false).map_err(one)?;
            }
        }
        let end = self.sample_settled(cycle).map_err(one)?;
        self.verify()?;
        let baseline = baseline.ok_or_else(|| one("no baseline".to_owned()))?;
        verdict::judge(self.args, &baseline, &end, &self.samples)
    }

    fn is_late(&self) -> bool {
        self.args.minutes.is_some_and(|most| self.begin.elapsed() >= Duration::from_secs(60 * most))
    }

    /// A sample with the load held and the background work at its end.
    fn sample_settled(&mut self, cycle: u64) -> Result<Sample, String> {
        if let Some(load) = &self.load {
            load.pause()?;
        }
        self.settle()?;
        let sample = self.sample(cycle, true)?;
        if let Some(load) = &self.load {
            load.go_on();
        }
        Ok(sample)
    }

    /// Waits for the end of the background work: until nothing changes any more.
    fn settle(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        let mut last = (None, Instant::now());
        while last.1.elapsed() < STEADY {
            let status = self.control.status()?;
            let now = ["layers", "map_entries", "store_bytes"].map(|field| number(&status, field));
            if last.0 != Some(now) {
                last = (Some(now), Instant::now());
            }
            if begin.elapsed() > SETTLED_AFTER {
                return Err(format!("the background work does not come to its end: {status}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn sample(&mut self, cycle: u64, settled: bool) -> Result<Sample, String> {
        let failed = |e: std::io::Error| format!("a sample cannot be taken: {e}");
        let seconds = self.begin.elapsed().as_secs_f64();
        let mut sample = Sample { cycle, seconds, settled, ..Sample::default() };
        let status = self.control.status()?;
        sample.forks = number(&status, "forks");
        sample.layers = number(&status, "layers");
        sample.backlog = sample.layers.saturating_sub(self.forest.layers_needed());
        sample.map_entries = number(&status, "map_entries");
        sample.page_table_bytes = number(&status, "map_memory_bytes");
        let store = self.store.dir();
        probe::space_of(store, &mut sample).map_err(failed)?;
        probe::process(self.store.daemon_pid(), &mut sample).map_err(failed)?;
        probe::times(&std::mem::take(&mut self.forest.times), &mut sample);
        if let Some(load) = &self.load {
            sample.transactions = load.transactions()?;
        }
        probe::disk(&self.store.scratch().join(""), &mut sample).map_err(failed)?;
        self.read(&mut sample)?;
        if settled || (cycle / self.args.sample).is_multiple_of(CHECK_EVERY) {
            let seen = self.control.check()?;
            sample.records = Some(number(&seen, "records"));
            sample.pages = Some(number(&seen, "pages"));
        }
        self.show(&sample).map_err(failed)?;
        self.samples.push(sample.clone());
        Ok(sample)
    }

    /// Reads as a server would, in a fresh fork and in `main`.
    fn read(&mut self, sample: &mut Sample) -> Result<(), String> {
        let failed = |e: std::io::Error| format!("reading: {e}");
        let store = self.store.dir().to_owned();
        let random = &mut self.random;
        let [cold, warm] = self.forest.with_fresh_fork(&mut self.control, |pgdata, tree| {
            probe::open_files(pgdata, sample).map_err(failed)?;
            probe::read_pages(&store, tree, random).map_err(failed)
        })?;
        (sample.read_fork_cold_us, sample.read_fork_warm_us) = (us(cold), us(warm));
        let main = self.forest.main();
        let [cold, warm] = probe::read_pages(&store, main, random).map_err(failed)?;
        (sample.read_main_cold_us, sample.read_main_warm_us) = (us(cold), us(warm));
        [sample.scan_cold_mb_s, sample.scan_warm_mb_s] = probe::scan(&store, main).map_err(failed)?;
        // The fork that was read from is no part of the cycles.
        self.forest.times = Times::default();
        Ok(())
    }

    fn show(&mut self, sample: &Sample) -> std::io::Result<()> {
        if self.samples.len().is_multiple_of(HEADER_EVERY) {
            println!("{HEADER}");
        }
        println!("{sample}");
        match &mut self.out {
            Some(out) => writeln!(out, "{}", serde_json::to_string(sample)?),
            None => Ok(()),
        }
    }

    /// Everything that the forks hold, with the daemon that did it all and with the next one, which has only what is
    /// durable; the store's own check, and every page against its CRC.
    fn verify(&mut self) -> Result<(), Vec<String>> {
        let one = |why: String| vec![why];
        self.forest.verify_all()?;
        let done = self.store.run(["check"]);
        if !done.ok() {
            return Err(one(done.report()));
        }
        let done = self.store.run(["scrub"]);
        if !done.ok() {
            return Err(one(done.report()));
        }
        let names = self.forest.names();
        if self.load.take().is_some() {
            self.verify_servers()?;
        }
        self.store.ok(["umount"]);
        let broken = check_store(self.store.dir());
        if !broken.is_empty() {
            return Err(broken);
        }
        self.store.ok(["mount"]);
        self.control = Control::open(self.store.dir());
        let mut there = self.store.names();
        there.sort();
        if there != names {
            return Err(one(format!("there are the forks {there:?} instead of {names:?}")));
        }
        self.forest.verify_all()
    }

    /// A server on the oldest and on the youngest fork, and on `main` itself.
    fn verify_servers(&self) -> Result<(), Vec<String>> {
        let one = |why: String| vec![why];
        self.store.ok(["stop", MAIN]);
        for name in self.forest.ends().into_iter().chain([MAIN]) {
            let at = self.settings.start(&self.store, name).map_err(one)?;
            load::verify(&at).map_err(|why| one(format!("the server of {name}: {why}")))?;
            self.store.ok(["stop", name]);
        }
        Ok(())
    }
}
