//! A role for whoever uses a fork.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::password::scram_sha_256;

use super::connect::{Address, connect, connect_to, refused, wait};
use crate::error::{Context, Error, Kind, Result};

/// The first major version with roles that may read and write all data, and no more.
pub const HAS_DATA_ROLES: u32 = 14;

/// For a statement that the server's log must not have.
const UNLOGGED: &str = "SET log_statement = none; SET log_min_duration_statement = -1; \
                        SET log_min_error_statement = panic";

/// A longer password is a file that is something else.
const PASSWORD_MAX: u64 = 1024;

/// A role to make.
pub struct Role {
    /// Its name.
    pub name: String,
    /// What the server keeps of its password, which does not tell the password.
    verifier: String,
    /// It may read and write all data, and make tables of its own; else it is a superuser.
    restricted: bool,
}

impl Role {
    /// One with the password that is in a file (`-`: in standard input).
    pub fn new(name: &str, password_file: &Path, restricted: bool) -> Result<Role> {
        if name.is_empty() || name.len() > 63 || name.contains('\0') || name.starts_with("pg_") {
            return Err(Error::new(Kind::Usage, format!("{name:?} cannot be the name of a role"))
                .cause("it is empty, longer than 63 bytes, or begins with pg_, which is for PostgreSQL's own")
                .hint("choose another --user"));
        }
        let password = read_password(password_file)?;
        Ok(Role { name: name.to_string(), verifier: scram_sha_256(password.as_bytes()), restricted })
    }

    /// Makes it, or gives one of that name this password and these rights.
    pub fn make(&self, address: &Address) -> Result<()> {
        if self.name == address.role {
            return Err(Error::new(Kind::Usage, format!("{:?} is the fork's own superuser", self.name))
                .hint("choose another --user"));
        }
        let failed = |e| refused(&format!("cannot make the role {:?}", self.name), &e);
        let name = escape_identifier(&self.name);
        let rights = match self.restricted {
            false => "LOGIN SUPERUSER",
            true => "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS",
        };
        wait(address, async || {
            let client = connect(address).await?;
            // Not even the verifier is anybody's business.
            client.batch_execute(UNLOGGED).await.map_err(failed)?;
            let there = client.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&self.name]).await;
            let verb = if there.map_err(failed)?.is_some() { "ALTER" } else { "CREATE" };
            let verifier = escape_literal(&self.verifier);
            let made = format!("{verb} ROLE {name} WITH {rights} PASSWORD {verifier}");
            client.batch_execute(&made).await.map_err(failed)?;
            if !self.restricted {
                return Ok(());
            }
            let grant = format!("GRANT pg_read_all_data, pg_write_all_data TO {name}");
            client.batch_execute(&grant).await.map_err(failed)?;
            let query = "SELECT datname FROM pg_database WHERE datallowconn";
            for row in client.query(query, &[]).await.map_err(failed)? {
                let database: String = row.try_get(0).map_err(failed)?;
                let grant = format!(
                    "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {name}",
                    escape_identifier(&database)
                );
                let there = connect_to(address, &database).await?;
                there.batch_execute(&grant).await.map_err(failed)?;
                // Its owner may have dropped it.
                let public = "SELECT FROM pg_namespace WHERE nspname = 'public'";
                if there.query_opt(public, &[]).await.map_err(failed)?.is_some() {
                    let grant = format!("GRANT USAGE, CREATE ON SCHEMA public TO {name}");
                    there.batch_execute(&grant).await.map_err(failed)?;
                }
            }
            Ok(())
        })
    }
}

/// Gives the role that an address connects as the address's password, and what that
/// role is there for.
pub fn keep_superuser(address: &Address) -> Result<()> {
    let Some(password) = address.password else { return Ok(()) };
    let failed = |e| refused(&format!("cannot set the password of {:?}", address.role), &e);
    wait(address, async || {
        let client = connect(address).await?;
        client.batch_execute(UNLOGGED).await.map_err(failed)?;
        let statement = format!(
            "ALTER ROLE {} WITH LOGIN SUPERUSER VALID UNTIL 'infinity' PASSWORD {}",
            escape_identifier(address.role),
            escape_literal(&scram_sha_256(password.as_bytes()))
        );
        client.batch_execute(&statement).await.map_err(failed)
    })
}

/// The first line of a file that nobody else can read.
fn read_password(path: &Path) -> Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(PASSWORD_MAX + 1).read_to_string(&mut text).at("read", path)?;
    } else {
        let file = File::open(path).at("open", path)?;
        let meta = file.metadata().at("look at", path)?;
        if !meta.is_file() {
            return Err(Error::new(Kind::BadInput, format!("{} is not a file", path.display()))
                .hint("give a file with the password, or - for standard input"));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            return Err(Error::new(
                Kind::BadInput,
                format!("others may read the password in {}", path.display()),
            )
            .hint(format!("chmod 600 {}", path.display())));
        }
        file.take(PASSWORD_MAX + 1).read_to_string(&mut text).at("read", path)?;
    }
    let password = text.lines().next().unwrap_or("");
    if password.is_empty() || text.len() as u64 > PASSWORD_MAX {
        return Err(Error::new(Kind::BadInput, format!("there is no password in {}", path.display()))
            .cause("its first line is empty, or it is longer than a password")
            .hint("write the password to it, in one line"));
    }
    Ok(password.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_read_from_a_file_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let write = |text: &str, mode| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            read_password(&file)
        };
        assert_eq!(write("secret word\n", 0o600).unwrap(), "secret word");
        assert_eq!(write("x", 0o400).unwrap(), "x");
        for (text, mode) in [("x", 0o640), ("x", 0o604), ("", 0o600), ("\nx", 0o600)] {
            assert_eq!(write(text, mode).unwrap_err().kind, Kind::BadInput, "{text:?} {mode:o}");
        }
        let error = write(&"x".repeat(5000), 0o600).unwrap_err();
        assert!(error.kind == Kind::BadInput && !error.render(false).contains("xxx"));
        assert_eq!(read_password(&dir.path().join("none")).unwrap_err().kind, Kind::NotFound);
        assert_eq!(read_password(dir.path()).unwrap_err().kind, Kind::BadInput);
    }

    #[test]
    fn the_password_itself_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "tell-tale").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let role = Role::new("app", &file, false).unwrap();
        assert!(role.verifier.starts_with("SCRAM-SHA-256$") && !role.verifier.contains("tell-tale"));
        for name in ["", "pg_x", "a\0b", &"x".repeat(64)] {
            assert_eq!(Role::new(name, &file, false).map(|_| ()).unwrap_err().kind, Kind::Usage);
        }
    }
}
