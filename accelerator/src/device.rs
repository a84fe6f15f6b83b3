//! The PCI function: vfio-user messages of the client.

use super::config::{CONFIG_SIZE, ConfigSpace};
use super::engine::Engine;
use super::memory::Regions;
use super::msix::Table;
use super::regs::{BAR0_SIZE, BAR1_SIZE, VECTORS};
use crate::faults::FaultHandler;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::*;
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion};

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const BAR1: u32 = VFIO_PCI_BAR1_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

const SIGNAL_EVENTS: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
const SIGNAL_NOW: u32 = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;

/// Returns the regions of the function, by VFIO index. The client can map none of them.
pub fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

fn region(index: u32) -> ServerRegion {
    let size = region_size(index);
    let access = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    let region_info = vfio_region_info {
        argsz: size_of::<vfio_region_info>() as u32,
        index,
        flags: if size > 0 { access } else { 0 },
        size,
        ..Default::default()
    };
    ServerRegion { region_info, sparse_areas: Vec::new(), mmap_fd: None }
}

fn region_size(index: u32) -> u64 {
    match index {
        BAR0 => BAR0_SIZE as u64,
        BAR1 => BAR1_SIZE as u64,
        CONFIG => CONFIG_SIZE as u64,
        _ => 0,
    }
}

/// Returns the interrupts of the function, by VFIO index.
pub fn irqs() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS).map(irq).collect()
}

fn irq(index: u32) -> IrqInfo {
    IrqInfo { index, flags: VFIO_IRQ_INFO_EVENTFD, count: irq_count(index) }
}

/// Returns the number of interrupts. Clients expect an error interrupt of a PCI Express function;
/// it is never signalled.
fn irq_count(index: u32) -> u32 {
    match index {
        VFIO_PCI_MSIX_IRQ_INDEX => VECTORS as u32,
        VFIO_PCI_ERR_IRQ_INDEX => 1,
        _ => 0,
    }
}

/// The function, used by the server thread.
pub struct Device {
    engine: Arc<Engine>,
    faults: Arc<dyn FaultHandler>,
    memory: Regions,
    config: ConfigSpace,
    table: Table,
}

impl Device {
    /// Creates the function in its state after reset. `faults` is notified when page requests are
    /// withdrawn.
    pub fn new(engine: Arc<Engine>, faults: Arc<dyn FaultHandler>, memory: Regions) -> Self {
        Self { engine, faults, memory, config: ConfigSpace::default(), table: Table::default() }
    }

    /// Resets the function and removes the memory and the interrupts of the client that has
    /// disconnected.
    pub fn disconnect(&mut self) {
        self.reset_function();
        self.engine.vectors(|vectors| vectors.clear());
        self.engine.pause(|| self.memory.clear());
    }

    fn reset_function(&mut self) {
        self.engine.reset();
        self.faults.withdraw();
        self.config = ConfigSpace::default();
        self.table = Table::default();
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.set_pri(self.engine.read_pri());
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if self.config.write(offset, data) {
            return self.reset_function();
        }
        self.engine.set_enables(self.config.enables());
        for (byte, value) in ConfigSpace::pri_bytes(offset, data) {
            if self.engine.write_pri(byte, value) {
                self.faults.withdraw();
            }
        }
    }

    fn read_registers(&self, offset: usize, data: &mut [u8]) {
        if !is_register_access(offset, data.len()) {
            return data.fill(u8::MAX);
        }
        for (word, offset) in data.chunks_exact_mut(4).zip((offset as u32..).step_by(4)) {
            word.copy_from_slice(&self.engine.read(offset).to_le_bytes());
        }
    }

    fn write_registers(&self, offset: usize, data: &[u8]) {
        if !is_register_access(offset, data.len()) {
            return;
        }
        for (word, offset) in data.as_chunks().0.iter().zip((offset as u32..).step_by(4)) {
            self.engine.write(offset, u32::from_le_bytes(*word));
        }
    }

    fn unmap(&self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        if flags.contains(DmaUnmapFlags::GET_DIRTY_PAGE_INFO) {
            return Err(ErrorKind::Unsupported.into());
        }
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.memory.clear();
            return Ok(());
        }
        self.memory.unmap(address, size)
    }

    fn set_msix(&self, flags: u32, vectors: Range<usize>, events: Vec<File>) -> io::Result<()> {
        self.engine.vectors(|all| {
            match flags {
                SIGNAL_EVENTS => all.set(vectors, events)?,
                SIGNAL_NOW if vectors.is_empty() => all.clear(),
                SIGNAL_NOW => all.signal_all(vectors),
                _ => return Err(ErrorKind::Unsupported.into()),
            }
            Ok(())
        })
    }
}

fn is_register_access(offset: usize, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len)
}

/// Checks that an access is within its region.
fn within(region: u32, offset: u64, len: usize) -> io::Result<usize> {
    let end = offset.checked_add(len as u64);
    if end.is_none_or(|end| end > region_size(region)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok(offset as usize)
}

/// Returns the range of `count` interrupts from `start`, if the function has them.
fn interrupts(index: u32, start: u32, count: u32) -> io::Result<Range<usize>> {
    match start.checked_add(count) {
        Some(end) if end <= irq_count(index) => Ok(start as usize..end as usize),
        _ => Err(ErrorKind::InvalidInput.into()),
    }
}

/// Logs an error. The vfio_user crate replies without details.
fn logged(message: &str, result: io::Result<()>) -> io::Result<()> {
    result.inspect_err(|error| log::warn!("vfio-user: {message} rejected: {error}"))
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let offset = within(region, offset, data.len())?;
        match region {
            CONFIG => self.read_config(offset, data),
            _ if !self.config.memory_enabled() => data.fill(u8::MAX),
            BAR0 => self.read_registers(offset, data),
            BAR1 => self.table.read(offset, data),
            _ => {}
        }
        Ok(())
    }

    // A write can be posted; the client then expects no reply, not even an error.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let Ok(offset) = within(region, offset, data.len()) else { return Ok(()) };
        match region {
            CONFIG => self.write_config(offset, data),
            _ if !self.config.memory_enabled() => {}
            BAR0 => self.write_registers(offset, data),
            BAR1 => self.table.write(offset, data),
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        logged("DMA_MAP", self.memory.map(flags, offset, address, size, file))
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        let result = self.engine.pause(|| self.unmap(flags, address, size));
        logged("DMA_UNMAP", result)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.reset_function();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        events: Vec<File>,
    ) -> io::Result<()> {
        let result = interrupts(index, start, count).and_then(|vectors| match index {
            VFIO_PCI_MSIX_IRQ_INDEX => self.set_msix(flags, vectors, events),
            _ => Ok(()),
        });
        logged("SET_IRQS", result)
    }
}
