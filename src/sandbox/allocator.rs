//! The C library's allocator, which would open files behind everybody's back.

/// Lets the allocator find out now what it would look up in a file later.
#[cfg(target_env = "gnu")]
pub(super) fn look_at_nothing_later() {
    count_processors();
    see_whether_to_shrink();
}

/// When many threads allocate, glibc asks the file system how many processors there are, to know
/// how many arenas to make. Tells it so many as it would find.
#[cfg(target_env = "gnu")]
fn count_processors() {
    const ARENAS_PER_CORE: usize = 8;
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let arenas = i32::try_from(cores * ARENAS_PER_CORE).unwrap_or(i32::MAX);
    // SAFETY: mallopt(3) takes two numbers and changes a limit, under the allocator's lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
}

/// When the arena of a thread shrinks for the first time, glibc reads how the kernel commits
/// memory (`/proc/sys/vm/overcommit_memory`). Lets one shrink.
#[cfg(target_env = "gnu")]
fn see_whether_to_shrink() {
    /// Small enough to come from the arena, together enough to be given back.
    const SIZE: usize = 64 << 10;
    const COUNT: usize = 64;
    let use_arena = || {
        let block = |_| std::hint::black_box(Vec::<u8>::with_capacity(SIZE));
        drop((0..COUNT).map(block).collect::<Vec<_>>());
    };
    // Without a thread there will be none that has an arena.
    let _ = std::thread::Builder::new().spawn(use_arena).map(std::thread::JoinHandle::join);
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn look_at_nothing_later() {}
