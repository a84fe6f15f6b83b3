//! The domain of `docs/libvirt.md`, with a guest.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const DOCUMENT: &str = include_str!("../../docs/libvirt.md");

/// What its guest says.
pub const LOG: &str = "/var/log/vm1.log";

/// What the document leaves open, or has otherwise than a machine without KVM can have it.
const CHANGES: [(&str, &str); 3] = [
    ("<domain type='kvm'", "<domain type='qemu'"),
    (
        "hvm</type>",
        "hvm</type>\n<kernel>/host/bzImage</kernel><initrd>/host/guest.initrd</initrd>\
         <cmdline>console=ttyS0 loglevel=5 no_timer_check panic=-1 endpoint=0000:00:11.0</cmdline>",
    ),
    ("</emulator>", "</emulator>\n<serial type='file'><source path='/var/log/vm1.log'/></serial>"),
];

/// The commands that the document gives for the instance, a line each.
pub fn commands() -> impl Iterator<Item = &'static str> {
    block("```\n").lines()
}

/// The domain as a file.
pub fn file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("domain.xml");
        std::fs::write(&path, xml()).unwrap();
        path
    })
}

fn xml() -> String {
    CHANGES.iter().fold(block("```xml\n").to_owned(), |xml, (old, new)| {
        assert_eq!(xml.matches(old).count(), 1, "{old} in the domain");
        xml.replace(old, new)
    })
}

/// The first block of the document that begins with `fence`.
fn block(fence: &str) -> &'static str {
    let block =
        DOCUMENT.split_once(&format!("\n{fence}")).and_then(|(_, rest)| rest.split_once("```"));
    block.unwrap_or_else(|| panic!("no {fence:?} in docs/libvirt.md")).0
}
