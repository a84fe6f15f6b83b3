//! A machine: daemon, QEMU and guest, from power on to the last check.

use testing::counters::Counters;
use testing::daemon::Daemon;
use testing::machine::kernel_log;
use testing::machine::{Machine, Output, WorkDir, wait_until};

use crate::daemon;
use crate::faults;
use crate::kernel::Kernel;

/// PCI addresses of endpoints. By default a machine has the first two.
pub const A: &str = "00:02.0";
pub const B: &str = "00:03.0";
pub const C: &str = "00:04.0";
pub const D: &str = "00:05.0";

/// PCI slot of the first disk.
const FIRST_DISK: usize = 0x10;

/// The default PCI address of the virtio-iommu device.
const IOMMU: &str = "00:01.0";

/// Options of a machine that is not started yet.
pub struct Builder {
    kernel: Kernel,
    iommu: &'static str,
    options: String,
    endpoints: Vec<&'static str>,
    memory: &'static str,
    disks: Vec<u64>,
    unlisted: Vec<&'static str>,
    tolerated: Vec<&'static str>,
}

impl Builder {
    /// Sets the PCI address of the virtio-iommu device.
    pub fn iommu(mut self, bdf: &'static str) -> Self {
        self.iommu = bdf;
        self
    }

    /// Sets further options of the daemon, separated by white space.
    pub fn options(mut self, options: &str) -> Self {
        self.options = options.into();
        self
    }

    /// Sets the endpoints.
    pub fn endpoints(mut self, endpoints: &[&'static str]) -> Self {
        self.endpoints = endpoints.into();
        self
    }

    /// Sets the size of memory, as a value of QEMU's `-m`.
    pub fn memory(mut self, size: &'static str) -> Self {
        self.memory = size;
        self
    }

    /// Adds an empty disk. The first is /dev/vda.
    pub fn disk(mut self, mebibytes: u64) -> Self {
        self.disks.push(mebibytes);
        self
    }

    /// Adds an endpoint that the VIOT table does not list.
    pub fn unlisted(mut self, bdf: &'static str) -> Self {
        self.unlisted.push(bdf);
        self
    }

    /// Accepts kernel messages that contain `text`.
    pub fn tolerate(mut self, text: &'static str) -> Self {
        self.tolerated.push(text);
        self
    }

    /// Starts daemon and machine, and waits until the guest's agent runs.
    #[track_caller]
    pub fn boot(self) -> Vm {
        let work_dir = WorkDir::new();
        let viot = work_dir.path().join("viot");
        let daemon = Daemon::builder().in_dir(work_dir.path()).with_default_sandbox();
        let daemon = self
            .endpoints
            .iter()
            .chain(&self.unlisted)
            .fold(daemon.args(&self.options).lifetime(LIFETIME), |daemon, bdf| {
                daemon.endpoint(bdf)
            });
        daemon::write_viot(&viot, self.iommu, &self.endpoints);
        let args = [
            &daemon::qemu_args(&daemon, self.iommu, &viot, self.memory),
            &disks(&work_dir, &self.disks),
            self.kernel.qemu_args(),
        ];
        let mut daemon = daemon.start();
        let (kernel, initrd) = (self.kernel.image(), self.kernel.initrd());
        let check = || daemon.assert_alive();
        let machine = Machine::boot(work_dir, &kernel, initrd, &args.concat(), check);
        Vm { machine, daemon, expected_faults: Vec::new(), tolerated: self.tolerated }
    }
}

/// Longer than any test runs, in seconds.
const LIFETIME: u32 = 4 * 3600;

/// A running machine. Every test ends with [`finish`](Self::finish).
pub struct Vm {
    machine: Machine,
    daemon: Daemon,
    expected_faults: Vec<String>,
    tolerated: Vec<&'static str>,
}

impl Vm {
    /// Returns options for a machine with two accelerators.
    pub fn builder(kernel: Kernel) -> Builder {
        Builder {
            kernel,
            iommu: IOMMU,
            options: String::new(),
            endpoints: vec![A, B],
            memory: "1G",
            disks: Vec::new(),
            unlisted: Vec::new(),
            tolerated: Vec::new(),
        }
    }

    /// Boots with two accelerators, and loads the virtio-iommu driver.
    #[track_caller]
    pub fn boot(kernel: Kernel) -> Self {
        let mut vm = Self::builder(kernel).boot();
        vm.run("load_modules virtio-iommu");
        vm
    }

    /// Runs a shell command in the guest, which must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_eq!(status, 0, "'{command}' in the guest failed:\n{text}");
        text
    }

    /// Runs a shell command in the guest, which must fail.
    #[track_caller]
    pub fn run_to_fail(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_ne!(status, 0, "'{command}' in the guest succeeded:\n{text}");
        text
    }

    /// Runs a shell command in the guest.
    #[track_caller]
    pub fn try_run(&mut self, command: &str) -> Output {
        self.machine.try_run(command, || self.daemon.assert_alive())
    }

    /// Runs a shell command that restarts the guest, and waits for its agent.
    #[track_caller]
    pub fn run_to_restart(&mut self, command: &str) {
        self.machine.agent.send(command);
        self.wait_until_ready();
    }

    /// Resets the machine, as its reset button does, and waits for the guest's agent.
    #[track_caller]
    pub fn reset(&mut self) {
        self.machine.qmp.execute("system_reset");
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        self.machine.wait_until_ready(|| self.daemon.assert_alive());
    }

    /// Runs a command of QEMU's monitor.
    #[track_caller]
    pub fn qmp(&mut self, command: &str) -> serde_json::Value {
        self.machine.qmp.execute(command)
    }

    /// Waits until the guest's driver has reported these faults, after the ones expected before.
    /// There must be no others until the end. Each is the endpoint, the address, and R or W.
    #[track_caller]
    pub fn expect_faults(&mut self, faults: &[(&str, u64, char)]) {
        for &(endpoint, address, access) in faults {
            self.expected_faults.push(faults::report(endpoint, address, access));
        }
        let expected = &self.expected_faults;
        wait_until(&format!("fault reports in the guest: {}", expected.join("; ")), || {
            let log = self.kernel_log();
            (kernel_log::faults(&log).len() >= expected.len()).then_some(())
        });
        self.check_faults();
    }

    #[track_caller]
    fn check_faults(&self) {
        let log = self.kernel_log();
        assert_eq!(kernel_log::faults(&log), self.expected_faults, "fault reports in the guest");
    }

    /// Returns the messages of the guest's kernel so far.
    pub fn kernel_log(&self) -> String {
        self.machine.kernel_log()
    }

    /// Powers the machine off, stops the daemon, and checks all logs. Returns the daemon's counters
    /// of page requests for each endpoint.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Counters> {
        self.daemon.assert_alive();
        self.machine.finish(&self.tolerated);
        let page_requests = daemon::stop(&mut self.daemon);
        self.check_faults();
        page_requests
    }
}

/// Creates disks of these sizes. Returns QEMU's options for them.
fn disks(work_dir: &WorkDir, sizes: &[u64]) -> String {
    let mut options = String::new();
    for (index, size) in sizes.iter().enumerate() {
        let (name, slot) = (format!("disk{index}"), FIRST_DISK + index);
        options += &work_dir.disk(&name, *size);
        options += &format!(" -device virtio-blk-pci,drive={name},addr={slot:x}.0");
    }
    options
}
