//! What is asked of the kernel when it opens the connection.
//!
//! Each feature is used only where the kernel offers it. Never asked for:
//! - WRITEBACK_CACHE: dirty 4 KiB pages would come in any order, and neither an
//!   atomic 8 KiB write nor a fork at one instant would be left.
//! - AUTO_INVAL_DATA: each write changes a file's mtime, and the next GETATTR
//!   would throw the file's whole page cache away.
//! - POSIX_LOCKS, FLOCK_LOCKS: all users of a fork are on this machine, and the
//!   kernel keeps their locks for nothing.
//! - HANDLE_KILLPRIV, ATOMIC_O_TRUNC: the kernel then leaves dropping set-id
//!   bits to us, without telling us when.
//! - ASYNC_DIO: a direct write that goes on after the call drops the pages from
//!   the cache before it is carried out, and what is read meanwhile stays there,
//!   old, since nothing but a write invalidates it (xfstests generic/451).
//! - SETXATTR_EXT: there are no extended attributes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Filesystem, InitFlags, KernelConfig, Request};

/// The largest READ and WRITE. The kernel's own limit is 256 pages.
pub const REQUEST_BYTES: u32 = 1 << 20;

/// How many READs ahead and written-back pages the kernel may have under way.
/// Its default of 12 would throttle a few parallel sequential scans.
const BACKGROUND_REQUESTS: u16 = 64;

/// What is to be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Only what makes no difference to what a process sees or how often it asks.
    pub plain: bool,
    /// Requests through io_uring.
    pub ring: bool,
}

/// The one who opens the connection: fuser mounts and shakes hands, and serves
/// nothing.
pub struct Handshake {
    pub wishes: Wishes,
    /// Whether requests will come through io_uring.
    pub ring: Arc<AtomicBool>,
}

impl Filesystem for Handshake {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let ring = self.wishes.ring && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_ok();
        self.ring.store(ring, Ordering::SeqCst);
        negotiate(config, self.wishes.plain);
        Ok(())
    }
}

/// Sets the connection up.
fn negotiate(config: &mut KernelConfig, plain: bool) {
    let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS;
    if !plain {
        wanted |= InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO;
    }
    let offered = config.capabilities();
    for flag in wanted.iter() {
        if config.add_capabilities(flag).is_err() {
            log::debug!("the kernel offers no {flag:?}, only {offered:?}");
        }
    }
    for (what, refused) in [
        ("max_write", config.set_max_write(REQUEST_BYTES).is_err()),
        ("max_background", config.set_max_background(BACKGROUND_REQUESTS).is_err()),
    ] {
        if refused {
            log::warn!("{what} stays at its default");
        }
    }
}
