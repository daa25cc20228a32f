//! What clients of the control socket can take: how many there are, how long a
//! request is, and how slowly it may come.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

/// The longest request in bytes. Only settings given with `--set` have a length
/// to speak of.
pub const REQUEST_MAX: usize = 1 << 20;

/// Within this a client says its first word, finishes a request that it has
/// begun, and takes its reply.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The places for clients. Each has a thread.
pub struct Places {
    most: usize,
    taken: Arc<AtomicUsize>,
}

/// One client's place, given back when it is dropped.
pub struct Place {
    taken: Arc<AtomicUsize>,
}

impl Places {
    /// That many.
    pub fn new(most: usize) -> Places {
        Places { most, taken: Arc::default() }
    }

    /// Takes one, if there is one left.
    pub fn take(&self) -> Option<Place> {
        let place = Place { taken: self.taken.clone() };
        // Counted first: the place gives it back in any case.
        (self.taken.fetch_add(1, Ordering::SeqCst) < self.most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a client is told for whom there is no place.
pub fn no_place(places: &Places) -> Error {
    Error::new(Kind::State, format!("the daemon serves {} clients already", places.most))
        .hint("try again when some of them are done")
}

/// Why there is no request.
#[derive(Debug)]
pub enum NoRequest {
    /// The client has left, or is too slow.
    Gone(io::Error),
    /// It goes on for longer than any request.
    TooLong,
}

/// Reads one request; `None` when the client is done. With `first`, it has to
/// begin soon: a client that makes a fork may be silent for long between two.
pub fn read_request(
    reader: &mut BufReader<UnixStream>,
    first: bool,
    patience: Duration,
) -> Result<Option<String>, NoRequest> {
    let gone = NoRequest::Gone;
    reader.get_ref().set_read_timeout(first.then_some(patience)).map_err(gone)?;
    let mut line = Vec::new();
    let mut deadline = None;
    loop {
        let available = match reader.fill_buf() {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other.map_err(gone)?,
        };
        if available.is_empty() {
            return Ok(None);
        }
        let (take, whole) = match available.iter().position(|&b| b == b'\n') {
            Some(at) => (at + 1, true),
            None => (available.len(), false),
        };
        if line.len() + take > REQUEST_MAX {
            return Err(NoRequest::TooLong);
        }
        line.extend_from_slice(&available[..take]);
        reader.consume(take);
        if whole {
            let text = String::from_utf8(line);
            return text.map(Some).map_err(|e| gone(io::Error::new(ErrorKind::InvalidData, e)));
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(gone(ErrorKind::TimedOut.into()));
        }
        reader.get_ref().set_read_timeout(Some(left)).map_err(gone)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    #[test]
    fn requests_are_lines() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(server);
        client.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(read_request(&mut reader, true, SHORT).unwrap().unwrap(), "one\n");
        assert_eq!(read_request(&mut reader, false, SHORT).unwrap().unwrap(), "two\n");
        client.write_all(b"ee\n").unwrap();
        assert_eq!(read_request(&mut reader, false, SHORT).unwrap().unwrap(), "three\n");
        drop(client);
        assert!(read_request(&mut reader, false, SHORT).unwrap().is_none());
    }

    #[test]
    fn slow_and_endless_clients_are_let_go() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(server);
        assert!(matches!(read_request(&mut reader, true, SHORT), Err(NoRequest::Gone(_))), "says nothing");
        (&client).write_all(b"{").unwrap();
        assert!(matches!(read_request(&mut reader, false, SHORT), Err(NoRequest::Gone(_))), "stops midway");
        let (client, server) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(server);
        let writer = std::thread::spawn(move || {
            let chunk = [b'x'; 64 << 10];
            // Ends with an error once the other side is closed.
            while (&client).write_all(&chunk).is_ok() {}
        });
        let long = Duration::from_secs(60);
        assert!(matches!(read_request(&mut reader, true, long), Err(NoRequest::TooLong)));
        drop(reader);
        writer.join().unwrap();
        // Drop by drop is as slow as not at all.
        let (client, server) = UnixStream::pair().unwrap();
        let mut reader = BufReader::new(server);
        let dripping = std::thread::spawn(move || {
            while (&client).write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(matches!(read_request(&mut reader, true, SHORT), Err(NoRequest::Gone(_))));
        drop(reader);
        dripping.join().unwrap();
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let places = Places::new(5);
        let mut taken: Vec<Place> = (0..5).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none());
        taken.pop();
        let again = places.take();
        assert!(again.is_some() && places.take().is_none());
    }
}
