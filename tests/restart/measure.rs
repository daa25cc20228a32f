//! One start, and what it took.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::fill::Filler;
use crate::common::store::Store;

/// Milliseconds of each phase, of all runs.
#[derive(Default)]
pub struct Figures {
    phases: Vec<(String, Vec<f64>)>,
    said: Vec<String>,
}

/// One run: its phases in order, and what the daemon said of its own.
pub struct Run {
    phases: Vec<(&'static str, f64)>,
    said: String,
}

impl Figures {
    /// Adds one run.
    pub fn add(&mut self, run: Run) {
        for (name, ms) in run.phases {
            match self.phases.iter_mut().find(|(known, _)| known == name) {
                Some((_, all)) => all.push(ms),
                None => self.phases.push((name.to_owned(), vec![ms])),
            }
        }
        self.said.push(run.said);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, all) in &self.phases {
            let mut sorted = all.clone();
            sorted.sort_by(f64::total_cmp);
            let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
            let median = sorted[sorted.len() / 2];
            writeln!(f, "  {name:<42} median {median:8.1} ms, {least:.1} to {most:.1}")?;
        }
        self.said.iter().try_for_each(|line| writeln!(f, "  the daemon: {line}"))
    }
}

/// Takes the store's files out of the kernel's cache, if `cold`.
pub fn before_a_run(store: &Store, cold: bool) {
    for part in ["map", "delta", "inplace"].into_iter().filter(|_| cold) {
        for entry in std::fs::read_dir(store.dir().join(part)).expect("a directory of the store") {
            let file = File::open(entry.expect("an entry").path()).expect("a file of the store");
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
        }
    }
}

/// Starts the daemon and asks it; every answer must be right.
pub fn one_run(store: &Store, filler: &Filler) -> Run {
    let mut phases = Vec::new();
    let log = store.dir().join("daemon.log");
    let before = std::fs::metadata(&log).map_or(0, |meta| meta.len());
    let begin = Instant::now();
    let mut last = begin;
    let mut phase = |name| {
        let now = Instant::now();
        phases.push((name, (now - last).as_secs_f64() * 1000.0));
        last = now;
    };
    store.ok(["mount"]);
    phase("start (`pgcowfs mount`)");
    // The parent's layers are shared by all forks, and loaded by the first.
    let (path, at, page) = filler.page_of(store, filler.forks() / 2);
    let file = File::open(&path).expect("a fork's relation");
    phase("first request, of a fork half way");
    check_page(&file, &path, at, &page[..]);
    phase("first read of a page in it");
    let total = begin.elapsed().as_secs_f64() * 1000.0;
    for (number, name) in [(0, "oldest fork, first read"), (filler.forks() - 1, "youngest fork, first read")]
    {
        let (path, at, page) = filler.page_of(store, number);
        check_page(&File::open(&path).expect("a fork's relation"), &path, at, &page[..]);
        phase(name);
    }
    let names = store.names();
    phase("list of all forks");
    assert_eq!(names.len(), filler.forks() + 1);
    phases.insert(0, ("all until the first page was read", total));
    let text = std::fs::read(&log).expect("the daemon's log");
    let text = String::from_utf8_lossy(&text[before as usize..]).into_owned();
    let said = text.lines().find_map(|line| Some(line[line.find("store opened in")?..].to_owned()));
    let said = said.unwrap_or_else(|| panic!("the daemon does not say how long it took:\n{text}"));
    let broken: Vec<&str> = text.lines().filter(|l| l.contains(" WARN ") || l.contains(" ERROR ")).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    Run { phases, said }
}

fn check_page(file: &File, path: &Path, at: u64, want: &[u8]) {
    let mut page = vec![1; want.len()];
    file.read_exact_at(&mut page, at).expect("a read");
    assert!(page == want, "{}: the page at {at} is another one", path.display());
    file.read_exact_at(&mut page[..8], at + want.len() as u64).expect("a read beside it");
    assert_eq!(page[..8], [0; 8], "{}: not a hole beside {at}", path.display());
}

/// What the figures were had on.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let names: BTreeMap<&str, usize> = processors
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .fold(BTreeMap::new(), |mut names, (_, name)| {
            *names.entry(name).or_default() += 1;
            names
        });
    let memory =
        read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "").trim().to_owned();
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    format!("{names:?}, {memory} of memory, Linux {}, load {}", kernel.trim(), load.trim())
}
