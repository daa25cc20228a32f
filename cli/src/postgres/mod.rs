//! Everything that knows PostgreSQL. Nothing outside imports tokio-postgres or
//! looks into a data directory.

pub mod adopt;
pub mod base_backup;
pub mod binaries;
pub mod bring;
pub mod cluster;
pub mod conf;
pub mod connect;
pub mod conninfo;
pub mod debian;
pub mod departure;
pub mod dump;
pub mod follow;
pub mod identity;
pub mod import;
pub mod initdb;
pub mod links;
pub mod observe;
pub mod pid_file;
pub mod primary;
pub mod relations;
pub mod remote;
pub mod residue;
pub mod restore;
pub mod role;
pub mod schema;
pub mod server;
pub mod standalone;
pub mod timeline;
pub mod tools;
pub mod tree;
pub mod update;
pub mod user;
