//! A host with systemd, QEMU and libvirt. `/host` has the package and the files of the tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use testing::machine::LIMIT;
use testing::machine::Output;
use testing::machine::{Machine as Vm, WITH_VT_D, WorkDir, drive, slot};
use testing::testbed::{make_initrd, variable};

/// The service instance of the tests.
pub const SERVICE: &str = "vhost-user-iommu@vm1.service";
/// Its socket unit.
pub const SOCKET: &str = "vhost-user-iommu@vm1.socket";

/// A device that can be assigned to an instance.
pub const DEVICE: &str = "0000:00:04.0";

/// Directory of the package's examples.
pub const EXAMPLES: &str = "/usr/share/doc/vhost-user-iommu/examples";

/// Overrides the usual one. Mitigations of speculative execution are of no use on an emulated
/// processor, which does not speculate.
const COMMAND_LINE: &str = "console=ttyS0 no_timer_check mitigations=off systemd.show_status=no";

/// Installs the package.
const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive dpkg --install /host/package.deb";

/// A host. Every test ends with [`finish`](Self::finish).
pub struct Machine(Vm);

impl Machine {
    /// Boots a host without the package.
    pub fn boot() -> Self {
        Self::boot_on("-machine q35", &variable("VUI_STOCK_KERNEL"))
    }

    /// As [`boot`](Self::boot), with an IOMMU, a kernel with iommufd, and [`DEVICE`].
    pub fn boot_with_device() -> Self {
        let hardware = format!("{WITH_VT_D} -device edu,addr={}", slot(DEVICE));
        Self::boot_on(&hardware, &variable("VUI_SMALL_KERNEL"))
    }

    fn boot_on(hardware: &str, kernel: &Path) -> Self {
        // Writes to the disk are discarded.
        let disk = drive("root", &variable("VUI_SERVICE_DISK"), ",snapshot=on");
        let args = format!(
            "{hardware} -m 2G {disk} -device nvme,drive=root,serial=root -append '{COMMAND_LINE}'"
        );
        Self(Vm::boot(WorkDir::new(), kernel, initrd(), &args, || ()))
    }

    /// Boots a host with the package and an enabled socket unit.
    pub fn with_instance() -> Self {
        let mut machine = Self::boot();
        machine.install();
        machine.run("cp /host/vm1.toml /etc/vhost-user-iommu/");
        machine.run(&format!("systemctl enable --now {SOCKET} 2>&1"));
        machine
    }

    /// Installs the package.
    pub fn install(&mut self) {
        self.run(&format!("{INSTALL} 2>&1"));
    }

    /// Adds a drop-in from the package's examples to a unit.
    pub fn add_drop_in(&mut self, unit: &str, example: &str) {
        let dir = format!("/etc/systemd/system/{unit}.d");
        self.run(&format!("mkdir -p {dir} && cp {EXAMPLES}/{example} {dir}"));
        self.run("systemctl daemon-reload");
    }

    /// Runs a shell command.
    pub fn try_run(&mut self, command: &str) -> Output {
        self.0.try_run(command, || ())
    }

    /// Runs a shell command, which must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_eq!(status, 0, "'{command}' failed in the host:\n{text}");
        text
    }

    /// Returns a property of a unit.
    pub fn property(&mut self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --property {name} --value '{unit}'"))
    }

    /// Waits until a property of a unit is `expected`. Returns its value.
    #[track_caller]
    pub fn wait_for(&mut self, unit: &str, name: &str, expected: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let value = self.property(unit, name);
            if expected(&value) {
                return value;
            }
            assert!(start.elapsed() < LIMIT, "{name} of {unit} is '{value}'");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until an instance runs and its status text is `status`. (The last text stays when an
    /// instance exits.)
    #[track_caller]
    pub fn wait_for_status(&mut self, unit: &str, status: &str) {
        self.wait_for(unit, "SubState", |state| state == "running");
        self.wait_for(unit, "StatusText", |text| text == status);
    }

    /// Returns the log of all runs of a unit, with systemd's messages about it.
    pub fn journal(&mut self, unit: &str) -> String {
        self.run(&format!("journalctl --sync; journalctl --output cat --unit {unit}"))
    }

    /// Waits until a unit has logged `text`; it must not exit before.
    #[track_caller]
    pub fn wait_for_log(&mut self, unit: &str, text: &str) {
        let start = Instant::now();
        loop {
            let ended = matches!(&*self.property(unit, "ActiveState"), "inactive" | "failed");
            let journal = self.journal(unit);
            if journal.contains(text) {
                return;
            }
            assert!(
                !ended && start.elapsed() < LIMIT,
                "no '{text}' in the log of {unit}:\n{journal}"
            );
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Powers the host off. Its kernel must not have reported anything that is not `tolerated`.
    pub fn finish(mut self, tolerated: &[&str]) {
        self.0.finish(tolerated);
    }
}

/// Returns the path of the initial ram disk, built once for all tests.
fn initrd() -> &'static Path {
    static INITRD: OnceLock<PathBuf> = OnceLock::new();
    INITRD.get_or_init(|| {
        let guest = make_initrd("service-guest", "service-guest", &[]);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        make_initrd(
            "service",
            "service-init",
            &[
                (&variable("VUI_PACKAGE"), "host/package.deb"),
                (&root.join("systemd/example.toml"), "host/vm1.toml"),
                (&root.join("scripts/guest/service-vm"), "host/vm"),
                (&variable("VUI_SMALL_KERNEL"), "host/bzImage"),
                (&guest, "host/guest.initrd"),
                (crate::domain::file(), "host/domain.xml"),
            ],
        )
    })
}
