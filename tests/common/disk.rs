//! A small disk of a test's own: full, or read-only, without harm to the machine's.

use std::path::PathBuf;
use std::process::Command;

use super::is_root;
use super::process::{in_path, run, users_of};
use super::scratch::Scratch;

/// A small ext4 of its own, in a file.
pub struct SmallDisk {
    at: PathBuf,
    _scratch: Scratch,
}

impl SmallDisk {
    /// Err says why there can be none here.
    pub fn make(megabytes: u64) -> Result<SmallDisk, String> {
        if !is_root() {
            return Err("mounting a disk image needs root".to_owned());
        }
        if in_path("mkfs.ext4").is_none() {
            return Err("no mkfs.ext4".to_owned());
        }
        let scratch = Scratch::new();
        let image = scratch.join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(megabytes << 20)).expect("make an image");
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image)).expect_ok();
        let at = scratch.subdir_of("disk", None);
        let mount = run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        if !mount.ok() {
            return Err(format!("no loop mount: {}", mount.stderr.trim()));
        }
        Ok(SmallDisk { at, _scratch: scratch })
    }

    /// A path on it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Makes it read-only, or writable again. Whatever the machine does with a new disk may take a moment to end; who
    /// keeps it busy for longer is named.
    #[track_caller]
    pub fn remount(&self, how: &str) {
        let remount = || run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.at));
        let mut done = remount();
        let given_up = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while !done.ok() && std::time::Instant::now() < given_up {
            std::thread::sleep(std::time::Duration::from_millis(100));
            done = remount();
        }
        assert!(done.ok(), "{}; in use by {:?}", done.report(), users_of(&self.at));
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let fs = nix::sys::statvfs::statvfs(&self.at).expect("statvfs");
        fs.blocks_available() * fs.fragment_size()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
    }
}
