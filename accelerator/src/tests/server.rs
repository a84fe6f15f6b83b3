//! Clients of the vfio-user server, including those that violate the protocol.

use super::*;

/// A running accelerator without address translation.
pub struct Served {
    accelerator: Option<Accelerator>,
    memory: ClientMemory,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    pub fn new() -> Self {
        let memory = ClientMemory::new(GuestMemoryMmap::new());
        Self::with_dma(memory.clone(), Arc::new(IdentityDma(memory)))
    }

    fn with_dma(memory: ClientMemory, dma: Arc<dyn Dma>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accelerator.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let config = Config {
            name: "accelerator".into(),
            thread_suffix: "test".into(),
            memory: memory.clone(),
            dma,
            faults: Arc::new(FakeFaults::default()),
            on_thread_start: |_| {},
        };
        let accelerator = Accelerator::start(listener, config).unwrap();
        Self { accelerator: Some(accelerator), memory, path, _directory: directory }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path).unwrap()
    }

    fn regions(&self) -> usize {
        self.memory.memory().num_regions()
    }
}

fn guest_ram(client: &mut Client, address: u64, size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    client.dma_map(0, address, size, file.as_raw_fd()).unwrap();
    file
}

fn write32(client: &mut Client, channel: u32, register: u32, value: u32) {
    let offset = channel_register(channel, register) as u64;
    client.region_write(BAR0, offset, &value.to_le_bytes()).unwrap();
}

fn read32(client: &mut Client, offset: u32) -> u32 {
    let mut data = [0; 4];
    client.region_read(BAR0, offset as u64, &mut data).unwrap();
    u32::from_le_bytes(data)
}

/// Enables memory space and bus master, and submits `work` on channel 2.
fn submit(client: &mut Client, ram: &File, work: &Descriptor) {
    ram.write_all_at(&work.to_bytes(), RING).unwrap();
    client.region_write(CONFIG, COMMAND, &[6, 0]).unwrap();
    let base = channel_register(2, CH_RING_BASE) as u64;
    client.region_write(BAR0, base, &RING.to_le_bytes()).unwrap();
    write32(client, 2, CH_RING_SIZE, ENTRIES);
    write32(client, 2, CH_VECTOR, 2);
    write32(client, 2, CH_CONTROL, CH_CONTROL_ENABLE);
    write32(client, 2, CH_DOORBELL, 1);
}

/// Connects a client, maps memory, and copies with an interrupt.
fn copy_as_client(served: &Served) {
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    ram.write_all_at(b"over the socket", SOURCE).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, trigger, 2, 1, &[event.as_raw_fd()]).unwrap();
    let flags = FLAG_COMPLETION | FLAG_INTERRUPT;
    submit(&mut client, &ram, &Descriptor { flags, ..descriptor(OP_COPY, 15, 0) });

    eventually("interrupt", || event.read().is_ok());
    assert_eq!(read32(&mut client, INT_STATUS), 1 << 2);
    let mut bytes = [0; COMPLETION_SIZE];
    ram.read_exact_at(&mut bytes, record_at(0)).unwrap();
    assert_eq!(Completion::from_bytes(&bytes), success(0, 15));
    let mut copied = [0; 15];
    ram.read_exact_at(&mut copied, TARGET).unwrap();
    assert_eq!(&copied, b"over the socket");
}

#[test]
fn client_copies_and_receives_interrupt() {
    copy_as_client(&Served::new());
}

#[test]
fn client_reads_pci_function() {
    let served = Served::new();
    let mut client = served.client();
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0xf0, 0x10]);
    let sizes = [0, 1, 2, 6, 7, 8].map(|index| client.region(index).unwrap().size);
    assert_eq!(sizes, [BAR0_SIZE as u64, BAR1_SIZE as u64, 0, 0, 4096, 0]);
    let counts = [0, 1, 2, 3, 4].map(|index| client.get_irq_info(index).unwrap().count);
    assert_eq!(counts, [0, 0, 32, 1, 0]);
}

#[test]
fn disconnect_removes_memory_and_work() {
    let served = Served::new();
    for _ in 0..3 {
        copy_as_client(&served);
        eventually("memory removed", || served.regions() == 0);
    }
}

#[test]
fn unmapped_region_is_not_accessible() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, TARGET);
    guest_ram(&mut client, TARGET, 0x4_0000);
    client.dma_unmap(TARGET, 0x4_0000).unwrap();
    assert_eq!(served.regions(), 1);
    submit(&mut client, &ram, &descriptor(OP_COPY, 8, 0));
    let mut bytes = [0; COMPLETION_SIZE];
    eventually("record", || {
        ram.read_exact_at(&mut bytes, record_at(0)).unwrap();
        bytes[0] != STATUS_PENDING
    });
    let record = Completion::from_bytes(&bytes);
    assert_eq!((record.status, record.fault_address), (STATUS_BUS_ERROR, TARGET));
}

#[test]
fn dma_unmap_during_work_is_safe() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x4_0000);
    let work = Descriptor {
        source: 0x10_0000,
        destination: 0x20_0000,
        ..descriptor(OP_COPY, 0x10_0000, 0)
    };
    for _ in 0..20 {
        guest_ram(&mut client, 0x10_0000, 0x10_0000);
        guest_ram(&mut client, 0x20_0000, 0x10_0000);
        write32(&mut client, 2, CH_CONTROL, 0);
        submit(&mut client, &ram, &work);
        client.dma_unmap(0x10_0000, 0x10_0000).unwrap();
        client.dma_unmap(0x20_0000, 0x10_0000).unwrap();
        let status = channel_register(2, CH_STATUS);
        eventually("idle", || read32(&mut client, status) == STATE_RUNNING);
    }
}

#[test]
fn device_reset_keeps_memory() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &descriptor(OP_NOOP, 0, 0));
    client.reset().unwrap();
    let mut command = [0; 2];
    client.region_read(CONFIG, COMMAND, &mut command).unwrap();
    assert_eq!(command, [0, 0]);
    assert_eq!(served.regions(), 1, "a device reset does not affect the memory of the client");
}

const VERSION_COMMAND: u16 = 1;
const HEADER: u32 = 16;

/// Returns a message whose header contains the total size `size`.
fn message(command: u16, size: u32, body: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 0];
    message.extend(command.to_le_bytes());
    message.extend(size.to_le_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn version(json: &[u8]) -> Vec<u8> {
    let body = [&[0, 0, 1, 0], json].concat();
    message(VERSION_COMMAND, HEADER + body.len() as u32, &body)
}

/// Sends `bytes`, disconnects, and asserts that the next client is served.
fn assert_survives(served: &Served, bytes: &[u8]) {
    let mut stream = UnixStream::connect(&served.path).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The server may reset the connection as well as close it.
    let _ = stream.read_to_end(&mut Vec::new());
    drop(stream);
    let mut client = served.client();
    let mut id = [0; 2];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, VENDOR_ID.to_le_bytes());
}

#[test]
fn malformed_messages_drop_at_most_the_connection() {
    let served = Served::new();
    let read_bytes = |region: u32, count: u32| {
        let body = [&[0; 8][..], &region.to_le_bytes(), &count.to_le_bytes()].concat();
        message(9, HEADER + 16, &body)
    };
    let malformed = [
        vec![],
        vec![1, 0, 1],
        version(b"no json\0"),
        version(b"{\"capabilities\":{\"max_msg_fds\":-1}}\0"),
        version(b"{}"),
        version(b"{}\0{}\0"),
        version(b""),
        message(VERSION_COMMAND, 0, &[0; 4]),
        message(VERSION_COMMAND, u32::MAX, &[0; 64]),
        message(0, HEADER, &[]),
        message(99, u32::MAX, &[0; 99]),
        message(u16::MAX, 0, &[]),
        message(2, HEADER + 32, &[0xff; 32]),
        message(3, HEADER + 24, &[0xff; 24]),
        message(5, HEADER + 32, &[0xff; 32]),
        message(7, HEADER + 16, &[0xff; 16]),
        message(8, HEADER + 20, &[0xff; 20]),
        message(8, HEADER + 20, &[0; 8]),
        read_bytes(0, u32::MAX),
        read_bytes(u32::MAX, 4),
        message(10, HEADER + 16, &[0xff; 16]),
        vec![0xff; 4096],
    ];
    for bytes in malformed {
        assert_survives(&served, &bytes);
    }
}

#[test]
fn next_client_is_served_after_disconnect_during_work() {
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    let dma = Arc::new(FakeDma::mapping(RING..=END));
    dma.write_memory(RING, &endless(OP_COPY).to_bytes());
    let served = Served::with_dma(memory, dma.clone());
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &endless(OP_COPY));
    assert_ne!(read32(&mut client, channel_register(2, CH_STATUS)) & CH_STATUS_BUSY, 0);
    drop(client);

    let mut client = served.client();
    client.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    assert_eq!(read32(&mut client, channel_register(2, CH_STATUS)), STATE_DISABLED);
    assert_eq!(served.regions(), 0);
}

#[test]
fn drop_ends_both_threads() {
    let mut served = Served::new();
    drop(served.accelerator.take());
    let error = UnixStream::connect(&served.path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "the server thread had the listener");
}

#[test]
fn drop_does_not_wait_for_client_disconnect() {
    let mut served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &endless(OP_COPY));
    drop(served.accelerator.take());
    // The connection stays open, and its requests are handled.
    client.dma_unmap(0, 0x10_0000).unwrap();
    client.reset().unwrap();
}
