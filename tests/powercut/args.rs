//! What the harness is asked for.

use std::fmt;
use std::path::PathBuf;

use super::rig::Host;
use crate::harness::{Common, number};

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
    /// What every harness is asked for.
    pub common: Common,
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
}

impl Args {
    /// None when there is nothing to do.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
        let (mut sessions, mut cuts, mut server_cuts, mut recoveries) = (4, 250, 100, 25);
        let (mut operations, mut commits) = (500, 2500);
        let (mut host, mut show) = (Host::Ext4, None);
        let common = Common::parse("powercut", USAGE, words, |option, value| {
            match option {
                "--sessions" => sessions = number(&value()?)?,
                "--cuts" => cuts = number(&value()?)?,
                "--server-cuts" => server_cuts = number(&value()?)?,
                "--recoveries" => recoveries = number(&value()?)?,
                "--host" => {
                    let name = value()?;
                    host = Host::parse(&name).ok_or(format!("no host file system {name:?}"))?;
                }
                "--show" => show = Some((value()?.into(), value()?)),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let Some(common) = common else { return Ok(None) };
        if !common.long {
            (sessions, cuts, server_cuts, recoveries) = (1, 12, 3, 1);
            (operations, commits) = (80, 200);
        }
        Ok(Some(Args { common, show, sessions, cuts, operations, server_cuts, recoveries, commits, host }))
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "--sessions {} --cuts {} --server-cuts {} --recoveries {} --host {} {}",
            self.sessions,
            self.cuts,
            self.server_cuts,
            self.recoveries,
            self.host.name(),
            self.common
        )
    }
}
