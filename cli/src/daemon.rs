//! The daemon: it alone opens the store, serves it through FUSE, and answers
//! requests on the control socket. Ends on SIGTERM, SIGINT, `umount`, or when
//! somebody unmounts it from outside; always with everything durable.

mod addresses;
mod branches;
pub mod clients;
mod compare;
pub mod dumps;
mod keeper;
mod leases;
pub mod logger;
mod memory;
pub mod mounts;
mod pools;
pub mod ports;
pub mod requests;
mod schedules;
pub mod sockets;
mod stats;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use parking_lot::{Mutex, RwLock};
use pgcowfs::device::{FILES_MIN, FileBudget};
use pgcowfs::mount::{Mount, MountOptions};
use pgcowfs::{Options, Store};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::clients::Places;
use self::dumps::Dumps;
use self::leases::Leases;
use self::pools::Pools;
use crate::config::{MapMemory, MountChanges, StoreConfig, StorePaths, open_own, own_dir, passage_mode};
use crate::dumps::staging;
use crate::error::{Context, Error, Kind, Result};
use crate::meta::ForkMeta;
use crate::postgres::server::{State, StopHow, stop};
use crate::proc;
use crate::protocol::{self, Hello, PROTOCOL, Reply};

/// How long SIGTERM waits for servers to stop before it stops them harder.
const STOP_FAST: Duration = Duration::from_secs(20);

/// A running daemon.
pub struct Daemon {
    paths: StorePaths,
    config: StoreConfig,
    mountpoint: PathBuf,
    store: Arc<Store>,
    mount: Mount,
    started: Instant,
    /// Held while a fork appears or changes, so that no two get one port.
    changes: Mutex<()>,
    /// Forks that are being made.
    incomplete: Mutex<BTreeMap<String, Making>>,
    /// Forks that end with the client that they were made for.
    leases: Leases,
    /// Started forks that nobody has yet.
    pools: Pools,
    /// Dumps that are made by the clock.
    dumps: Dumps,
    /// Clients so far: each has a number.
    clients: AtomicU64,
    /// Read by every request at work; true when the store is closed.
    closed: RwLock<bool>,
    /// Long requests are to end soon.
    ending: AtomicBool,
    events: Mutex<Sender<Event>>,
}

/// What is to become of an incomplete fork.
struct Making {
    meta: ForkMeta,
    ephemeral: bool,
    leased: bool,
    /// It is never published.
    aside: bool,
}

/// What ends a daemon.
enum Event {
    Signal(i32),
    Shutdown { force: bool, client: UnixStream },
    MountEnded(Result<()>),
}

/// Where the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In a terminal or under a service manager.
    Fore,
    /// Started by a client, who waits for one line on stdout.
    Back,
}

/// Runs a daemon until it ends.
pub fn run(paths: &StorePaths, changes: MountChanges, ground: Ground) -> Result<()> {
    // A panic is a defect. One thread less would leave a mount that hangs when
    // the last is gone; an end leaves one that the next command mends.
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        std::process::abort();
    }));
    memory::keep_little();
    let result = begin(paths, changes, ground);
    let (daemon, events, _lock) = match result {
        Ok(daemon) => daemon,
        Err(error) => {
            if ground == Ground::Back {
                tell_client(&Reply::Error(error.clone()));
            }
            return Err(error);
        }
    };
    log::info!("serving {} at {}", daemon.paths.dir.display(), daemon.mountpoint.display());
    if ground == Ground::Back {
        tell_client(&requests::reply(Ok(daemon.hello())));
    }
    let result = daemon.wait(&events);
    log::info!("end");
    result
}

/// Tells the client that started this daemon how that went, and lets go of it.
fn tell_client(reply: &Reply) {
    let mut out = std::io::stdout().lock();
    if let Ok(text) = serde_json::to_string(reply) {
        // A client that is gone need not be told.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
    if let Ok(null) = File::options().write(true).open("/dev/null")
        && let Err(e) = nix::unistd::dup2_stdout(null)
    {
        log::warn!("cannot let go of stdout: {e}");
    }
}

type Begun = (Arc<Daemon>, Receiver<Event>, Flock<File>);

fn begin(paths: &StorePaths, changes: MountChanges, ground: Ground) -> Result<Begun> {
    if ground == Ground::Back {
        // Away from the client's terminal and its signals. It fails only for
        // a process that leads a group already, which is then as far away.
        let _ = nix::unistd::setsid();
        std::env::set_current_dir("/").context(|| "cannot change to /")?;
    }
    let own_log = (ground == Ground::Back).then(|| paths.daemon_log());
    logger::init(own_log.as_deref());
    // The store's own files are nobody else's business; the modes of the files
    // in forks are kept in the store and not touched by this.
    umask(Mode::from_bits_truncate(0o077));
    raise_file_limit()?;
    paths.check()?;
    let lock = lock(paths)?;
    let mut config = StoreConfig::load(paths)?;
    let MountChanges { mountpoint, map_memory } = changes;
    config.mountpoint = mountpoint.or(config.mountpoint);
    config.map_memory = map_memory.or(config.map_memory);
    let mountpoint = config.mountpoint(paths);
    mounts::check_fuse()?;
    let store = open_store(paths, &config)?;
    let begun = begin_on_store(paths, config, mountpoint, &store, lock);
    if begun.is_err()
        && let Err(e) = store.close()
    {
        log::error!("cannot close the store: {e}");
    }
    begun
}

fn begin_on_store(
    paths: &StorePaths,
    config: StoreConfig,
    mountpoint: PathBuf,
    store: &Arc<Store>,
    lock: Flock<File>,
) -> Result<Begun> {
    mounts::clean_up(&mountpoint, &addresses::socket_locks(store))?;
    mounts::prepare(&mountpoint)?;
    own_dir(&paths.run(), passage_mode())?;
    own_dir(&paths.logs(), passage_mode())?;
    let mountpoint = mountpoint.canonicalize().at("resolve", &mountpoint)?;
    addresses::sweep(paths, store);
    // It only takes space.
    if let Err(error) = staging::sweep(&paths.incoming()) {
        log::warn!("what was got from servers and not loaded is still there: {error}");
    }
    addresses::refresh(paths, store, &mountpoint);
    let mount = Mount::start(store.clone(), &mountpoint, &MountOptions::default())
        .map_err(|e| Error::from(e).within(format!("cannot mount at {}", mountpoint.display())))?;
    let (sender, events) = mpsc::channel();
    let daemon = Arc::new(Daemon {
        paths: paths.clone(),
        config,
        mountpoint,
        store: store.clone(),
        mount,
        started: Instant::now(),
        changes: Mutex::new(()),
        incomplete: Mutex::default(),
        leases: Leases::default(),
        pools: Pools::default(),
        dumps: Dumps::default(),
        clients: AtomicU64::new(0),
        closed: RwLock::new(false),
        ending: AtomicBool::new(false),
        events: Mutex::new(sender.clone()),
    });
    match daemon.listen(sender) {
        Ok(()) => Ok((daemon, events, lock)),
        Err(error) => {
            if let Err(e) = daemon.mount.unmount(true) {
                log::error!("cannot unmount: {e}");
            }
            Err(error)
        }
    }
}

/// How long a daemon that was killed may take to be gone, locks and all.
const LAST_BREATH: Duration = Duration::from_secs(3);

/// How often a lock is tried.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// The lock says that a daemon lives; the number in it is for messages.
fn lock(paths: &StorePaths) -> Result<Flock<File>> {
    let path = paths.daemon_lock();
    let mut options = File::options();
    let mut file =
        open_own(options.read(true).write(true).create(true).truncate(false), &path).at("open", &path)?;
    // A daemon that is ending answers nobody any more, and has the lock until
    // its servers have stopped and its process is gone.
    let deadline = Instant::now() + STOP_FAST;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.seek(SeekFrom::Start(0))?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut lock).at("write", &path)?;
                return Ok(lock);
            }
            Err((again, _)) if Instant::now() < deadline && !answers(paths) => {
                file = again;
                std::thread::sleep(TRY_EVERY);
            }
            Err((mut file, _)) => {
                let mut pid = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut pid);
                return Err(Error::new(
                    Kind::State,
                    format!("the store {} is in use by another daemon", paths.dir.display()),
                )
                .cause(format!("process {}", pid.trim()))
                .hint("`pgcowfs status` tells about it, `pgcowfs umount` ends it"));
            }
        }
    }
}

fn open_store(paths: &StorePaths, config: &StoreConfig) -> Result<Arc<Store>> {
    let keep_free_bytes = config.keep_free.map_or(Ok(0), |keep| keep.bytes(&paths.dir))?;
    let map_memory = config.map_memory.unwrap_or_else(MapMemory::of_machine);
    let options = Options { keep_free_bytes, map_memory_bytes: map_memory.0, ..Options::default() };
    let deadline = Instant::now() + LAST_BREATH;
    loop {
        match Store::open(&paths.dir, options.clone()) {
            Err(pgcowfs::Error::StoreBusy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(TRY_EVERY)
            }
            other => return Ok(other?),
        }
    }
}

/// Whether a daemon listens.
fn answers(paths: &StorePaths) -> bool {
    protocol::at_control(paths, |path| UnixStream::connect(path)).is_ok()
}

/// A fork's files are many host files; the usual soft limit is 1024.
fn raise_file_limit() -> Result<()> {
    let raise = || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok::<u64, nix::Error>(hard)
    };
    match raise() {
        Ok(limit) if limit < FILES_MIN => {
            Err(Error::new(Kind::Environment, format!("this process may have only {limit} files open"))
                .cause(format!("the daemon needs at least {FILES_MIN}"))
                .hint("raise the limit: ulimit -n 1024, or LimitNOFILE= of the service"))
        }
        Ok(_) => Ok(()),
        Err(e) => {
            log::warn!("cannot raise the limit of open files: {e}");
            Ok(())
        }
    }
}

impl Daemon {
    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id() as i32,
            mountpoint: self.mountpoint.clone(),
        }
    }

    /// Starts to listen to clients, signals and the kernel.
    fn listen(self: &Arc<Self>, events: Sender<Event>) -> Result<()> {
        self.config.save(&self.paths)?;
        let control = self.paths.control();
        match fs::remove_file(&control) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).at("replace", &control);
            }
            _ => {}
        }
        let listener =
            protocol::at_control(&self.paths, |path| UnixListener::bind(path)).at("listen on", &control)?;
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
            .context(|| "cannot receive signals")?;
        let sender = events.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                // Nobody receives any more when the daemon ends already.
                let _ = sender.send(Event::Signal(signal));
            }
        });
        let daemon = self.clone();
        std::thread::spawn(move || {
            let ended = daemon.mount.wait().map_err(Error::from);
            let _ = events.send(Event::MountEnded(ended));
        });
        let daemon = self.clone();
        std::thread::spawn(move || daemon.keep_pools());
        let daemon = self.clone();
        std::thread::spawn(move || daemon.keep_time());
        let daemon = self.clone();
        std::thread::spawn(move || {
            let places = Places::new(FileBudget::of_process().clients);
            for client in listener.incoming() {
                match client {
                    Ok(client) => daemon.clone().receive(client, &places),
                    Err(e) => {
                        log::warn!("cannot accept a client: {e}");
                        std::thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        });
        Ok(())
    }

    /// Gives a client a thread, or turns it away.
    fn receive(self: Arc<Self>, mut client: UnixStream, places: &Places) {
        // A client that does not take its replies must not hold anybody up.
        if let Err(e) = client.set_write_timeout(Some(clients::PATIENCE)) {
            return log::warn!("cannot limit a client's time: {e}");
        }
        let Some(place) = places.take() else {
            requests::send(&mut client, &Reply::Error(clients::no_place(places)));
            return;
        };
        let serve = move || {
            self.serve(client);
            drop(place);
        };
        if let Err(e) = std::thread::Builder::new().name("pgcowfs-client".into()).spawn(serve) {
            log::warn!("no thread for a client: {e}");
        }
    }

    /// Waits for what ends the daemon, and ends it.
    fn wait(&self, events: &Receiver<Event>) -> Result<()> {
        loop {
            let Ok(event) = events.recv() else {
                return Err(Error::new(Kind::Failed, "the daemon lost its event threads"));
            };
            match event {
                Event::Signal(signal) => {
                    log::info!("signal {signal}: stopping");
                    self.pools.pause();
                    self.end_dumps();
                    self.stop_servers();
                    return self.end(true);
                }
                Event::MountEnded(result) => {
                    log::warn!("{} was unmounted from outside", self.mountpoint.display());
                    self.ending.store(true, Ordering::SeqCst);
                    *self.closed.write() = true;
                    self.close()?;
                    return result;
                }
                Event::Shutdown { force, mut client } => {
                    let result = self.shutdown(force);
                    if let Err(error) = &result {
                        log::info!("not stopping: {error}");
                    }
                    requests::send(&mut client, &requests::reply(result.clone()));
                    if result.is_ok() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What a client asked for: refused while servers run.
    fn shutdown(&self, force: bool) -> Result<()> {
        self.end_pools();
        self.end_dumps();
        let ended = self.shutdown_without_pools(force);
        if ended.is_err() {
            self.pools.resume();
            self.dumps.resume();
        }
        ended
    }

    fn shutdown_without_pools(&self, force: bool) -> Result<()> {
        let running = self.running();
        if !running.is_empty() {
            if !force {
                let names: Vec<&str> = running.iter().map(|(name, ..)| name.as_str()).collect();
                return Err(Error::new(
                    Kind::State,
                    format!("servers run in this store: {}", names.join(", ")),
                )
                .hint("stop them first: pgcowfs umount --stop, or pgcowfs stop FORK"));
            }
            self.stop_servers();
        }
        self.end(force)
    }

    /// Unmounts and closes. An error leaves the daemon serving.
    fn end(&self, lazy: bool) -> Result<()> {
        self.ending.store(true, Ordering::SeqCst);
        let ended = self.unmount_and_close(lazy);
        self.ending.store(ended.is_ok(), Ordering::SeqCst);
        ended
    }

    fn unmount_and_close(&self, lazy: bool) -> Result<()> {
        // Waits for requests at work, and keeps new ones out.
        let mut closed = self.closed.write();
        match self.mount.unmount(false) {
            Ok(()) => {}
            Err(error) if lazy => {
                log::warn!("the mount is in use ({error}): detaching it");
                if let Err(error) = self.mount.unmount(true) {
                    // Closing matters more: everything durable is durable.
                    log::error!("cannot unmount: {error}");
                }
            }
            Err(error) => {
                let users = proc::users_of(&self.mountpoint);
                let mut failure =
                    Error::new(Kind::State, format!("cannot unmount {}", self.mountpoint.display()));
                failure = match users.is_empty() {
                    true => failure.cause(error.to_string()),
                    false => failure.cause(format!("in use by {}", users.join(", "))),
                };
                return Err(
                    failure.hint("end those programs or leave the directory, or use --force to detach it")
                );
            }
        }
        *closed = true;
        self.close()
    }

    fn close(&self) -> Result<()> {
        if let Err(e) = fs::remove_file(self.paths.control()) {
            log::warn!("cannot remove the control socket: {e}");
        }
        self.store.close().map_err(|e| Error::from(e).within("cannot close the store"))
    }

    /// The forks whose servers run.
    fn running(&self) -> Vec<(String, PathBuf, i32)> {
        let state = |name: &str| requests::state(&self.store, &self.mountpoint, name).pid();
        let forks = self.store.entries().into_iter();
        forks
            .filter_map(|f| state(&f.name).map(|pid| (f.name.clone(), self.mountpoint.join(&f.name), pid)))
            .collect()
    }

    /// Stops all servers, all at once: fast, and then ever harder. Whatever
    /// works under the mount afterwards is killed by its own end.
    fn stop_servers(&self) {
        let running = self.running();
        std::thread::scope(|scope| {
            for (name, pgdata, pid) in &running {
                scope.spawn(move || {
                    let fast = stop(name, pgdata, *pid, StopHow::Fast, STOP_FAST);
                    let stopped =
                        fast.or_else(|_| stop(name, pgdata, *pid, StopHow::Immediate, STOP_FAST / 2));
                    match stopped {
                        Ok(_) => log::info!("stopped {name}"),
                        Err(error) => log::error!("{error}"),
                    }
                });
            }
        });
        for pid in proc::postgres_under(&self.mountpoint) {
            log::warn!("killing process {pid}");
            proc::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
        proc::wait_until(Duration::from_secs(5), || proc::postgres_under(&self.mountpoint).is_empty());
    }
}

/// Whether that state stands in the way of a change.
fn refuse_running(fork: &str, state: State, hint: String) -> Result<()> {
    match state {
        State::Running(pid) => Err(Error::new(Kind::State, format!("fork {fork:?} is running"))
            .cause(format!("process {pid} serves it"))
            .hint(hint)),
        State::Stopped | State::Crashed => Ok(()),
    }
}
