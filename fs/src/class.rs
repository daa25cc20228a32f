//! What PostgreSQL's file names mean. No other module knows a file name.
//!
//! A directory has a role, given when it is made and kept with it; the role and
//! a file's name decide how the file's contents are stored (once, at its birth:
//! a WAL segment is born as `xlogtemp.PID` and renamed) and whether a fork
//! inherits it (by its name at that moment). The names are those of
//! PostgreSQL's "Database File Layout" chapter, `xlog_internal.h`,
//! `filepath.c` and `fd.c`.

use crate::attr::Kind;

/// What a directory of a cluster is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Nothing that this file system treats specially.
    Other = 0,
    /// The top of the cluster (PGDATA).
    Top = 1,
    /// `base`, and a tablespace's version directory: holds databases.
    Databases = 2,
    /// `global` and `base/OID`: holds relations.
    Relations = 3,
    /// `pg_tblspc`.
    Tablespaces = 4,
    /// `pg_tblspc/OID`.
    Tablespace = 5,
    /// `pg_wal`.
    Wal = 6,
    /// `pg_xact` and its like: 8 KiB pages of the SLRU caches.
    Slru = 7,
    /// `pgsql_tmp`, `pg_stat_tmp`, `log`: nothing in it outlives the server.
    Scratch = 8,
}

impl Role {
    /// The role of a stored byte.
    pub fn from_u8(byte: u8) -> Option<Role> {
        Some(match byte {
            0 => Role::Other,
            1 => Role::Top,
            2 => Role::Databases,
            3 => Role::Relations,
            4 => Role::Tablespaces,
            5 => Role::Tablespace,
            6 => Role::Wal,
            7 => Role::Slru,
            8 => Role::Scratch,
            _ => return None,
        })
    }

    /// The role of directory `name` inside a directory of this role.
    pub fn of_child(self, name: &[u8]) -> Role {
        match (self, name) {
            (Role::Top, b"base") => Role::Databases,
            (Role::Top, b"global") => Role::Relations,
            (Role::Top, b"pg_wal") => Role::Wal,
            (Role::Top, b"pg_tblspc") => Role::Tablespaces,
            (Role::Top, b"pg_xact" | b"pg_subtrans" | b"pg_commit_ts") => Role::Slru,
            (Role::Top, b"pg_multixact") => Role::Other,
            (Role::Top, b"pg_stat_tmp" | b"log" | b"pg_log") => Role::Scratch,
            (Role::Databases | Role::Tablespace, b"pgsql_tmp") => Role::Scratch,
            (Role::Databases, _) if is_number(name) => Role::Relations,
            (Role::Tablespaces, _) if is_number(name) => Role::Tablespace,
            (Role::Tablespace, _) if name.starts_with(b"PG_") => Role::Databases,
            (Role::Scratch, _) => Role::Scratch,
            _ => Role::Other,
        }
    }
}

/// How a regular file's contents are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// 8 KiB blocks, out of place, with a CRC.
    Plain = 0,
    /// The same, and written by PostgreSQL in whole blocks only: half a block
    /// is the first part of a write that the kernel has split.
    Paged = 1,
    /// A WAL segment: in place in a host file, one flush per commit.
    Wal = 2,
    /// Scratch: in place in a host file, flushed only when asked for.
    Scratch = 3,
}

impl Class {
    /// The class of a stored byte.
    pub fn from_u8(byte: u8) -> Option<Class> {
        Some(match byte {
            0 => Class::Plain,
            1 => Class::Paged,
            2 => Class::Wal,
            3 => Class::Scratch,
            _ => return None,
        })
    }

    /// The class of a file made as `name` in a directory of role `dir`.
    pub fn of_new(dir: Role, name: &[u8]) -> Class {
        match dir {
            Role::Relations if is_relation(name) => Class::Paged,
            Role::Slru => Class::Paged,
            Role::Wal if is_wal_segment(name) => Class::Wal,
            Role::Scratch => Class::Scratch,
            Role::Top if name == b"postmaster.pid" || name == b"postmaster.opts" => Class::Scratch,
            _ => Class::Plain,
        }
    }

    /// Whether the contents live in host files of their own, in place.
    pub fn is_in_place(self) -> bool {
        matches!(self, Class::Wal | Class::Scratch)
    }
}

/// Whether a fork leaves the entry `name` of a directory of role `dir` out:
/// what belongs to the running server, not to the data.
pub fn left_out_of_fork(dir: Role, name: &[u8], kind: Kind) -> bool {
    match dir {
        Role::Scratch => true,
        Role::Top => {
            matches!(name, b"postmaster.pid" | b"postmaster.opts")
                || matches!(kind, Kind::Socket | Kind::Fifo)
        }
        _ => false,
    }
}

fn is_number(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(u8::is_ascii_digit)
}

/// `N`, `N.S`, `N_fsm`, `N_vm.S`, and temporary `tB_N...`.
fn is_relation(name: &[u8]) -> bool {
    let (stem, segment) = match name.iter().position(|&b| b == b'.') {
        Some(dot) => (&name[..dot], Some(&name[dot + 1..])),
        None => (name, None),
    };
    if segment.is_some_and(|s| !is_number(s)) {
        return false;
    }
    let mut words = stem.split(|&b| b == b'_');
    let first = words.next().unwrap_or_default();
    let number = match first.strip_prefix(b"t") {
        Some(backend) if is_number(backend) => words.next().unwrap_or_default(),
        Some(_) => return false,
        None => first,
    };
    let fork = words.next();
    is_number(number) && matches!(fork, None | Some(b"fsm" | b"vm" | b"init")) && words.next().is_none()
}

/// 24 hexadecimal digits, and the names that a segment is born under.
fn is_wal_segment(name: &[u8]) -> bool {
    let digits = name.strip_suffix(b".partial").unwrap_or(name);
    (digits.len() == 24 && digits.iter().all(u8::is_ascii_hexdigit))
        || name.starts_with(b"xlogtemp.")
        || name == b"RECOVERYXLOG"
}

/// Whether PostgreSQL makes something of that name in `pg_wal`: segments, time
/// line histories, notes of backups, and two directories.
pub fn belongs_in_wal(name: &[u8]) -> bool {
    let segment = name.get(..24).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    segment
        || is_wal_segment(name)
        || name.ends_with(b".history")
        || matches!(name, b"archive_status" | b"summaries")
}

/// Whether it is the directory `PG_MAJOR_CATALOG` in which PostgreSQL keeps all
/// of a tablespace.
pub fn belongs_in_tablespace(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"PG_") else { return false };
    let mut numbers = rest.split(|&b| b == b'_');
    numbers.clone().count() == 2 && numbers.all(is_number)
}

/// A file of a relation, as its path tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationFile<'a> {
    /// The tablespace's OID; 0 for `base`, the default, and `global`.
    pub tablespace: u32,
    /// The database's OID; 0 for what all databases share.
    pub database: u32,
    /// The number of its files.
    pub node: u32,
    /// `main`, `fsm`, `vm` or `init`.
    pub fork: &'a str,
}

/// What relation a file belongs to, by its path in a cluster.
pub fn relation_file(path: &str) -> Option<RelationFile<'_>> {
    let (dir, name) = path.rsplit_once('/')?;
    let dirs: Vec<&str> = dir.split('/').collect();
    let (tablespace, database) = match dirs[..] {
        ["global"] => (0, 0),
        ["base", database] => (0, database.parse().ok()?),
        ["pg_tblspc", tablespace, version, database] if belongs_in_tablespace(version.as_bytes()) => {
            (tablespace.parse().ok()?, database.parse().ok()?)
        }
        _ => return None,
    };
    if !is_relation(name.as_bytes()) {
        return None;
    }
    let stem = name.split('.').next()?;
    // Of a temporary one: `tBACKEND_`.
    let stem = stem.strip_prefix('t').map_or(Some(stem), |rest| Some(rest.split_once('_')?.1))?;
    let (node, fork) = stem.split_once('_').unwrap_or((stem, "main"));
    Some(RelationFile { tablespace, database, node: node.parse().ok()?, fork })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_by_path() {
        let of = |path| {
            let of = relation_file(path)?;
            Some((of.tablespace, of.database, of.node, of.fork))
        };
        for (path, want) in [
            ("base/5/16384", Some((0, 5, 16384, "main"))),
            ("base/5/16384.3", Some((0, 5, 16384, "main"))),
            ("base/5/16384_vm.1", Some((0, 5, 16384, "vm"))),
            ("base/5/t3_16385_fsm", Some((0, 5, 16385, "fsm"))),
            ("global/1262", Some((0, 0, 1262, "main"))),
            ("pg_tblspc/16400/PG_15_202209061/5/16401", Some((16400, 5, 16401, "main"))),
            ("base/5/pg_filenode.map", None),
            ("base/5/99999999999", None),
            ("base/16384", None),
            ("pg_xact/0000", None),
            ("pg_tblspc/16400/x/5/16401", None),
            ("postgresql.conf", None),
        ] {
            assert_eq!(of(path), want, "{path}");
        }
    }

    fn role(path: &str) -> Role {
        path.split('/').filter(|p| !p.is_empty()).fold(Role::Top, |r, p| r.of_child(p.as_bytes()))
    }

    fn class(dir: &str, name: &str) -> Class {
        Class::of_new(role(dir), name.as_bytes())
    }

    #[test]
    fn classes_by_path() {
        for (dir, name, want) in [
            ("base/5", "1259", Class::Paged),
            ("base/5", "1259.1", Class::Paged),
            ("base/5", "1259_fsm", Class::Paged),
            ("base/5", "16384_init", Class::Paged),
            ("base/5", "t3_16385", Class::Paged),
            ("base/5", "t3_16385_vm.2", Class::Paged),
            ("base/5", "pg_filenode.map", Class::Plain),
            ("base/5", "PG_VERSION", Class::Plain),
            ("base/5", "1259_x", Class::Plain),
            ("base/5", "1259.", Class::Plain),
            ("global", "1262", Class::Paged),
            ("global", "pg_control", Class::Plain),
            ("pg_tblspc/16400/PG_15_202209061/5", "16401", Class::Paged),
            ("pg_xact", "0000", Class::Paged),
            ("pg_wal", "000000010000000000000001", Class::Wal),
            ("pg_wal", "000000010000000000000001.partial", Class::Wal),
            ("pg_wal", "xlogtemp.123", Class::Wal),
            ("pg_wal", "RECOVERYXLOG", Class::Wal),
            ("pg_wal", "00000002.history", Class::Plain),
            ("pg_wal/archive_status", "000000010000000000000001.done", Class::Plain),
            ("base/pgsql_tmp", "pgsql_tmp1.0", Class::Scratch),
            ("base/pgsql_tmp/x.sharedfileset", "o0.p0.0", Class::Scratch),
            ("pg_tblspc/16400/PG_15_202209061/pgsql_tmp", "pgsql_tmp1.0", Class::Scratch),
            ("log", "postgresql.log", Class::Scratch),
            ("", "postmaster.pid", Class::Scratch),
            ("", "postgresql.conf", Class::Plain),
            ("x", "postmaster.pid", Class::Plain),
        ] {
            assert_eq!(class(dir, name), want, "{dir}/{name}");
        }
    }

    #[test]
    fn what_a_link_may_bring_in() {
        let (segment, copy) = (b"000000010000000000000001", b"000000010000000000000001.00000028.backup");
        for name in [&segment[..], copy, b"00000002.history", b"archive_status", b"summaries"] {
            assert!(belongs_in_wal(name), "{}", name.escape_ascii());
        }
        for name in [&b"base"[..], b"lost+found", b"PG_VERSION", b"000000000001", b"passwd"] {
            assert!(!belongs_in_wal(name), "{}", name.escape_ascii());
        }
        assert!(belongs_in_tablespace(b"PG_15_202209061"));
        for name in [&b"PG_VERSION"[..], b"PG_15", b"PG_15_1_2", b"PG__", b"16384"] {
            assert!(!belongs_in_tablespace(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn forks_leave_the_server_behind() {
        assert!(left_out_of_fork(role(""), b"postmaster.pid", Kind::File));
        assert!(left_out_of_fork(role(""), b".s.PGSQL.5432", Kind::Socket));
        assert!(left_out_of_fork(role("base/pgsql_tmp"), b"x", Kind::File));
        assert!(!left_out_of_fork(role(""), b"pg_hba.conf", Kind::File));
        assert!(!left_out_of_fork(role("base"), b"pgsql_tmp", Kind::Directory));
    }
}
