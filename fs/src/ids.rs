//! Identifiers, and the rule for fork names.

use crate::error::{Error, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// One generation of a fork's name: stable over restarts, new on a reset.
    /// It is the upper part of the FUSE node id, so it stays below 2^28.
    ForkId, u32
);
id!(
    /// One layer; ids grow in the order of creation and are never used again.
    LayerId, u64
);
id!(
    /// One file, directory, link or node. A fork inherits the ids of its
    /// parent's files; an id stays below 2^36 and is never used again.
    FileId, u64
);

impl FileId {
    /// The top directory of every fork.
    pub const ROOT: FileId = FileId(1);
    /// The first number that is no file's id.
    pub const END: u64 = 1 << 36;
}

impl ForkId {
    /// The first number that is no fork's id.
    pub const END: u32 = 1 << 28;
}

/// The longest fork name, in bytes. A socket directory and a database URL
/// carry the name, so it is kept well under NAME_MAX.
pub const FORK_NAME_MAX: usize = 63;

/// The longest file name in bytes (`NAME_MAX`).
pub const FILE_NAME_MAX: usize = 255;

/// Checks that `name` can be a file's within a directory.
pub fn check_file_name(name: &[u8]) -> Result<()> {
    if name.len() > FILE_NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("not a file name"));
    }
    Ok(())
}

/// Checks that `name` can be a fork's: 1 to 63 bytes of ASCII letters, digits,
/// `.`, `_` and `-`, beginning with a letter or digit.
pub fn check_fork_name(name: &str) -> Result<()> {
    check_name(name).map_err(|reason| Error::BadForkName { name: name.to_string(), reason })
}

/// Checks that `label` can be a snapshot's: the rule for fork names.
pub fn check_label(label: &str) -> Result<()> {
    check_name(label).map_err(|reason| Error::BadLabel { label: label.to_string(), reason })
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let Some(&first) = name.as_bytes().first() else {
        return Err("it is empty");
    };
    if name.len() > FORK_NAME_MAX {
        return Err("it is longer than 63 bytes");
    }
    if first == b'-' {
        return Err("it begins with a dash and would be taken for an option");
    }
    if !first.is_ascii_alphanumeric() {
        return Err("it must begin with a letter or a digit");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err("only ASCII letters, digits, '.', '_' and '-' are allowed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "main", "pr-42", "v1.2_x", "9", &"x".repeat(63)] {
            check_fork_name(good).unwrap();
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "é", "a\n", "a\0", ".hidden", &"x".repeat(64)] {
            assert!(check_fork_name(bad).is_err() && check_label(bad).is_err(), "{bad:?}");
        }
    }
}
