//! Ports for forks.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The ports that a store gives to its forks, as `6000-6999`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        let wrong = || format!("{text:?} is not a range of ports such as 6000-6999");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let range = PortRange { first: port(first)?, last: port(last)? };
        match range.first {
            0 => Err("ports begin at 1".into()),
            first if first > range.last => Err(format!("the range {text} is empty")),
            _ => Ok(range),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<PortRange, String> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Chooses a fork's port: `wanted` if it is free, else the lowest free one of
/// the range. `owner` tells which fork of the store has a port already; `busy`
/// whether something else listens there.
pub fn choose(
    range: PortRange,
    wanted: Option<u16>,
    owner: impl Fn(u16) -> Option<String>,
    busy: impl Fn(u16) -> bool,
) -> Result<u16> {
    if let Some(port) = wanted {
        if let Some(fork) = owner(port) {
            return Err(Error::new(Kind::State, format!("port {port} belongs to fork {fork:?}"))
                .hint("leave --port away to get a free one"));
        }
        return match busy(port) {
            true => Err(in_use(port, None)),
            false => Ok(port),
        };
    }
    let free = |port: &u16| owner(*port).is_none() && !busy(*port);
    (range.first..=range.last).find(free).ok_or_else(|| {
        Error::new(Kind::State, format!("no port of {range} is free"))
            .hint("remove a fork, choose a port with --port, or widen port_range in the store's config.json")
    })
}

/// A port that something else has.
pub fn in_use(port: u16, fork: Option<&str>) -> Error {
    let whose = fork.map_or(String::new(), |fork| format!(" of fork {fork:?}"));
    let hint = match fork {
        Some(fork) => {
            format!("end that program (`ss -ltnp` shows it), or move the fork: pgcowfs start {fork} --port N")
        }
        None => "leave --port away to get a free one; `ss -ltnp` shows who has it".to_string(),
    };
    Error::new(Kind::State, format!("port {port}{whose} is in use by another program")).hint(hint)
}

/// Whether something listens on the port at one of the addresses that a server
/// would listen on: it is tried.
pub fn busy(port: u16, listen: &str) -> bool {
    addresses(port, listen).iter().any(|address| match TcpListener::bind(address) {
        Ok(_) => false,
        // Other errors (no IPv6 here, a privileged port) are not about someone
        // else; PostgreSQL will report them where they matter.
        Err(e) => e.kind() == ErrorKind::AddrInUse,
    })
}

/// The addresses that `listen_addresses` means. Names are looked up as the
/// server does; one that has no address is the server's to complain about.
fn addresses(port: u16, listen: &str) -> Vec<SocketAddr> {
    let hosts = listen.split(',').map(str::trim).filter(|host| !host.is_empty());
    // A server that listens nowhere still should not share the number with
    // another one: it is chosen for later, too.
    let always = ["127.0.0.1", "::1"];
    let each = |host: &str| -> Vec<SocketAddr> {
        match host {
            "*" => ["0.0.0.0", "::"].iter().flat_map(|h| (*h, port).to_socket_addrs()).flatten().collect(),
            name => (name, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default(),
        }
    };
    let mut found: Vec<SocketAddr> = always.into_iter().chain(hosts).flat_map(each).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range: PortRange = "6000-6999".parse().unwrap();
        assert_eq!(range.to_string(), "6000-6999");
        assert_eq!(serde_json::to_string(&range).unwrap(), "\"6000-6999\"");
        for bad in ["", "6000", "6000-", "7000-6000", "0-5", "1-70000", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lowest_free_port_or_a_reason() {
        let range: PortRange = "6000-6003".parse().unwrap();
        let owner = |port| (port == 6000).then(|| "main".to_string());
        let busy = |port| port == 6001;
        assert_eq!(choose(range, None, owner, busy).unwrap(), 6002);
        assert_eq!(choose(range, Some(7777), owner, busy).unwrap(), 7777);
        let taken = choose(range, Some(6000), owner, busy).unwrap_err();
        assert!(taken.kind == Kind::State && taken.message.contains("main"));
        assert!(choose(range, Some(6001), owner, busy).unwrap_err().message.contains("6001"));
        assert!(choose(range, None, owner, |_| true).unwrap_err().message.contains("6000-6003"));
    }

    #[test]
    fn a_listener_makes_its_port_busy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for listen in ["localhost", "*", "", "127.0.0.1"] {
            assert!(busy(port, listen), "{listen:?}");
        }
        drop(listener);
        assert!(!busy(port, "localhost"));
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        assert!(busy(everywhere.local_addr().unwrap().port(), "localhost"));
    }
}
