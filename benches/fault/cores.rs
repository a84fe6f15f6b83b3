//! On which cores the front end and its peers run. To wake somebody on another core can take many
//! times as long as to switch to them on one's own, above all in a virtual machine, so a figure
//! means nothing without that.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where peers run that are started by [`Placement::start`].
#[derive(Clone, Copy, PartialEq)]
pub enum Placement {
    /// On the front end's own core.
    Together,
    /// On all cores but the front end's.
    Apart,
}

/// The cores that this program can use.
#[derive(Clone)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// As this program was started.
    pub fn all() -> Self {
        let set = sched_getaffinity(None).expect("affinity");
        Self((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }

    /// The placements that are possible.
    pub fn placements(&self) -> &'static [Placement] {
        if self.0.len() > 1 {
            &[Placement::Together, Placement::Apart]
        } else {
            &[Placement::Together]
        }
    }

    /// Starts peers with `start`, and leaves this thread on the first core.
    pub fn start<T>(&self, placement: Placement, start: impl FnOnce() -> T) -> T {
        run_on(match placement {
            Placement::Together => &self.0[..1],
            Placement::Apart => &self.0[1..],
        });
        let started = start();
        run_on(&self.0[..1]);
        started
    }

    /// Lets this thread, and what it starts, run on any core again.
    pub fn release(&self) {
        run_on(&self.0);
    }
}

/// For this thread, and what it starts from now on.
fn run_on(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    sched_setaffinity(None, &set).expect("affinity");
}
