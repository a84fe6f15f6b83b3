//! The guests' kernels.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::common::bed::{make_initrd, variable};
use crate::common::machine::FOR_KASAN;

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's, as it is: virtio-iommu is a module, VFIO has groups only.
    Stock,
    /// Built for tests: all built in, VFIO has both interfaces, and the patches of guest/linux.
    Small,
    /// As that, and it checks its own locks.
    Debug,
}

impl Kernel {
    pub fn image(self) -> PathBuf {
        match self {
            Self::Stock => variable("VUI_STOCK_KERNEL"),
            Self::Small => variable("VUI_SMALL_KERNEL"),
            Self::Debug => variable("VUI_DEBUG_KERNEL"),
        }
    }

    /// What it needs besides of QEMU.
    pub fn qemu_args(self) -> &'static str {
        match self {
            Self::Stock | Self::Small => "",
            Self::Debug => FOR_KASAN,
        }
    }

    /// Its initial ram disk, made once for all tests.
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
