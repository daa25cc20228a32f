//! What a fuzz target is, and how the tests try one without a fuzzer: on its
//! seeds, and on random changes of them that are the same in every run.
//!
//! `scripts/fuzz` runs the same targets under libFuzzer (`fuzz/src/main.rs`).

// The fuzzer needs no `try_all`, and not every target reads its input in pieces.
#![allow(dead_code)]

use std::cell::Cell;
use std::panic::PanicHookInfo;
use std::sync::{Mutex, Once, mpsc};
use std::time::Duration;

#[path = "../common/random.rs"]
mod random;

use random::Random;

/// Something that takes any bytes and must hold on all of them.
pub struct Target {
    /// For the command line.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the program's own writers.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many changed seeds a test tries.
    pub rounds: u32,
}

/// The bytes of an input, taken one after another; zeros when there are no more.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }
    pub fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }
    pub fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }
    pub fn u64(&mut self) -> u64 {
        self.take(8).iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
    /// Bytes after their own number.
    pub fn piece(&mut self) -> &'a [u8] {
        let len = self.u16().into();
        self.take(len)
    }
}

/// A piece for [`Bytes::piece`].
pub fn piece(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("a piece of a seed is short");
    [&len.to_le_bytes(), bytes].concat()
}

/// A watchdog, not a requirement on speed.
const HUNG: Duration = Duration::from_secs(60);

thread_local! {
    /// Set in a thread that tries inputs.
    static TRYING: Cell<bool> = const { Cell::new(false) };
}

/// What panicked: a thread that tries inputs, or one of the store's own.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Other threads of the test program panic as ever.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
            let thread = std::thread::current();
            if TRYING.get() || thread.name().is_some_and(|name| name.starts_with("pgcowfs-")) {
                PANICS.lock().unwrap_or_else(|e| e.into_inner()).push(panic.to_string());
            } else {
                before(panic);
            }
        }));
    });
}

/// Tries all targets; panics with the input on which one does not hold.
pub fn try_all(targets: &'static [Target]) {
    watch_panics();
    for target in targets {
        let (tell, told) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            TRYING.set(true);
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "a target needs something to begin with");
            for seed in &seeds {
                tell.send(seed.clone()).expect("the test waits");
                (target.run)(seed);
            }
            let mut random = Random::new(1);
            for _ in 0..target.rounds {
                let input = changed(&seeds, &mut random);
                tell.send(input.clone()).expect("the test waits");
                (target.run)(&input);
            }
        });
        let (mut last, mut tried) = (Vec::new(), 0);
        let hung = loop {
            match told.recv_timeout(HUNG) {
                Ok(input) => (last, tried) = (input, tried + 1),
                Err(e) => break e == mpsc::RecvTimeoutError::Timeout,
            }
        };
        let failed = hung || worker.join().is_err();
        let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(|e| e.into_inner()));
        assert!(
            !failed && panics.is_empty(),
            "{}, input {tried}{}: {panics:#?}\n{}",
            target.name,
            if hung { ", hangs" } else { "" },
            last.escape_ascii()
        );
        println!("{}: {tried} inputs", target.name);
    }
}

/// Bytes that mean something to one decoder or another.
const TELLING: [&[u8]; 12] =
    [b"\0", b"\xff", b"'", b"''", b"\\", b"\n", b"\r\n", b"#", b"=", b"\"", b"\xff\xff\xff\xff", b"\0\0\0\0"];

/// One seed with some changes.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(seeds).cloned().unwrap_or_default();
    for _ in 0..random.between(1, 6) {
        let len = bytes.len() as u64;
        let at = random.below(len) as usize;
        let end = (at + random.between(1, 20) as usize).min(bytes.len());
        match random.below(8) {
            0 | 1 if len > 0 => bytes[at] ^= 1 << random.below(8),
            2 if len > 0 => bytes[at] = random.number() as u8,
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let copy = bytes[at..end].to_vec();
                let to = random.below(len + 1) as usize;
                bytes.splice(to..to, copy);
            }
            6 => {
                let other = random.pick(seeds).cloned().unwrap_or_default();
                let from = random.below(other.len() as u64) as usize;
                bytes.splice(at..end, other[from..].iter().take(64).copied());
            }
            _ => {
                let word = random.pick(&TELLING).copied().unwrap_or_default();
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
    bytes
}
