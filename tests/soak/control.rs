//! Talks to the daemon as the command line does: JSON lines on its socket, without a process for each request.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::process::HUNG_AFTER;

/// A connection to the daemon.
pub struct Control {
    stream: BufReader<UnixStream>,
}

/// What one fork cost, by the daemon's own word.
pub struct ForkCost {
    /// From the call of the core to its durable return.
    pub fork: Duration,
    /// For how long the parent's writes were held.
    pub stall: Duration,
}

impl Control {
    /// Connects to the daemon of the store in `dir`, which runs.
    pub fn open(dir: &Path) -> Control {
        let stream = UnixStream::connect(dir.join("control.sock")).expect("connect to the daemon");
        stream.set_read_timeout(Some(HUNG_AFTER)).expect("limit the wait for replies");
        Control { stream: BufReader::new(stream) }
    }

    /// Asks, and waits for the reply. Err is what the daemon says is wrong.
    fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let failed = |e: std::io::Error| format!("{request}: {e}");
        writeln!(self.stream.get_mut(), "{request}").map_err(failed)?;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).map_err(failed)?;
            let reply: Value =
                serde_json::from_str(&line).map_err(|e| format!("{request}: {line:?}: {e}"))?;
            if let Some(value) = reply.get("ok") {
                return Ok(value.clone());
            }
            if reply.get("progress").is_none() {
                return Err(format!("{request}: {reply}"));
            }
        }
    }

    /// Forks, as `pgcowfs fork --checkpoint never` does: what the parent is now, or a snapshot of it.
    pub fn fork(&mut self, parent: &str, snapshot: Option<&str>, child: &str) -> Result<ForkCost, String> {
        let made = self.ask(&json!({
            "op": "fork", "parent": parent, "snapshot": snapshot, "child": child, "port": null, "listen": "localhost", "settings": [],
            "keep_identity": false, "quota": null,
        }))?;
        let time = |field: &str| made[field].as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
        match (time("fork_ms"), time("stall_ms")) {
            (Some(fork), Some(stall)) => Ok(ForkCost { fork, stall }),
            _ => Err(format!("a fork without its times: {made}")),
        }
    }

    /// Removes a fork.
    pub fn remove(&mut self, fork: &str) -> Result<(), String> {
        self.ask(&json!({ "op": "remove", "fork": fork })).map(|_| ())
    }

    /// Keeps what a fork is now.
    pub fn snapshot(&mut self, fork: &str, label: &str) -> Result<(), String> {
        self.ask(&json!({ "op": "snapshot", "fork": fork, "label": label })).map(|_| ())
    }

    /// Removes a snapshot.
    pub fn remove_snapshot(&mut self, fork: &str, label: &str) -> Result<(), String> {
        self.ask(&json!({ "op": "remove_snapshot", "fork": fork, "label": label })).map(|_| ())
    }

    /// What `status` shows.
    pub fn status(&mut self) -> Result<Value, String> {
        self.ask(&json!({ "op": "status" }))
    }

    /// What `check` shows; Err also if it finds something.
    pub fn check(&mut self) -> Result<Value, String> {
        let spec = json!({
            "op": "inspect", "scrub": false, "fork": null, "seal": false, "pg": false, "bytes_per_second": null,
        });
        let seen = self.ask(&spec)?;
        match seen["findings"].as_array() {
            Some(findings) if findings.is_empty() => Ok(seen),
            _ => Err(format!("check: {}", seen["findings"])),
        }
    }
}
