//! A machine with systemd, QEMU and libvirt: `/host` has the package and what tests need.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use testing::machine::LIMIT;
use testing::machine::Output;
use testing::machine::{Machine as Vm, Place, WITH_VT_D, drive, slot};
use testing::testbed::{make_initrd, variable};

/// The instance that tests use.
pub const SERVICE: &str = "vhost-user-iommu@vm1.service";
pub const SOCKET: &str = "vhost-user-iommu@vm1.socket";

/// A device that can be given to an instance.
pub const DEVICE: &str = "0000:00:04.0";

/// Files that the package brings to be copied.
pub const EXAMPLES: &str = "/usr/share/doc/vhost-user-iommu/examples";

/// Stands in place of the usual one. What protects from guesses of a processor is of no use on one
/// that guesses nothing.
const COMMAND_LINE: &str = "console=ttyS0 no_timer_check mitigations=off systemd.show_status=no";

const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive dpkg --install /host/package.deb";

pub struct Machine(Vm);

impl Machine {
    /// Boots a machine that does not have the package yet.
    pub fn boot() -> Self {
        Self::boot_on("-machine q35", &variable("VUI_STOCK_KERNEL"))
    }

    /// As that, with a kernel and an IOMMU that give devices to programs, and [`DEVICE`].
    pub fn boot_with_device() -> Self {
        let hardware = format!("{WITH_VT_D} -device edu,addr={}", slot(DEVICE));
        Self::boot_on(&hardware, &variable("VUI_SMALL_KERNEL"))
    }

    fn boot_on(hardware: &str, kernel: &Path) -> Self {
        // What is written to the disk is forgotten.
        let disk = drive("root", &variable("VUI_SERVICE_DISK"), ",snapshot=on");
        let args = format!(
            "{hardware} -m 2G {disk} -device nvme,drive=root,serial=root -append '{COMMAND_LINE}'"
        );
        Self(Vm::boot(Place::new(), kernel, initrd(), &args, || ()))
    }

    /// Boots one that has it, and an instance that waits for a front end.
    pub fn with_instance() -> Self {
        let mut machine = Self::boot();
        machine.install();
        machine.run("cp /host/vm1.toml /etc/vhost-user-iommu/");
        machine.run(&format!("systemctl enable --now {SOCKET} 2>&1"));
        machine
    }

    pub fn install(&mut self) {
        self.run(&format!("{INSTALL} 2>&1"));
    }

    /// Adds a drop-in of the package's examples to a unit.
    pub fn add_drop_in(&mut self, unit: &str, example: &str) {
        let dir = format!("/etc/systemd/system/{unit}.d");
        self.run(&format!("mkdir -p {dir} && cp {EXAMPLES}/{example} {dir}"));
        self.run("systemctl daemon-reload");
    }

    /// Runs a command.
    pub fn try_run(&mut self, command: &str) -> Output {
        self.0.try_run(command, || ())
    }

    /// Runs a command, which must succeed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let Output { text, status } = self.try_run(command);
        assert_eq!(status, 0, "'{command}' in the machine; it says:\n{text}");
        text
    }

    /// A property of a unit.
    pub fn property(&mut self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --property {name} --value '{unit}'"))
    }

    /// Waits until a property of a unit is as it should be.
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

    /// Waits until an instance that runs tells this of itself; what it told last stays when it ends.
    #[track_caller]
    pub fn wait_for_status(&mut self, unit: &str, status: &str) {
        self.wait_for(unit, "SubState", |state| state == "running");
        self.wait_for(unit, "StatusText", |text| text == status);
    }

    /// What a unit has said, in all its lives, and systemd of it.
    pub fn journal(&mut self, unit: &str) -> String {
        self.run(&format!("journalctl --sync; journalctl --output cat --unit {unit}"))
    }

    /// Waits until a unit has said something; it must not end before.
    #[track_caller]
    pub fn wait_for_words(&mut self, unit: &str, words: &str) {
        let start = Instant::now();
        loop {
            let ended = matches!(&*self.property(unit, "ActiveState"), "inactive" | "failed");
            let journal = self.journal(unit);
            if journal.contains(words) {
                return;
            }
            assert!(!ended && start.elapsed() < LIMIT, "no '{words}' of {unit}:\n{journal}");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Switches it off; its kernel must have had nothing to say but what is `tolerated`.
    pub fn finish(mut self, tolerated: &[&str]) {
        self.0.finish(tolerated);
    }
}

/// Its initial ram disk, made once for all tests.
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
