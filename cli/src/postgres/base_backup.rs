//! A base backup of a running server (`pg_basebackup`), with all of it inside one
//! directory.
//!
//! A tablespace would go where the server has it: each is mapped into the directory,
//! and its link there made to lead to it from wherever that is mounted. Nothing is
//! synced, which is the caller's business; and no slot is left behind, as the one
//! that keeps the WAL meanwhile is a temporary one.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::binaries::Binaries;
use super::primary::Tablespace;
use super::remote::{self, Remote};
use super::server::log_tail;
use crate::error::{Context, Error, Kind, Result};
use crate::ui::{Progress, Ui};

/// From which version on there is a manifest, which costs time and is not kept.
const HAS_MANIFEST: u32 = 13;

/// From which version on a tablespace may be a directory of pg_tblspc.
const HAS_TABLESPACES_IN_PLACE: u32 = 15;

/// Where tablespaces are while they come in, and stay before that version.
const TABLESPACES: &str = "pgcowfs_tblspc";

/// What to copy, and how.
pub struct BaseBackup<'a> {
    /// From where.
    pub remote: &'a Remote,
    /// With the programs of the server's version.
    pub binaries: &'a Binaries,
    /// To where: an empty directory of the user's.
    pub pgdata: &'a Path,
    /// The tablespaces that the server has.
    pub tablespaces: &'a [Tablespace],
    /// At most so many bytes a second.
    pub max_rate: Option<u64>,
    /// Whether the server's checkpoint at the beginning may take its time.
    pub spread_checkpoint: bool,
    /// Write down, in postgresql.auto.conf, how a standby reaches the server.
    pub for_standby: bool,
    /// Whether somebody else sees to it that the server keeps the WAL meanwhile.
    pub wal_is_kept: bool,
}

impl BaseBackup<'_> {
    /// Copies it.
    pub fn run(&self, ui: &Ui, label: &str) -> Result<()> {
        let program = self.binaries.program("pg_basebackup");
        let mut command = self.remote.command(&program);
        self.arguments(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if self.spread_checkpoint {
            ui.note("waiting for the server's checkpoint, which it spreads over some minutes");
        }
        let mut child = self.remote.spawn(&mut command)?;
        let mut said = String::new();
        let mut progress: Option<(Progress, u64)> = None;
        if let Some(stderr) = child.stderr.take() {
            let mut lines = BufReader::new(stderr).split(b'\n');
            while let Some(Ok(line)) = lines.next() {
                let line = String::from_utf8_lossy(&line);
                match done_of_total(&line) {
                    Some((done, total)) => {
                        let (progress, before) =
                            progress.get_or_insert_with(|| (ui.progress(label, total), 0));
                        progress.add(done.saturating_sub(*before));
                        *before = done.max(*before);
                    }
                    None => said += &format!("{line}\n"),
                }
            }
        }
        let status = child.wait().at("wait for", &program)?;
        if !status.success() {
            let mut error = remote::explain(self.remote.url(), &log_tail(&said));
            error.message = format!("the base backup of the server at {} failed", self.remote.url());
            return Err(error.cause(format!("pg_basebackup ended with {status}")));
        }
        if let Some((progress, _)) = progress {
            progress.finish();
        }
        self.remote.user().run(|| self.settle_tablespaces())
    }

    fn arguments(&self, command: &mut Command) {
        command.arg("--pgdata").arg(self.pgdata).args(["--format=plain", "--wal-method=stream"]);
        command.args(["--no-sync", "--no-password", "--progress", "--dbname"]).arg(self.remote.url());
        command.arg(if self.spread_checkpoint { "--checkpoint=spread" } else { "--checkpoint=fast" });
        if self.binaries.major >= HAS_MANIFEST {
            command.arg("--no-manifest");
        }
        if let Some(rate) = self.max_rate {
            command.arg(format!("--max-rate={}k", rate >> 10));
        }
        if self.for_standby {
            command.arg("--write-recovery-conf");
        }
        if self.wal_is_kept {
            command.arg("--no-slot");
        }
        for Tablespace { oid, location } in self.tablespaces {
            let to = self.pgdata.join(TABLESPACES).join(oid.to_string());
            let mut mapping = OsString::from("--tablespace-mapping=");
            mapping.push(escape(location));
            mapping.push("=");
            mapping.push(escape(&to));
            command.arg(mapping);
        }
    }

    /// Has the tablespaces lie as in every fork.
    fn settle_tablespaces(&self) -> Result<()> {
        let (links, place) = (self.pgdata.join("pg_tblspc"), self.pgdata.join(TABLESPACES));
        for entry in fs::read_dir(&links).at("list", &links)? {
            let link = entry.at("list", &links)?.path();
            if !link.is_symlink() {
                continue;
            }
            let target = fs::read_link(&link).at("read the link", &link)?;
            let Some(name) = target.strip_prefix(&place).ok().map(Path::to_path_buf) else {
                return Err(Error::new(
                    Kind::BadInput,
                    format!("a tablespace was made on the server meanwhile, at {}", target.display()),
                )
                .cause("pg_basebackup has put a copy of it there, too, outside of the fork")
                .hint(format!("if {} was made just now, remove it; then try again", target.display())));
            };
            fs::remove_file(&link).at("replace", &link)?;
            match self.binaries.major >= HAS_TABLESPACES_IN_PLACE {
                true => fs::rename(&target, &link).at("move", &target)?,
                false => {
                    let relative = Path::new("..").join(TABLESPACES).join(name);
                    symlink(relative, &link).at("make the link", &link)?;
                }
            }
        }
        match fs::remove_dir(&place) {
            // Nothing was mapped there, or it is in use.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY)) => Ok(()),
            other => other.at("remove", &place),
        }
    }
}

/// From `  1234/5678 kB (21%), 0/1 tablespace`, in bytes.
fn done_of_total(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB (")?;
    let (done, total) = numbers.split_once('/')?;
    let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// A path with its equals signs escaped, as a mapping wants them.
fn escape(path: &Path) -> PathBuf {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b'=' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_progress() {
        let line = "   22896/103424 kB (22%), 0/1 tablespace (/data/base/5/1        )";
        assert_eq!(done_of_total(line), Some((22896 << 10, 103424 << 10)));
        assert_eq!(done_of_total("0/22 kB (0%), 0/1 tablespace"), Some((0, 22 << 10)));
        for other in ["", "pg_basebackup: error: x", "1 kB (2%)", "a/b kB (1%)"] {
            assert_eq!(done_of_total(other), None, "{other}");
        }
    }

    #[test]
    fn mappings_are_escaped() {
        assert_eq!(escape(Path::new("/a=b/c")), Path::new("/a\\=b/c"));
    }
}
