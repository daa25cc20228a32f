//! The disk, the loop device on it and the file system on that: while it is recorded, and after a cut.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cuts::Cut;
use super::disk::shelf_of;
use super::log::{self, Log};
use crate::common::process::{in_path, run, users_of};
use crate::common::scratch::mount_type;
use crate::common::store::Store;
use crate::oracle::Clock;

/// The host's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// With its default options.
    Ext4,
    /// The same.
    Xfs,
    /// The same.
    Btrfs,
}

impl Host {
    /// By its name.
    pub fn parse(name: &str) -> Option<Host> {
        [Host::Ext4, Host::Xfs, Host::Btrfs].into_iter().find(|host| host.name() == name)
    }

    /// As `mount` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Host::Ext4 => "ext4",
            Host::Xfs => "xfs",
            Host::Btrfs => "btrfs",
        }
    }

    fn mkfs(self) -> String {
        format!("mkfs.{}", self.name())
    }

    /// Says why there can be no such rig here.
    pub fn missing(self) -> Option<String> {
        if !crate::common::is_root() {
            return Some("loop devices need root".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("no /dev/loop-control".to_owned());
        }
        if !Path::new("/dev/fuse").exists() {
            return Some("no /dev/fuse".to_owned());
        }
        let programs = ["losetup".to_owned(), "mount".to_owned(), self.mkfs()];
        programs.into_iter().find(|program| in_path(program).is_none()).map(|program| format!("no {program}"))
    }
}

/// The disk's program.
struct Program {
    child: Child,
    shelf: PathBuf,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(mode: &str, dir: &Path, bytes: u64) -> Result<Program, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut child = Command::new(own)
            .args(["--disk", mode])
            .arg(dir)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("the disk's program: {e}"))?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let mut program = Program { child, shelf: shelf_of(dir), commands, answers };
        match program.answer()?.as_str() {
            "ready" => Ok(program),
            other => Err(format!("the disk's program: {other}")),
        }
    }

    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.is_empty() {
            return Err("the disk's program has ended".to_owned());
        }
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String, String> {
        let commands = self.commands.as_mut().ok_or("the disk's program was ended")?;
        writeln!(commands, "{command}").and_then(|()| commands.flush()).map_err(|e| e.to_string())?;
        self.answer()
    }
}

impl Drop for Program {
    /// Ends with its input, and takes its mount along, unless somebody else still has the loop device open.
    fn drop(&mut self) {
        self.commands.take();
        let _ = self.child.wait();
        if Store::is_mounted(&self.shelf) {
            let _ = run(Command::new("umount").arg("-l").arg(&self.shelf));
        }
    }
}

/// A loop device with a mounted file system.
struct Mounted {
    device: String,
    at: PathBuf,
}

impl Mounted {
    fn attach(file: &Path) -> Result<String, String> {
        let attach = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        if attach.ok() { Ok(attach.stdout.trim().to_owned()) } else { Err(attach.report()) }
    }

    fn mount(device: String, host: Host, at: &Path) -> Result<Mounted, String> {
        let mount = run(Command::new("mount").args(["-t", host.name()]).arg(&device).arg(at));
        if mount.ok() {
            return Ok(Mounted { device, at: at.to_owned() });
        }
        let _ = run(Command::new("losetup").arg("--detach").arg(&device));
        Err(mount.report())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Who has just ended may still be giving its files back.
        if !wait_briefly(|| run(Command::new("umount").arg(&self.at)).ok()) {
            println!("powercut: {} is still in use by {:?}", self.at.display(), users_of(&self.at));
            let _ = run(Command::new("umount").arg("-l").arg(&self.at));
        }
        let _ = run(Command::new("losetup").arg("--detach").arg(&self.device));
        // That only asks for it: whatever on this machine looks at new disks may have it open.
        let name = self.device.trim_start_matches("/dev/");
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        if !wait_briefly(|| !backing.exists()) {
            println!("powercut: {} is still in use", self.device);
        }
    }
}

/// Waits at most 15 seconds; whether it came.
fn wait_briefly(mut done: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !done() {
        if begin.elapsed() > Duration::from_secs(15) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Directories of a rig; `at` is where the file system is mounted, before the cut and after: some of PostgreSQL's
/// settings hold absolute paths.
#[derive(Clone)]
pub struct Place {
    dir: PathBuf,
    /// The mount point.
    pub at: PathBuf,
    bytes: u64,
    host: Host,
}

impl Place {
    /// In the empty directory `dir`.
    pub fn new(dir: &Path, host: Host, megabytes: u64) -> Result<Place, String> {
        let place = Place { dir: dir.to_owned(), at: dir.join("disk"), bytes: megabytes << 20, host };
        for dir in [&place.at, &shelf_of(dir)] {
            std::fs::create_dir_all(dir).map_err(|e| format!("making {}: {e}", dir.display()))?;
        }
        Ok(place)
    }

    /// Where an earlier run has left its recording.
    pub fn left_in(dir: &Path, host: Host) -> Result<Place, String> {
        let image = dir.join("image");
        let bytes = std::fs::metadata(&image).map_err(|e| format!("{}: {e}", image.display()))?.len();
        Place::new(dir, host, bytes >> 20)
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.at.join("store")
    }
}

/// A disk that is being recorded. Fields in the order in which they must go.
pub struct Recorded {
    _mounted: Mounted,
    _program: Program,
    index: Arc<File>,
    place: Place,
}

impl Recorded {
    /// Makes the disk and a file system on it.
    pub fn start(place: &Place) -> Result<Recorded, String> {
        let program = Program::start("record", &place.dir, place.bytes)?;
        let device = Mounted::attach(&shelf_of(&place.dir).join("disk0"))?;
        let mkfs = run(Command::new(place.host.mkfs()).arg("-q").arg(&device));
        if !mkfs.ok() {
            let _ = run(Command::new("losetup").arg("--detach").arg(&device));
            return Err(mkfs.report());
        }
        let mounted = Mounted::mount(device, place.host, &place.at)?;
        let index = File::open(log::index_of(&place.dir)).map_err(|e| format!("the log: {e}"))?;
        Ok(Recorded { _mounted: mounted, _program: program, index: Arc::new(index), place: place.clone() })
    }

    /// Tells the position in the log.
    pub fn clock(&self) -> Clock {
        let index = self.index.clone();
        Arc::new(move || log::position(&index))
    }

    /// Ends the recording.
    pub fn finish(self) -> Result<Log, String> {
        let dir = self.place.dir.clone();
        drop(self);
        Log::open(&dir).map_err(|e| format!("the log: {e}"))
    }
}

/// Shows the disk after one cut or the other.
pub struct Replayed {
    program: Program,
    place: Place,
}

/// The disk after a cut, mounted.
pub struct AfterCut {
    mounted: Mounted,
    host: Host,
}

impl AfterCut {
    /// Whether it still is: somebody else on the machine can unmount it, and what is judged then is not the store.
    pub fn is_there(&self) -> bool {
        Store::is_mounted(&self.mounted.at) && mount_type(&self.mounted.at) == self.host.name()
    }
}

impl Replayed {
    /// Of the recording in that place.
    pub fn start(place: &Place) -> Result<Replayed, String> {
        Ok(Replayed { program: Program::start("replay", &place.dir, place.bytes)?, place: place.clone() })
    }

    /// Makes and mounts what that cut leaves. Only one at a time.
    pub fn cut(&mut self, cut: &Cut) -> Result<AfterCut, String> {
        let name = self.program.ask(&cut.to_string())?;
        if name.starts_with("error") {
            return Err(name);
        }
        let device = Mounted::attach(&shelf_of(&self.place.dir).join(name))?;
        let mounted = Mounted::mount(device, self.place.host, &self.place.at)?;
        Ok(AfterCut { mounted, host: self.place.host })
    }
}
