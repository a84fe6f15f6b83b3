//! The C library's allocator, which reads files the first time that it needs certain values.

/// Has the allocator determine these values now, before the sandbox denies access to files.
#[cfg(target_env = "gnu")]
pub(super) fn warm_up() {
    set_arena_limit();
    shrink_an_arena();
}

/// glibc reads the number of processors from a file when many threads allocate, to limit the number
/// of arenas. Sets the limit that it would compute.
#[cfg(target_env = "gnu")]
fn set_arena_limit() {
    const ARENAS_PER_CORE: usize = 8;
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let arenas = i32::try_from(cores * ARENAS_PER_CORE).unwrap_or(i32::MAX);
    // SAFETY: mallopt(3) takes two integers and changes a limit under the allocator's lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
}

/// glibc reads `/proc/sys/vm/overcommit_memory` the first time that the arena of a thread shrinks.
/// Shrinks an arena now.
#[cfg(target_env = "gnu")]
fn shrink_an_arena() {
    /// Small enough to be allocated in the arena, and in total large enough to shrink it.
    const SIZE: usize = 64 << 10;
    const COUNT: usize = 64;
    fn use_arena() {
        let blocks = (0..COUNT).map(|_| std::hint::black_box(Vec::<u8>::with_capacity(SIZE)));
        drop(blocks.collect::<Vec<_>>());
    }
    // If this thread cannot be started, no other thread with an arena can.
    let _ = std::thread::Builder::new().spawn(use_arena).map(std::thread::JoinHandle::join);
}

/// Other C libraries read no files.
#[cfg(not(target_env = "gnu"))]
pub(super) fn warm_up() {}
