//! Many writes with one system call, through io_uring (Linux 5.6).
//!
//! Pages that were changed at random lie at random: a write of 8 KiB each. One by
//! one they cost a system call, a wait and, in a virtual machine, a call of the
//! host each; the kernel hands the writes of a batch over together.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use io_uring::{IoUring, opcode, types::Fd};
use parking_lot::Mutex;

/// Writes under way at a time.
const DEPTH: u32 = 64;

/// Rings that nobody uses now.
static RINGS: LazyLock<Mutex<Vec<IoUring>>> = LazyLock::new(Mutex::default);
/// This process may not have any.
static REFUSED: AtomicBool = AtomicBool::new(false);

fn ring() -> Option<IoUring> {
    if REFUSED.load(Ordering::Relaxed) {
        return None;
    }
    if let Some(ring) = RINGS.lock().pop() {
        return Some(ring);
    }
    match IoUring::new(DEPTH) {
        Ok(ring) => Some(ring),
        Err(e) => {
            // Some sandboxes forbid it.
            log::info!("no io_uring, pages are written one by one: {e}");
            REFUSED.store(true, Ordering::Relaxed);
            None
        }
    }
}

/// Writes parts of `buf`, each to its offset in the file. Returns when all have
/// ended, with the first error.
pub fn write_all(file: &File, buf: &[u8], parts: &[(u64, Range<usize>)]) -> io::Result<()> {
    let one_by_one =
        || parts.iter().try_for_each(|(offset, part)| file.write_all_at(&buf[part.clone()], *offset));
    if parts.len() < 2 {
        return one_by_one();
    }
    let Some(mut ring) = ring() else { return one_by_one() };
    let mut result = Ok(());
    for parts in parts.chunks(DEPTH as usize) {
        result = result.and(write_some(&mut ring, file, buf, parts));
    }
    RINGS.lock().push(ring);
    result
}

/// At most [`DEPTH`] parts.
fn write_some(ring: &mut IoUring, file: &File, buf: &[u8], parts: &[(u64, Range<usize>)]) -> io::Result<()> {
    for (n, (offset, part)) in parts.iter().enumerate() {
        let bytes = &buf[part.clone()];
        // A part is far below 4 GiB.
        let entry = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(*offset)
            .build()
            .user_data(n as u64);
        // SAFETY: `file` and `buf` outlive the write, for below this function waits
        // until every one has ended, whatever happens. The ring was empty and has room.
        let pushed = unsafe { ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok());
    }
    let mut left = parts.len();
    let mut result = Ok(());
    while left > 0 {
        if let Err(e) = ring.submit_and_wait(left)
            && e.kind() != io::ErrorKind::Interrupted
        {
            // The kernel is short of memory. What is under way still reads `buf`.
            log::debug!("io_uring: {e}");
            std::thread::sleep(Duration::from_millis(1));
        }
        for done in ring.completion() {
            left -= 1;
            let (offset, part) = &parts[done.user_data() as usize];
            let written = match done.result() {
                failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
                // A short write goes on where it ended.
                n => file.write_all_at(&buf[part.start + n as usize..part.end], offset + n as u64),
            };
            result = result.and(written);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_goes_to_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("a")).unwrap();
        let buf: Vec<u8> = (0..200u8).flat_map(|n| [n; 4096]).collect();
        // Backwards and with gaps, more than are under way at a time.
        let parts: Vec<_> =
            (0..200usize).map(|n| ((199 - n as u64) * 8192, n * 4096..(n + 1) * 4096)).collect();
        write_all(&file, &buf, &parts).unwrap();
        let mut page = [0; 4096];
        for n in 0..200u8 {
            file.read_exact_at(&mut page, (199 - u64::from(n)) * 8192).unwrap();
            assert_eq!(page, [n; 4096]);
        }
    }

    #[test]
    fn a_failure_is_reported_when_all_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"").unwrap();
        let file = File::open(&path).unwrap();
        let parts = [(0, 0..4096), (8192, 0..4096)];
        let failed = write_all(&file, &[0; 4096], &parts).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EBADF), "it is open for reading only");
    }
}
