//! The bytes of FUSE's protocol: requests taken apart, answers put together.
//!
//! Layouts are those of `include/uapi/linux/fuse.h`, version 7.34 (Linux 5.15)
//! and later; numbers are in the machine's byte order. A request is a header,
//! the fixed argument of its operation, and the rest: names or data. The two
//! transports deliver the three differently ([`super::device`], [`super::ring`]).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a request's header (`fuse_in_header`).
pub const IN_HEADER: usize = 40;
/// Bytes of an answer's header (`fuse_out_header`).
pub const OUT_HEADER: usize = 16;

macro_rules! opcodes {
    ($($name:ident = $number:literal, $fixed:literal;)*) => {
        /// Operations, by number.
        pub mod opcode {
            $(pub const $name: u32 = $number;)*
        }

        /// Bytes of the fixed argument of each operation that is served.
        fn fixed_len(opcode: u32) -> usize {
            match opcode {
                $($number => $fixed,)*
                _ => 0,
            }
        }
    };
}

opcodes! {
    LOOKUP = 1, 0;
    FORGET = 2, 8;
    GETATTR = 3, 16;
    SETATTR = 4, 88;
    READLINK = 5, 0;
    SYMLINK = 6, 0;
    MKNOD = 8, 16;
    MKDIR = 9, 8;
    UNLINK = 10, 0;
    RMDIR = 11, 0;
    RENAME = 12, 8;
    LINK = 13, 8;
    OPEN = 14, 8;
    READ = 15, 40;
    WRITE = 16, 40;
    STATFS = 17, 0;
    RELEASE = 18, 24;
    FSYNC = 20, 16;
    SETXATTR = 21, 0;
    GETXATTR = 22, 0;
    LISTXATTR = 23, 0;
    REMOVEXATTR = 24, 0;
    FLUSH = 25, 0;
    OPENDIR = 27, 8;
    READDIR = 28, 40;
    RELEASEDIR = 29, 24;
    FSYNCDIR = 30, 16;
    GETLK = 31, 0;
    SETLK = 32, 0;
    SETLKW = 33, 0;
    ACCESS = 34, 0;
    CREATE = 35, 16;
    INTERRUPT = 36, 8;
    BMAP = 37, 0;
    DESTROY = 38, 0;
    IOCTL = 39, 0;
    POLL = 40, 0;
    BATCH_FORGET = 42, 8;
    FALLOCATE = 43, 32;
    READDIRPLUS = 44, 40;
    RENAME2 = 45, 16;
    LSEEK = 46, 24;
    COPY_FILE_RANGE = 47, 56;
}

/// Flag of FSYNC and FSYNCDIR: `fdatasync`.
pub const FSYNC_FDATASYNC: u32 = 1;

/// Which attributes a SETATTR sets (`FATTR_*`).
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// What an OPEN or CREATE answers about the file (`FOPEN_*`).
pub mod fopen {
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const NOFLUSH: u32 = 1 << 5;
}

/// A request that breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A request.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    header: &'a [u8],
    fixed: &'a [u8],
    rest: &'a [u8],
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl<'a> Message<'a> {
    /// One whose three parts lie behind each other.
    pub fn whole(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let (header, more) = bytes.split_at_checked(IN_HEADER).ok_or(Malformed)?;
        let message = Message { header, fixed: &[], rest: &[] };
        let (fixed, rest) = more.split_at_checked(fixed_len(message.opcode())).ok_or(Malformed)?;
        Ok(Message { fixed, rest, ..message })
    }

    /// One of three parts; `fixed` may be longer than it has to be.
    pub fn of_parts(header: &'a [u8], fixed: &'a [u8], rest: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let header = header.get(..IN_HEADER).ok_or(Malformed)?;
        let message = Message { header, fixed, rest };
        let fixed = fixed.get(..fixed_len(message.opcode())).ok_or(Malformed)?;
        Ok(Message { fixed, ..message })
    }

    fn head<const N: usize>(&self, at: usize) -> [u8; N] {
        // Only called for what lies within the header, whose length is known.
        number(self.header, at).unwrap_or([0; N])
    }

    pub fn opcode(&self) -> u32 {
        u32::from_ne_bytes(self.head(4))
    }

    /// The number that the answer repeats.
    pub fn unique(&self) -> u64 {
        u64::from_ne_bytes(self.head(8))
    }

    pub fn node(&self) -> u64 {
        u64::from_ne_bytes(self.head(16))
    }

    pub fn uid(&self) -> u32 {
        u32::from_ne_bytes(self.head(24))
    }

    pub fn gid(&self) -> u32 {
        u32::from_ne_bytes(self.head(28))
    }

    /// A number of the fixed argument.
    pub fn u32(&self, at: usize) -> Result<u32, Malformed> {
        number(self.fixed, at).map(u32::from_ne_bytes).ok_or(Malformed)
    }

    /// A number of the fixed argument.
    pub fn u64(&self, at: usize) -> Result<u64, Malformed> {
        number(self.fixed, at).map(u64::from_ne_bytes).ok_or(Malformed)
    }

    /// The first `len` bytes of the data.
    pub fn data(&self, len: usize) -> Result<&'a [u8], Malformed> {
        self.rest.get(..len).ok_or(Malformed)
    }

    /// The only name.
    pub fn name(&self) -> Result<&'a [u8], Malformed> {
        self.names().next().ok_or(Malformed)
    }

    /// Both names.
    pub fn two_names(&self) -> Result<(&'a [u8], &'a [u8]), Malformed> {
        let mut names = self.names();
        Ok((names.next().ok_or(Malformed)?, names.next().ok_or(Malformed)?))
    }

    /// The names; each ends with a zero byte.
    fn names(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.rest.split_inclusive(|&byte| byte == 0).filter_map(|name| name.strip_suffix(&[0]))
    }

    /// The same request in memory of its own.
    pub fn owned(self) -> Owned {
        Owned { header: self.header.into(), fixed: self.fixed.into(), rest: self.rest.into() }
    }
}

/// A request that outlives the buffer it came in.
pub struct Owned {
    header: Box<[u8]>,
    fixed: Box<[u8]>,
    rest: Box<[u8]>,
}

impl Owned {
    pub fn message(&self) -> Message<'_> {
        Message { header: &self.header, fixed: &self.fixed, rest: &self.rest }
    }
}

/// The header of an answer with `len` bytes behind it; `errno` 0 is success.
pub fn out_header(unique: u64, errno: i32, len: usize) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    // An answer is at most what a READ asks for, a mebibyte.
    header[..4].copy_from_slice(&((OUT_HEADER + len) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// What the kernel is told about a file (`fuse_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub node: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
}

/// The body of an answer that is being written.
pub struct Body<'a>(pub &'a mut Vec<u8>);

impl Body<'_> {
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// `fuse_attr_out`.
    pub fn attr(&mut self, valid: Duration, stat: &Stat) -> &mut Self {
        self.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).stat(stat)
    }

    /// `fuse_entry_out`.
    pub fn entry(&mut self, name_valid: Duration, attr_valid: Duration, stat: &Stat) -> &mut Self {
        // A node id never stands for a second file, so the generation is 0.
        self.u64(stat.node).u64(0).u64(name_valid.as_secs()).u64(attr_valid.as_secs());
        self.u32(name_valid.subsec_nanos()).u32(attr_valid.subsec_nanos()).stat(stat)
    }

    /// `fuse_open_out`.
    pub fn opened(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    fn stat(&mut self, stat: &Stat) -> &mut Self {
        let times = [stat.atime, stat.mtime, stat.ctime].map(since_epoch);
        self.u64(stat.node).u64(stat.size).u64(stat.blocks);
        for (seconds, _) in times {
            // The kernel takes it for signed.
            self.u64(seconds as u64);
        }
        for (_, nanos) in times {
            self.u32(nanos);
        }
        self.u32(stat.mode).u32(stat.nlink).u32(stat.uid).u32(stat.gid).u32(stat.rdev);
        // Not 8 KiB: the kernel takes this as the inode's block size, which its
        // page cache wants to be at most a page.
        self.u32(4096).u32(0)
    }

    /// An entry of a directory, with `fuse_entry_out` before it if `found` is
    /// given, unless the body would grow beyond `limit`; whether it fitted.
    pub fn listed(
        &mut self,
        limit: usize,
        found: Option<Found>,
        next: u64,
        node: u64,
        mode: u32,
        name: &[u8],
    ) -> bool {
        const PLUS: usize = 128;
        const FIXED: usize = 24;
        let len = (found.map_or(0, |_| PLUS) + FIXED + name.len()).next_multiple_of(8);
        if self.0.len() + len > limit {
            return false;
        }
        let end = self.0.len() + len;
        if let Some((name_valid, attr_valid, stat)) = found {
            self.entry(name_valid, attr_valid, &stat);
        }
        // At most NAME_MAX bytes; the type is the upper bits of the mode.
        self.u64(node).u64(next).u32(name.len() as u32).u32((mode & libc::S_IFMT) >> 12);
        self.0.extend_from_slice(name);
        self.0.resize(end, 0);
        true
    }
}

/// What a listing with attributes says of an entry: how long its name and its
/// attributes may be trusted, and these.
pub type Found = (Duration, Duration, Stat);

/// Seconds, rounded down, and nanoseconds.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (seconds(after), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => (-seconds(before), 0),
                nanos => (-seconds(before) - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

/// The time of signed seconds and nanoseconds; one that cannot be represented is
/// the epoch.
pub fn time(seconds: u64, nanos: u32) -> SystemTime {
    let (seconds, nanos) = (seconds as i64, Duration::from_nanos(nanos.into()));
    let whole = match u64::try_from(seconds) {
        Ok(after) => UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => UNIX_EPOCH.checked_sub(Duration::from_secs(seconds.unsigned_abs())),
    };
    whole.and_then(|time| time.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER];
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&7u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&9u64.to_ne_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn a_request_is_taken_apart() {
        let mut rest = 5u64.to_ne_bytes().to_vec();
        rest.extend_from_slice(b"old\0new\0");
        let bytes = request(opcode::RENAME, &rest);
        let message = Message::whole(&bytes).unwrap();
        assert_eq!((message.opcode(), message.unique(), message.node()), (opcode::RENAME, 7, 9));
        assert_eq!(message.u64(0), Ok(5));
        assert_eq!(message.two_names(), Ok((&b"old"[..], &b"new"[..])));
        assert_eq!(message.u64(1), Err(Malformed));
        let owned = message.owned();
        assert_eq!(owned.message().two_names(), message.two_names());
    }

    #[test]
    fn what_is_too_short_is_refused() {
        assert!(Message::whole(&[0; IN_HEADER - 1]).is_err());
        let bytes = request(opcode::WRITE, &[0; 39]);
        assert!(Message::whole(&bytes).is_err());
        let bytes = request(opcode::WRITE, &[0; 48]);
        let message = Message::whole(&bytes).unwrap();
        assert_eq!(message.data(8).map(<[u8]>::len), Ok(8));
        assert_eq!(message.data(9), Err(Malformed));
        let bytes = request(opcode::UNLINK, b"no end");
        assert_eq!(Message::whole(&bytes).unwrap().name(), Err(Malformed));
        let bytes = request(opcode::SYMLINK, b"name\0");
        assert_eq!(Message::whole(&bytes).unwrap().two_names(), Err(Malformed));
    }

    #[test]
    fn times_before_1970() {
        for (seconds, nanos) in [(-1, 500_000_000), (-7, 0), (7, 9), (0, 0), (i64::MAX, 999_999_999)] {
            assert_eq!(since_epoch(time(seconds as u64, nanos)), (seconds, nanos));
        }
        let meant = UNIX_EPOCH - Duration::new(0, 500_000_000);
        assert_eq!(time(-1i64 as u64, 500_000_000), meant);
    }

    #[test]
    fn entries_fill_a_page_and_no_more() {
        let mut bytes = Vec::new();
        let mut body = Body(&mut bytes);
        assert!(body.listed(64, None, 1, 5, libc::S_IFREG | 0o600, b"name"));
        assert!(body.listed(64, None, 2, 6, libc::S_IFDIR, b"12345678"));
        assert!(!body.listed(64, None, 3, 7, libc::S_IFDIR, b""));
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[20..24], 8u32.to_ne_bytes());
        assert_eq!(&bytes[24..32], b"name\0\0\0\0");
    }
}
