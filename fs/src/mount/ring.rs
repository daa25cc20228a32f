//! FUSE over io_uring (Linux 6.14; the kernel's Documentation/filesystems/fuse/
//! fuse-io-uring.rst): each processor has a queue, and what a process asks for is
//! done on the processor that it runs on.
//!
//! Through the device a request wakes a thread that most often sits on another
//! processor, and its answer wakes the process there: two interrupts between
//! processors, each of which can cost a virtual machine more than the request itself
//! takes (docs/PERFORMANCE.md). It also takes one system call here instead of two.
//!
//! Each thread holds one request at a time and does all of it; a commit keeps the
//! others of its processor free. The kernel prefers the thread that was busy last,
//! so the others sleep until they are needed.
//!
//! FORGET and INTERRUPT still come through the device.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use io_uring::{IoUring, cqueue, opcode::UringCmd80, squeue, types::Fd};
use nix::unistd::gettid;

use super::negotiate::REQUEST_BYTES;
use super::server::Server;
use super::spare::{self, Processor};
use super::wire::{Message, OUT_HEADER, out_header};
use crate::error::{Error, Result};

/// `struct fuse_uring_req_header`: the request's header, its fixed argument, and
/// `struct fuse_uring_ent_in_out`.
const HEADERS: usize = 288;
const FIXED_AT: usize = 128;
const COMMIT_ID_AT: usize = 256 + 8;
const PAYLOAD_LEN_AT: usize = 256 + 16;
/// What comes besides; the kernel wants room for its largest request.
const PAYLOAD: usize = REQUEST_BYTES as usize;

/// `enum fuse_uring_cmd`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// Threads of all processors together, and of each: so many commits and reads from
/// the disk may be under way before others wait. Each has a mebibyte of memory.
const THREADS: usize = 32;
const OWN_THREADS_MIN: usize = 4;
const OWN_THREADS_MAX: usize = 8;

type Ring = IoUring<squeue::Entry128, cqueue::Entry>;

fn make_ring(entries: u32) -> io::Result<Ring> {
    Ring::builder().setup_single_issuer().setup_coop_taskrun().build(entries)
}

/// Where root switches FUSE over io_uring on.
pub const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Whether root has switched it on; an error where there is no switch.
pub fn is_switched_on() -> io::Result<bool> {
    fs::read_to_string(SWITCH).map(|text| text.starts_with(['Y', '1']))
}

/// Whether this process may use io_uring, and the kernel FUSE over it.
pub fn is_available() -> bool {
    if !is_switched_on().unwrap_or(false) {
        return false;
    }
    match make_ring(2) {
        Ok(_) => true,
        Err(e) => {
            log::info!("no FUSE over io_uring: {e}");
            false
        }
    }
}

/// Processors as the kernel lists them: `0-3,8`.
fn processors(list: &str) -> Result<Vec<u16>> {
    let bad =
        || Error::io("list of processors", io::Error::new(io::ErrorKind::InvalidData, list.to_string()));
    let mut all = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
        all.extend(number(first)?..=number(last)?);
    }
    Ok(all)
}

fn read_processors(which: &str) -> Result<Vec<u16>> {
    let path = format!("/sys/devices/system/cpu/{which}");
    processors(&fs::read_to_string(&path).map_err(|e| Error::io(path, e))?)
}

/// Starts the threads, which end with the connection. When this returns, the
/// kernel sends all requests to them.
pub fn start(descriptor: &OwnedFd, server: &Arc<Server>) -> Result<Vec<JoinHandle<io::Result<()>>>> {
    let (possible, online) = (read_processors("possible")?, read_processors("online")?);
    let own = (THREADS / online.len().max(1)).clamp(OWN_THREADS_MIN, OWN_THREADS_MAX);
    let mut processors: Vec<_> = online.iter().map(|&number| Processor::new(number)).collect();
    // Nobody runs on the others, but each must have its queue.
    let absent: Vec<u16> = possible.iter().copied().filter(|cpu| !online.contains(cpu)).collect();
    let mut shares: Vec<(Vec<u16>, Option<usize>)> = Vec::new();
    for (index, &cpu) in online.iter().enumerate() {
        shares.extend((0..own).map(|_| (vec![cpu], Some(index))));
    }
    if !absent.is_empty() {
        shares.push((absent, None));
    }
    let mut threads = Vec::with_capacity(shares.len());
    let (tell, told) = mpsc::channel();
    let (alive, watched) = mpsc::channel();
    for (queues, processor) in shares {
        let descriptor = descriptor.try_clone().map_err(|e| Error::io("the FUSE device", e))?;
        let (server, tell, alive) = (server.clone(), tell.clone(), alive.clone());
        let home = processor.map(|index| processors[index].number);
        let served = processor.map_or_else(Default::default, |index| processors[index].served.clone());
        let name = home.map_or("pgcowfs-ring".into(), |cpu| format!("pgcowfs-ring-{cpu}"));
        threads.push(super::spawn(&name, move || {
            let queue = Queue::register(descriptor, &queues, home);
            let (queue, ready) = match queue {
                Ok(queue) => (Some(queue), Ok((processor, gettid()))),
                Err(e) => (None, Err(e)),
            };
            // Whoever listens waits for all.
            let _ = tell.send(ready);
            drop(tell);
            let ended = queue.map_or(Ok(()), |queue| queue.run(&server, &served));
            drop(alive);
            ended
        })?);
    }
    drop((tell, alive));
    for ready in told {
        let (processor, thread) = ready.map_err(|e| Error::io("FUSE over io_uring", e))?;
        if let Some(index) = processor {
            processors[index].threads.push(thread);
        }
    }
    spare::watch(processors, watched)?;
    Ok(threads)
}

/// Memory in which the kernel leaves a request and finds the answer.
struct Place {
    queue: u16,
    headers: NonNull<[u8; HEADERS]>,
    payload: NonNull<[u8; PAYLOAD]>,
    /// Where the two are, as the kernel is told.
    vector: Box<[libc::iovec; 2]>,
}

impl Place {
    fn new(queue: u16) -> Place {
        // Given back in `drop`.
        let headers = NonNull::from(Box::leak(Box::new([0; HEADERS])));
        let payload = vec![0; PAYLOAD].leak();
        let payload = NonNull::from(payload).cast::<[u8; PAYLOAD]>();
        let part = |base: *mut libc::c_void, len| libc::iovec { iov_base: base, iov_len: len };
        let vector =
            Box::new([part(headers.as_ptr().cast(), HEADERS), part(payload.as_ptr().cast(), PAYLOAD)]);
        Place { queue, headers, payload, vector }
    }

    /// Both parts; only for a place whose command has completed and was not
    /// submitted again since.
    fn parts(&mut self) -> (&mut [u8; HEADERS], &mut [u8; PAYLOAD]) {
        // SAFETY: both are allocations of this place alone. The kernel writes to
        // and reads from them only while a command of the place is under way, in
        // a system call of this thread, which holds `&mut self`.
        unsafe { (self.headers.as_mut(), self.payload.as_mut()) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: they came from these allocations in `new`, and the ring, through
        // which alone the kernel knows them, is gone before (see `Queue`).
        unsafe {
            drop(Box::from_raw(self.headers.as_ptr()));
            drop(Box::from_raw(self.payload.as_ptr()));
        }
    }
}

/// One thread's part of one or several queues.
struct Queue {
    /// Dropped first: then no command is under way.
    ring: Ring,
    descriptor: OwnedFd,
    places: Vec<Place>,
}

impl Queue {
    /// Offers the kernel one place for each of `queues`. A thread of one processor
    /// stays there.
    fn register(descriptor: OwnedFd, queues: &[u16], processor: Option<u16>) -> io::Result<Queue> {
        if let Some(cpu) = processor {
            // One that the process may not use is served from elsewhere.
            if let Err(e) = spare::stay_on(cpu) {
                log::debug!("no thread for requests on processor {cpu}: {e}");
            }
        }
        let entries = u32::try_from(queues.len()).unwrap_or(u32::MAX).next_power_of_two();
        let places = queues.iter().map(|&queue| Place::new(queue)).collect();
        let mut queue = Queue { ring: make_ring(entries)?, descriptor, places };
        for place in 0..queue.places.len() {
            queue.push(place, REGISTER, 0)?;
        }
        queue.ring.submit()?;
        // What the kernel accepts completes with the first request only.
        let refused = queue.ring.completion().map(|done| done.result()).find(|&result| result < 0);
        refused.map_or(Ok(queue), |result| Err(io::Error::from_raw_os_error(-result)))
    }

    /// Puts a command into the ring, which has room for one of each place.
    fn push(&mut self, place: usize, operation: u32, commit: u64) -> io::Result<()> {
        let Place { queue, vector, .. } = &self.places[place];
        // `struct fuse_uring_cmd_req`.
        let mut command = [0; 80];
        command[8..16].copy_from_slice(&commit.to_ne_bytes());
        command[16..18].copy_from_slice(&queue.to_ne_bytes());
        let mut entry = UringCmd80::new(Fd(self.descriptor.as_raw_fd()), operation)
            .cmd(command)
            .addr(Some(vector.as_ptr() as u64))
            .build()
            .user_data(place as u64);
        // The crate has no setter for the length of the vector, which REGISTER needs.
        // SAFETY: an entry is `struct io_uring_sqe` of 128 bytes (repr C), whose
        // 32-bit field `len` is at byte 24.
        unsafe { (&raw mut entry).cast::<u32>().add(6).write(vector.len() as u32) };
        // SAFETY: what the entry points to, vector and buffers, lives in `places`
        // until the ring is gone.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    fn run(mut self, server: &Server, served: &AtomicU64) -> io::Result<()> {
        let mut body = Vec::new();
        let mut ready = Vec::new();
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(e) => return Err(e),
            }
            ready.extend(self.ring.completion().map(|done| (done.user_data() as usize, done.result())));
            served.fetch_add(ready.len() as u64, Ordering::Relaxed);
            for (place, result) in ready.drain(..) {
                match -result {
                    0 => {}
                    // The mount is gone.
                    libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED => return Ok(()),
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
                let commit = self.places[place].answer(server, &mut body);
                self.push(place, COMMIT_AND_FETCH, commit)?;
            }
        }
    }
}

impl Place {
    /// Does what the request in it asks for and leaves the answer; returns the
    /// number that the kernel wants back with it.
    fn answer(&mut self, server: &Server, body: &mut Vec<u8>) -> u64 {
        let (headers, payload) = self.parts();
        let field = |at: usize| headers[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
        let (commit, unique) = (field(COMMIT_ID_AT), field(8));
        // The upper half is padding.
        let len = (field(PAYLOAD_LEN_AT) as u32 as usize).min(PAYLOAD);
        let (header, fixed) = headers.split_at(FIXED_AT);
        let (args, room) = payload.split_at_mut(len);
        let answered = match Message::of_parts(header, fixed, args) {
            Ok(message) => server.serve(&message, body, room).unwrap_or(Ok(0)),
            Err(_) => Err(libc::EIO),
        };
        // An answer that does not fit would be a fault of this program.
        let answered = if body.len() > PAYLOAD { Err(libc::EIO) } else { answered };
        let filled = match answered {
            // A READ has nothing but its fixed argument, so what was read is in place.
            Ok(read) if read > 0 => {
                payload.copy_within(len..len + read, 0);
                read
            }
            Ok(_) => {
                payload[..body.len()].copy_from_slice(body);
                body.len()
            }
            Err(_) => 0,
        };
        headers[..OUT_HEADER].copy_from_slice(&out_header(unique, answered.err().unwrap_or(0), filled));
        headers[PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + 4].copy_from_slice(&(filled as u32).to_ne_bytes());
        commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(processors("0\n").unwrap(), [0]);
        assert_eq!(processors("0-2,5,7-8\n").unwrap(), [0, 1, 2, 5, 7, 8]);
        assert!(processors("").is_err());
        assert!(processors("0-x").is_err());
    }
}
