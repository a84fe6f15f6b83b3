//! A virtual machine in QEMU, from power on to the last message of its kernel.
//!
//! Machines are emulated and slow, so a test makes many checks in one. No result depends on the
//! duration of an operation, except that every wait has a [`LIMIT`].

mod agent;
pub mod kernel_log;
mod qmp;

pub use agent::{Agent, Output};
pub use qmp::Qmp;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::testbed;
use crate::wait;

const MEBIBYTE: u64 = 1 << 20;

/// Limit of each wait for a machine. Emulated machines on a busy host are slow.
pub const LIMIT: Duration = Duration::from_secs(900);

/// Without `no_timer_check` the kernel panics when a timer interrupt is late, which can happen on
/// a busy host.
const COMMAND_LINE: &str = "console=ttyS0 no_timer_check";

/// QEMU's options for a kernel with KASAN. During boot, Linux 7.3 temporarily clears its processor
/// capabilities, including five-level page tables; an interrupt in this period makes KASAN report
/// valid accesses.
pub const FOR_KASAN: &str = " -cpu max,la57=off";

/// QEMU's options for a machine with VT-d, including everything that shared virtual addressing
/// requires of it.
pub const WITH_VT_D: &str = "-machine q35,kernel-irqchip=split \
                             -device intel-iommu,scalable-mode=on,fsts=on,pasid-bits=20,svm=on,\
                             device-iotlb=on,aw-bits=48";

/// Emulation loads all processors, so machines run sequentially.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// As [`wait::until`], with the [`LIMIT`] for machines.
#[track_caller]
pub fn wait_until<T>(event: &str, attempt: impl FnMut() -> Option<T>) -> T {
    wait::until_within(LIMIT, event, attempt)
}

/// The directory of one machine and of its daemon.
pub struct WorkDir {
    dir: TempDir,
    _running: MutexGuard<'static, ()>,
}

impl WorkDir {
    /// Waits until no other machine runs.
    #[expect(clippy::new_without_default, reason = "it waits")]
    pub fn new() -> Self {
        // A failed test has also ended its machine.
        let running = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // The name is short because the paths of sockets are limited.
        let dir = tempfile::Builder::new().prefix("vui-").tempdir().unwrap();
        Self { dir, _running: running }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Creates an empty disk. Returns QEMU's option for a `-drive` of this name.
    pub fn disk(&self, name: &str, mebibytes: u64) -> String {
        let path = self.path().join(name);
        File::create(&path).and_then(|file| file.set_len(mebibytes * MEBIBYTE)).unwrap();
        drive(name, &path, "")
    }
}

/// Returns QEMU's option for a `-drive` of this name, with `more` appended.
pub fn drive(name: &str, path: &Path, more: &str) -> String {
    format!(" -drive if=none,id={name},format=raw,file={}{more}", path.display())
}

/// Returns the value of QEMU's `addr=` for a function of the root bus.
pub fn slot(function: &str) -> &str {
    function.trim_start_matches("0000:00:")
}

/// A running machine. Tests end with [`finish`](Self::finish); if one fails, the ends of the
/// kernel's and QEMU's logs are printed.
///
/// ```no_run
/// use testing::machine::{Machine, WorkDir};
/// use testing::testbed;
///
/// let kernel = testbed::variable("VUI_SMALL_KERNEL");
/// let initrd = testbed::make_initrd("example", "agent", &[]);
/// let mut machine = Machine::boot(WorkDir::new(), &kernel, &initrd, "-m 256M", || ());
/// assert_eq!(machine.try_run("uname", || ()).text, "Linux");
/// machine.finish(&[]);
/// ```
pub struct Machine {
    /// The agent in the guest.
    pub agent: Agent,
    /// QEMU's monitor.
    pub qmp: Qmp,
    qemu: Qemu,
    work_dir: WorkDir,
    finished: bool,
}

impl Machine {
    /// Starts QEMU with `args`, which a shell parses, and waits until the guest's agent runs.
    /// Meanwhile calls `check` repeatedly, which panics if a peer has failed.
    #[track_caller]
    pub fn boot(
        work_dir: WorkDir,
        kernel: &Path,
        initrd: &Path,
        args: &str,
        check: impl FnMut(),
    ) -> Self {
        let dir = work_dir.path();
        let qemu = Qemu::start(dir, kernel, initrd, args);
        let (qmp, agent) = (Qmp::connect(&dir.join("qmp")), Agent::connect(&dir.join("agent")));
        let mut machine = Self { agent, qmp, qemu, work_dir, finished: false };
        // QEMU starts stopped, so that no output of the guest is lost.
        machine.qmp.execute("cont");
        machine.wait_until_ready(check);
        machine
    }

    /// Waits until the guest's agent runs, after a start or a restart.
    #[track_caller]
    pub fn wait_until_ready(&mut self, mut check: impl FnMut()) {
        let (log, qemu) = (self.log_path(), &mut self.qemu);
        self.agent.wait_until_ready(|| {
            check();
            assert_alive(&log, qemu);
        });
    }

    /// Runs a shell command in the guest.
    #[track_caller]
    pub fn try_run(&mut self, command: &str, mut check: impl FnMut()) -> Output {
        let (log, qemu) = (self.log_path(), &mut self.qemu);
        self.agent.run(command, || {
            check();
            assert_alive(&log, qemu);
        })
    }

    /// Returns the messages of the guest's kernel so far.
    pub fn kernel_log(&self) -> String {
        read(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.work_dir.path().join("kernel.log")
    }

    /// Powers the machine off. QEMU must exit with status 0, and neither QEMU nor the kernel may
    /// have reported anything that is not `tolerated`.
    #[track_caller]
    pub fn finish(&mut self, tolerated: &[&str]) {
        self.qmp.execute("quit");
        self.qemu.wait_for_exit(tolerated);
        let log = self.kernel_log();
        let failures = kernel_log::failures(&log, tolerated);
        assert!(failures.is_empty(), "the guest's kernel reports: {failures:#?}");
        self.finished = true;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- end of the guest's kernel log:\n{}", tail(&self.kernel_log()));
            eprintln!("--- end of QEMU's log:\n{}", tail(&self.qemu.log()));
        } else {
            assert!(self.finished, "a test ends with finish()");
        }
    }
}

#[track_caller]
fn assert_alive(log: &Path, qemu: &mut Qemu) {
    qemu.assert_alive();
    if let Some(line) = kernel_log::crash(&read(log)) {
        panic!("the guest's kernel has crashed: {line}");
    }
}

struct Qemu {
    child: Child,
    log: PathBuf,
}

impl Qemu {
    fn start(dir: &Path, kernel: &Path, initrd: &Path, args: &str) -> Self {
        let log = dir.join("qemu.log");
        let path = |name: &str| dir.join(name).display().to_string();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {args}")]).arg(testbed::qemu());
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]);
        command.args(["-nodefaults", "-nographic", "-S"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))]);
        let console = format!("file,id=console,path={}", path("kernel.log"));
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        let agent = format!("socket,id=agent,path={},server=on,wait=off", path("agent"));
        command.args(["-chardev", &agent, "-serial", "chardev:agent"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-append", COMMAND_LINE]);
        let output = File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = die_with_parent(&mut command).spawn().unwrap();
        let mut qemu = Self { child, log };
        wait_until("QEMU's sockets", || {
            qemu.assert_alive();
            (dir.join("qmp").exists() && dir.join("agent").exists()).then_some(())
        });
        qemu
    }

    fn log(&self) -> String {
        read(&self.log)
    }

    #[track_caller]
    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("QEMU has exited: {status}; its log:\n{}", self.log());
        }
    }

    /// Waits for the exit with status 0. Checks that QEMU has logged no line that is not
    /// `tolerated`.
    #[track_caller]
    fn wait_for_exit(&mut self, tolerated: &[&str]) {
        let status = wait_until("the exit of QEMU", || self.child.try_wait().unwrap());
        let log = self.log();
        let lines: Vec<&str> =
            log.lines().filter(|line| !tolerated.iter().any(|text| line.contains(text))).collect();
        assert_eq!((status.code(), lines), (Some(0), vec![]), "exit status and log of QEMU");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the kernel kill the program when the tests are killed.
fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Returns the last lines.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
