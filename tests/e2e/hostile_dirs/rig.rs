//! What the tests with hostile directories stand on: a small cluster to spoil, things outside that must stay as they
//! are, and the judge of each `create`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::common::pg::{as_owner, owner};
use crate::common::plain::Plain;
use crate::common::process::{Done, run};
use crate::common::store::{QUIET, Store};

/// Stands in files that no fork may show.
pub const SECRET: &str = "nobody asked for this";
/// Stands in files that a link of the cluster rightly brings in.
pub const LINKED: &str = "a link leads here";

/// What a client may take of memory: a mebibyte for copying, and what a program is made of.
const CLIENT_KBYTES: u64 = 1 << 20;
/// What the daemon may have taken when all is over.
const DAEMON_KBYTES: u64 = 1 << 20;

/// How `create` must end.
#[derive(Clone, Copy, Debug)]
pub enum Want {
    /// The fork reads what the directory holds.
    Works,
    /// The same, with a warning that has this.
    Warns(&'static str),
    /// Exit status, and what the error names beside the directory.
    Refused(i32, &'static str),
}

/// The whole of it, for one test.
pub struct Rig {
    pub store: Store,
    /// What the clusters' links may lead to; nothing in it may ever change.
    pub outside: PathBuf,
    small: PathBuf,
    daemon: u32,
    judged: AtomicU32,
}

impl Rig {
    pub fn new() -> Rig {
        let store = Store::new();
        store.ok(["mount"]);
        let plain = Plain::create(store.scratch(), "whole", QUIET);
        let outside = store.scratch().subdir_of("outside", owner());
        for dir in ["wal/archive_status", "space/PG_15_202209061/5", "foreign", "closed/wal"] {
            fs::create_dir_all(outside.join(dir)).expect("make a directory");
        }
        for (file, text) in [
            ("linked", LINKED),
            ("wal/00000002.history", LINKED),
            ("wal/passwd", SECRET),
            ("space/PG_15_202209061/5/16385", LINKED),
            ("space/passwd", SECRET),
            ("foreign/passwd", SECRET),
            ("closed/passwd", SECRET),
            ("closed/wal/00000002.history", SECRET),
        ] {
            fs::write(outside.join(file), text).expect("write a file");
        }
        symlink("/etc", outside.join("wal/archive_status/etc")).expect("make a link");
        let small = store.scratch().subdir_of("small", owner());
        // What `create` looks at, and a relation of each kind of size; a WAL segment would only take time.
        let script = "cd \"$1\"; mkdir base global base/1 pg_xact pg_tblspc pg_replslot pg_stat_tmp; \
            mkdir -m 700 pg_wal pg_wal/archive_status; cd \"$2\"; \
            cp -p --parents PG_VERSION *.conf global/pg_control global/1262 pg_xact/0000 base/1/PG_VERSION \
            base/1/1259 base/1/2619 base/1/112 \"$1\"; head -c 24576 pg_wal/0* > \"$1/pg_wal/000000010000000000000001\"";
        run(as_owner("sh").args(["-ec", script, "sh"]).arg(&small).arg(plain.pgdata())).expect_ok();
        run(Command::new("chown").arg("-R").arg(format!("--reference={}", small.display())).arg(&outside))
            .expect_ok();
        // Closed to the owner, and not to root; its contents are for everybody.
        run(Command::new("chmod").arg("000").arg(outside.join("closed"))).expect_ok();
        if owner().is_some() {
            std::os::unix::fs::chown(outside.join("closed"), Some(0), Some(0)).expect("take it");
        }
        let daemon = store.daemon_pid();
        Rig { store, outside, small, daemon, judged: AtomicU32::new(0) }
    }

    /// A new copy of the small cluster, whose name is the case's, so that whatever fails or hangs is named.
    pub fn fresh(&self, case: &str) -> PathBuf {
        let dir = self.store.scratch().join("dirs");
        if !dir.exists() {
            self.store.scratch().subdir_of("dirs", owner());
        }
        let dir = dir.join(case);
        run(as_owner("cp").arg("-a").arg(&self.small).arg(&dir)).expect_ok();
        dir
    }

    /// `create prod HOW dir`, with little memory; it must not hang (`run` sees to that).
    pub fn create(&self, how: &str, dir: &Path) -> Done {
        let inner = self.store.command(["create", "prod", how]);
        let mut outer = Command::new("sh");
        outer.args(["-c", &format!("ulimit -v {CLIENT_KBYTES}; exec \"$@\""), "sh"]);
        outer.arg(inner.get_program()).args(inner.get_args()).arg(dir).current_dir("/");
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        run(&mut outer)
    }

    /// Spoils a copy of the cluster, and creates a fork of it in both ways.
    #[track_caller]
    pub fn both(&self, case: &str, want: Want, spoil: impl Fn(&Path)) {
        self.each(case, want, want, spoil);
    }

    /// The same, with another end for each way.
    #[track_caller]
    pub fn each(&self, case: &str, from: Want, base: Want, spoil: impl Fn(&Path)) {
        let dir = self.fresh(case);
        spoil(&dir);
        for (how, want) in [("--from", from), ("--base", base)] {
            self.judge(case, how, &dir, want);
        }
        run(Command::new("rm").arg("-rf").arg(&dir)).expect_ok();
    }

    /// One `create`, and what it leaves.
    #[track_caller]
    pub fn judge(&self, case: &str, how: &str, dir: &Path, want: Want) {
        self.judged.fetch_add(1, Ordering::Relaxed);
        let before = self.everything(dir);
        let done = self.create(how, dir);
        let report = || format!("{case} {how}, which should be {want:?}: {}", done.report());
        assert!(!done.stderr.contains('\x1b'), "escape sequences: {}", report());
        assert!(!done.stderr.contains(SECRET) && !done.stdout.contains(SECRET), "{}", report());
        match want {
            Want::Refused(code, what) => {
                assert_eq!(done.code, code, "{}", report());
                assert!(done.stdout.trim().is_empty(), "{}", report());
                // The directory's own name has the case's in it.
                let said = done.stderr.replace(&dir.display().to_string(), "DIR");
                for part in [what, "error: ", "hint: "] {
                    assert!(said.contains(part), "no {part:?}: {}", report());
                }
            }
            Want::Works | Want::Warns(_) => {
                assert_eq!(done.code, 0, "{}", report());
                if let Want::Warns(what) = want {
                    assert!(done.stderr.contains("warning: ") && done.stderr.contains(what), "{}", report());
                }
                let fork = self.store.dir().join("mnt/prod");
                let wrong = judge_fork(dir, &fork);
                assert!(wrong.is_empty(), "{}\n{wrong:#?}", report());
                self.store.ok(["rm", "prod"]);
            }
        }
        let changed = differences(&before, &self.everything(dir));
        assert!(changed.is_empty(), "changed: {changed:#?}\n{}", report());
    }

    /// All that no `create` that is refused, or whose fork is removed again, may change.
    fn everything(&self, dir: &Path) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        for top in [dir, self.outside.as_path(), self.small.as_path()] {
            survey(top, &mut all);
        }
        for name in fs::read_dir("/").expect("list /").flatten() {
            all.insert(name.path(), String::new());
        }
        // The forks, and their sockets and logs. Pages are given back in the background.
        for part in ["mnt", "run", "logs"] {
            for entry in fs::read_dir(self.store.dir().join(part)).into_iter().flatten().flatten() {
                all.insert(entry.path(), String::new());
            }
        }
        all
    }

    /// What must hold when all is over: the daemon is the one that it was, took little, and its store is whole, with
    /// nothing left in it of what was refused.
    pub fn end(&self) {
        println!("{} runs of create were judged", self.judged.load(Ordering::Relaxed));
        assert_eq!(self.store.daemon_pid(), self.daemon, "the daemon is the same");
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon)).expect("its status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(peak < DAEMON_KBYTES, "the daemon took {peak} kB");
        let log = fs::read_to_string(self.store.dir().join("daemon.log")).expect("the daemon's log");
        assert!(!log.contains("panicked"), "{log}");
        self.store.ok(["scrub"]);
        self.store.ok(["umount"]);
        self.store.ok(["mount"]);
        let report = self.store.json(["check"]);
        assert_eq!(report["leftovers"].as_array().map(Vec::len), Some(0), "{report}");
        assert!(self.store.listing().is_empty(), "{:?}", self.store.listing());
        for part in ["delta", "inplace"] {
            let left = fs::read_dir(self.store.dir().join(part)).expect("list").count();
            assert_eq!(left, 0, "files in {part} that no fork has");
        }
    }
}

/// Everything below `top` as lstat shows it: whoever writes to a file, or makes, moves or removes one, is seen.
pub fn survey(top: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let mut todo = vec![top.to_path_buf()];
    while let Some(path) = todo.pop() {
        // Deeper than a path can be is not looked at.
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        found.insert(
            path.clone(),
            format!(
                "mode {:o}, inode {}, {} bytes, {}.{:09}, {}.{:09}",
                meta.mode(),
                meta.ino(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec()
            ),
        );
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
}

/// What two surveys do not agree on.
pub fn differences(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let differing = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    differing
        .map(|name| format!("{}: {:?}, now {:?}", name.display(), before.get(name), after.get(name)))
        .collect()
}

/// What `create` rewrites or leaves out.
const NOT_COMPARED: [&str; 6] = [
    "postgresql.conf",
    "postgresql.auto.conf",
    "postmaster.pid",
    "postmaster.opts",
    "pg_hba.conf",
    "pg_ident.conf",
];

/// What is wrong with a fork: a link that leads out, a secret, or a file that is not as in the directory.
pub fn judge_fork(source: &Path, fork: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut all = BTreeMap::new();
    survey(fork, &mut all);
    for path in all.keys() {
        let Ok(meta) = fs::symlink_metadata(path) else {
            wrong.push(format!("{} cannot be looked at", path.display()));
            continue;
        };
        if meta.is_symlink() {
            let leads = fs::canonicalize(path).or_else(|_| fs::read_link(path));
            if !leads.is_ok_and(|to| to.starts_with(fork) || to.is_relative()) {
                wrong.push(format!("{} leads out", path.display()));
            }
        } else if meta.is_file() && meta.len() < 1 << 20 {
            let bytes = fs::read(path).unwrap_or_default();
            if bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()) {
                wrong.push(format!("{} has a secret", path.display()));
            }
        }
    }
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(source.join(&dir)).expect("list the source").flatten() {
            let rel = dir.join(entry.file_name());
            let kind = entry.file_type().expect("its type");
            if kind.is_dir() {
                todo.push(rel);
            } else if kind.is_file() && !NOT_COMPARED.iter().any(|name| rel == Path::new(name)) {
                wrong.extend(compare(&source.join(&rel), &fork.join(&rel)));
            } else if kind.is_char_device() || kind.is_block_device() {
                // A fork has none, wherever it came from.
                wrong.extend(fork.join(&rel).exists().then(|| format!("{} is a device", rel.display())));
            }
        }
    }
    wrong
}

/// What differs between two files; of sparse ones of terabytes their sizes.
fn compare(source: &Path, fork: &Path) -> Option<String> {
    let sizes = (fs::metadata(source).ok()?.len(), fs::symlink_metadata(fork).map(|meta| meta.len()).ok());
    let same = Some(sizes.0) == sizes.1
        && (sizes.0 > 1 << 30 || fs::read(source).ok()? == fs::read(fork).unwrap_or_default());
    (!same).then(|| format!("{} and {} differ: {sizes:?}", source.display(), fork.display()))
}
