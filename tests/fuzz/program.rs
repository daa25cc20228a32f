//! Targets: what the program reads from clients, from the store's owner, and from
//! data directories.

use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::target::{Bytes, Target};
use crate::config::{KeepFree, MapMemory, StoreConfig};
use crate::daemon::clients::read_request;
use crate::daemon::ports::PortRange;
use crate::meta::{
    DumpFailure, DumpSchedule, DumpWhat, Expiry, ForkMeta, How, Mask, Origin, Pool, Schedule, Secret, Upkeep,
};
use crate::postgres::cluster::Control;
use crate::postgres::pid_file;
use crate::protocol::*;

#[path = "conf.rs"]
mod conf;
#[path = "identity.rs"]
mod identity;

pub const TARGETS: &[Target] = &[
    Target { name: "request", run: request, seeds: requests, rounds: 4000 },
    Target { name: "reply", run: reply, seeds: replies, rounds: 4000 },
    Target { name: "settings", run: settings, seeds: settings_seeds, rounds: 4000 },
    Target { name: "cluster-files", run: cluster_files, seeds: cluster_files_seeds, rounds: 4000 },
    Target { name: "conf", run: conf::run, seeds: conf::seeds, rounds: 4000 },
    Target { name: "identity", run: identity::run, seeds: identity::seeds, rounds: 2000 },
];

/// What was read is written so that it is read as the same again.
fn survives<T: Serialize + DeserializeOwned>(value: &T) -> String {
    let text = serde_json::to_string(value).expect("it can be written");
    assert!(!text.contains('\n'), "a message is one line");
    let again: T = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(comparable(&again), comparable(value), "{text}");
    text
}

/// As JSON, without what fractions lose on their way through text.
fn comparable<T: Serialize>(value: &T) -> Value {
    fn cut(value: &mut Value) {
        match value {
            Value::Number(n) if n.is_f64() => *value = 0.into(),
            Value::Array(values) => values.iter_mut().for_each(cut),
            Value::Object(values) => values.values_mut().for_each(cut),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(value).expect("it can be written");
    cut(&mut value);
    value
}

/// What a client sends to the daemon: lines, in pieces of any size.
fn request(input: &[u8]) {
    let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
    // A socket's buffer takes more than this without a reader.
    let input = &input[..input.len().min(32 << 10)];
    client.write_all(input).expect("the other end is open");
    client.shutdown(Shutdown::Write).expect("it is connected");
    let mut reader = BufReader::with_capacity(64, server);
    for line in input.split_inclusive(|&b| b == b'\n') {
        let read = read_request(&mut reader, false, Duration::from_secs(10));
        let Ok(text) = std::str::from_utf8(line) else {
            assert!(line.last() != Some(&b'\n') || read.is_err(), "not a text");
            return;
        };
        match read.expect("the line is all there") {
            Some(read) => assert_eq!(read, text),
            None => assert!(!line.ends_with(b"\n"), "a line is lost"),
        }
        if let Ok(request) = serde_json::from_str::<Request>(text) {
            survives(&request);
        }
    }
    assert!(read_request(&mut reader, false, Duration::from_secs(10)).expect("an end").is_none());
}

fn dumps() -> DumpSchedule {
    DumpSchedule {
        dir: "/backup".into(),
        every_s: 86_400,
        keep: 7,
        what: DumpWhat { jobs: Some(2), databases: vec!["shop".into()], ..DumpWhat::default() },
        made: vec!["main-20260102-030405".into()],
        last_at: Some("2026-01-02T03:04:05Z".into()),
        failure: Some(DumpFailure { at: "2026-01-03T03:04:05Z".into(), message: "full".into() }),
    }
}

fn requests() -> Vec<Vec<u8>> {
    let fork = || "main".to_string();
    let meta = ForkMeta {
        port: 6001,
        socket_dir: "/s/run/pr 42".into(),
        listen: "localhost".into(),
        pg_version: 15,
        pg_bin: Some("/usr/lib/postgresql/15/bin".into()),
        run_as: "postgres".into(),
        uid: 101,
        gid: 104,
        superuser: "postgres".into(),
        password: Some(Secret("p@ss/w".into())),
        socket_trusts: true,
        origin: Origin::Base("/base".into()),
        base_mark: Some(7),
        new_timeline: false,
        follow: None,
        keep_identity: true,
        settings: vec![("a".into(), "b".into())],
        protection: None,
        upkeep: Upkeep {
            pool: Some(Pool { size: 2, max_age_s: 60 }),
            expiry: Some(Expiry { at: Some("2026-01-02T03:04:05Z".into()), idle_s: Some(60) }),
            schedule: Some(Schedule { every_s: 3600, keep: 24 }),
            dump: Some(dumps()),
        },
        masks: vec![Mask { database: "shop".into(), how: How::Anon }],
        mask_forks: vec![Mask {
            database: "shop".into(),
            how: How::Script { name: "mask.sql".into(), text: "DELETE FROM t;".into() },
        }],
    };
    let settings = vec![("work_mem".to_string(), "5MB".to_string())];
    let spec = ForkSpec {
        parent: fork(),
        snapshot: None,
        child: "pr42".into(),
        port: None,
        listen: "*".into(),
        settings,
        new_timeline: false,
        keep_identity: false,
        quota: Some(5),
        ephemeral: true,
        leased: true,
        incomplete: true,
        as_is: true,
        aside: true,
        masks: vec![Mask { database: "shop".into(), how: How::Program("/mask".into()) }],
        expiry: None,
    };
    let inspect = InspectSpec { scrub: true, fork: Some(fork()), ..InspectSpec::default() };
    let all = [
        Request::Hello,
        Request::Status,
        Request::List,
        Request::Info { fork: fork(), layout: true },
        Request::Create(Box::new(CreateSpec { fork: fork(), meta, port: Some(6001), quota: None })),
        Request::Publish { fork: fork() },
        Request::Fork(spec),
        Request::Remove { fork: fork() },
        Request::Sync { fork: fork() },
        Request::SetPort { fork: fork(), port: 6002 },
        Request::SetQuota { fork: fork(), bytes: Some(1) },
        Request::Inspect(inspect),
        Request::Restore { fork: fork(), path: "base/5/1".into(), block: 7 },
        Request::Shutdown { force: true },
        Request::Take { parent: fork() },
        Request::SetPool { fork: fork(), pool: None },
        Request::SetExpiry { fork: fork(), expiry: Some(Expiry { at: None, idle_s: Some(5) }) },
        Request::Dumps { fork: None },
        Request::SetDumps { fork: fork(), schedule: Some(dumps()) },
        Request::CancelDump { fork: fork() },
        Request::SetSchedule { fork: fork(), schedule: Some(Schedule { every_s: 1, keep: 2 }) },
        Request::Stats { fork: Some(fork()) },
        Request::Diff {
            a: Side { fork: fork(), label: Some("seeded".into()) },
            b: Side { fork: fork(), label: None },
        },
        Request::Usage { fork: fork() },
    ];
    all.iter().map(|request| (survives(request) + "\n").into_bytes()).collect()
}

/// What the daemon sends to a client.
fn reply(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(reply) = serde_json::from_str::<Reply>(text) else { return };
    survives(&reply);
    fn as_a<T: Serialize + DeserializeOwned>(value: &Value) {
        if let Ok(value) = serde_json::from_value::<T>(value.clone()) {
            survives(&value);
        }
    }
    match &reply {
        Reply::Ok(value) => {
            as_a::<Hello>(value);
            as_a::<DaemonStatus>(value);
            as_a::<Vec<ForkRow>>(value);
            as_a::<ForkRow>(value);
            as_a::<Created>(value);
            as_a::<Forked>(value);
            as_a::<Inspected>(value);
            as_a::<Stats>(value);
            as_a::<Vec<FileChangeRow>>(value);
            as_a::<Vec<FileUsageRow>>(value);
        }
        Reply::Progress(value) => as_a::<Progress>(value),
        Reply::Error(error) => {
            error.render(true);
            error.kind.exit_code();
        }
    }
}

fn replies() -> Vec<Vec<u8>> {
    let create = requests().swap_remove(4);
    let create: Value = serde_json::from_slice(&create).expect("a request");
    let meta: ForkMeta = serde_json::from_value(create["meta"].clone()).expect("settings");
    let row = ForkRow {
        name: "pr42".into(),
        parent: Some("main".into()),
        created_at: "2026-01-02T03:04:05.678Z".into(),
        depth: 2,
        delta_bytes: 8192,
        wal_bytes: 16 << 20,
        quota_bytes: None,
        used_bytes: 1,
        ephemeral: true,
        pooled: true,
        logical_bytes: 1 << 30,
        base: None,
        fault: Some("a flush failed".into()),
        base_changed: false,
        pgdata: "/m/pr42".into(),
        meta: meta.clone(),
        pid_file: Some("12\n/m/pr42\n".into()),
        layout: Some((7, 2)),
    };
    let hello = Hello { protocol: PROTOCOL, version: "0.1.0".into(), pid: 7, mountpoint: "/m".into() };
    let requests = vec![("read".to_string(), 5)];
    let status = DaemonStatus {
        forks: 1,
        layers: 2,
        map_entries: 3,
        map_memory_bytes: 4,
        store_bytes: 5,
        used_bytes: 4,
        shared_bytes: 3,
        pools: Vec::new(),
        dumps: Vec::new(),
        layers_to_merge: 1,
        merging_pages: Some(6),
        reclaimable_bytes: 2,
        reclaimed_bytes: 1,
        uptime_s: 1.5,
        transport: "device".into(),
        requests,
    };
    let finding = FindingRow {
        kind: "page".into(),
        message: "its CRC does not match".into(),
        forks: vec!["main".into()],
        path: Some("base/5/1".into()),
        block: Some(7),
        next_step: "restore it".into(),
        repairable: true,
    };
    let leftovers = vec![LeftoverRow { what: "delta/00000009".into(), bytes: 9 }];
    let found = Inspected { findings: vec![finding], leftovers, pages: 3, ..Inspected::default() };
    let forked = Forked {
        row: row.clone(),
        fork_ms: 1.25,
        stall_ms: 0.001,
        map_bytes: 300,
        warnings: vec!["w".into()],
    };
    let created = Created { pgdata: "/m/main".into(), meta };
    fn value<T: Serialize>(value: &T) -> Value {
        serde_json::to_value(value).expect("it can be written")
    }
    let error =
        crate::error::Error::new(crate::error::Kind::State, "it runs").cause("c").hint("h").detail("d");
    let all = [
        Reply::Ok(value(&row)),
        Reply::Ok(Value::Array(vec![value(&row)])),
        Reply::Ok(value(&hello)),
        Reply::Ok(value(&status)),
        Reply::Ok(value(&found)),
        Reply::Ok(value(&forked)),
        Reply::Ok(value(&created)),
        Reply::Progress(value(&Progress { bytes: 1, total: 2 })),
        Reply::Error(error),
    ];
    all.iter().map(|reply| survives(reply).into_bytes()).collect()
}

/// `config.json`, the settings that the store keeps for a fork, and the words in
/// them.
fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(config) = serde_json::from_str::<StoreConfig>(text) {
        survives(&config);
        let pretty = serde_json::to_string_pretty(&config).expect("it can be written");
        assert_eq!(serde_json::from_str::<StoreConfig>(&pretty).expect("what was saved"), config);
    }
    if let Ok(meta) = ForkMeta::decode("x", input) {
        let bytes = meta.encode().expect("it can be written");
        assert_eq!(ForkMeta::decode("x", &bytes).expect("what was written"), meta);
        for with_password in [false, true] {
            let url = meta.tcp_url("a b", with_password).unwrap_or_default() + &meta.socket_url("a b");
            assert!(url.is_ascii() && !url.contains(' '), "{url}");
        }
        assert!(!format!("{meta:?}").contains("Secret(\""), "a secret is shown");
    }
    if let Ok(keep) = text.parse::<KeepFree>() {
        assert_eq!(String::from(keep).parse(), Ok(keep));
    }
    if let Ok(range) = text.parse::<PortRange>() {
        assert_eq!(range.to_string().parse(), Ok(range));
    }
}

fn settings_seeds() -> Vec<Vec<u8>> {
    let config = StoreConfig {
        mountpoint: Some("/x".into()),
        port_range: "6000-6999".parse().expect("a range"),
        run_as: Some("postgres".into()),
        keep_free: Some(KeepFree::Percent(7)),
        map_memory: Some(MapMemory(1 << 30)),
    };
    let create: Value = serde_json::from_slice(&requests().swap_remove(4)).expect("a request");
    let texts = [survives(&config), create["meta"].to_string(), "10%".into(), "64MB".into(), "1-2".into()];
    texts.into_iter().map(String::into_bytes).collect()
}

/// `global/pg_control` and `postmaster.pid`.
fn cluster_files(input: &[u8]) {
    if let Some(control) = Control::parse(input) {
        // Whatever a server changes, it shows.
        let mut changed = input.to_vec();
        changed[16] ^= 1;
        assert_ne!(Control::parse(&changed).map(|c| c.mark), Some(control.mark));
    }
    let text = String::from_utf8_lossy(input);
    assert!(pid_file::process(&text).is_none_or(|pid| pid >= 0));
    assert!(pid_file::status(&text).is_none_or(|status| !status.contains('\n')));
    // Any other bytes around what is looked for.
    let mut rest = Bytes(input);
    let (state, block_size, at) = (rest.u8(), rest.u16(), usize::from(rest.u8()) % 60 * 8);
    let mut control = rest.0.to_vec();
    control.resize(512, 0);
    // The number's first appearance counts.
    control.iter_mut().for_each(|b| *b &= 0x7f);
    control[16..20].copy_from_slice(&u32::from(state).to_le_bytes());
    if at < 24 {
        return;
    }
    control[at..at + 8].copy_from_slice(&1_234_567.0f64.to_le_bytes());
    control[at + 8..at + 12].copy_from_slice(&u32::from(block_size).to_le_bytes());
    let found = Control::parse(&control).expect("all of it is there");
    assert_eq!((found.block_size, found.clean), (block_size.into(), state == 1 || state == 2));
}

fn cluster_files_seeds() -> Vec<Vec<u8>> {
    let mut control = vec![0; 300];
    control[16] = 1;
    control[216..224].copy_from_slice(&1_234_567.0f64.to_le_bytes());
    control[224..228].copy_from_slice(&8192u32.to_le_bytes());
    let pid = "12\n/d\n1700000000\n6001\n/s\nlocalhost\n  1 2\nready   \n";
    vec![control, pid.into(), vec![1, 0, 32, 27, 9, 9, 9]]
}
