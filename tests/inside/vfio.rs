//! Devices bound to VFIO, behind the (emulated) hardware IOMMU of the host.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use vhost_user_iommu::address::EndpointId;
use vhost_user_iommu::host::HostIommu;
use vhost_user_iommu::host::iommufd::{Iommufd, VfioFile};

use crate::errors;
use crate::rig::Rig;
use testing::daemon::{self, Daemon};
use testing::memory::{GuestMemory, PAGE};
use testing::request::{ATTACH_BYPASS, READ, RW, attach, attach_with, detach, map, unmap};
use testing::wait;

const ENDPOINTS: [EndpointId; 2] = [EndpointId(0x10), EndpointId(0x18)];
const EP0: u32 = ENDPOINTS[0].0;
const REGIONS: [(u64, u64); 2] = [(0, 4 << 20), (4 << 30, 4 << 20)];

/// Returns the PCI functions that `tests/host` has bound to vfio-pci.
fn functions(variable: &str) -> Vec<String> {
    let text = std::env::var(variable);
    let text = text.unwrap_or_else(|_| panic!("{variable} is not set; see tests/host"));
    text.split_whitespace().map(String::from).collect()
}

/// Returns the VFIO character device of a function.
fn cdev(function: &str) -> PathBuf {
    let dir = format!("/sys/bus/pci/devices/{function}/vfio-dev");
    let entry = fs::read_dir(&dir).unwrap().next().unwrap().unwrap();
    Path::new("/dev/vfio/devices").join(entry.file_name())
}

fn nvme(index: usize) -> PathBuf {
    cdev(&functions("VUI_NVME")[index])
}

/// QEMU's edu device: its DMA copies between its buffer and I/O virtual addresses (QEMU's
/// `docs/specs/edu.rst`).
struct Edu(OwnedFd);

const CONFIG: u64 = 7 << 40;
const PCI_COMMAND: u64 = CONFIG + 4;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const BUFFER: u64 = 0x4_0000;
const START: u64 = 1;
const TO_MEMORY: u64 = 2;

impl Edu {
    /// Returns the device at `path`, through the open file that the back end has bound: a device
    /// can be bound once.
    fn of(path: &Path) -> Self {
        let device = fs::metadata(path).unwrap().rdev();
        let mut fds = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
        let fd = fds
            .find(|fd| fs::metadata(fd.path()).is_ok_and(|open| open.rdev() == device))
            .expect("the device is open");
        let fd = fd.file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: the back end keeps it open for longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let edu = Self(fd.try_clone_to_owned().unwrap());
        edu.write(PCI_COMMAND, &MEMORY_AND_BUS_MASTER.to_le_bytes());
        edu
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        // SAFETY: the buffer is valid for reads of its length during the call.
        let done = unsafe {
            libc::pwrite(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), at as i64)
        };
        assert_eq!(done, bytes.len() as isize, "{}", std::io::Error::last_os_error());
    }

    fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the buffer is valid for writes of its length during the call.
        let done = unsafe {
            libc::pread(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), at as i64)
        };
        assert_eq!(done, 8, "{}", std::io::Error::last_os_error());
        u64::from_le_bytes(bytes)
    }

    fn copy(&self, source: u64, destination: u64, len: u64, direction: u64) {
        let registers = [(DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, len)];
        for (register, value) in registers {
            self.write(register, &value.to_le_bytes());
        }
        self.write(DMA_COMMAND, &(START | direction).to_le_bytes());
        wait::until("the end of a DMA", || (self.read(DMA_COMMAND) & START == 0).then_some(()));
    }

    /// Copies `len` bytes from one I/O virtual address to another.
    fn move_bytes(&self, from: u64, to: u64, len: u64) {
        self.copy(from, BUFFER, len, 0);
        self.copy(BUFFER, to, len, TO_MEMORY);
    }
}

/// Returns a device model with the device at `path` as its endpoint, and guest memory.
fn rig(path: &Path) -> (Rig, Arc<GuestMemory>) {
    errors::count_from_now();
    let mut iommufd = Iommufd::open().unwrap();
    iommufd.add_vfio(ENDPOINTS[0], VfioFile::open(path).unwrap()).unwrap();
    let mut rig = Rig::new(iommufd, &ENDPOINTS[..1]);
    let ram = GuestMemory::new(&REGIONS);
    rig.set_memory(&ram);
    (rig, ram)
}

#[test]
fn device_dma_is_translated_by_its_domain() {
    const IOVA: u64 = 0x800_0000;
    let path = cdev(&functions("VUI_EDU")[0]);
    let (mut rig, ram) = rig(&path);
    let edu = Edu::of(&path);
    rig.ok(attach(1, EP0));
    rig.ok(map(1, IOVA, IOVA + 2 * PAGE - 1, 0x10_0000, RW));
    rig.ok(map(1, IOVA + 2 * PAGE, IOVA + 3 * PAGE - 1, REGIONS[1].0, RW));
    ram.write(0x10_0000, b"from here");
    ram.fill(REGIONS[1].0, 4096, 0);

    // From one mapping to another, compared byte by byte.
    let bytes: Vec<u8> = (0..PAGE).map(|at| (at * 31 + 7) as u8).collect();
    ram.write(0x10_0000, &bytes);
    edu.move_bytes(IOVA, IOVA + 2 * PAGE, PAGE);
    assert!(ram.read(REGIONS[1].0, PAGE as usize) == bytes);

    // Unmapped: no data is written.
    rig.ok(unmap(1, IOVA + 2 * PAGE, IOVA + 3 * PAGE - 1));
    ram.fill(REGIONS[1].0, 64, 0);
    edu.move_bytes(IOVA, IOVA + 2 * PAGE, 64);
    assert_eq!(ram.read(REGIONS[1].0, 64), [0; 64]);

    // Read-only: no data is written.
    rig.ok(map(1, IOVA + 2 * PAGE, IOVA + 3 * PAGE - 1, REGIONS[1].0, READ));
    edu.move_bytes(IOVA, IOVA + 2 * PAGE, 64);
    assert_eq!(ram.read(REGIONS[1].0, 64), [0; 64]);

    // Attached to another domain: the same addresses have other translations.
    rig.ok(attach(2, EP0));
    rig.ok(map(2, IOVA, IOVA + PAGE - 1, 0x20_0000, RW));
    ram.write(0x20_0000, b"of another domain");
    edu.move_bytes(IOVA, IOVA + 64, 17);
    assert_eq!(ram.read(0x20_0000 + 64, 17), b"of another domain");
    assert!(
        ram.read(0x10_0000, PAGE as usize) == bytes,
        "memory of the previous domain was written"
    );

    // Bypass: guest-physical addresses.
    rig.ok(attach_with(3, EP0, ATTACH_BYPASS));
    edu.move_bytes(0x10_0000, 0x30_0000, PAGE);
    assert!(ram.read(0x30_0000, PAGE as usize) == bytes);

    // Detached: no data is written.
    rig.ok(detach(3, EP0));
    ram.fill(0x30_0000, 64, 0);
    edu.move_bytes(0x10_0000, 0x30_0000, 64);
    assert_eq!(ram.read(0x30_0000, 64), [0; 64]);
    assert_eq!(errors::count(), 0);
}

#[test]
fn function_can_be_used_again_after_close() {
    for _ in 0..3 {
        let (mut rig, _ram) = rig(&nvme(0));
        let clean = rig.iommufd.next_object().unwrap();
        rig.ok(attach(1, EP0));
        rig.ok(map(1, 0x10_0000, 0x1f_ffff, 0, RW));
        rig.ok(attach(2, EP0));
        rig.ok(map(2, 0x10_0000, 0x10_0fff, 0x1000, RW));
        rig.ok(unmap(2, 0, u64::MAX));
        rig.ok(attach_with(3, EP0, ATTACH_BYPASS));
        rig.ok(detach(3, EP0));
        assert_eq!(rig.iommufd.next_object().unwrap(), clean, "objects are left");
        assert_eq!(errors::count(), 0);
    }
}

#[test]
fn capabilities_of_a_device_are_probed() {
    let (rig, _ram) = rig(&nvme(0));
    assert!(rig.iommufd.serves(ENDPOINTS[0]));
    let capabilities = rig.iommufd.capabilities(ENDPOINTS[0]);
    // No device of QEMU makes page requests.
    assert_eq!(capabilities.page_requests, None);
    assert!(rig.iommufd.fault_queue(ENDPOINTS[0]).is_none());
    assert_eq!(capabilities.page_granularity, PAGE);
    // The interrupt address range of x86 cannot be mapped.
    let last = capabilities.iova_ranges.last().unwrap().last();
    assert!(last >= (1 << 38) - 1, "{last:#x}");
    let gaps = capabilities.unmappable_ranges();
    assert!(gaps.iter().any(|gap| gap.contains(0xfee0_0000)), "{gaps:?}");
    assert!(gaps.iter().all(|gap| !gap.contains(0x1000_0000)), "{gaps:?}");
}

#[test]
fn daemon_serves_devices_and_logs_missing_page_requests() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::builder();
    for index in 0..2 {
        let endpoint = format!("00:0{}.0,vfio={}", 2 + index, nvme(index).display());
        daemon = daemon.args(&format!("--endpoint {endpoint}"));
    }
    let daemon = daemon.start();
    let log = wait::until("the daemon to be ready", || {
        Some(daemon.log()).filter(|log| log.contains("ready: "))
    });
    for slot in [2, 3] {
        let text = format!("endpoint 0000:00:0{slot}.0: the host IOMMU delivers no page requests");
        assert!(log.contains(&text), "{log}");
    }
    assert!(log.contains("capabilities: IPC_LOCK"), "{log}");
    // A second daemon reports that the device is in use.
    let second = run(&dir, &format!("vfio={}", nvme(0).display()));
    assert_fails(&second, &["cannot bind", "another program uses it"]);
    drop(daemon);
    // It can use the device when the first daemon has ended.
    let endpoint = format!("--endpoint 00:02.0,vfio={}", nvme(0).display());
    drop(Daemon::builder().args(&endpoint).start());
}

fn command(dir: &tempfile::TempDir, endpoint: &str) -> Command {
    let mut command = daemon::command(60);
    command.arg(daemon::sandbox_option());
    command.arg("--socket-path").arg(dir.path().join("vhost"));
    command.args(["--endpoint", &format!("00:02.0,{endpoint}")]);
    command
}

fn run(dir: &tempfile::TempDir, endpoint: &str) -> Output {
    command(dir, endpoint).output().unwrap()
}

/// Asserts that the daemon has ended with an error that contains all of `texts`.
#[track_caller]
fn assert_fails(output: &Output, texts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(1..)), "{}: {error}", output.status);
    for text in texts {
        assert!(error.contains(text), "no '{text}' in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

#[test]
fn file_that_is_not_a_device_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let rows = [
        ("/dev/vfio/devices/vfio99".to_owned(), "cannot open /dev/vfio/devices/vfio99"),
        (file.display().to_string(), "is not a VFIO character device"),
        ("/dev/null".into(), "/dev/null is not a VFIO character device"),
        ("/dev/vfio/vfio".into(), "is not a VFIO character device"),
        ("/dev".into(), "cannot open /dev"),
    ];
    for (path, message) in rows {
        assert_fails(&run(&dir, &format!("vfio={path}")), &[message, &path]);
    }
}

#[test]
fn missing_permissions_are_reported_with_advice() {
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = nvme(0);
    let as_nobody =
        || command(&dir, &format!("vfio={}", path.display())).uid(NOBODY).output().unwrap();
    let files = [path.as_path(), Path::new("/dev/iommu")];
    let before = files.map(|file| fs::metadata(file).unwrap().permissions());
    let set = |file, mode| fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    files.into_iter().for_each(|file| set(file, 0o600));
    let no_device = as_nobody();
    set(files[0], 0o666);
    let no_iommufd = as_nobody();
    for (file, mode) in files.iter().zip(before) {
        fs::set_permissions(file, mode).unwrap();
    }
    assert_fails(&no_iommufd, &["cannot open /dev/iommu", "give the daemon's user access"]);
    let name = path.display().to_string();
    assert_fails(&no_device, &["cannot open", &name, "give the daemon's user access"]);
}

#[test]
fn missing_iommufd_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let away = Path::new("/dev/iommu.away");
    fs::rename("/dev/iommu", away).unwrap();
    let output = run(&dir, &format!("vfio={}", nvme(0).display()));
    fs::rename(away, "/dev/iommu").unwrap();
    assert_fails(&output, &["cannot open /dev/iommu", "CONFIG_IOMMUFD"]);
}
