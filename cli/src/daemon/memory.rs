//! The allocator, as a daemon that lives for months needs it.

/// The GNU C library gives threads their memory from up to eight arenas for each CPU, and
/// what is free in one is of no use to the others. And what it once had to give back to
/// the system it takes from arenas the next time, up to 32 MiB at once, so that the
/// buffers of one compaction of the block map leave holes for good. One arena for each
/// CPU is enough for nobody to wait, and large buffers come from the system every time.
///
/// For the start of a daemon, before it has threads. mallopt(3); who sets one of its
/// variables knows better.
#[cfg(target_env = "gnu")]
pub fn keep_little() {
    let cpus = std::thread::available_parallelism().map_or(2, |n| n.get().max(2));
    let settings = [
        ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, i32::try_from(cpus).unwrap_or(i32::MAX)),
        ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, 256 << 10),
    ];
    for (variable, parameter, value) in settings {
        if std::env::var_os(variable).is_some() {
            continue;
        }
        // SAFETY: it sets a number of the allocator's, under the allocator's own lock.
        let set = unsafe { libc::mallopt(parameter, value) };
        if set == 0 {
            log::info!("{variable} cannot be set");
        }
    }
}

/// Others have nothing to set.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little() {}
