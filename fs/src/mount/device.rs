//! The transport of every kernel: threads that read requests from the FUSE
//! device and write the answers back.
//!
//! A commit takes milliseconds. Some may be made by the threads that read, which
//! spares waking another one; but at least half of them must go on reading, so
//! further ones are handed to [`Workers`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;

use super::negotiate::REQUEST_BYTES;
use super::server::Server;
use super::wire::{Message, opcode, out_header};
use super::workers::Workers;

/// Room for the largest WRITE and what comes before its data, or for a READ and the
/// data of its answer.
const BUFFER_BYTES: usize = REQUEST_BYTES as usize + 4096;

/// What all threads share.
struct Device {
    descriptor: OwnedFd,
    server: Arc<Server>,
    workers: Arc<Workers>,
    /// How many of them may be in a commit at a time.
    commits_max: usize,
    /// How many are, or ask whether they may.
    commits: AtomicUsize,
}

/// Starts `threads` threads, which end with the connection.
pub fn start(
    descriptor: OwnedFd,
    server: &Arc<Server>,
    workers: &Arc<Workers>,
    threads: usize,
) -> crate::error::Result<Vec<JoinHandle<io::Result<()>>>> {
    let device = Arc::new(Device {
        descriptor,
        server: server.clone(),
        workers: workers.clone(),
        commits_max: threads / 2,
        commits: AtomicUsize::new(0),
    });
    let one = |n| {
        let device = device.clone();
        super::spawn(&format!("pgcowfs-fuse-{n}"), move || device.read_requests())
    };
    (0..threads).map(one).collect()
}

impl Device {
    fn read_requests(self: &Arc<Self>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut body = Vec::new();
        loop {
            let len = match nix::unistd::read(&self.descriptor, &mut buffer) {
                Ok(len) => len,
                // ENOENT: the request was taken back meanwhile.
                Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => continue,
                Err(Errno::ENODEV) => return Ok(()),
                Err(e) => return Err(e.into()),
            };
            let (request, room) = buffer.split_at_mut(len);
            let Ok(message) = Message::whole(request) else {
                log::error!("the kernel sent a request of {len} bytes that cannot be read");
                continue;
            };
            match message.opcode() {
                opcode::FSYNC | opcode::FSYNCDIR => {
                    let few = self.commits.fetch_add(1, Ordering::Relaxed) < self.commits_max;
                    if few {
                        self.answer(&message, &mut body, room);
                    }
                    self.commits.fetch_sub(1, Ordering::Relaxed);
                    if !few {
                        self.hand_over(&message);
                    }
                }
                // Pages that cannot be shared take long to copy.
                opcode::COPY_FILE_RANGE => self.hand_over(&message),
                _ => self.answer(&message, &mut body, room),
            }
        }
    }

    fn hand_over(self: &Arc<Self>, message: &Message) {
        let (device, message) = (self.clone(), message.owned());
        self.workers.run(move || device.answer(&message.message(), &mut Vec::new(), &mut []));
    }

    fn answer(&self, message: &Message, body: &mut Vec<u8>, room: &mut [u8]) {
        let Some(result) = self.server.serve(message, body, room) else { return };
        let read = &room[..result.unwrap_or(0)];
        let header = out_header(message.unique(), result.err().unwrap_or(0), body.len() + read.len());
        let parts = [IoSlice::new(&header), IoSlice::new(body), IoSlice::new(read)];
        match nix::sys::uio::writev(self.descriptor.as_fd(), &parts) {
            // ENOENT: nobody waits for it any more. ENODEV: the mount is gone.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(e) => log::error!("the kernel refuses an answer to operation {}: {e}", message.opcode()),
        }
    }
}
