//! Guest kernels.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use testing::machine::FOR_KASAN;
use testing::testbed::{make_initrd, variable};

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's: virtio-iommu is a module, VFIO has only groups.
    Stock,
    /// Built for tests: without modules, VFIO with groups and character devices, and the patches of
    /// `guest/linux`.
    Small,
    /// As [`Small`](Self::Small), and it checks its locks and memory accesses.
    Debug,
}

impl Kernel {
    /// Returns the path of the image.
    pub fn image(self) -> PathBuf {
        match self {
            Self::Stock => variable("VUI_STOCK_KERNEL"),
            Self::Small => variable("VUI_SMALL_KERNEL"),
            Self::Debug => variable("VUI_DEBUG_KERNEL"),
        }
    }

    /// Returns the QEMU options that the kernel requires.
    pub fn qemu_args(self) -> &'static str {
        match self {
            Self::Stock | Self::Small => "",
            Self::Debug => FOR_KASAN,
        }
    }

    /// Returns the path of the initial ram disk, built once for all tests.
    pub fn initrd(self) -> &'static Path {
        static STOCK: OnceLock<PathBuf> = OnceLock::new();
        static SMALL: OnceLock<PathBuf> = OnceLock::new();
        match self {
            Self::Stock => STOCK.get_or_init(|| {
                let modules = variable("VUI_STOCK_MODULES");
                let release = modules.file_name().unwrap().to_str().unwrap();
                make_initrd("stock", "agent", &[(&modules, &format!("lib/modules/{release}"))])
            }),
            Self::Small | Self::Debug => SMALL.get_or_init(|| make_initrd("small", "agent", &[])),
        }
    }
}
