//! A word with the scheduler: guest CPUs spin while they wait for the request thread.

use std::io;

const SIZE: u32 = size_of::<libc::sched_attr>() as u32;

/// The slice asked for, in nanoseconds: the kernel's minimum.
const SLICE_NS: u64 = 100_000;

/// The lowest real-time priority: above everything that is not real-time.
const REALTIME_PRIORITY: u32 = 1;

/// How a thread is scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheduling {
    /// As whoever started the daemon has chosen, with the shortest time slice: it runs soon
    /// after it wakes, and not more than others. Requirements no privilege; kernels older than Linux
    /// 6.12 ignore it.
    #[default]
    Normal,
    /// SCHED_RR: it runs at once when it wakes, and as long as it likes.
    Realtime,
}

/// Schedules the calling thread so. What the kernel refuses is logged; the thread goes on.
pub fn apply(scheduling: Scheduling) {
    let applied = match scheduling {
        Scheduling::Normal => shorten_slice(),
        Scheduling::Realtime => set_realtime(),
    };
    if let Err(error) = applied {
        log::warn!("{scheduling:?} scheduling of the request thread: {error}");
    }
}

/// Whether [`Scheduling::Realtime`] will be granted.
///
/// # Errors
/// The kernel's answer when it will not.
pub fn check_realtime() -> io::Result<()> {
    // In a thread of its own, because it changes the one that asks.
    std::thread::Builder::new()
        .spawn(set_realtime)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that asked has panicked")))
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

/// Of the calling thread.
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

/// Of the calling thread.
fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    let pointer: *const libc::sched_attr = attributes;
    // SAFETY: sched_setattr(2) of the calling thread (0) reads `size` bytes of the structure,
    // which outlives the call, and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, pointer, 0) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
