//! Trace points of the program: their ELF notes, and uprobes on them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use object::elf::NoteType;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, Object};

const PROVIDER: &str = "vhost_user_iommu";
/// Type of the notes that describe trace points.
const STAPSDT: NoteType = NoteType(3);

/// A location of a trace point in the program; it can have several.
#[derive(Clone, Debug)]
pub struct Location {
    /// Virtual address.
    pub address: u64,
    /// Offset of the instruction in the file, where the kernel can set a probe.
    pub offset: u64,
    /// Number of arguments.
    pub arguments: usize,
}

/// Returns the trace points of the program by name.
pub fn trace_points(program: &Path) -> BTreeMap<String, Vec<Location>> {
    let bytes = fs::read(program).unwrap();
    let elf = ElfFile64::<Endianness>::parse(&*bytes).unwrap();
    let section = elf.section_by_name(".note.stapsdt").expect("a section of trace points");
    let (endian, data) = (elf.endian(), &*bytes);
    let mut notes = section.elf_section_header().notes(endian, data).unwrap().unwrap();
    let mut points: BTreeMap<String, Vec<Location>> = BTreeMap::new();
    while let Some(note) = notes.next().unwrap() {
        if note.n_type(endian) == STAPSDT {
            let (address, words) = description(note.desc());
            assert_eq!(words[0], PROVIDER);
            let segments = elf.elf_header().program_headers(endian, data).unwrap();
            let offset = segments.iter().find_map(|segment| {
                let inside = address.checked_sub(segment.p_vaddr(endian))?;
                let code = segment.p_type(endian) == object::elf::PT_LOAD;
                (code && inside < segment.p_filesz(endian))
                    .then(|| segment.p_offset(endian) + inside)
            });
            let offset = offset.expect("a location in the program");
            let arguments = words[2].split_whitespace().count();
            points.entry(words[1].clone()).or_default().push(Location {
                address,
                offset,
                arguments,
            });
        }
    }
    points
}

/// Returns the address, and provider, name and arguments as text.
fn description(bytes: &[u8]) -> (u64, Vec<String>) {
    let (numbers, text) = bytes.split_at(3 * 8);
    let text = std::str::from_utf8(text).unwrap();
    let address = u64::from_ne_bytes(numbers[..8].try_into().unwrap());
    (address, text.split('\0').map(str::to_owned).collect())
}

/// A probe that counts how often a process executes a location of the program.
pub struct Uprobe(File);

impl Uprobe {
    /// Sets a probe on a thread. Requires CAP_PERFMON, usually root's.
    pub fn new(program: &Path, offset: u64, pid: u32) -> io::Result<Self> {
        let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?;
        let path = CString::new(program.as_os_str().as_bytes())?;
        // `struct perf_event_attr`: type, size, and the two words that name the location.
        let mut attributes = [0u64; 16];
        attributes[0] =
            kind.trim().parse::<u64>().unwrap() | (size_of_val(&attributes) as u64) << 32;
        // Threads that the thread creates later count, too (`inherit`).
        attributes[5] = 1 << 1;
        attributes[7] = path.as_ptr() as u64;
        attributes[8] = offset;
        // SAFETY: the attributes, and the path in them, outlive the call.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), pid as i32, -1, -1, 0)
        };
        match fd {
            ..0 => Err(io::Error::last_os_error()),
            // SAFETY: the call has created this descriptor.
            fd => Ok(Self(unsafe { File::from_raw_fd(fd as i32) })),
        }
    }

    /// Returns the count.
    pub fn count(&mut self) -> u64 {
        let mut count = [0; 8];
        self.0.read_exact(&mut count).unwrap();
        u64::from_ne_bytes(count)
    }
}
