//! Passing signals on to a command that runs in this program's stead.

use std::io;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};

use crate::error::{Context, Result};

/// What a signal meets.
enum Stage {
    /// There is no command yet: this program ends.
    Before,
    /// It goes to that process.
    Running(Pid),
    /// The command has ended: nobody needs it any more.
    After,
}

/// Takes the signals that ask a program to end.
pub struct Relay {
    stage: Arc<Mutex<Stage>>,
}

impl Relay {
    /// Begins to take signals. Until a command runs, each ends this program, with the
    /// exit code that shells have for it.
    pub fn start() -> Result<Relay> {
        let relay = Relay { stage: Arc::new(Mutex::new(Stage::Before)) };
        let mut signals =
            SignalsInfo::<WithOrigin>::new([SIGINT, SIGTERM, SIGHUP]).context(|| "cannot receive signals")?;
        let stage = relay.stage.clone();
        std::thread::spawn(move || {
            for origin in signals.forever() {
                // While it is locked the process cannot be reaped, and its number is its own.
                let stage = stage.lock();
                match *stage {
                    Stage::Before => std::process::exit(128 + origin.signal),
                    Stage::Running(pid) => pass_on(pid, &origin),
                    Stage::After => {}
                }
            }
        });
        Ok(relay)
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &mut Command) -> io::Result<ExitStatus> {
        let (mut child, pid) = {
            let mut stage = self.stage.lock();
            let child = command.spawn();
            // Without a command there is nothing left to do but to clean up.
            let child = child.inspect_err(|_| *stage = Stage::After)?;
            let pid = Pid::from_raw(child.id().cast_signed());
            *stage = Stage::Running(pid);
            (child, pid)
        };
        while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
        *self.stage.lock() = Stage::After;
        child.wait()
    }
}

/// The terminal sends its signals to the command as well.
fn pass_on(pid: Pid, origin: &Origin) {
    let Ok(signal) = Signal::try_from(origin.signal) else { return };
    if !matches!(origin.cause, Cause::Kernel) {
        // It may have ended by now.
        let _ = kill(pid, signal);
    }
}
