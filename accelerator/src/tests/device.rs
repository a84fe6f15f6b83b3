//! vfio-user messages, without a socket.

use super::*;

fn device() -> (Device, Arc<Engine>) {
    let engine = Arc::new(Engine::default());
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    (Device::new(engine.clone(), Arc::new(FakeFaults::default()), Regions::new(memory)), engine)
}

fn read(device: &mut Device, region: u32, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    device.region_read(region, offset, &mut data).unwrap();
    data
}

#[test]
fn bars_require_memory_space_enable() {
    let (mut device, engine) = device();
    let size = channel_register(0, CH_RING_SIZE);
    assert_eq!(read(&mut device, BAR0, ID as u64, 4), [0xff; 4]);
    device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
    assert_eq!(engine.read(size), 0);
    device.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    assert_eq!(read(&mut device, BAR0, ID as u64, 4), b"VDMA");
    device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
    assert_eq!(engine.read(size), 8);
    assert_eq!(read(&mut device, BAR1, 12, 1), [1]);
}

#[test]
fn registers_require_aligned_32_or_64_bit_access() {
    let (mut device, engine) = device();
    device.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    let base = channel_register(1, CH_RING_BASE);
    device.region_write(BAR0, base as u64, &0x12_3456_7000u64.to_le_bytes()).unwrap();
    assert_eq!((engine.read(base), engine.read(base + 4)), (0x3456_7000, 0x12));
    assert_eq!(read(&mut device, BAR0, base as u64, 8), 0x12_3456_7000u64.to_le_bytes());
    for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (0, 16), (1, 1)] {
        let offset = (base + offset) as u64 & !7 | offset as u64;
        assert_eq!(read(&mut device, BAR0, offset, len), vec![0xff; len], "{offset:#x} {len}");
        device.region_write(BAR0, offset, &vec![0; len]).unwrap();
        assert_eq!(engine.read(base), 0x3456_7000);
    }
}

#[test]
fn accesses_beyond_region_fail_reads_and_ignore_writes() {
    let (mut device, _) = device();
    let beyond = [
        (BAR0, BAR0_SIZE as u64, 4),
        (BAR0, u64::MAX, 4),
        (BAR1, 0xffe, 4),
        (CONFIG, 0, 4097),
        (2, 0, 1),
        (99, 0, 1),
    ];
    for (region, offset, len) in beyond {
        assert!(device.region_read(region, offset, &mut vec![0; len]).is_err());
        device.region_write(region, offset, &vec![0; len]).unwrap();
    }
}

#[test]
fn every_kind_of_reset_restores_reset_values() {
    let resets: [fn(&mut Device); 3] = [
        |device| device.reset().unwrap(),
        |device| device.disconnect(),
        |device| device.region_write(CONFIG, 0x48, &[0x10, 0xa8]).unwrap(),
    ];
    for reset in resets {
        let (mut device, engine) = device();
        let before = read(&mut device, CONFIG, 0, 4096);
        device.region_write(CONFIG, COMMAND, &[6, 0]).unwrap();
        device.region_write(CONFIG, 0x10, &[0xff; 4]).unwrap();
        let size = channel_register(0, CH_RING_SIZE);
        device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
        reset(&mut device);
        assert_eq!(read(&mut device, CONFIG, 0, 4096), before);
        assert_eq!(engine.read(size), 0);
    }
}

#[test]
fn unmap_all_removes_regions_and_dirty_info_is_rejected() {
    let engine = Arc::new(Engine::default());
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    let mut device =
        Device::new(engine, Arc::new(FakeFaults::default()), Regions::new(memory.clone()));
    for address in [0, 0x1000] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        device.dma_map(DmaMapFlags::READ_WRITE, 0, address, 0x1000, Some(file)).unwrap();
    }
    assert!(device.dma_unmap(DmaUnmapFlags::GET_DIRTY_PAGE_INFO, 0, 0x1000).is_err());
    assert_eq!(memory.memory().num_regions(), 2);
    device.dma_unmap(DmaUnmapFlags::UNMAP_ALL, 0, 0).unwrap();
    assert_eq!(memory.memory().num_regions(), 0);
}

#[test]
fn set_irqs_rejects_invalid_requests() {
    let (mut device, _) = device();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    let none = trigger | VFIO_IRQ_SET_DATA_NONE;
    let events = trigger | VFIO_IRQ_SET_DATA_EVENTFD;
    let mask = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_DATA_NONE;
    let msix = VFIO_PCI_MSIX_IRQ_INDEX;
    let rejected = [
        (msix, none, 0, 33),
        (msix, none, u32::MAX, 2),
        (msix, events, 32, 1),
        (msix, mask, 0, 1),
        (msix, 0, 0, 1),
        (VFIO_PCI_INTX_IRQ_INDEX, events, 0, 1),
        (99, none, 0, 1),
    ];
    for (index, flags, start, count) in rejected {
        let result = device.set_irqs(index, flags, start, count, vec![]);
        assert!(result.is_err(), "{index} {flags:#x} {start} {count}");
    }
    let accepted = [
        (msix, none, 0, 0),
        (msix, none, 0, 32),
        (msix, events, 31, 1),
        (VFIO_PCI_INTX_IRQ_INDEX, none, 0, 0),
        (VFIO_PCI_ERR_IRQ_INDEX, events, 0, 1),
    ];
    for (index, flags, start, count) in accepted {
        device.set_irqs(index, flags, start, count, vec![]).unwrap();
    }
}
