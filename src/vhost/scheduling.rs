//! Scheduling policy of the request thread, for which guest CPUs busy-wait.

use std::io;

const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

/// Requested time slice in nanoseconds, the kernel's minimum.
const SLICE_NS: u64 = 100_000;

/// Lowest real-time priority, above all threads without a real-time policy.
const REALTIME_PRIORITY: u32 = 1;

/// Scheduling policy of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// The policy that the daemon was started with, and the shortest time slice: the thread runs
    /// soon after it wakes up, but gets no more CPU time than others. Requires no privilege.
    /// Kernels before Linux 6.12 ignore the time slice.
    #[default]
    Normal,
    /// SCHED_RR: the thread runs immediately after it wakes up, for as long as it needs to.
    Realtime,
}

/// Sets the scheduling policy of the calling thread. An error is logged and otherwise ignored.
pub fn apply(scheduling: Scheduling) {
    let result = match scheduling {
        Scheduling::Normal => shorten_slice(),
        Scheduling::Realtime => set_realtime(),
    };
    if let Err(error) = result {
        log::warn!("cannot set {scheduling:?} scheduling of the request thread: {error}");
    }
}

/// Checks whether the kernel permits [`Scheduling::Realtime`].
///
/// # Errors
/// Returns the error of the system call if it does not.
pub fn check_realtime() -> io::Result<()> {
    // The check changes the policy of the thread that makes it, so it has a separate thread.
    std::thread::Builder::new()
        .spawn(set_realtime)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the checking thread panicked")))
}

fn set_realtime() -> io::Result<()> {
    let mut attributes = get()?;
    attributes.sched_policy = libc::SCHED_RR as u32;
    attributes.sched_nice = 0;
    attributes.sched_runtime = 0;
    attributes.sched_priority = REALTIME_PRIORITY;
    set(&attributes)
}

fn shorten_slice() -> io::Result<()> {
    let mut attributes = get()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SLICE_NS;
    set(&attributes)
}

/// Returns the scheduling attributes of the calling thread.
fn get() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: SIZE,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let pointer = &raw mut attributes;
    // SAFETY: sched_getattr(2) of the calling thread (0) writes at most `SIZE` bytes, the size of
    // the structure, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, pointer, SIZE, 0) })?;
    Ok(libc::sched_attr { size: SIZE, ..attributes })
}

/// Sets the scheduling attributes of the calling thread.
fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    let pointer: *const libc::sched_attr = attributes;
    // SAFETY: sched_setattr(2) of the calling thread (0) reads `size` bytes of the structure,
    // which outlives the call, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, pointer, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
