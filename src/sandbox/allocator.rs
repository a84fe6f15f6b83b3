//! The C library's allocator, which would open a file behind everybody's back.

/// When many threads allocate, glibc asks the file system how many processors there are, to know
/// how many arenas to make. Tells it so many as it would find.
#[cfg(target_env = "gnu")]
pub(super) fn look_at_nothing_later() {
    const ARENAS_PER_CORE: usize = 8;
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let arenas = i32::try_from(cores * ARENAS_PER_CORE).unwrap_or(i32::MAX);
    // SAFETY: mallopt(3) takes two numbers and changes a limit, under the allocator's lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn look_at_nothing_later() {}
