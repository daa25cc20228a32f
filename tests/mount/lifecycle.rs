//! Mounting, unmounting, and what each leaves behind.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use pgcowfs::mount::{Mount, MountOptions};
use pgcowfs::{Error, Options, Store};

use crate::{Mounted, errno, eventually, pattern, root, usable};

fn os_error(result: pgcowfs::Result<()>) -> i32 {
    match result {
        Err(Error::Io { source, .. }) => source.raw_os_error().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn mounted(m: &Mounted) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.contains(m.mnt.to_str().unwrap())
}

#[test]
fn a_mount_in_use_stays() {
    let Some(m) = Mounted::start() else { return };
    let file = File::create(m.path("f")).unwrap();
    assert_eq!(os_error(m.mount().unmount(false)), libc::EBUSY);
    file.write_all_at(b"still there", 0).unwrap();
    drop(file);
    // RELEASE comes from the kernel in its own time.
    eventually("it is unmounted", || m.mount().unmount(false).is_ok());
    assert!(!mounted(&m));
    m.mount().wait().unwrap();
    m.mount().unmount(false).unwrap();
    assert_eq!(fs::read_dir(&m.mnt).unwrap().count(), 0);
}

#[test]
fn a_lazy_unmount_ends_everything() {
    let Some(m) = Mounted::start() else { return };
    let file = File::create(m.path("f")).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    let start = Instant::now();
    m.mount().unmount(true).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!mounted(&m) && m.mount().ended());
    assert!([libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&errno(file.write_all_at(b"after", 0))));
    // The store has what was acknowledged, and goes on.
    assert_eq!(m.main.read_file("f").unwrap(), b"before");
}

#[test]
fn an_unmount_from_outside_ends_the_session() {
    let Some(m) = Mounted::start() else { return };
    fs::write(m.path("f"), "x").unwrap();
    let waiter = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| m.mount().wait());
        eventually("umount succeeds", || {
            let mut command = Command::new(if root() { "umount" } else { "fusermount3" });
            if !root() {
                command.arg("-u");
            }
            command.arg(&m.mnt).output().unwrap().status.success()
        });
        waiter.join().unwrap()
    });
    waiter.unwrap();
    assert!(m.mount().ended());
}

#[test]
fn dropping_unmounts() {
    let Some(mut m) = Mounted::start() else { return };
    let file = File::create(m.path("f")).unwrap();
    m.mount = None;
    assert!(!mounted(&m));
    drop(file);
}

#[test]
fn one_mount_at_a_place_and_again_afterwards() {
    let Some(m) = Mounted::start() else { return };
    let again = || Mount::start(m.store.clone(), &m.mnt, &MountOptions::default());
    assert_eq!(os_error(again().map(|_| ())), libc::EBUSY);
    fs::write(m.path("f"), "x").unwrap();
    m.mount().unmount(true).unwrap();
    let second = again().unwrap();
    assert_eq!(fs::read(m.path("f")).unwrap(), b"x");
    m.store.fork("main", "child", b"", &mut |_| Ok(())).unwrap();
    fs::metadata(m.mnt.join("child/f")).unwrap();
    m.store.remove("child").unwrap();
    second.unmount(true).unwrap();
}

#[test]
fn the_table_of_mounts_says_what_it_is() {
    let line = |options: &MountOptions| {
        let m = Mounted::with(options)?;
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(m.mnt.to_str().unwrap())).unwrap();
        let mut fields = line.split(' ').map(String::from);
        Some((fields.next().unwrap(), fields.nth(1).unwrap(), fields.next().unwrap()))
    };
    let Some((device, kind, options)) = line(&MountOptions::default()) else { return };
    assert_eq!((&*device, &*kind), ("pgcowfs", "fuse.pgcowfs"));
    assert!(
        options.contains("default_permissions") && options.contains("allow_other") == root(),
        "{options}"
    );
    let plain = MountOptions { fs_name: "/a/store".into(), subtype: None, ..Default::default() };
    let (device, kind, _) = line(&plain).unwrap();
    assert_eq!((&*device, &*kind), ("/a/store", "fuse"));
}

#[test]
fn files_outlive_mount_and_store() {
    if let Err(why) = usable() {
        println!("SKIPPED: {why}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (store_dir, mnt) = (dir.path().join("store"), dir.path().join("mnt"));
    Store::init(&store_dir).unwrap();
    fs::create_dir(&mnt).unwrap();
    // Each visit has its own daemon's worth of state.
    let visit = |work: &dyn Fn(&Store)| {
        let store = Store::open(&store_dir, Options::default()).unwrap();
        let mount = Mount::start(store.clone(), &mnt, &MountOptions::default()).unwrap();
        work(&store);
        mount.unmount(true).unwrap();
        drop(mount);
        store.close().unwrap();
    };
    let data = pattern(1, 300_000);
    let path = |name: &str| mnt.join("main/d").join(name);
    let ino = std::cell::Cell::new(0);
    visit(&|store| {
        store.create("main", nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw(), b"").unwrap();
        store.publish("main").unwrap();
        fs::create_dir(path("")).unwrap();
        fs::write(path("f"), &data).unwrap();
        std::os::unix::fs::symlink("f", path("l")).unwrap();
        fs::hard_link(path("f"), path("h")).unwrap();
        ino.set(fs::metadata(path("f")).unwrap().ino());
    });
    visit(&|_| {
        assert!(fs::read(path("l")).unwrap() == data);
        let meta = fs::metadata(path("h")).unwrap();
        assert_eq!((meta.ino(), meta.nlink()), (ino.get(), 2));
    });
}

/// What a loss of power right after a sync leaves: the store's files as they
/// are, copied from under the daemon.
#[test]
fn a_sync_makes_the_fork_durable() {
    let Some(m) = Mounted::start() else { return };
    fs::create_dir(m.path("d")).unwrap();
    type Sync<'a> = &'a dyn Fn(&File);
    let syncs: [(&str, Sync); 3] = [
        ("fsync", &|file| file.sync_all().unwrap()),
        ("fdatasync", &|file| file.sync_data().unwrap()),
        ("fsync of the directory", &|_| File::open(m.path("d")).unwrap().sync_all().unwrap()),
    ];
    for (round, (what, sync)) in (0..).zip(syncs) {
        let data = pattern(round, 100_000);
        let (name, copy) = (format!("d/{round}"), m.dir.path().join(format!("copy{round}")));
        let file = File::create(m.path(&name)).unwrap();
        file.write_all_at(&data, 0).unwrap();
        sync(&file);
        let copied =
            Command::new("cp").args(["-r", "--sparse=always"]).arg(m.store.dir()).arg(&copy).status();
        assert!(copied.unwrap().success());
        let store = Store::open(&copy, Options::default()).unwrap();
        assert!(store.by_name("main").unwrap().read_file(&name).is_ok_and(|read| read == data), "{what}");
        store.close().unwrap();
    }
}

#[test]
fn requests_come_as_the_kernel_offers() {
    let switch = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    let offered = switch.is_ok_and(|text| text.starts_with('Y'));
    for (ring, expected) in [(true, if offered { "io_uring" } else { "device" }), (false, "device")] {
        let Some(mounted) = Mounted::with(&MountOptions { ring, ..MountOptions::default() }) else { return };
        assert_eq!(mounted.mount().transport(), expected);
        fs::write(mounted.path("file"), b"text").unwrap();
        assert_eq!(fs::read(mounted.path("file")).unwrap(), b"text");
    }
    if !offered {
        println!("SKIPPED: FUSE over io_uring: /sys/module/fuse/parameters/enable_uring is not Y");
    }
}
