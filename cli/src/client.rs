//! The client's end of the control socket, and how a daemon is started.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;

use crate::config::{MountChanges, StorePaths, open_own};
use crate::error::{Context, Error, Kind, Result};
use crate::postgres::server::log_tail;
use crate::protocol::{self, ForkRow, Hello, PROTOCOL, Reply, Request};

/// A connection to the daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    log: PathBuf,
    /// Who answers.
    pub hello: Hello,
    /// Whether this program has started it.
    pub started: bool,
}

impl Client {
    /// Connects, starting the daemon where there is none.
    pub fn open(paths: &StorePaths) -> Result<Client> {
        Client::open_with(paths, &MountChanges::default())
    }

    /// The same; a daemon that is started gets these settings.
    pub fn open_with(paths: &StorePaths, changes: &MountChanges) -> Result<Client> {
        paths.check()?;
        let client = match Client::connect(paths)? {
            Some(client) => client,
            None => {
                // One at a time, so that of two commands one starts it and
                // the other one finds it.
                let _turn = start_turn(paths)?;
                match Client::connect(paths)? {
                    Some(client) => client,
                    None => {
                        start(paths, changes)?;
                        let client = Client::connect(paths)?;
                        let mut client = client.ok_or_else(|| ended_at_once(paths))?;
                        client.started = true;
                        client
                    }
                }
            }
        };
        if client.hello.protocol != PROTOCOL {
            return Err(Error::new(
                Kind::State,
                format!(
                    "the daemon is pgcowfs {}, this is {}",
                    client.hello.version,
                    env!("CARGO_PKG_VERSION")
                ),
            )
            .cause("they do not understand each other")
            .hint("end the daemon with `pgcowfs umount --stop`; the next command starts the new one"));
        }
        Ok(client)
    }

    /// Connects to a daemon of any version; None if there is none.
    pub fn connect(paths: &StorePaths) -> Result<Option<Client>> {
        let stream = match protocol::at_control(paths, |path| UnixStream::connect(path)) {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(e).at("connect to", &paths.control()),
        };
        let nobody = Hello { protocol: 0, version: String::new(), pid: 0, mountpoint: PathBuf::new() };
        let reader = BufReader::new(stream);
        let mut client = Client { reader, log: paths.daemon_log(), hello: nobody, started: false };
        client.limit(Some(Duration::from_secs(30)))?;
        let reply = match client.exchange(&Request::Hello) {
            // A daemon that was just killed still has its socket for a moment.
            Ok(reply) if reply.is_empty() => return Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return Ok(None);
            }
            other => other,
        };
        client.hello = client.understand(reply)?;
        client.limit(None)?;
        Ok(Some(client))
    }

    fn limit(&self, limit: Option<Duration>) -> Result<()> {
        self.reader.get_ref().set_read_timeout(limit).context(|| "cannot set a time limit")
    }

    /// Asks, and waits for the reply.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let reply = self.exchange(request);
        self.understand(reply)
    }

    /// Asks for something that takes its time; `tell` hears how far it is.
    pub fn call_long<P: DeserializeOwned, T: DeserializeOwned>(
        &mut self,
        request: &Request,
        tell: &mut dyn FnMut(P),
    ) -> Result<T> {
        let mut reply = self.exchange(request);
        while let Ok(line) = &reply
            && let Ok(Reply::Progress(value)) = serde_json::from_str::<Reply>(line)
        {
            if let Ok(progress) = serde_json::from_value(value) {
                tell(progress);
            }
            let mut next = String::new();
            reply = self.reader.read_line(&mut next).map(|_| next);
        }
        self.understand(reply)
    }

    /// One line there and one back; an empty one if the daemon has gone.
    fn exchange(&mut self, request: &Request) -> std::io::Result<String> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let written = self.reader.get_mut().write_all(line.as_bytes());
        let mut reply = String::new();
        // A daemon that turns a client away says so before it reads anything.
        let read = self.reader.read_line(&mut reply);
        if reply.is_empty() {
            written?;
            read?;
        }
        Ok(reply)
    }

    fn understand<T: DeserializeOwned>(&self, reply: std::io::Result<String>) -> Result<T> {
        let error = match reply {
            Ok(reply) if !reply.is_empty() => return decode(&reply),
            Ok(_) => Error::new(Kind::Failed, "the daemon ended the conversation"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Error::new(Kind::Failed, "the daemon does not answer")
            }
            Err(e) => Error::io("cannot talk to the daemon", &e),
        };
        let log = self.log.display();
        Err(error.hint(format!("{log} tells more; the next command starts a new daemon if this one is gone")))
    }

    /// About one fork.
    pub fn info(&mut self, fork: &str) -> Result<ForkRow> {
        self.call(&Request::Info { fork: fork.to_string(), layout: false })
    }
}

fn decode<T: DeserializeOwned>(line: &str) -> Result<T> {
    let odd = |e: serde_json::Error| {
        Error::new(Kind::Failed, "the daemon's reply cannot be understood").cause(e.to_string())
    };
    match serde_json::from_str(line).map_err(odd)? {
        Reply::Ok(value) => serde_json::from_value(value).map_err(odd),
        Reply::Error(error) => Err(error),
        Reply::Progress(_) => Err(Error::new(Kind::Failed, "the daemon's reply was not asked for")),
    }
}

fn start_turn(paths: &StorePaths) -> Result<Flock<File>> {
    let path = paths.start_lock();
    let file = open_own(File::options().write(true).create(true).truncate(false), &path).at("open", &path)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| Error::io(format!("cannot lock {}", path.display()), &e.into()))
}

/// Starts a daemon in the background and waits until it serves, or says why not.
fn start(paths: &StorePaths, changes: &MountChanges) -> Result<()> {
    let path = paths.daemon_log();
    let log = open_own(File::options().create(true).append(true), &path).at("open", &path)?;
    let log_begin = log.metadata().at("look at", &path)?.len();
    // Itself, also if the file has been replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg("--store").arg(&paths.dir).arg("mount").arg("--daemon");
    if let Some(mountpoint) = &changes.mountpoint {
        command.arg("--mountpoint").arg(mountpoint);
    }
    if let Some(memory) = changes.map_memory {
        command.arg("--map-memory").arg(String::from(memory));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().context(|| "cannot start the daemon")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context(|| "cannot read from the daemon")?;
    }
    if line.is_empty() {
        let status = child.wait().context(|| "cannot wait for the daemon")?;
        let mut said = String::new();
        // The message is worth more than a failure to read more of it.
        let _ = File::open(&path).and_then(|mut f| {
            std::io::Seek::seek(&mut f, std::io::SeekFrom::Start(log_begin))?;
            f.read_to_string(&mut said)
        });
        return Err(Error::new(Kind::Failed, "the daemon ended before it served")
            .cause(status.to_string())
            .detail(log_tail(&said))
            .hint(format!("the whole log is {}", path.display())));
    }
    decode::<Hello>(&line).map(|_| ())
}

fn ended_at_once(paths: &StorePaths) -> Error {
    Error::new(Kind::Failed, "the daemon has ended already")
        .hint(format!("{} tells why", paths.daemon_log().display()))
}
