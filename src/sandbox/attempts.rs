//! Attempts to do what no daemon should, from inside the sandbox. For tests.
//!
//! Arguments are such that a kernel that lets the call through does no harm by it: what it does
//! not simply do it refuses, and with another error than a sandbox would.

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

/// What is tried: all attempts in all roles, or one in one.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// Has a file `secret` to read and a file `victim` to remove.
    directory: PathBuf,
    only: Option<(String, String)>,
}

impl FromStr for Attempts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let only = match parts[1..] {
            [] => None,
            [role, name] => Some((role.into(), name.into())),
            _ => return Err(format!("'{text}' are no attempts; write DIRECTORY[,ROLE,ATTEMPT]")),
        };
        Ok(Self { directory: parts[0].into(), only })
    }
}

impl Attempts {
    /// Makes them, and prints a line for each: role, attempt, error number, or 0.
    pub fn run(&self) {
        self.run_as(None);
        for row in ROLES {
            thread::scope(|scope| scope.spawn(|| self.run_as(Some(row.role))).join()).ok();
        }
    }

    fn run_as(&self, role: Option<Role>) {
        let name_of_role = role.map_or("None".into(), |role| format!("{role:?}"));
        if let Some(role) = role {
            enter_role(role);
        }
        for (name, attempt) in ATTEMPTS {
            let wanted =
                self.only.as_ref().is_none_or(|only| *only.0 == name_of_role && only.1 == *name);
            if wanted {
                println!("{name_of_role} {name} {}", errno_of(attempt(&self.directory)));
            }
        }
        let panics = Some(("None".to_owned(), "panic".to_owned()));
        assert!(role.is_some() || self.only != panics, "a panic, as the test wants it");
    }
}

fn errno_of(result: c_long) -> i32 {
    if result != -1 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Makes a system call with numbers and pointers as arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: pointers are null, point nowhere where the kernel has to find out by itself, or
        // are those of a C string or a mapping that outlives the call. No call changes memory that
        // Rust knows of.
        unsafe { libc::syscall($number $(, $argument)*) }
    };
}

/// No process has this number.
const NOBODY: i32 = i32::MAX;
/// No descriptor.
const NOTHING: i32 = -1;
/// Where nothing is mapped.
const NOWHERE: *const c_void = std::ptr::dangling();

type Attempt = fn(&Path) -> c_long;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read-file", |dir| open(dir, "secret", libc::O_RDONLY)),
    ("create-file", |dir| open(dir, "created", libc::O_WRONLY | libc::O_CREAT)),
    ("name-file", |dir| open(dir, "secret", libc::O_PATH)),
    ("openat2", |_| call!(libc::SYS_openat2, NOTHING, NOWHERE, NOWHERE, 0)),
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
        call!(libc::SYS_statx, libc::AT_FDCWD, in_dir(dir, "secret").as_ptr(), 0, 0, NOWHERE)
    }),
    ("change-directory", |_| call!(libc::SYS_chdir, NOWHERE)),
    ("change-root", |_| call!(libc::SYS_chroot, NOWHERE)),
    ("mount", |_| call!(libc::SYS_mount, NOWHERE, NOWHERE, NOWHERE, 0, NOWHERE)),
    ("memory-file", |_| call!(libc::SYS_memfd_create, c"attempt".as_ptr(), 0)),
    ("unix-socket", |_| call!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    ("inet-socket", |_| call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)),
    ("connect", |_| call!(libc::SYS_connect, NOTHING, NOWHERE, 0)),
    ("bind", |_| call!(libc::SYS_bind, NOTHING, NOWHERE, 0)),
    ("listen", |_| call!(libc::SYS_listen, NOTHING, 1)),
    ("send", |_| call!(libc::SYS_sendto, NOTHING, NOWHERE, 0, 0, null_mut::<c_void>(), 0)),
    ("send-to", |_| call!(libc::SYS_sendto, NOTHING, NOWHERE, 0, 0, NOWHERE, 0)),
    ("execute", |_| call!(libc::SYS_execve, c"/nonexistent".as_ptr(), NOWHERE, NOWHERE)),
    ("execute-file", |_| call!(libc::SYS_execveat, NOTHING, NOWHERE, NOWHERE, NOWHERE, 0)),
    ("fork", |_| fork()),
    ("clone3", |_| call!(libc::SYS_clone3, NOWHERE, 0)),
    ("unshare", |_| call!(libc::SYS_unshare, 1)),
    ("enter-namespace", |_| call!(libc::SYS_setns, NOTHING, 0)),
    ("trace", |_| call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, NOBODY, 0, 0)),
    ("read-process", |_| call!(libc::SYS_process_vm_readv, NOBODY, NOWHERE, 0, NOWHERE, 0, 0)),
    ("kill-process", |_| call!(libc::SYS_kill, NOBODY, 0)),
    ("kill-thread", |_| call!(libc::SYS_tgkill, NOBODY, NOBODY, 0)),
    ("tkill", |_| call!(libc::SYS_tkill, NOBODY, 0)),
    ("open-process", |_| call!(libc::SYS_pidfd_open, NOBODY, 0)),
    ("steal-descriptor", |_| call!(libc::SYS_pidfd_getfd, NOTHING, 0, 0)),
    ("set-user", |_| call!(libc::SYS_setresuid, -1, -1, -1)),
    ("set-capabilities", |_| call!(libc::SYS_capset, NOWHERE, NOWHERE)),
    ("set-limit", |_| {
        call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, null_mut::<c_void>(), null_mut::<c_void>())
    }),
    ("set-dumpable", |_| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, -1, 0, 0, 0)),
    ("schedule-other", |_| call!(libc::SYS_sched_setattr, NOBODY, NOWHERE, 0)),
    ("terminal", |_| call!(libc::SYS_ioctl, 0, libc::TIOCSTI, NOWHERE)),
    ("host-ioctl", |_| call!(libc::SYS_ioctl, NOTHING, 0x3b80, NOWHERE)),
    ("map-code", |_| map(libc::PROT_READ | libc::PROT_EXEC)),
    ("make-code", |_| {
        call!(
            libc::SYS_mprotect,
            map(libc::PROT_READ),
            4096_usize,
            libc::PROT_READ | libc::PROT_EXEC
        )
    }),
    ("bpf", |_| call!(libc::SYS_bpf, 0, NOWHERE, 1 << 20)),
    ("perf", |_| call!(libc::SYS_perf_event_open, NOWHERE, 0, 0, NOTHING, -1_i64)),
    ("io-uring", |_| call!(libc::SYS_io_uring_setup, 0, NOWHERE)),
    ("userfaultfd", |_| call!(libc::SYS_userfaultfd, -1)),
    ("keys", |_| call!(libc::SYS_keyctl, -1, 0, 0, 0, 0)),
    ("shared-memory", |_| call!(libc::SYS_shmget, 0x5a5a_0001, 0, 0)),
    ("unknown-call", |_| call!(100_000)),
    // What some threads may do, but not all.
    ("accept", |_| call!(libc::SYS_accept4, NOTHING, NOWHERE, NOWHERE, 0)),
    ("receive", |_| call!(libc::SYS_recvmsg, NOTHING, NOWHERE, 0)),
    ("send-message", |_| call!(libc::SYS_sendmsg, NOTHING, NOWHERE, 0)),
    ("shut-down", |_| call!(libc::SYS_shutdown, NOTHING, 0)),
    ("start-thread", |_| call!(libc::SYS_clone, libc::CLONE_THREAD, 0, 0, 0, 0)),
    ("wait-for-queue", |_| call!(libc::SYS_epoll_pwait, NOTHING, NOWHERE, 1, 0, NOWHERE, 0)),
    ("schedule", |_| call!(libc::SYS_sched_getattr, 0, NOWHERE, 0, 0)),
    ("allocate", |_| allocate()),
    ("allocate-in-threads", |_| allocate_in_threads()),
    ("restrict", |_| call!(libc::SYS_seccomp, 1, -1, NOWHERE)),
];

fn in_dir(dir: &Path, name: &str) -> CString {
    CString::new(dir.join(name).as_os_str().as_bytes()).unwrap_or_default()
}

fn open(dir: &Path, name: &str, flags: i32) -> c_long {
    call!(libc::SYS_openat, libc::AT_FDCWD, in_dir(dir, name).as_ptr(), flags, 0o600)
}

fn map(protection: i32) -> c_long {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call!(libc::SYS_mmap, null_mut::<c_void>(), 4096_usize, protection, flags, NOTHING, 0_i64)
}

/// More than an arena keeps when it is free again.
fn allocate() -> c_long {
    let block = |_| black_box(Vec::<u8>::with_capacity(64 << 10));
    drop((0..128).map(block).collect::<Vec<_>>());
    0
}

/// In more threads at once than an allocator has arenas for without asking how many there may be.
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

/// A child that ends at once, without a look at memory that other threads may be changing.
fn fork() -> c_long {
    let child = call!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    match child {
        0 => call!(libc::SYS_exit_group, 0),
        -1 => -1,
        child => call!(libc::SYS_wait4, child, null_mut::<c_void>(), 0, null_mut::<c_void>()),
    }
}
