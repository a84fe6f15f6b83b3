//! Placement of front end and peers on cores. Waking a thread on another core can take many times
//! as long as switching to it on the same core, especially in a virtual machine, so the placement
//! is part of a measurement.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of peers that [`Cores::start`] starts.
#[derive(Clone, Copy, PartialEq)]
pub enum Placement {
    /// The front end's core.
    SameCore,
    /// All cores but the front end's.
    OtherCores,
}

/// The cores that this program can use. The front end runs on the first one.
#[derive(Clone)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Returns the cores that this program was started on.
    pub fn all() -> Self {
        let set = sched_getaffinity(None).expect("affinity");
        Self((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }

    /// Returns the placements that are possible.
    pub fn placements(&self) -> &'static [Placement] {
        if self.0.len() > 1 {
            &[Placement::SameCore, Placement::OtherCores]
        } else {
            &[Placement::SameCore]
        }
    }

    /// Starts peers with `start`, and leaves this thread on the first core.
    pub fn start<T>(&self, placement: Placement, start: impl FnOnce() -> T) -> T {
        run_on(match placement {
            Placement::SameCore => &self.0[..1],
            Placement::OtherCores => &self.0[1..],
        });
        let started = start();
        run_on(&self.0[..1]);
        started
    }

    /// Allows this thread, and threads and processes that it starts, all cores again.
    pub fn release(&self) {
        run_on(&self.0);
    }
}

/// Sets the cores of this thread, and of threads and processes that it starts from now on.
fn run_on(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    sched_setaffinity(None, &set).expect("affinity");
}
