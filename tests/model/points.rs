//! A crash at every point of a sequence of operations, and a failure at every
//! point.
//!
//! A point is whatever reaches a device or the map: see [`Point`]. Between two
//! of them nothing changes that could survive, so that images taken before
//! each are images of every crash there is, up to what a disk does with data
//! that was not flushed: of that, four different ways are tried.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pgcowfs::Error;
use pgcowfs::device::power::Point;

use super::files::{Moments, moment_of};
use super::world::{ModelForks, Op, Rig, World, coin, compare_snapshots, family_in, family_of, lasting};

/// Images taken since they were last looked at.
type Images = Arc<Mutex<Vec<(Point, Rig)>>>;

/// Counts what was tried, for the report at the end.
#[derive(Default, Debug)]
pub struct Tried {
    pub operations: u64,
    pub points: u64,
    /// Those of them at which space goes back to the host: holes, and ends.
    pub punches: u64,
    pub cuts: u64,
    pub crashes: u64,
}

/// Does the operations, and recovers from a crash before each point of them.
pub fn crash_everywhere(ops: &[Op], seed: u64, tried: &mut Tried) {
    let mut world = World::new();
    let images = watch(&world.rig);
    let mut seed = seed | 1;
    for (number, op) in ops.iter().enumerate() {
        tried.operations += 1;
        let before = world.forks.clone();
        world.apply(op).unwrap_or_else(|e| panic!("operation {number}, {op:?}: {e}"));
        // While it is locked no further image is taken; those of the
        // background's work belong to the next operation.
        let taken = std::mem::take(&mut *images.lock());
        for (point, rig) in taken {
            tried.points += 1;
            tried.punches += u64::from(point == Point::Punch);
            tried.cuts += u64::from(point == Point::Truncate);
            for way in 0..4 {
                let image = match way {
                    0 => rig.crash(512, &mut || false),
                    1 => rig.crash(512, &mut || true),
                    2 => rig.crash(512, &mut || coin(&mut seed)),
                    _ => rig.crash(4096, &mut || coin(&mut seed)),
                };
                tried.crashes += 1;
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    is_one_of(&image, &before, &world.forks)
                }));
                match result {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => panic!(
                        "a crash (way {way}) before {point:?} in operation {number}, {op:?}, is not survived: {why}"
                    ),
                    Err(_) => panic!(
                        "after a crash (way {way}) before {point:?} in operation {number}, {op:?}, recovery panics"
                    ),
                }
            }
        }
    }
    world.rig.power.watch(None);
    world.compare();
    world.check();
    world.store.close().unwrap();
}

fn watch(rig: &Rig) -> Images {
    let images: Images = Arc::default();
    let (all, to) = (rig.clone(), images.clone());
    rig.power.watch(Some(Box::new(move |point| {
        // Reserved space holds nothing yet, and a write alone changes only
        // what the next point's image has as well.
        if !matches!(point, Point::Write | Point::Allocate) {
            let mut images = to.lock();
            let image = all.frozen();
            images.push((point, image));
        }
        Ok(())
    })));
    images
}

/// Opens what a crash has left in the middle of an operation: each fork must be
/// at a moment that it was at before it, or be as the operation leaves it.
fn is_one_of(image: &Rig, before: &ModelForks, after: &ModelForks) -> Result<(), String> {
    let (before, after) = (&lasting(before), &lasting(after));
    let store = image.open().map_err(|e| format!("the store does not open: {e}"))?;
    let family = family_in(&store);
    if ![before, after].into_iter().any(|forks| family == family_of(forks)) {
        return Err(format!("the forks and their parents are neither as before nor as after: {family:?}"));
    }
    let there: Vec<String> = family.into_keys().collect();
    for (name, model) in before.iter().filter(|(name, _)| there.contains(name)) {
        let mut moments = model.since_sync.clone();
        if let Some(after) = after.get(name) {
            moments.extend(after.since_sync.iter().cloned());
            moments.push(after.now.clone());
        }
        let fork = store.by_name(name).map_err(|e| format!("fork {name}: {e}"))?;
        moment_of(&fork, &moments)?;
    }
    for name in &there {
        match (before.get(name), after.get(name)) {
            (Some(_), _) | (None, None) => {}
            (None, Some(model)) => {
                let fork = store.by_name(name).map_err(|e| format!("fork {name}: {e}"))?;
                let moments: Moments = vec![model.now.clone()];
                moment_of(&fork, &moments)?;
            }
        }
    }
    compare_snapshots(&store, before, after)?;
    let broken = store.check(true).map_err(|e| format!("check: {e}"))?;
    if !broken.is_empty() {
        return Err(format!("check: {broken:#?}"));
    }
    store.close().map_err(|e| format!("close: {e}"))
}

/// How many points of the kinds that can fail there are in the operations.
pub fn count_points(ops: &[Op]) -> u64 {
    let world_ops = |fail_at| run_with_failure(ops, fail_at, io::ErrorKind::Other.into());
    world_ops(u64::MAX)
}

/// Does the operations with a failure of the point number `fail_at`, and looks
/// at what can be read afterwards, and at what a crash leaves. Returns how many
/// points there were.
pub fn run_with_failure(ops: &[Op], fail_at: u64, error: io::Error) -> u64 {
    let mut world = World::new();
    let seen = Arc::new(AtomicU64::new(0));
    let (counter, code) = (seen.clone(), error.raw_os_error());
    let full = code == Some(libc::ENOSPC);
    world.rig.power.watch(Some(Box::new(move |point| {
        if full && !matches!(point, Point::Allocate | Point::Write | Point::Commit) {
            return Ok(());
        }
        if counter.fetch_add(1, Ordering::SeqCst) != fail_at {
            return Ok(());
        }
        Err(code.map_or_else(
            || io::Error::other("a failure that the test asked for"),
            io::Error::from_raw_os_error,
        ))
    })));
    for (number, op) in ops.iter().enumerate() {
        match world.apply(op) {
            Ok(()) => {}
            Err(Error::Poisoned(..)) => {}
            Err(Error::NoSpace) if full => {}
            Err(_) if seen.load(Ordering::SeqCst) > fail_at => {}
            Err(e) => panic!("operation {number}, {op:?}: {e}"),
        }
        mark_stopped(&mut world);
    }
    world.rig.power.watch(None);
    // What is read is true, or an error.
    for (name, model) in &world.forks {
        if !model.stopped {
            let fork = world.store.by_name(name).unwrap();
            moment_of(&fork, &model.since_sync).unwrap_or_else(|why| panic!("{why}"));
        }
    }
    let mut seed = fail_at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let image = world.rig.crash(512, &mut || coin(&mut seed));
    is_one_of(&image, &world.forks, &world.forks).unwrap_or_else(|why| panic!("after the failure: {why}"));
    let _ = world.store.close();
    seen.load(Ordering::SeqCst)
}

/// A fork that failed stays as it was for everybody who reads the disk.
fn mark_stopped(world: &mut World) {
    let World { store, forks, .. } = world;
    for (name, model) in forks.iter_mut() {
        let fault = store.by_name(name).map(|fork| fork.fault().is_some());
        model.stopped |= fault.unwrap_or(true);
    }
}
