//! pgcowfs: a copy-on-write file system for PostgreSQL data directories.
//!
//! A *store* holds *forks*; each is a complete, writable PGDATA. A fork shares
//! every unchanged 8 KiB block with its parent and writes changed ones to its
//! own delta file. This crate is the whole of it, without a command line and
//! without PostgreSQL; only [`mount`] knows FUSE.
//!
//! | module | what it does |
//! |---|---|
//! | [`error`], [`ids`], [`attr`], [`block`], [`class`] | words: errors, identifiers, attributes, blocks, what file names mean |
//! | [`stats`] | counters: requests, times, bytes |
//! | [`device`] | host files, the bottom of everything |
//! | [`map`] | the block map: durable keys and values, in RocksDB |
//! | [`delta`] | pages out of place, and which slots are free |
//! | [`seal`] | CRCs of WAL segments at rest and of a base |
//! | [`inplace`] | WAL segments and scratch, in place |
//! | [`base`] | a read-only PGDATA as the lowest layer |
//! | [`layer`] | a fork's files in memory: persistent maps, page tables, what is pending |
//! | [`check`] | the invariants of a store as functions: check, scrub, repair |
//! | [`forks`] | the operations of a fork, commits, forking, removing, the store |
//! | [`mount`] | FUSE |
//!
//! Imports point up this table only.

pub mod attr;
pub mod base;
pub mod block;
pub mod check;
pub mod class;
pub mod delta;
pub mod device;
pub mod error;
pub mod forks;
pub mod ids;
pub mod inplace;
pub mod layer;
pub mod map;
pub mod mount;
pub mod seal;
pub mod stats;

pub use attr::{Attr, DirEntry, Kind, Make, RenameMode, Seek, SetAttr, SetTime};
pub use error::{Error, Result};
pub use forks::{
    Edit, FileChange, FileUsage, Fork, ForkEntry, ForkInfo, ForkReport, Layout, Options, PageChanges,
    ResetTo, Side, SnapshotInfo, Space, Status, Store,
};
pub use ids::{FileId, ForkId, LayerId, check_fork_name, check_label};
