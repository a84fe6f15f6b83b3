//! A machine: daemon, QEMU and guest, from power on to the last check.

use std::thread;

use crate::common::agent::Output;
use crate::common::counters::Counters;
use crate::common::machine::{Machine, Place, tail};
use crate::common::wait;
use crate::daemon::{Config, Daemon};
use crate::faults;
use crate::kernel::Kernel;

/// The endpoints of a machine, unless told otherwise.
pub const A: &str = "00:02.0";
pub const B: &str = "00:03.0";
pub const C: &str = "00:04.0";
pub const D: &str = "00:05.0";

/// Where disks come, from this slot on.
const FIRST_DISK: usize = 0x10;

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
        self.disks.push(mebibytes);
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
        let place = Place::new();
        let endpoints = [self.endpoints.as_slice(), &self.unlisted].concat();
        let config = Config::new(place.path(), &endpoints, &self.options);
        config.write_viot(&self.endpoints);
        let mut daemon = config.start();
        let args =
            [&config.qemu_args(self.memory), &disks(&place, &self.disks), self.kernel.qemu_args()]
                .concat();
        let (kernel, initrd) = (self.kernel.image(), self.kernel.initrd());
        let machine = Machine::boot(place, &kernel, initrd, &args, || daemon.assert_alive());
        Vm { machine, daemon, expected_faults: Vec::new(), tolerated: self.tolerated }
    }
}

pub struct Vm {
    machine: Machine,
    daemon: Daemon,
    expected_faults: Vec<String>,
    tolerated: Vec<&'static str>,
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
        self.machine.try_run(command, || self.daemon.assert_alive())
    }

    /// Runs a command that is cut off by a restart of the machine, and waits for that.
    pub fn run_to_restart(&mut self, command: &str) {
        self.machine.agent.send(command);
        self.wait_until_ready();
    }

    /// Restarts the machine as its reset button would.
    pub fn reset(&mut self) {
        self.machine.qmp.execute("system_reset");
        self.wait_until_ready();
    }

    fn wait_until_ready(&mut self) {
        self.machine.wait_until_ready(|| self.daemon.assert_alive());
    }

    /// Runs a command of QEMU's monitor.
    pub fn qmp(&mut self, command: &str) -> serde_json::Value {
        self.machine.qmp.execute(command)
    }

    /// Waits until the driver has reported these faults, after those that were expected before.
    /// At the end there must be no other. Each is the endpoint, the address, and R or W.
    pub fn expect_faults(&mut self, faults: &[(&str, u64, char)]) {
        let line = |(endpoint, address, access)| faults::report(endpoint, address, access);
        self.expected_faults.extend(faults.iter().copied().map(line));
        let expected = &self.expected_faults;
        let what = format!("this end of the guest's fault reports: {}", expected.join("; "));
        wait::until(&what, || {
            let log = self.kernel_log();
            (faults::all(&log).len() >= expected.len()).then_some(())
        });
        self.check_faults();
    }

    fn check_faults(&self) {
        let log = self.kernel_log();
        assert_eq!(faults::all(&log), self.expected_faults, "the guest's fault reports");
    }

    pub fn kernel_log(&self) -> String {
        self.machine.kernel_log()
    }

    /// Ends everything, and looks at what was said. Every test ends so. Returns what the daemon has
    /// counted of page requests, for each endpoint.
    pub fn finish(mut self) -> Vec<Counters> {
        self.daemon.assert_alive();
        self.machine.finish(&self.tolerated);
        let page_requests = self.daemon.stop();
        self.check_faults();
        page_requests
    }
}

/// QEMU's options for disks of these sizes, which are made.
fn disks(place: &Place, sizes: &[u64]) -> String {
    let disk = |(index, size): (usize, &u64)| {
        let (name, slot) = (format!("disk{index}"), FIRST_DISK + index);
        let device = format!(" -device virtio-blk-pci,drive={name},addr={slot:x}.0");
        place.disk(&name, *size) + &device
    };
    sizes.iter().enumerate().map(disk).collect()
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- end of the daemon's log:\n{}", tail(&self.daemon.log()));
        }
    }
}
