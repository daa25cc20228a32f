//! The mount: serves a store's forks through FUSE, each as a directory.
//!
//! This module and no other knows `fuser`, which mounts, opens the connection and
//! notifies the kernel, and FUSE's protocol: it takes requests apart, calls [`Fork`]
//! and [`Store`], and answers; what a request means is decided there.
//!
//! ```text
//! kernel -> device or ring -> wire -> operations -> server -> Fork, Store
//!             |-> workers: some of fsync, fsyncdir, copy_file_range
//! store's hook -> a channel -> one thread -> notifications to the kernel
//! ```
//!
//! Two rules against deadlock:
//! - Who serves a request never waits for something that takes another request.
//! - A notification is never sent by such a thread: in the kernel it waits
//!   for the lock of a directory, which somebody may hold whose request it is
//!   to answer.

mod attach;
mod convert;
mod device;
mod listing;
mod negotiate;
mod node;
mod operations;
pub mod ring;
mod server;
mod spare;
mod wire;
mod workers;

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use fuser::{INodeNo, Notifier, Session};
use parking_lot::{Condvar, Mutex, RwLock};

use self::listing::OpenDirectories;
use self::negotiate::{Handshake, Wishes};
use self::server::{Server, Top};
use self::workers::Workers;
use crate::error::{Error, Result};
use crate::forks::{Fork, Store};
use crate::ids::{FileId, ForkId};

/// How long an unmounted connection may take to end by itself: some process
/// may still have a file open, or another mount namespace hold a copy.
const GRACE: Duration = Duration::from_millis(500);

/// How long an aborted connection may take to end: as long as the longest
/// request in the core.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a store is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Let in users other than the one who mounts. Root may always do so,
    /// others if `/etc/fuse.conf` says `user_allow_other`.
    pub allow_other: bool,
    /// Threads that read and answer requests; those of io_uring are besides.
    pub threads: usize,
    /// The most syncs under way at a time; more wait their turn.
    pub sync_threads: usize,
    /// The device column of the table of mounts.
    pub fs_name: String,
    /// The type column is `fuse.SUBTYPE`, or `fuse` if there is none.
    pub subtype: Option<String>,
    /// Do without what an older kernel might lack; slower. For tests.
    pub plain: bool,
    /// Let requests come through io_uring if the kernel offers it (Linux 6.14, if
    /// root has switched on the parameter `enable_uring` of module `fuse`).
    pub ring: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            allow_other: nix::unistd::geteuid().is_root(),
            threads: 4,
            sync_threads: 64,
            fs_name: "pgcowfs".into(),
            subtype: Some("pgcowfs".into()),
            plain: false,
            ring: true,
        }
    }
}

/// A mounted store. It is unmounted, lazily if need be, when dropped.
pub struct Mount {
    dir: PathBuf,
    connection: u64,
    notifier: Notifier,
    workers: Arc<Workers>,
    /// Requests come through io_uring.
    ring: bool,
    /// Whether requests reach the store; see [`Server::open`].
    open: Arc<RwLock<bool>>,
    end: Arc<End>,
}

/// The end of the session, which several threads may wait for.
#[derive(Default)]
struct End {
    /// Why it ended; `None` while it goes on.
    reason: Mutex<Option<std::result::Result<(), String>>>,
    reached: Condvar,
}

impl End {
    fn reach(&self, reason: std::result::Result<(), String>) {
        *self.reason.lock() = Some(reason);
        self.reached.notify_all();
    }
}

/// What the thread that notifies the kernel is told.
enum Notice {
    /// A fork has come or gone.
    Fork(String, ForkId),
    Stop,
}

impl Mount {
    /// Mounts the store's forks at `dir` and serves them in background
    /// threads. When this returns, the mount answers.
    pub fn start(store: Arc<Store>, dir: &Path, options: &MountOptions) -> Result<Mount> {
        attach::check(dir)?;
        let dir = dir.canonicalize().map_err(|e| Error::io(format!("mount point {}", dir.display()), e))?;
        let open = Arc::new(RwLock::new(true));
        let workers = Workers::new(options.sync_threads);
        let top = Arc::new(Top {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            changed: Mutex::new(SystemTime::now()),
        });
        // Without NOFLUSH (Linux 5.16) the first FLUSH, answered ENOSYS, is the last.
        let no_flush = if options.plain { 0 } else { wire::fopen::NOFLUSH };
        let server = Arc::new(Server {
            store: store.clone(),
            open: open.clone(),
            directories: OpenDirectories::default(),
            open_flags: wire::fopen::KEEP_CACHE | no_flush,
            top: top.clone(),
        });
        let ring = Arc::new(AtomicBool::new(false));
        let wishes =
            Wishes { plain: options.plain, ring: options.ring && !options.plain && ring::is_available() };
        let session = Session::new(Handshake { wishes, ring: ring.clone() }, &dir, &attach::config(options))
            .map_err(|e| attach::mount_failed(&dir, e))?;
        let ring = ring.load(Ordering::SeqCst);
        let descriptor = session.as_fd().try_clone_to_owned().map_err(|e| Error::io("the FUSE device", e))?;
        let mut serving = if ring { ring::start(&descriptor, &server)? } else { Vec::new() };
        serving.extend(device::start(
            descriptor,
            &server,
            &workers,
            if ring { 1 } else { options.threads.max(2) },
        )?);
        let notifier = session.notifier();

        let (notices, received) = mpsc::channel();
        let hook = notices.clone();
        store.on_change(Box::new(move |name, fork| {
            // After the session's end nobody listens any more.
            let _ = hook.send(Notice::Fork(name.into(), fork));
        }));
        let to_kernel = notifier.clone();
        let notifying = spawn("pgcowfs-notify", move || notify(&received, &store, &to_kernel, &top))?;

        let end = Arc::new(End::default());
        let (ended, working) = (end.clone(), workers.clone());
        spawn("pgcowfs-mount", move || {
            let results: Vec<_> = serving.into_iter().map(|thread| thread.join()).collect();
            let result = results.into_iter().try_for_each(|result| match result {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(_) => Err("a thread that serves requests has panicked".into()),
            });
            // The kernel asks nothing more. What is under way is finished, and
            // nobody here holds the store any longer, before anybody is told.
            working.close();
            let _ = notices.send(Notice::Stop);
            let _ = notifying.join();
            drop(session);
            ended.reach(result);
        })?;
        // From here on an error unmounts, by dropping the mount.
        let mut mount = Mount { dir, connection: 0, notifier, workers, ring, open, end };
        mount.connection = attach::connection(&mount.dir)?;
        Ok(mount)
    }

    /// The directory that is mounted on, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The way by which the kernel's requests come: "io_uring" or "device".
    pub fn transport(&self) -> &'static str {
        if self.ring { "io_uring" } else { "device" }
    }

    /// Tells the kernel that a file (or directory, or link) of a fork was
    /// made, changed or removed through [`Fork`] rather than through this
    /// mount. Must not be called while the caller keeps a request from being
    /// answered; it waits for directories in use.
    pub fn changed(&self, fork: &Fork, path: &str) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = if dir.is_empty() { FileId::ROOT } else { fork.resolve(dir)?.file };
        let node = |file| INodeNo(node::of(fork.id(), file));
        let told = self
            .notifier
            .inval_entry(node(dir), OsStr::from_bytes(name.as_bytes()))
            // A negative offset: attributes only.
            .and_then(|()| self.notifier.inval_inode(node(dir), -1, 0))
            .and_then(|()| match fork.resolve(path) {
                Ok(attr) => self.notifier.inval_inode(node(attr.file), 0, 0),
                Err(_) => Ok(()),
            });
        told.map_err(|e| Error::io(format!("telling the kernel of {path:?}"), e))
    }

    /// Blocks until the kernel ends the session (umount from outside) and all
    /// requests are done with.
    pub fn wait(&self) -> Result<()> {
        let mut reason = self.end.reason.lock();
        loop {
            match &*reason {
                None => self.end.reached.wait(&mut reason),
                Some(Ok(())) => return Ok(()),
                Some(Err(why)) => {
                    let context = format!("serving {}", self.dir.display());
                    return Err(Error::io(context, io::Error::other(why.clone())));
                }
            }
        }
    }

    /// Whether the session has ended.
    pub fn ended(&self) -> bool {
        self.end.reason.lock().is_some()
    }

    /// Unmounts: when this returns `Ok`, no request is under way and none will
    /// reach the store. While something is in use it fails, the error's source
    /// being EBUSY; `lazy` unmounts nevertheless, and what is still open in
    /// the mount gets errors from then on.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        if self.ended() {
            return Ok(());
        }
        let mut aborted = match attach::unmount(&self.dir, lazy, self.connection) {
            Ok(aborted) => aborted,
            // Somebody else may have been faster.
            Err(_) if self.ended_within(GRACE) => return Ok(()),
            Err(e) => return Err(e),
        };
        if self.ended_within(GRACE) {
            return Ok(());
        }
        if !aborted {
            match attach::abort(self.connection) {
                Ok(()) => aborted = true,
                Err(e) => log::info!("cannot abort FUSE connection {}: {e}", self.connection),
            }
        }
        if aborted && self.ended_within(PATIENCE) {
            return Ok(());
        }
        if aborted {
            let context = format!("{} is unmounted, but requests are still under way", self.dir.display());
            return Err(Error::io(context, io::Error::from(io::ErrorKind::TimedOut)));
        }
        // The kernel cannot be made to end the session before the last file is
        // closed in it, or this process ends. It gets nothing more from us.
        *self.open.write() = false;
        self.workers.close();
        self.end.reach(Ok(()));
        Ok(())
    }

    fn ended_within(&self, time: Duration) -> bool {
        let mut reason = self.end.reason.lock();
        self.end.reached.wait_while_for(&mut reason, |reason| reason.is_none(), time);
        reason.is_some()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(e) = self.unmount(true) {
            log::warn!("{e}");
        }
    }
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let made = thread::Builder::new().name(name.into()).spawn(run);
    made.map_err(|e| Error::io(format!("starting thread {name}"), e))
}

/// Tells the kernel of forks that have vanished. Their names are looked up
/// anew anyhow, and their node ids are answered with ESTALE; this gives back
/// the memory that the kernel holds for their files.
fn notify(notices: &Receiver<Notice>, store: &Store, kernel: &Notifier, top: &Top) {
    while let Ok(Notice::Fork(name, fork)) = notices.recv() {
        *top.changed.lock() = SystemTime::now();
        if store.by_id(fork).is_ok() {
            continue;
        }
        let root = INodeNo(node::of(fork, FileId::ROOT));
        // `delete` rather than `inval_entry`: it names the node, so that a new
        // fork under the same name is left alone. It drops all files that
        // nobody uses, and then fails if some are left.
        let deleted = kernel.delete(INodeNo(node::TOP), root, OsStr::new(&name));
        let forgotten = kernel.inval_inode(root, -1, 0);
        for error in [deleted, forgotten].into_iter().filter_map(|result| result.err()) {
            log::debug!("notifying the kernel of the removal of fork {name}: {error}");
        }
    }
}
