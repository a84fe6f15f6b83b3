//! Groups of system calls, with conditions on their arguments.
//!
//! The kernel caches which calls a filter allows regardless of their arguments, and does not run
//! the filter for those. Calls on hot paths therefore have no conditions.

use libc::{c_int, c_long};

/// A call that a filter allows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// With any arguments.
    Any(c_long),
    /// If all of the conditions hold.
    If(c_long, &'static [Test]),
    /// The ioctls on host devices, if there are such endpoints.
    HostIoctls,
    /// The same ioctls, only in tests with mock devices of the kernel.
    TestIoctls,
}

/// A condition on an argument, by its index. Only the lower 32 bits are compared, as the kernel does,
/// unless noted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    /// Equals a value.
    Is(u8, u32),
    /// Equals a value (third) in the bits of a mask (second).
    Bits(u8, u32, u32),
    /// Is a null pointer, in all 64 bits.
    Null(u8),
    /// Is the ID of this process.
    OwnProcess(u8),
}

use Call::{Any, HostIoctls, If, TestIoctls};
use Test::{Bits, Is, Null, OwnProcess};

/// Memory is never executable.
const NO_EXEC: &[Test] = &[Bits(2, libc::PROT_EXEC as u32, 0)];

/// Flags that trace the new task or move it to other namespaces.
const CLONE_OTHER: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE;

/// The call refers to a file descriptor instead of a path.
const OF_DESCRIPTOR: u32 = libc::AT_EMPTY_PATH as u32;

/// Calls of every thread: memory, locks, clocks, the log, exit.
pub(super) const COMMON: &[Call] = &[
    Any(libc::SYS_brk),
    If(libc::SYS_mmap, NO_EXEC),
    If(libc::SYS_mprotect, NO_EXEC),
    Any(libc::SYS_mremap),
    Any(libc::SYS_munmap),
    Any(libc::SYS_madvise),
    Any(libc::SYS_futex),
    Any(libc::SYS_membarrier),
    Any(libc::SYS_sched_yield),
    // If the vDSO cannot read the clock.
    Any(libc::SYS_clock_gettime),
    Any(libc::SYS_gettimeofday),
    Any(libc::SYS_clock_nanosleep),
    Any(libc::SYS_nanosleep),
    Any(libc::SYS_restart_syscall),
    Any(libc::SYS_getrandom),
    Any(libc::SYS_read),
    Any(libc::SYS_write),
    Any(libc::SYS_writev),
    Any(libc::SYS_close),
    // In debug builds the standard library checks that a descriptor that it closes is open.
    If(libc::SYS_fcntl, &[Is(1, libc::F_GETFD as u32)]),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_sigaltstack),
    // abort() and the standard library's handler of stack overflows restore the default action.
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGABRT as u32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGSEGV as u32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGBUS as u32)]),
    If(libc::SYS_tgkill, &[OwnProcess(0)]),
    Any(libc::SYS_getpid),
    Any(libc::SYS_gettid),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
];

/// Calls that start a thread and enter its role.
pub(super) const THREADS: &[Call] = &[
    If(
        libc::SYS_clone,
        &[Bits(0, (libc::CLONE_THREAD | CLONE_OTHER) as u32, libc::CLONE_THREAD as u32)],
    ),
    // Fails with ENOSYS by another filter, as its flags are in memory, which a filter cannot read.
    // The C library then calls `clone`.
    Any(libc::SYS_clone3),
    // C libraries handle the signals that they reserve once the first thread is started.
    If(libc::SYS_rt_sigaction, &[Is(0, 32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, 33)]),
    If(libc::SYS_rt_sigaction, &[Is(0, 34)]),
    Any(libc::SYS_set_robust_list),
    Any(libc::SYS_rseq),
    Any(libc::SYS_set_tid_address),
    Any(libc::SYS_sched_getaffinity),
    If(libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME as u32)]),
    If(libc::SYS_prctl, &[Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)]),
    // A further filter can only restrict.
    If(libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER)]),
];

/// Calls that wait for several descriptors.
pub(super) const POLL: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_poll),
    Any(libc::SYS_ppoll),
];

/// Calls that accept a connection.
pub(super) const ACCEPT: &[Call] = &[
    Any(libc::SYS_accept4),
    If(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
    If(libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u32)]),
    // musl sets the flag again.
    If(libc::SYS_fcntl, &[Is(1, libc::F_SETFD as u32)]),
];

/// Calls that exchange messages with descriptors over a connection.
pub(super) const MESSAGES: &[Call] = &[
    Any(libc::SYS_recvfrom),
    Any(libc::SYS_recvmsg),
    Any(libc::SYS_sendmsg),
    // Hot, so without a condition on the address: `sendmsg` has one in memory, too, which a filter
    // cannot read.
    Any(libc::SYS_sendto),
    Any(libc::SYS_shutdown),
];

/// Calls that receive bytes from a connection.
pub(super) const RECEIVE: &[Call] = &[Any(libc::SYS_recvfrom)];

/// Calls that send bytes over a connection.
pub(super) const SEND: &[Call] = &[If(libc::SYS_sendto, &[Null(4)])];

/// Calls that determine the size and identity of a file of guest memory, by its descriptor.
pub(super) const MEMORY_REGIONS: &[Call] = &[
    Any(libc::SYS_lseek),
    Any(libc::SYS_fstat),
    If(libc::SYS_newfstatat, &[Bits(3, OF_DESCRIPTOR, OF_DESCRIPTOR)]),
    If(libc::SYS_statx, &[Bits(2, OF_DESCRIPTOR, OF_DESCRIPTOR)]),
];

/// Calls that create the descriptors of the threads which serve a connection.
pub(super) const CREATE_EVENTS: &[Call] = &[
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_timerfd_create),
    If(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
];

/// Calls that wait for events of a virtqueue.
pub(super) const EPOLL: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_epoll_wait),
    Any(libc::SYS_epoll_pwait),
];

/// Calls that set the scheduling policy of the calling thread.
pub(super) const SCHEDULING: &[Call] =
    &[If(libc::SYS_sched_getattr, &[Is(0, 0)]), If(libc::SYS_sched_setattr, &[Is(0, 0)])];

/// Calls that arm the timer of the fault path, on delivery of a fault.
pub(super) const FAULT_TIMER: &[Call] = &[Any(libc::SYS_timerfd_settime)];

/// Calls that shut a connection down.
pub(super) const SHUTDOWN: &[Call] = &[Any(libc::SYS_shutdown)];

/// Calls that remove the sockets on exit.
pub(super) const REMOVE_SOCKETS: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_unlink),
    If(libc::SYS_unlinkat, &[Is(2, 0)]),
];

/// Calls that change the mappings of host devices.
pub(super) const HOST: &[Call] = &[HostIoctls];

/// Calls that access a mock device of the kernel.
pub(super) const MOCK_DEVICE: &[Call] = &[TestIoctls];
