//! A virtual machine, from power on to the last word of its kernel.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tempfile::TempDir;

use super::agent::{Agent, Output};
use super::qmp::Qmp;
use super::{bed, kernel_log, wait};

const MEBIBYTE: u64 = 1 << 20;

/// The kernel would give up when a timer's interrupt is late, which on a busy machine it can be.
const COMMAND_LINE: &str = "console=ttyS0 no_timer_check";

/// QEMU's options for a kernel with KASAN. While Linux 7.3 starts it clears what it knows of the
/// processor for a moment, five levels of page tables among it, and an interrupt in this moment makes
/// KASAN report good accesses.
pub const FOR_KASAN: &str = " -cpu max,la57=off";

/// QEMU's options for a machine with VT-d, and everything of it that page tables of processes need.
pub const WITH_VT_D: &str = "-machine q35,kernel-irqchip=split \
                             -device intel-iommu,scalable-mode=on,fsts=on,pasid-bits=20,svm=on,\
                             device-iotlb=on,aw-bits=48";

/// Emulated processors need real ones: machines run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A place for one machine and what belongs to it.
pub struct Place {
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Place {
    /// Waits until the machine before has ended.
    pub fn new() -> Self {
        // A test that failed has ended its machine all the same.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // Its name is short, for the sockets in it.
        let dir = tempfile::Builder::new().prefix("vui-").tempdir().unwrap();
        Self { dir, _turn: turn }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes an empty disk. Returns QEMU's options for it, a `-drive` of this name.
    pub fn disk(&self, name: &str, mebibytes: u64) -> String {
        let path = self.path().join(name);
        File::create(&path).and_then(|file| file.set_len(mebibytes * MEBIBYTE)).unwrap();
        drive(name, &path, "")
    }
}

/// QEMU's options for a `-drive` of this name.
pub fn drive(name: &str, path: &Path, more: &str) -> String {
    format!(" -drive if=none,id={name},format=raw,file={}{more}", path.display())
}

/// Where QEMU is to put a function of the root bus, for its `addr=`.
pub fn slot(function: &str) -> &str {
    function.trim_start_matches("0000:00:")
}

pub struct Machine {
    pub agent: Agent,
    pub qmp: Qmp,
    qemu: Qemu,
    place: Place,
    finished: bool,
}

impl Machine {
    /// Starts QEMU with `args`, which a shell reads, and waits until the guest takes commands.
    /// `check` is called meanwhile, and panics when there is no hope.
    pub fn boot(
        place: Place,
        kernel: &Path,
        initrd: &Path,
        args: &str,
        check: impl FnMut(),
    ) -> Self {
        let dir = place.path();
        let qemu = Qemu::start(dir, kernel, initrd, args);
        let (qmp, agent) = (Qmp::connect(&dir.join("qmp")), Agent::connect(&dir.join("agent")));
        let mut machine = Self { agent, qmp, qemu, place, finished: false };
        // It waits for this, so that nothing the guest says is lost.
        machine.qmp.execute("cont");
        machine.wait_until_ready(check);
        machine
    }

    /// Waits until the guest takes commands, after its start or a restart.
    pub fn wait_until_ready(&mut self, mut check: impl FnMut()) {
        let (log, qemu) = (self.log_path(), &mut self.qemu);
        self.agent.wait_until_ready(|| {
            check();
            assert_alive(&log, qemu);
        });
    }

    /// Runs a command in the guest.
    pub fn try_run(&mut self, command: &str, mut check: impl FnMut()) -> Output {
        let (log, qemu) = (self.log_path(), &mut self.qemu);
        self.agent.run(command, || {
            check();
            assert_alive(&log, qemu);
        })
    }

    pub fn kernel_log(&self) -> String {
        read(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.place.path().join("kernel.log")
    }

    /// Switches it off. QEMU must end well, and neither it nor the kernel must have had anything
    /// to say but what is `tolerated`.
    pub fn finish(&mut self, tolerated: &[&str]) {
        self.qmp.execute("quit");
        self.qemu.wait_for_end(tolerated);
        let log = self.kernel_log();
        let complaints = kernel_log::complaints(&log, tolerated);
        assert!(complaints.is_empty(), "the guest's kernel says: {complaints:#?}");
        self.finished = true;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- end of the guest's kernel log:\n{}", tail(&self.kernel_log()));
            eprintln!("--- QEMU says:\n{}", tail(&self.qemu.log()));
        } else {
            assert!(self.finished, "a test ends with finish()");
        }
    }
}

fn assert_alive(log: &Path, qemu: &mut Qemu) {
    qemu.assert_alive();
    if let Some(line) = kernel_log::end(&read(log)) {
        panic!("the guest's kernel has given up: {line}");
    }
}

struct Qemu {
    child: Child,
    log: PathBuf,
}

impl Qemu {
    fn start(dir: &Path, kernel: &Path, initrd: &Path, args: &str) -> Self {
        let log = dir.join("qemu.log");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {args}")]).arg(bed::qemu());
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]);
        command.args(["-nodefaults", "-nographic", "-S"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", dir.join("qmp").display())]);
        let console = format!("file,id=console,path={}", dir.join("kernel.log").display());
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        let agent =
            format!("socket,id=agent,path={},server=on,wait=off", dir.join("agent").display());
        command.args(["-chardev", &agent, "-serial", "chardev:agent"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        command.args(["-append", COMMAND_LINE]);
        let output = File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = end_with_parent(&mut command).spawn().unwrap();
        let mut qemu = Self { child, log };
        wait::until("QEMU's sockets", || {
            qemu.assert_alive();
            (dir.join("qmp").exists() && dir.join("agent").exists()).then_some(())
        });
        qemu
    }

    fn log(&self) -> String {
        read(&self.log)
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("QEMU is gone: {status}; it says:\n{}", self.log());
        }
    }

    /// It must end well, and without a word but those `tolerated`.
    fn wait_for_end(&mut self, tolerated: &[&str]) {
        let status = wait::until("the end of QEMU", || self.child.try_wait().unwrap());
        let log = self.log();
        let is_new = |line: &&str| !tolerated.iter().any(|text| line.contains(text));
        let words: Vec<&str> = log.lines().filter(is_new).collect();
        assert_eq!((status.code(), words), (Some(0), vec![]), "QEMU's end");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets the kernel end the program when the tests are killed.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
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

/// The last lines.
pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
