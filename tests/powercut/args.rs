//! What the harness is asked for.

use std::fmt;
use std::path::PathBuf;

use crate::harness::{OfCargoTest, number, of_cargo_test, some_seed, switch, word};

use super::rig::Host;

/// The options of `scripts/powercut`.
pub const USAGE: &str = "usage: scripts/powercut [OPTION]...
  --sessions N                   recordings of each workload (default 4)
  --cuts N                       cuts of each recording of the library at work (default 250)
  --server-cuts N                cuts of each recording of PostgreSQL, judged without a server (default 100)
  --recoveries N                 cuts of the same, with a recovery and the oracle's verdict (default 25)
  --host ext4|xfs|btrfs          the host's file system (default ext4)
  --full-page-writes on|off      (default: in turn)
  --checksums on|off             PostgreSQL's page checksums (default: in turn)
  --seed S                       for what is left to chance (default: of the clock)
  --dir D                        where recordings go (default /var/tmp)
  --show RIG CUT                 copy the store out that a cut of an earlier recording leaves; nothing else
  -h, --help                     this text
exit status: 0 nothing found, 1 something found, 2 bad arguments, 3 set-up or control failed: no verdict";

/// The options, parsed.
#[derive(Debug)]
pub struct Args {
    /// For a script, not as a test among others: being unable to run is a failure.
    pub long: bool,
    /// Show the store after that cut of the recording that a run has left there, and do nothing else.
    pub show: Option<(PathBuf, String)>,
    /// Recordings of each workload.
    pub sessions: u64,
    /// Cuts of each recording of the library.
    pub cuts: u64,
    /// Operations of each of its workers.
    pub operations: u64,
    /// Cuts of each recording of PostgreSQL, without a server.
    pub server_cuts: u64,
    /// The same with one.
    pub recoveries: u64,
    /// Commits in such a recording.
    pub commits: u64,
    /// The host's file system.
    pub host: Host,
    /// None: in turn.
    pub full_page_writes: Option<bool>,
    /// None: in turn.
    pub checksums: Option<bool>,
    /// For what is left to chance.
    pub seed: u64,
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let mut args = Args {
            long: false,
            show: None,
            sessions: 4,
            cuts: 250,
            operations: 500,
            server_cuts: 100,
            recoveries: 25,
            commits: 2500,
            host: Host::Ext4,
            full_page_writes: None,
            checksums: None,
            seed: some_seed(),
        };
        let mut words = words;
        while let Some(option) = words.next() {
            let mut value = || words.next().ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--sessions" => args.sessions = number(&value()?)?,
                "--cuts" => args.cuts = number(&value()?)?,
                "--server-cuts" => args.server_cuts = number(&value()?)?,
                "--recoveries" => args.recoveries = number(&value()?)?,
                "--seed" => args.seed = number(&value()?)?,
                "--host" => {
                    let name = value()?;
                    args.host = Host::parse(&name).ok_or(format!("no host file system {name:?}"))?;
                }
                "--full-page-writes" => args.full_page_writes = Some(switch(&value()?)?),
                "--checksums" => args.checksums = Some(switch(&value()?)?),
                "--show" => args.show = Some((value()?.into(), value()?)),
                "--long" => args.long = true,
                "-h" | "--help" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                other if !args.long => match of_cargo_test(other, "powercut") {
                    Some(OfCargoTest::Ignore) => {}
                    Some(OfCargoTest::NothingToDo) => return Ok(None),
                    None => return Err(format!("unknown argument {other:?}")),
                },
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        if !args.long {
            args = Args {
                sessions: 1,
                cuts: 12,
                operations: 80,
                server_cuts: 3,
                recoveries: 1,
                commits: 200,
                ..args
            };
        }
        Ok(Some(args))
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--sessions {} --cuts {} --server-cuts {} --recoveries {} --host {} --seed {}",
            self.sessions,
            self.cuts,
            self.server_cuts,
            self.recoveries,
            self.host.name(),
            self.seed
        )?;
        for (option, value) in
            [("--full-page-writes", self.full_page_writes), ("--checksums", self.checksums)]
        {
            if let Some(on) = value {
                write!(f, " {option} {}", word(on))?;
            }
        }
        Ok(())
    }
}
