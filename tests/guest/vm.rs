//! A machine: daemon, QEMU and guest, from power on to the last check.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tempfile::TempDir;

use crate::agent::{Agent, Output};
use crate::bed::{self, Kernel};
use crate::daemon::{self, Config, Counters, Daemon};
use crate::kernel_log;
use crate::qmp::Qmp;
use crate::wait;

/// The endpoints of a machine, unless told otherwise.
pub const A: &str = "00:02.0";
pub const B: &str = "00:03.0";
pub const C: &str = "00:04.0";
pub const D: &str = "00:05.0";

/// Where disks come, from this slot on.
const FIRST_DISK: usize = 0x10;
const MEBIBYTE: u64 = 1 << 20;

/// Emulated processors need real ones: machines run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub struct Builder {
    kernel: Kernel,
    options: Vec<&'static str>,
    endpoints: Vec<&'static str>,
    memory: &'static str,
    disks: Vec<u64>,
    unlisted: Vec<&'static str>,
    tolerated: Vec<&'static str>,
}

impl Builder {
    /// Adds daemon options.
    pub fn options(mut self, options: &[&'static str]) -> Self {
        self.options.extend(options);
        self
    }

    /// Has these endpoints.
    pub fn endpoints(mut self, endpoints: &[&'static str]) -> Self {
        self.endpoints = endpoints.into();
        self
    }

    /// Has so much memory, as QEMU's option says it.
    pub fn memory(mut self, size: &'static str) -> Self {
        self.memory = size;
        self
    }

    /// Adds an empty disk of so many MiB: the first is /dev/vda.
    pub fn disk(mut self, mebibytes: u64) -> Self {
        self.disks.push(mebibytes * MEBIBYTE);
        self
    }

    /// Adds an endpoint that the VIOT table does not list.
    pub fn unlisted(mut self, bdf: &'static str) -> Self {
        self.unlisted.push(bdf);
        self
    }

    /// Lets the guest's kernel say this.
    pub fn tolerate(mut self, text: &'static str) -> Self {
        self.tolerated.push(text);
        self
    }

    /// Starts everything and waits until the guest takes commands.
    pub fn boot(self) -> Vm {
        // A test that failed has ended its machine all the same.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let initrd = self.kernel.initrd();
        let dir = bed::machine_dir();
        let path = dir.path();
        let endpoints = [self.endpoints.as_slice(), &self.unlisted].concat();
        let config = Config::new(path, &endpoints, &self.options);
        config.write_viot(&self.endpoints);
        let daemon = config.start();
        let args = [config.qemu_args(self.memory), disks(path, &self.disks)].concat();
        let qemu = Qemu::start(path, self.kernel, initrd, &args);
        let (qmp, agent) = (Qmp::connect(&path.join("qmp")), Agent::connect(&path.join("agent")));
        let mut vm = Vm {
            agent,
            qmp,
            qemu,
            daemon,
            dir,
            expected_faults: Vec::new(),
            tolerated: self.tolerated,
            finished: false,
            _turn: turn,
        };
        // It waits for this, so that nothing the guest says is lost.
        vm.qmp.execute("cont");
        vm.wait_until_ready();
        vm
    }
}

pub struct Vm {
    agent: Agent,
    qmp: Qmp,
    qemu: Qemu,
    daemon: Daemon,
    dir: TempDir,
    expected_faults: Vec<String>,
    tolerated: Vec<&'static str>,
    finished: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Vm {
    pub fn builder(kernel: Kernel) -> Builder {
        Builder {
            kernel,
            options: Vec::new(),
            endpoints: vec![A, B],
            memory: "1G",
            disks: Vec::new(),
            unlisted: Vec::new(),
            tolerated: Vec::new(),
        }
    }

    /// Boots with two accelerators and the IOMMU's driver.
    pub fn boot(kernel: Kernel) -> Self {
        let mut vm = Self::builder(kernel).boot();
        vm.run("load_modules virtio-iommu");
        vm
    }

    /// Runs a command in the guest, which must succeed.
    pub fn run(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_eq!(status, 0, "'{command}' in the guest; it says:\n{text}");
        text
    }

    /// Runs a command in the guest, which must not succeed.
    pub fn run_to_fail(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_ne!(status, 0, "'{command}' in the guest succeeds; it says:\n{text}");
        text
    }

    pub fn try_run(&mut self, command: &str) -> Output {
        let (log, qemu, daemon) = (self.log_path(), &mut self.qemu, &mut self.daemon);
        self.agent.run(command, || assert_alive(&log, qemu, daemon))
    }

    /// Runs a command that is cut off by a restart of the machine, and waits for that.
    pub fn run_to_restart(&mut self, command: &str) {
        self.agent.send(command);
        self.wait_until_ready();
    }

    /// Restarts the machine as its reset button would.
    pub fn reset(&mut self) {
        self.qmp.execute("system_reset");
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        let (log, qemu, daemon) = (self.log_path(), &mut self.qemu, &mut self.daemon);
        self.agent.wait_until_ready(|| assert_alive(&log, qemu, daemon));
    }

    /// Runs a command of QEMU's monitor.
    pub fn qmp(&mut self, command: &str) -> serde_json::Value {
        self.qmp.execute(command)
    }

    /// Waits until the driver has reported these faults, after those that were expected before.
    /// At the end there must be no other. Each is the endpoint, the address, and R or W.
    pub fn expect_faults(&mut self, faults: &[(&str, u64, char)]) {
        let line = |(endpoint, address, access)| kernel_log::fault(endpoint, address, access);
        self.expected_faults.extend(faults.iter().copied().map(line));
        let expected = &self.expected_faults;
        let what = format!("this end of the guest's fault reports: {}", expected.join("; "));
        let path = self.log_path();
        wait::until(&what, || {
            let log = read(&path);
            (kernel_log::faults(&log).len() >= expected.len()).then_some(())
        });
        self.check_faults();
    }

    fn check_faults(&self) {
        let log = self.kernel_log();
        assert_eq!(kernel_log::faults(&log), self.expected_faults, "the guest's fault reports");
    }

    pub fn kernel_log(&self) -> String {
        read(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("kernel.log")
    }

    /// Ends everything, and looks at what was said. Every test ends so. Returns what the daemon has
    /// counted of page requests, for each endpoint.
    pub fn finish(mut self) -> Vec<Counters> {
        self.daemon.assert_alive();
        self.qmp.execute("quit");
        self.qemu.wait_for_end();
        let page_requests = self.daemon.stop();
        self.check_faults();
        let log = self.kernel_log();
        let complaints = kernel_log::complaints(&log, &self.tolerated);
        assert!(complaints.is_empty(), "the guest's kernel says: {complaints:#?}");
        self.finished = true;
        page_requests
    }
}

/// QEMU's options for disks of these sizes, which are made.
fn disks(dir: &Path, sizes: &[u64]) -> String {
    let disk = |(index, size): (usize, &u64)| {
        let path = dir.join(format!("disk{index}"));
        File::create(&path).and_then(|file| file.set_len(*size)).unwrap();
        let (path, slot) = (path.display(), FIRST_DISK + index);
        format!(
            " -drive if=none,id=disk{index},format=raw,file={path} \
             -device virtio-blk-pci,drive=disk{index},addr={slot:x}.0"
        )
    };
    sizes.iter().enumerate().map(disk).collect()
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- end of the guest's kernel log:\n{}", tail(&self.kernel_log()));
            eprintln!("--- end of the daemon's log:\n{}", tail(&self.daemon.log()));
            eprintln!("--- QEMU says:\n{}", tail(&self.qemu.log()));
        } else {
            assert!(self.finished, "a test ends with finish()");
        }
    }
}

fn assert_alive(log: &Path, qemu: &mut Qemu, daemon: &mut Daemon) {
    daemon.assert_alive();
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
    /// Starts it with `args` as a shell reads them.
    fn start(dir: &Path, kernel: Kernel, initrd: &Path, args: &str) -> Self {
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
        command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initrd);
        command.args(["-append", "console=ttyS0"]);
        let output = File::create(&log).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        let child = daemon::end_with_parent(&mut command).spawn().unwrap();
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

    /// It must end well, and without a word.
    fn wait_for_end(&mut self) {
        let status = wait::until("the end of QEMU", || self.child.try_wait().unwrap());
        assert_eq!((status.code(), self.log().as_str()), (Some(0), ""), "QEMU's end");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The last lines.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
