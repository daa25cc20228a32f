//! A store as a directory of the host, which is where RocksDB comes in: made,
//! opened, and looked at while nobody has it open.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::check::scrub::{Options as ScrubOptions, Progress, Tell, scrub};
use crate::check::{self, Finding, Kind, Report, Stored};
use crate::device::{self, HostDevice};
use crate::error::{Error, Result};
use crate::ids::FileId;
use crate::map::rocks::RocksMap;
use crate::map::schema::{Counters, STORE_VERSION};
use crate::map::{Batch, Map};

use super::Options;
use super::phases::Phases;
use super::store::{Parts, Store};
use super::store_file::{self, bad_store};

const LOCK_FILE: &str = "LOCK";

fn random_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut id))
        .map_err(|e| Error::io("reading /dev/urandom", e))?;
    Ok(id)
}

impl Store {
    /// Makes a new, empty store in `dir`, which must be empty or not exist.
    pub fn init(dir: &Path) -> Result<()> {
        let io = |what: &str| {
            let context = format!("{what} {}", dir.display());
            move |e| Error::io(context, e)
        };
        if dir.join(store_file::NAME).exists() {
            return Err(bad_store(dir, "there is a store here already"));
        }
        let existed = dir.is_dir();
        if existed && std::fs::read_dir(dir).map_err(io("reading"))?.next().is_some() {
            return Err(bad_store(dir, "the directory is not empty"));
        }
        std::fs::create_dir_all(dir).map_err(io("making"))?;
        let made = Self::fill(dir);
        if made.is_err() {
            // What was made here is removed again; the error is what counts.
            for part in ["map", "delta", "inplace"] {
                let _ = std::fs::remove_dir_all(dir.join(part));
            }
            let _ = std::fs::remove_file(dir.join("STORE.tmp"));
            if !existed {
                let _ = std::fs::remove_dir(dir);
            }
        }
        made
    }

    fn fill(dir: &Path) -> Result<()> {
        let io = |what: &'static str| move |e| Error::io(what, e);
        for part in ["map", "delta", "inplace"] {
            std::fs::create_dir(dir.join(part)).map_err(io("making the store's directories"))?;
        }
        let map = RocksMap::open(&dir.join("map"), true)?;
        let mut batch = Batch::default();
        batch.put(Counters { file: FileId::ROOT.0, ..Counters::default() }.encode());
        map.commit(&batch)?;
        map.close()?;
        // The STORE file comes last: without it there is no store.
        store_file::write(dir, &random_id()?)
    }

    /// Opens the store in `dir` and takes its lock. What a crash has left
    /// undone is undone; what was durable is there.
    pub fn open(dir: &Path, options: Options) -> Result<Arc<Store>> {
        let mut phases = Phases::begin();
        let (id, version) = store_file::read(dir)?;
        check_parts(dir)?;
        let lock = take_lock(dir)?;
        if version < STORE_VERSION {
            // All that older formats have means the same in this one.
            log::info!("{}: from format {version} to {STORE_VERSION}", dir.display());
            store_file::write(dir, &id)?;
        }
        let parts = Parts {
            dir: dir.to_path_buf(),
            id,
            map: Arc::new(RocksMap::open(&dir.join("map"), false)?),
            delta: Arc::new(HostDevice::new(&dir.join("delta"))),
            inplace: Arc::new(HostDevice::new(&dir.join("inplace"))),
        };
        phases.end("map");
        Self::open_in_phases(parts, options, Some(lock), phases)
    }
}

/// Whoever made the store: a link in the place of a part would lead what is
/// written or removed there out of the store, and a pipe would let it wait. (The
/// files in `delta` and `inplace` are looked at when they are opened.)
fn check_parts(dir: &Path) -> Result<()> {
    for part in ["map", "delta", "inplace"] {
        let path = dir.join(part);
        let meta = path.symlink_metadata().map_err(|e| bad_store(&path, e.to_string()))?;
        if !meta.is_dir() {
            return Err(bad_store(&path, "it is not a directory"));
        }
    }
    let map = dir.join("map");
    let reading = |e| Error::io(format!("reading {}", map.display()), e);
    for entry in std::fs::read_dir(&map).map_err(reading)? {
        let entry = entry.map_err(reading)?;
        if !entry.file_type().map_err(reading)?.is_file() {
            return Err(bad_store(&entry.path(), "it is not a regular file"));
        }
    }
    Ok(())
}

fn take_lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_FILE);
    let context = format!("opening {}", path.display());
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(|e| Error::io(context.clone(), e))?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(bad_store(&path, "it is not a regular file"));
    }
    if device::try_lock(&file).is_err() {
        let mut text = String::new();
        // The pid is only for the message.
        let _ = file.read_to_string(&mut text);
        return Err(Error::StoreBusy { path: dir.to_path_buf(), pid: text.trim().parse().unwrap_or(0) });
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(|e| Error::io(context, e))?;
    Ok(file)
}

/// Checks a store that nobody has open, also one that cannot be opened; with
/// `options`, scrubs it too. Nothing is changed.
pub fn check_closed(
    dir: &Path,
    options: Option<&ScrubOptions>,
    tell: &mut Tell<'_>,
) -> Result<(Report, Progress)> {
    let mut report = Report::default();
    if let Err(e) = store_file::read(dir) {
        report.findings.push(Finding {
            next_step: "bring the file STORE (32 bytes) back from a copy of the store".into(),
            ..damaged(Kind::HostFile, e.to_string())
        });
    }
    check_parts(dir)?;
    let _lock = take_lock(dir)?;
    let map = match RocksMap::open_to_read(&dir.join("map")) {
        Ok(map) => map,
        Err(e) => {
            report.findings.push(damaged(Kind::Map, e.to_string()));
            return Ok((report, Progress::default()));
        }
    };
    if let Err(e) = RocksMap::check_complete(&dir.join("map")) {
        report.findings.push(damaged(Kind::Map, e.to_string()));
    }
    let (delta, inplace) = (HostDevice::new(&dir.join("delta")), HostDevice::new(&dir.join("inplace")));
    let stored = Stored { map: &map, delta: &delta, inplace: &inplace, in_use: &|_| false };
    let found = check::check(&stored, &mut || true)?;
    let before = std::mem::replace(&mut report, found);
    report.findings.extend(before.findings);
    let mut progress = Progress::default();
    if let Some(options) = options {
        let mut tell = |progress: &Progress| tell(progress);
        let (findings, done) = scrub(&stored, options, &mut tell)?;
        report.findings.extend(findings);
        progress = done;
    }
    map.close()?;
    Ok((report, progress))
}

/// Counts anew what can be counted, in a store that nobody has open. Returns the
/// number of records that were changed.
pub fn repair_closed(dir: &Path) -> Result<u64> {
    store_file::read(dir)?;
    check_parts(dir)?;
    let _lock = take_lock(dir)?;
    let map = RocksMap::open(&dir.join("map"), false)?;
    let changed = check::repair::repair(&map)?;
    map.close()?;
    Ok(changed)
}

fn damaged(kind: Kind, message: String) -> Finding {
    Finding {
        kind,
        message,
        forks: Vec::new(),
        path: None,
        block: None,
        next_step: "bring the store's map/ back from a copy of the store, together with delta/ and inplace/"
            .into(),
        repairable: false,
    }
}
