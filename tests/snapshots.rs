//! Snapshots, resets and roots, as the core has them. `tests/model.rs` crashes in
//! them; here are errors, what goes along, and other forks at work meanwhile.

#[path = "common/mem.rs"]
mod mem;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use mem::{B, Parts3, cluster, collect, file, fork, page, read};
use pgcowfs::{Error, FileId, Fork, ResetTo, Store};

fn labels(store: &Store, fork: &str) -> Vec<String> {
    store.snapshots(fork).unwrap().into_iter().map(|s| s.label).collect()
}

fn fork_of_snapshot(store: &Store, of: &str, label: &str, child: &str) -> Arc<Fork> {
    store.fork_snapshot(of, label, child, b"", &mut |_| Ok(())).unwrap();
    store.by_name(child).unwrap()
}

fn write(fork: &Fork, file: FileId, byte: u8) {
    fork.write(file, 0, &page(byte)).unwrap();
}

fn check(store: &Store) {
    assert_eq!(store.check(true).unwrap(), Vec::<String>::new());
}

#[test]
fn a_snapshot_stays_what_the_fork_was() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let (f, wal) = (file(&main, "base/5/16384"), file(&main, "pg_wal/000000010000000000000001"));
    for byte in 1..4 {
        write(&main, f, byte);
        write(&main, wal, byte);
        store.snapshot("main", &format!("v{byte}")).unwrap();
    }
    write(&main, f, 9);
    write(&main, wal, 9);
    assert_eq!(labels(&store, "main"), ["v1", "v2", "v3"]);
    store.remove_snapshot("main", "v2").unwrap();
    collect(&store);
    check(&store);
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(labels(&store, "main"), ["v1", "v3"]);
    for (label, byte) in [("v1", 1), ("v3", 3)] {
        let child = fork_of_snapshot(&store, "main", label, &format!("of-{label}"));
        assert_eq!(read(&child, f, 0, B), page(byte));
        assert_eq!(read(&child, wal, 0, B), page(byte));
        write(&child, f, 77);
    }
    // Whatever goes first: the forks have all they need.
    store.remove_snapshot("main", "v1").unwrap();
    store.remove("main").unwrap();
    collect(&store);
    for name in ["of-v1", "of-v3"] {
        assert_eq!(read(&store.by_name(name).unwrap(), f, 0, B), page(77));
    }
    check(&store);
    store.close().unwrap();
}

#[test]
fn a_reset_fork_keeps_its_name_and_what_belongs_to_it() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    store.fork("main", "child", b"what the caller keeps", &mut |_| Ok(())).unwrap();
    let child = store.by_name("child").unwrap();
    store.set_quota("child", Some(1 << 30)).unwrap();
    write(&child, f, 2);
    store.snapshot("child", "two").unwrap();
    write(&child, f, 3);
    child.open(f).unwrap();

    store.reset("child", &ResetTo::Origin, None, &mut |_| Ok(())).unwrap();
    assert!(matches!(child.read(f, 0, B as usize, &mut Vec::new()), Err(Error::Stale)));
    let child = store.by_name("child").unwrap();
    assert_eq!(read(&child, f, 0, B), page(1));
    let info = store.info("child").unwrap();
    assert_eq!(info.meta, b"what the caller keeps");
    assert_eq!(info.quota_bytes, Some(1 << 30));
    assert_eq!(info.parent.as_deref(), Some("main"));
    assert_eq!(labels(&store, "child"), ["two"]);

    store.reset("child", &ResetTo::Snapshot("two".into()), None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(2));
    write(&main, f, 5);
    store.reset("child", &ResetTo::Parent, None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(5));
    // From now on that is what it was made from.
    write(&main, f, 6);
    store.reset("child", &ResetTo::Origin, None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(5));
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(5));
    assert_eq!(store.info("child").unwrap().quota_bytes, Some(1 << 30));
    assert_eq!(labels(&store, "child"), ["two"]);
    // The parent may be gone.
    store.remove("main").unwrap();
    collect(&store);
    store.reset("child", &ResetTo::Origin, None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(5));
    check(&store);
    store.close().unwrap();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    let child = fork(&store, "main", "child");
    write(&child, f, 2);
    store.snapshot("child", "one").unwrap();
    let edit = &mut |_: &Fork| Ok(());
    assert!(matches!(store.snapshot("child", "one"), Err(Error::SnapshotExists(..))));
    assert!(matches!(store.snapshot("child", "a/b"), Err(Error::BadLabel { .. })));
    assert!(matches!(store.remove_snapshot("child", ""), Err(Error::NoSuchSnapshot(..))));
    assert!(matches!(store.snapshot("none", "one"), Err(Error::NoSuchFork(_))));
    assert!(matches!(store.remove_snapshot("child", "two"), Err(Error::NoSuchSnapshot(..))));
    let missing = store.fork_snapshot("child", "two", "x", b"", edit).unwrap_err();
    assert!(matches!(missing, Error::NoSuchSnapshot(fork, label) if (&*fork, &*label) == ("child", "two")));
    assert!(matches!(store.fork_snapshot("child", "one", "main", b"", edit), Err(Error::ForkExists(_))));
    let two = ResetTo::Snapshot("two".into());
    assert!(matches!(store.reset("child", &two, None, edit), Err(Error::NoSuchSnapshot(..))));
    assert!(matches!(store.reset("main", &ResetTo::Origin, None, edit), Err(Error::NoOrigin(_))));
    assert!(matches!(store.reset("main", &ResetTo::Parent, None, edit), Err(Error::NoOrigin(_))));
    assert!(matches!(store.promote("main"), Err(Error::NoOrigin(_))));
    for to in [ResetTo::Origin, ResetTo::Parent, ResetTo::Snapshot("one".into())] {
        let failed = store.reset("child", &to, None, &mut |_| Err(Error::Unsupported));
        assert!(matches!(failed, Err(Error::Unsupported)));
    }
    collect(&store);
    assert_eq!(read(&child, f, 0, B), page(2));
    assert_eq!(labels(&store, "child"), ["one"]);
    assert_eq!(store.forks().len(), 2);
    check(&store);
    store.close().unwrap();
}

#[test]
fn a_promoted_fork_gives_back_what_it_was_made_from() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    (0..50).for_each(|block| main.write(f, block * B, &page(1)).unwrap());
    let child = fork(&store, "main", "child");
    (0..50).for_each(|block| child.write(f, block * B, &page(2)).unwrap());
    child.sync_all().unwrap();
    store.remove("main").unwrap();
    collect(&store);
    assert_eq!(store.info("child").unwrap().delta_bytes, 100 * B, "it can still be put back");
    store.promote("child").unwrap();
    collect(&store);
    let info = store.info("child").unwrap();
    assert_eq!((info.delta_bytes, info.parent), (50 * B, None));
    assert!(matches!(store.promote("child"), Err(Error::NoOrigin(_))));
    assert_eq!(read(&child, f, 49 * B, B), page(2));
    check(&store);
    store.close().unwrap();
}

/// A fork that was put back to a snapshot can still be put back to what it was made
/// from; a root cannot, for it was made from nothing.
#[test]
fn a_reset_to_a_snapshot_is_no_new_origin() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    store.snapshot("main", "one").unwrap();
    let child = fork(&store, "main", "child");
    write(&child, f, 2);
    store.snapshot("child", "two").unwrap();
    write(&child, f, 3);
    let edit = &mut |_: &Fork| Ok(());
    store.reset("child", &ResetTo::Snapshot("two".into()), Some(b"other"), edit).unwrap();
    assert_eq!(store.info("child").unwrap().meta, b"other");
    collect(&store);
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(2));
    store.reset("child", &ResetTo::Origin, None, edit).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(1));
    store.reset("main", &ResetTo::Snapshot("one".into()), None, edit).unwrap();
    assert!(matches!(store.reset("main", &ResetTo::Origin, None, edit), Err(Error::NoOrigin(_))));
    check(&store);
    store.close().unwrap();
}

#[test]
fn a_snapshot_knows_its_size_and_what_was_made_from_it() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    (0..50).for_each(|block| main.write(f, block * B, &page(1)).unwrap());
    store.snapshot("main", "full").unwrap();
    (0..3).for_each(|block| main.write(f, block * B, &page(2)).unwrap());
    store.snapshot("main", "a-little").unwrap();
    write(&main, f, 3);
    fork_of_snapshot(&store, "main", "full", "b");
    fork_of_snapshot(&store, "main", "full", "a");
    fork(&store, "main", "c");
    store.snapshot("c", "of-c").unwrap();
    fork(&store, "a", "of-a");
    let described = |store: &Store| -> Vec<(String, String, u64, String)> {
        let all = store.all_snapshots().into_iter();
        all.map(|s| (s.fork, s.label, s.changed_bytes / B, s.forks.join(" "))).collect()
    };
    let row = |fork: &str, label: &str, pages, forks: &str| {
        (fork.to_string(), label.to_string(), pages, forks.to_string())
    };
    let mut rows = [row("c", "of-c", 0, ""), row("main", "full", 50, "a b"), row("main", "a-little", 3, "")];
    assert_eq!(described(&store), rows);
    // A promoted fork was made from nothing.
    store.promote("a").unwrap();
    rows[1].3 = "b".into();
    collect(&store);
    assert_eq!(described(&store), rows);
    assert_eq!(store.snapshots("main").unwrap().len(), 2);
    store.close().unwrap();
    let store = parts.open();
    assert_eq!(described(&store), rows);
    store.close().unwrap();
}

/// Its forks know it by the new name; files stay open; who was there before a
/// restart is there after it.
#[test]
fn a_renamed_fork_is_the_same_fork() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    store.snapshot("main", "one").unwrap();
    for name in ["a", "b"] {
        fork(&store, "main", name);
    }
    fork(&store, "a", "of-a");
    store.set_quota("main", Some(1 << 30)).unwrap();
    main.open(f).unwrap();
    write(&main, f, 2);
    for (old, new) in [("main", "a"), ("main", "main"), ("a", "b")] {
        assert!(matches!(store.rename(old, new), Err(Error::ForkExists(_))), "{old} {new}");
    }
    assert!(matches!(store.rename("main", "x/y"), Err(Error::BadForkName { .. })));
    assert!(matches!(store.rename("none", "x"), Err(Error::NoSuchFork(_))));
    store.rename("main", "trunk").unwrap();
    let look = |store: &Store| {
        let parents = store.forks().into_iter().map(|f| (f.name, f.parent));
        let parents: Vec<String> =
            parents.map(|(name, parent)| format!("{name}<{}", parent.unwrap_or_default())).collect();
        assert_eq!(parents, ["a<trunk", "b<trunk", "of-a<a", "trunk<"]);
        assert!(matches!(store.by_name("main"), Err(Error::NoSuchFork(_))));
        assert_eq!(labels(store, "trunk"), ["one"]);
        assert_eq!(store.info("trunk").unwrap().quota_bytes, Some(1 << 30));
    };
    look(&store);
    assert_eq!((main.name(), read(&main, f, 0, B)), ("trunk".to_string(), page(2)));
    write(&main, f, 3);
    main.sync_all().unwrap();
    store.close().unwrap();
    // Nobody has used them since the start.
    let store = parts.open();
    look(&store);
    store.rename("a", "c").unwrap();
    store.rename("c", "a").unwrap();
    look(&store);
    assert_eq!(read(&store.by_name("trunk").unwrap(), f, 0, B), page(3));
    store.reset("b", &ResetTo::Parent, None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("b").unwrap(), f, 0, B), page(3));
    // The name is free again.
    cluster(&store, "main");
    check(&store);
    store.close().unwrap();
}

/// Forks, snapshots and resets come and go in any order while others write: each
/// fork has its own bytes, and nothing is left at the end.
#[test]
fn everything_at_once() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    (0..200).for_each(|block| main.write(f, block * B, &page(1)).unwrap());
    main.sync_all().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u64.. {
                if stop.load(SeqCst) {
                    break;
                }
                main.write(f, n * 7 % 200 * B, &page(1 + (n % 100) as u8)).unwrap();
                if n % 50 == 0 {
                    main.sync_all().unwrap();
                }
            }
        });
        let workers: Vec<_> = (0..3u64)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..30u64 {
                        let name = format!("w{worker}-{round}");
                        let child = fork(store, "main", &name);
                        let mark = 100 + (worker * 30 + round) as u8;
                        (0..20).for_each(|block| child.write(f, block * 9 * B, &page(mark)).unwrap());
                        store.snapshot(&name, "mine").unwrap();
                        write(&child, f, 0);
                        if round % 3 == 0 {
                            store
                                .reset(&name, &ResetTo::Snapshot("mine".into()), None, &mut |_| Ok(()))
                                .unwrap();
                            let child = store.by_name(&name).unwrap();
                            (0..20)
                                .for_each(|block| assert_eq!(read(&child, f, block * 9 * B, B), page(mark)));
                        }
                        let grandchild = fork_of_snapshot(store, &name, "mine", &format!("{name}-child"));
                        let mut last = name.clone();
                        match round % 3 {
                            0 => store.promote(&name).unwrap(),
                            1 => store.remove_snapshot(&name, "mine").unwrap(),
                            _ => {
                                last += "-renamed";
                                store.rename(&name, &last).unwrap();
                                assert_eq!(
                                    store.info(&grandchild.name()).unwrap().parent,
                                    Some(last.clone())
                                );
                            }
                        }
                        store.remove(&last).unwrap();
                        (0..20)
                            .for_each(|block| assert_eq!(read(&grandchild, f, block * 9 * B, B), page(mark)));
                        if round % 2 == 0 {
                            store.remove(&grandchild.name()).unwrap();
                        }
                    }
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            while !stop.load(SeqCst) {
                let findings = store.check_records(&mut || true).unwrap().findings;
                assert!(findings.is_empty(), "{findings:#?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, SeqCst);
        watcher.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    main.sync_all().unwrap();
    collect(&store);
    check(&store);
    for info in store.forks() {
        if info.name != "main" {
            store.remove(&info.name).unwrap();
        }
    }
    collect(&store);
    check(&store);
    assert_eq!(store.layers(), 2);
    assert_eq!(store.info("main").unwrap().delta_bytes, 200 * B);
    store.close().unwrap();
}

#[test]
fn an_incomplete_fork_is_its_makers() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    let incomplete = |fork: &Fork| {
        fork.set_incomplete();
        Ok(())
    };
    store.snapshot("main", "one").unwrap();
    store.fork_snapshot("main", "one", "made", b"", &mut |fork| incomplete(fork)).unwrap();
    store.fork("main", "left", b"", &mut |fork| incomplete(fork)).unwrap();
    assert!(store.info("made").unwrap().incomplete);
    assert!(store.all_snapshots()[0].forks.is_empty(), "nobody is told");
    assert!(matches!(store.fork("made", "x", b"", &mut |_| Ok(())), Err(Error::NoSuchFork(_))));
    assert!(matches!(store.snapshot("made", "x"), Err(Error::NoSuchFork(_))));
    let reset = |to| store.reset("made", &to, None, &mut |_| Ok(()));
    assert!(matches!(reset(ResetTo::Origin), Err(Error::NoSuchFork(_))));

    // What it is when it is published is what it was made from.
    write(&store.by_name("made").unwrap(), f, 2);
    store.publish("made").unwrap();
    write(&store.by_name("made").unwrap(), f, 3);
    reset(ResetTo::Origin).unwrap();
    assert_eq!(read(&store.by_name("made").unwrap(), f, 0, B), page(2));
    assert_eq!(store.info("made").unwrap().parent.as_deref(), Some("main"));
    store.fork("made", "gone", b"", &mut |fork| incomplete(fork)).unwrap();
    store.publish_ephemeral("gone").unwrap();
    check(&store);
    store.close().unwrap();

    // One that was never published, and one that was to end, are not there any more.
    let store = parts.open();
    let names = || store.forks().into_iter().map(|fork| fork.name).collect::<Vec<_>>();
    assert_eq!(names(), ["made", "main"]);
    store.reset("made", &ResetTo::Origin, None, &mut |_| Ok(())).unwrap();
    assert_eq!(read(&store.by_name("made").unwrap(), f, 0, B), page(2));
    check(&store);
    store.close().unwrap();
}

#[test]
fn a_fork_becomes_what_another_one_is() {
    let parts = Parts3::new();
    let store = parts.open();
    let main = cluster(&store, "main");
    let f = file(&main, "base/5/16384");
    write(&main, f, 1);
    store.snapshot("main", "one").unwrap();
    let child = fork(&store, "main", "child");
    write(&child, f, 2);
    store
        .fork("child", "new", b"", &mut |fork| {
            fork.set_incomplete();
            Ok(())
        })
        .unwrap();
    write(&store.by_name("new").unwrap(), f, 3);
    let reset = |name: &str, to| store.reset(name, &to, None, &mut |_| Ok(())).map(|_| ());
    for name in ["main", "child"] {
        reset(name, ResetTo::Fork("new".into())).unwrap();
        assert_eq!(read(&store.by_name(name).unwrap(), f, 0, B), page(3));
        write(&store.by_name(name).unwrap(), f, 9);
    }
    store.remove("new").unwrap();
    // A root stays one, with its snapshots; for a child it is what it was made from.
    assert!(matches!(reset("main", ResetTo::Origin), Err(Error::NoOrigin(_))));
    assert_eq!((store.info("main").unwrap().parent, labels(&store, "main")), (None, vec!["one".into()]));
    reset("child", ResetTo::Origin).unwrap();
    assert_eq!(read(&store.by_name("child").unwrap(), f, 0, B), page(3));
    reset("main", ResetTo::Snapshot("one".into())).unwrap();
    assert_eq!(read(&store.by_name("main").unwrap(), f, 0, B), page(1));
    assert!(matches!(reset("main", ResetTo::Fork("main".into())), Err(Error::Invalid(_))));
    assert!(matches!(reset("main", ResetTo::Fork("none".into())), Err(Error::NoSuchFork(_))));
    collect(&store);
    check(&store);
    store.close().unwrap();
}
