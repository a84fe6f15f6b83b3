//! Attempts forbidden operations from inside the sandbox, for tests.
//!
//! The arguments are such that the calls are harmless where they are allowed: they succeed, or fail
//! with an error that differs from the sandbox's.

use std::ffi::{CString, c_long, c_void};
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::str::FromStr;
use std::sync::Barrier;
use std::thread;

use super::roles::ROLES;
use super::{Role, enter_role};

/// The attempts to make: all attempts in all roles, or one attempt in one role.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// Contains a file `secret`, which attempts read, and a file `victim`, which one removes.
    directory: PathBuf,
    only: Option<(String, String)>,
}

/// The text does not describe [`Attempts`].
#[derive(Debug, thiserror::Error)]
#[error("must be DIRECTORY[,ROLE,ATTEMPT]")]
pub struct ParseAttemptsError;

impl FromStr for Attempts {
    type Err = ParseAttemptsError;

    fn from_str(text: &str) -> Result<Self, ParseAttemptsError> {
        let parts: Vec<&str> = text.split(',').collect();
        let only = match parts[1..] {
            [] => None,
            [role, name] => Some((role.into(), name.into())),
            _ => return Err(ParseAttemptsError),
        };
        Ok(Self { directory: parts[0].into(), only })
    }
}

impl Attempts {
    /// Makes the attempts and prints a line for each: role, attempt, and errno or 0.
    pub fn run(&self) {
        self.run_as(None);
        for row in ROLES {
            thread::scope(|scope| scope.spawn(|| self.run_as(Some(row.role))).join()).ok();
        }
    }

    fn run_as(&self, role: Option<Role>) {
        let role_name = role.map_or("None".into(), |role| format!("{role:?}"));
        if let Some(role) = role {
            enter_role(role);
        }
        for (name, attempt) in ATTEMPTS {
            if self.only.as_ref().is_none_or(|only| only.0 == role_name && only.1 == *name) {
                println!("{role_name} {name} {}", errno_of(attempt(&self.directory)));
            }
        }
        let panics = Some(("None".to_owned(), "panic".to_owned()));
        assert!(role.is_some() || self.only != panics, "a panic that the test requested");
    }
}

fn errno_of(result: c_long) -> i32 {
    if result != -1 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Makes a system call with integers and pointers as arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: each pointer is null, dangling (the kernel validates it), or that of a C string or
        // a mapping that outlives the call. No call changes memory that Rust uses.
        unsafe { libc::syscall($number $(, $argument)*) }
    };
}

/// A process ID that no process has.
const NO_PROCESS: i32 = i32::MAX;
/// An invalid descriptor.
const NO_FD: i32 = -1;
/// An address where nothing is mapped.
const UNMAPPED: *const c_void = std::ptr::dangling();

type Attempt = fn(&Path) -> c_long;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-file", |dir| open(dir, "secret", libc::O_RDONLY)),
    ("create-file", |dir| open(dir, "created", libc::O_WRONLY | libc::O_CREAT)),
    ("name-file", |dir| open(dir, "secret", libc::O_PATH)),
    ("openat2", |_| call!(libc::SYS_openat2, NO_FD, UNMAPPED, UNMAPPED, 0)),
    ("make-directory", |dir| {
        call!(libc::SYS_mkdirat, libc::AT_FDCWD, in_dir(dir, "made").as_ptr(), 0o700)
    }),
    ("change-mode", |dir| {
        call!(libc::SYS_fchmodat, libc::AT_FDCWD, in_dir(dir, "secret").as_ptr(), 0o600)
    }),
    ("rename-file", |dir| {
        let [from, to] = ["secret", "renamed"].map(|name| in_dir(dir, name));
        let (from, to) = (from.as_ptr(), to.as_ptr());
        let renamed = call!(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0);
        if renamed == 0 {
            call!(libc::SYS_renameat2, libc::AT_FDCWD, to, libc::AT_FDCWD, from, 0)
        } else {
            renamed
        }
    }),
    ("remove-file", |dir| {
        call!(libc::SYS_unlinkat, libc::AT_FDCWD, in_dir(dir, "victim").as_ptr(), 0)
    }),
    ("remove-directory", |dir| {
        call!(libc::SYS_unlinkat, libc::AT_FDCWD, in_dir(dir, "none").as_ptr(), libc::AT_REMOVEDIR)
    }),
    ("look-at-file", |dir| {
        call!(libc::SYS_statx, libc::AT_FDCWD, in_dir(dir, "secret").as_ptr(), 0, 0, UNMAPPED)
    }),
    ("change-directory", |_| call!(libc::SYS_chdir, UNMAPPED)),
    ("change-root", |_| call!(libc::SYS_chroot, UNMAPPED)),
    ("mount", |_| call!(libc::SYS_mount, UNMAPPED, UNMAPPED, UNMAPPED, 0, UNMAPPED)),
    ("memory-file", |_| call!(libc::SYS_memfd_create, c"attempt".as_ptr(), 0)),
    ("unix-socket", |_| call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("inet-socket", |_| call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("connect", |_| call!(libc::SYS_connect, NO_FD, UNMAPPED, 0)),
    ("bind", |_| call!(libc::SYS_bind, NO_FD, UNMAPPED, 0)),
    ("listen", |_| call!(libc::SYS_listen, NO_FD, 1)),
    ("send", |_| call!(libc::SYS_sendto, NO_FD, UNMAPPED, 0, 0, null_mut::<c_void>(), 0)),
    ("send-to", |_| call!(libc::SYS_sendto, NO_FD, UNMAPPED, 0, 0, UNMAPPED, 0)),
    ("execute", |_| call!(libc::SYS_execve, c"/nonexistent".as_ptr(), UNMAPPED, UNMAPPED)),
    ("execute-file", |_| call!(libc::SYS_execveat, NO_FD, UNMAPPED, UNMAPPED, UNMAPPED, 0)),
    ("fork", |_| fork()),
    ("clone3", |_| call!(libc::SYS_clone3, UNMAPPED, 0)),
    ("unshare", |_| call!(libc::SYS_unshare, 1)),
    ("enter-namespace", |_| call!(libc::SYS_setns, NO_FD, 0)),
    ("trace", |_| call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, NO_PROCESS, 0, 0)),
    ("read-process", |_| {
        call!(libc::SYS_process_vm_readv, NO_PROCESS, UNMAPPED, 0, UNMAPPED, 0, 0)
    }),
    ("kill-process", |_| call!(libc::SYS_kill, NO_PROCESS, 0)),
    ("kill-thread", |_| call!(libc::SYS_tgkill, NO_PROCESS, NO_PROCESS, 0)),
    ("tkill", |_| call!(libc::SYS_tkill, NO_PROCESS, 0)),
    ("open-process", |_| call!(libc::SYS_pidfd_open, NO_PROCESS, 0)),
    ("steal-descriptor", |_| call!(libc::SYS_pidfd_getfd, NO_FD, 0, 0)),
    ("set-user", |_| call!(libc::SYS_setresuid, -1, -1, -1)),
    ("set-capabilities", |_| call!(libc::SYS_capset, UNMAPPED, UNMAPPED)),
    ("set-limit", |_| {
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, null_mut::<c_void>(), null_mut::<c_void>())
    }),
    ("set-dumpable", |_| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, -1, 0, 0, 0)),
    ("schedule-other", |_| call!(libc::SYS_sched_setattr, NO_PROCESS, UNMAPPED, 0)),
    ("terminal", |_| call!(libc::SYS_ioctl, 0, libc::TIOCSTI, UNMAPPED)),
    ("host-ioctl", |_| call!(libc::SYS_ioctl, NO_FD, 0x3b80, UNMAPPED)),
    ("map-code", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("make-code", |_| {
        call!(
            libc::SYS_mprotect,
            map(libc::PROT_READ),
            4096_usize,
            libc::PROT_READ | libc::PROT_EXEC
        )
    }),
    ("bpf", |_| call!(libc::SYS_bpf, 0, UNMAPPED, 1 << 20)),
    ("perf", |_| call!(libc::SYS_perf_event_open, UNMAPPED, 0, 0, NO_FD, -1_i64)),
    ("io-uring", |_| call!(libc::SYS_io_uring_setup, 0, UNMAPPED)),
    ("userfaultfd", |_| call!(libc::SYS_userfaultfd, -1)),
    ("keys", |_| call!(libc::SYS_keyctl, -1, 0, 0, 0, 0)),
    ("shared-memory", |_| call!(libc::SYS_shmget, 0x5a5a_0001, 0, 0)),
    ("unknown-call", |_| call!(100_000)),
    // Allowed in some roles only.
    ("accept", |_| call!(libc::SYS_accept4, NO_FD, UNMAPPED, UNMAPPED, 0)),
    ("receive", |_| call!(libc::SYS_recvmsg, NO_FD, UNMAPPED, 0)),
    ("send-message", |_| call!(libc::SYS_sendmsg, NO_FD, UNMAPPED, 0)),
    ("shut-down", |_| call!(libc::SYS_shutdown, NO_FD, 0)),
    ("start-thread", |_| call!(libc::SYS_clone, libc::CLONE_THREAD, 0, 0, 0, 0)),
    ("wait-for-queue", |_| call!(libc::SYS_epoll_pwait, NO_FD, UNMAPPED, 1, 0, UNMAPPED, 0)),
    ("schedule", |_| call!(libc::SYS_sched_getattr, 0, UNMAPPED, 0, 0)),
    ("allocate", |_| allocate()),
    ("allocate-in-threads", |_| allocate_in_threads()),
    ("restrict", |_| call!(libc::SYS_seccomp, 1, -1, UNMAPPED)),
];

fn in_dir(dir: &Path, name: &str) -> CString {
    CString::new(dir.join(name).as_os_str().as_bytes()).unwrap_or_default()
}

fn open(dir: &Path, name: &str, flags: i32) -> c_long {
    call!(libc::SYS_openat, libc::AT_FDCWD, in_dir(dir, name).as_ptr(), flags, 0o600)
}

fn map(protection: i32) -> c_long {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call!(libc::SYS_mmap, null_mut::<c_void>(), 4096_usize, protection, flags, NO_FD, 0_i64)
}

/// Allocates more than an arena keeps when it is freed.
fn allocate() -> c_long {
    let blocks = (0..128).map(|_| black_box(Vec::<u8>::with_capacity(64 << 10)));
    drop(blocks.collect::<Vec<_>>());
    0
}

/// Allocates in more concurrent threads than glibc has arenas for before it determines their limit.
fn allocate_in_threads() -> c_long {
    const THREADS: usize = 40;
    let together = Barrier::new(THREADS);
    let body = || {
        let block = black_box(vec![0_u8; 100]);
        together.wait();
        drop(block);
    };
    thread::scope(|scope| {
        let first = thread::Builder::new().spawn_scoped(scope, body);
        if first.is_err() {
            return -1;
        }
        (1..THREADS).for_each(|_| drop(scope.spawn(body)));
        0
    })
}

/// Forks a child that exits immediately, without access to memory that other threads may change.
fn fork() -> c_long {
    let child = call!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    match child {
        0 => call!(libc::SYS_exit_group, 0),
        -1 => -1,
        child => call!(libc::SYS_wait4, child, null_mut::<c_void>(), 0, null_mut::<c_void>()),
    }
}
