//! Dumps on the disk: making one, how it comes to its place, and what a directory of
//! ours holds.

pub mod kind;
pub mod make;
pub mod manifest;
pub mod staging;
