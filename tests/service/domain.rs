//! The libvirt domain of `docs/libvirt.md`, for a machine without KVM.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const DOCUMENT: &str = include_str!("../../docs/libvirt.md");

/// The difference of a machine without KVM.
const KVM: (&str, &str) = ("<domain type='kvm'", "<domain type='qemu'");

/// Returns the commands of the document that set the instance up, one per line.
pub fn commands() -> impl Iterator<Item = &'static str> {
    block("```\n").lines()
}

/// Writes the domain to a file, once. Returns its path.
pub fn file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("domain.xml");
        let domain = block("```xml\n");
        assert!(domain.contains(KVM.0), "{domain}");
        std::fs::write(&path, domain.replace(KVM.0, KVM.1)).unwrap();
        path
    })
}

/// Returns the first block of the document that starts with `fence`.
fn block(fence: &str) -> &'static str {
    let block =
        DOCUMENT.split_once(&format!("\n{fence}")).and_then(|(_, rest)| rest.split_once("```"));
    block.unwrap_or_else(|| panic!("no {fence:?} in docs/libvirt.md")).0
}
