//! System calls, in groups, with what their arguments have to be.
//!
//! The kernel remembers which calls a list allows whatever their arguments are, and does not run
//! the list for those again. So hot calls have no conditions here.

use libc::{c_int, c_long};

/// A call that is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// With any arguments.
    Any(c_long),
    /// If all of these hold.
    If(c_long, &'static [Test]),
    /// The ioctls on devices of the host, if there are such endpoints.
    HostIoctls,
    /// The same, but in tests only, whose endpoints are emulated by the kernel.
    TestIoctls,
}

/// What an argument has to be; only its lower 32 bits count, as for the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    /// Argument, value.
    Is(u8, u32),
    /// Argument, bits that are looked at, which of them are set.
    Bits(u8, u32, u32),
    /// A null pointer: all 64 bits.
    Null(u8),
    /// The number of this process.
    OwnProcess(u8),
}

use Call::{Any, HostIoctls, If, TestIoctls};
use Test::{Bits, Is, Null, OwnProcess};

/// Memory never becomes code.
const NO_EXEC: &[Test] = &[Bits(2, libc::PROT_EXEC as u32, 0)];

/// What makes a process rather than a thread, or puts it elsewhere.
const CLONE_OTHER: c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PTRACE;

/// A file descriptor, not a path.
const OF_DESCRIPTOR: u32 = libc::AT_EMPTY_PATH as u32;

/// What each thread does, whatever its role: memory, locks, the log, its end.
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
    // Where the vDSO has no clock.
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
    // The standard library looks whether what it closes is open, in debug builds.
    If(libc::SYS_fcntl, &[Is(1, libc::F_GETFD as u32)]),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_sigaltstack),
    // A crash stays one: abort() and what finds a stack overflow set the default action.
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGABRT as u32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGSEGV as u32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, libc::SIGBUS as u32)]),
    If(libc::SYS_tgkill, &[OwnProcess(0)]),
    Any(libc::SYS_getpid),
    Any(libc::SYS_gettid),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
];

/// To start a thread, and to give it a role.
pub(super) const THREADS: &[Call] = &[
    If(
        libc::SYS_clone,
        &[Bits(0, (libc::CLONE_THREAD | CLONE_OTHER) as u32, libc::CLONE_THREAD as u32)],
    ),
    // Answered with "there is no such call": its flags are where no list can see them. The C
    // library then takes `clone`.
    Any(libc::SYS_clone3),
    // The signals that C libraries keep for themselves: they take them with the first thread.
    If(libc::SYS_rt_sigaction, &[Is(0, 32)]),
    If(libc::SYS_rt_sigaction, &[Is(0, 33)]),
    If(libc::SYS_rt_sigaction, &[Is(0, 34)]),
    Any(libc::SYS_set_robust_list),
    Any(libc::SYS_rseq),
    Any(libc::SYS_set_tid_address),
    Any(libc::SYS_sched_getaffinity),
    If(libc::SYS_prctl, &[Is(0, libc::PR_SET_NAME as u32)]),
    If(libc::SYS_prctl, &[Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)]),
    // Another list can only take away.
    If(libc::SYS_seccomp, &[Is(0, libc::SECCOMP_SET_MODE_FILTER)]),
];

/// To wait for several descriptors.
pub(super) const POLLS: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_poll),
    Any(libc::SYS_ppoll),
];

/// To take a connection out of a socket that listens.
pub(super) const ACCEPTS: &[Call] = &[
    Any(libc::SYS_accept4),
    If(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
    If(libc::SYS_fcntl, &[Is(1, libc::F_DUPFD_CLOEXEC as u32)]),
    // musl says it again.
    If(libc::SYS_fcntl, &[Is(1, libc::F_SETFD as u32)]),
];

/// To talk over a connection, and take descriptors from it.
pub(super) const TALKS: &[Call] = &[
    Any(libc::SYS_recvfrom),
    Any(libc::SYS_recvmsg),
    Any(libc::SYS_sendmsg),
    // Hot. With an address too, as that call can have one in memory, where no list sees it.
    Any(libc::SYS_sendto),
    Any(libc::SYS_shutdown),
];

/// To read from a connection.
pub(super) const LISTENS_TO: &[Call] = &[Any(libc::SYS_recvfrom)];

/// To send over a connected socket.
pub(super) const SENDS: &[Call] = &[If(libc::SYS_sendto, &[Null(4)])];

/// To take in the guest's memory: how long the file is, and which.
pub(super) const TAKES_MEMORY: &[Call] = &[
    Any(libc::SYS_lseek),
    Any(libc::SYS_fstat),
    If(libc::SYS_newfstatat, &[Bits(3, OF_DESCRIPTOR, OF_DESCRIPTOR)]),
    If(libc::SYS_statx, &[Bits(2, OF_DESCRIPTOR, OF_DESCRIPTOR)]),
];

/// To make what serves a connection.
pub(super) const MAKES_EVENTS: &[Call] = &[
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_timerfd_create),
    If(libc::SYS_ioctl, &[Is(1, libc::FIONBIO as u32)]),
];

/// To serve a queue.
pub(super) const SERVES_QUEUE: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_epoll_wait),
    Any(libc::SYS_epoll_pwait),
];

/// To have a word with the scheduler about the calling thread.
pub(super) const SCHEDULES: &[Call] =
    &[If(libc::SYS_sched_getattr, &[Is(0, 0)]), If(libc::SYS_sched_setattr, &[Is(0, 0)])];

/// To deliver faults, which starts the clock of the fault path.
pub(super) const DELIVERS: &[Call] = &[Any(libc::SYS_timerfd_settime)];

/// To tell a connection to end.
pub(super) const SHUTS_DOWN: &[Call] = &[Any(libc::SYS_shutdown)];

/// To remove the sockets at the end.
pub(super) const REMOVES: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    Any(libc::SYS_unlink),
    If(libc::SYS_unlinkat, &[Is(2, 0)]),
];

/// To change what devices of the host reach.
pub(super) const HOST: &[Call] = &[HostIoctls];

/// What emulated devices of the kernel's do as endpoints.
pub(super) const EMULATED_BY_KERNEL: &[Call] = &[TestIoctls];
