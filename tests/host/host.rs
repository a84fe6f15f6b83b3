//! A virtual machine that is a host. `/host` contains the programs under test, `/nested` a QEMU with
//! a kernel for nested guests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use testing::machine::Output;
use testing::machine::kernel_log;
use testing::machine::{FOR_KASAN, Machine, WITH_VT_D, WorkDir, drive, slot};
use testing::testbed::{self, make_initrd, variable};

/// PCI functions to bind to VFIO: two unused disks.
pub const NVME: [&str; 2] = ["0000:00:02.0", "0000:00:03.0"];
const NVME_MIB: u64 = 64;

/// QEMU's edu device, whose DMA can address the whole input range of the IOMMU.
pub const EDU: &str = "0000:00:04.0";
const EDU_MASK: &str = "0xffffffffffff";

/// The kernel of the host.
#[derive(Clone, Copy)]
pub enum Kernel {
    Small,
    /// With lockdep and KASAN.
    Debug,
}

impl Kernel {
    fn image(self) -> PathBuf {
        match self {
            Self::Small => variable("VUI_SMALL_KERNEL"),
            Self::Debug => variable("VUI_DEBUG_KERNEL"),
        }
    }

    /// Returns further options of QEMU for this kernel.
    fn qemu_args(self) -> &'static str {
        match self {
            Self::Small => "",
            Self::Debug => FOR_KASAN,
        }
    }
}

pub struct Host {
    machine: Machine,
    kernel: Kernel,
}

impl Host {
    /// Boots the host. `memory` is the value of QEMU's option `-m`.
    pub fn boot(kernel: Kernel, memory: &str) -> Self {
        let work_dir = WorkDir::new();
        let args = args(&work_dir, memory) + kernel.qemu_args();
        let machine = Machine::boot(work_dir, &kernel.image(), initrd(), &args, || ());
        let mut host = Self { machine, kernel };
        host.run("mkdir /nested && mount -t ext4 -o ro /dev/vda /nested");
        host
    }

    /// Runs a command, which has to succeed.
    pub fn run(&mut self, command: &str) -> String {
        let Output { text, status } = self.machine.try_run(command, || ());
        assert_eq!(status, 0, "'{command}' in the host failed:\n{text}");
        text
    }

    /// Shuts the host down. Its kernel and QEMU must not have logged problems other than
    /// `tolerated`, and lockdep must still be active.
    pub fn finish(mut self, tolerated: &[&str]) {
        if matches!(self.kernel, Kernel::Debug) {
            let answer = self.run(kernel_log::LOCKDEP_COMMAND);
            kernel_log::assert_lockdep_active(&answer, &self.machine.kernel_log());
        }
        self.machine.finish(tolerated);
    }
}

fn args(work_dir: &WorkDir, memory: &str) -> String {
    let disk = drive("host", &variable("VUI_HOST_DISK"), ",readonly=on");
    let nvme = NVME.iter().enumerate().map(|(index, function)| {
        let (name, slot) = (format!("nvme{index}"), slot(function));
        let device = format!(" -device nvme,drive={name},serial={name},addr={slot}");
        work_dir.disk(&name, NVME_MIB) + &device
    });
    format!(
        "{WITH_VT_D} -m {memory} \
         {disk} -device virtio-blk-pci,drive=host,addr=01.0 {} \
         -device edu,addr={},dma_mask={EDU_MASK}",
        nvme.collect::<String>(),
        slot(EDU),
    )
}

/// Returns the initial RAM disk, which is made once for all tests.
fn initrd() -> &'static Path {
    static INITRD: OnceLock<PathBuf> = OnceLock::new();
    INITRD.get_or_init(|| {
        let programs = testbed::output(&mut testbed::script("guest/build-selftest"));
        let [daemon, frontend, inside] = programs.lines().collect::<Vec<_>>()[..] else {
            panic!("not three programs: {programs}");
        };
        let nested = make_initrd("nested", "nested", &[]);
        make_initrd(
            "host",
            "agent",
            &[
                (daemon.as_ref(), "host/vhost-user-iommu"),
                (frontend.as_ref(), "host/frontend"),
                (inside.as_ref(), "host/inside"),
                ("scripts/guest/chain".as_ref(), "host/chain"),
                (&nested, "host/nested.initrd"),
            ],
        )
    })
}
