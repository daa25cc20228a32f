//! A fresh cluster.
//!
//! Who may connect: the socket asks nobody, for only the fork's user can reach
//! its directory; TCP asks for the password made here. (Trust on TCP would let
//! every user of the machine in, and `peer` on the socket would keep root out
//! of the clusters it made.)

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::binaries::Binaries;
use super::server::{failure_kind, log_tail};
use super::user::OsUser;
use crate::error::{Context, Error, Result};

/// The role that owns a fresh cluster, the same whoever makes it.
pub const SUPERUSER: &str = "postgres";

/// A password for TCP.
pub fn password() -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = [0; 24];
    let path = Path::new("/dev/urandom");
    fs::File::open(path).and_then(|mut f| f.read_exact(&mut random)).at("read", path)?;
    Ok(random.iter().map(|b| char::from(ALPHABET[usize::from(b % 64)])).collect())
}

/// What `run` is to do.
pub struct Fresh<'a> {
    /// With which programs.
    pub binaries: &'a Binaries,
    /// As whom.
    pub user: &'a OsUser,
    /// Where; an empty directory.
    pub pgdata: &'a Path,
    /// A directory of the user's outside, for the password's passage.
    pub scratch: &'a Path,
    /// The superuser's name.
    pub superuser: &'a str,
    /// The superuser's password.
    pub password: &'a str,
    /// More arguments.
    pub args: &'a [String],
}

/// Runs initdb.
pub fn run(fresh: &Fresh) -> Result<()> {
    let file = fresh.scratch.join("password");
    let result = run_with(fresh, &file);
    // It is in a directory of the user's own; but a secret should not lie about.
    match fs::remove_file(&file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => result.and(Err(e).at("remove", &file)),
        _ => result,
    }
}

fn run_with(fresh: &Fresh, password_file: &Path) -> Result<()> {
    fresh.user.run(|| {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let write = |mut f: fs::File| f.write_all(format!("{}\n", fresh.password).as_bytes());
        options.open(password_file).and_then(write).at("write", password_file)
    })?;
    let program = fresh.binaries.program("initdb");
    let mut command = fresh.user.command(&program);
    command.arg("--pgdata").arg(fresh.pgdata).arg("--username").arg(fresh.superuser);
    command.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"]);
    // `publish` makes everything durable at once.
    command.arg("--no-sync").arg("--pwfile").arg(password_file);
    if needs_encoding(fresh.args, |name| std::env::var(name).ok()) {
        command.arg("--encoding=UTF8");
    }
    command.args(fresh.args).current_dir("/").stdin(std::process::Stdio::null());
    let output = command.output().at("run", &program)?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    Err(Error::new(failure_kind(&said), format!("initdb failed ({})", output.status))
        .detail(log_tail(&said))
        .hint("its message above says why; nothing was kept"))
}

/// Without a locale in the environment initdb chooses SQL_ASCII, which no one
/// means.
fn needs_encoding(args: &[String], env: impl Fn(&str) -> Option<String>) -> bool {
    let chosen =
        |arg: &String| arg.starts_with("-E") || arg.starts_with("--encoding") || arg.starts_with("--l");
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| env(name).filter(|v| !v.is_empty()));
    let plain = locale.is_none_or(|l| l == "C" || l == "POSIX");
    plain && !args.iter().any(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_random_and_need_no_escaping() {
        let (a, b) = (password().unwrap(), password().unwrap());
        assert!(a != b && a.len() == 24);
        assert!(a.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    }

    #[test]
    fn utf8_unless_something_else_is_chosen() {
        let env = |value: &'static str| move |name: &str| (name == "LANG").then(|| value.to_string());
        assert!(needs_encoding(&[], |_| None));
        assert!(needs_encoding(&[], env("C")));
        assert!(!needs_encoding(&[], env("de_DE.UTF-8")));
        for arg in ["-ELATIN1", "--encoding=LATIN1", "--locale=de_DE", "--lc-ctype=C"] {
            assert!(!needs_encoding(&[arg.to_string()], |_| None), "{arg}");
        }
    }
}
