//! I/O page faults: from where they happen to where they are dealt with.
//!
//! ```text
//! source (an endpoint's translation failed)
//!   -> its endpoint's route: (endpoint, PASID) -> attachment -> the domain's handler
//!        Direct: dealt with on the spot
//!        Work:   queued, bounded, per endpoint
//!   -> whoever serves the event queue takes them, one endpoint after the other
//! ```
//!
//! Nothing here knows sockets, rings or mappings. Faults are unrecoverable ones so far: the
//! access has failed, and the guest is told.

mod counters;
mod endpoint;
mod fault;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub use counters::Counters;
use endpoint::EndpointFaults;
pub use fault::{Fault, Reason};

use crate::address::{EndpointId, Pasid};

/// Who deals with the faults of an attachment. The domain decides, not the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Dealt with on the spot, in the source's thread: refused and counted, nobody is told.
    /// For endpoints that bypass the IOMMU: the guest asked for no translation, so there is
    /// none that could have failed.
    Direct,
    /// Queued for the event queue.
    Work,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Dealt with by a [`Handler::Direct`].
    Direct,
    /// Waits for the event queue.
    Queued,
    /// The endpoint's queue is full: counted and dropped.
    Dropped,
}

/// Rung when faults begin to wait. Implemented by whoever serves the event queue; called from
/// any thread, with no lock held.
pub trait Doorbell: Send + Sync {
    /// Makes the server call [`Iopf::next`] soon.
    fn ring(&self);
}

/// The faults of all endpoints.
pub struct Iopf {
    endpoints: BTreeMap<EndpointId, EndpointFaults>,
    doorbell: Box<dyn Doorbell>,
    /// Whether the server knows that faults wait: one ring is enough for any number of them.
    rung: AtomicBool,
    /// Whose fault was taken last.
    last: AtomicU32,
}

impl Iopf {
    /// The fault path of `endpoints`, each of which keeps at most `depth` faults waiting.
    pub fn new(
        endpoints: impl IntoIterator<Item = EndpointId>,
        depth: usize,
        doorbell: Box<dyn Doorbell>,
    ) -> Self {
        let faults = |id| (id, EndpointFaults::new(depth));
        Self {
            endpoints: endpoints.into_iter().map(faults).collect(),
            doorbell,
            rung: AtomicBool::new(false),
            last: AtomicU32::new(0),
        }
    }

    /// Sends the faults of an endpoint (of one of its PASIDs) to `handler` from now on.
    pub fn route(&self, endpoint: EndpointId, pasid: Option<Pasid>, handler: Handler) {
        if let Some(faults) = self.endpoints.get(&endpoint) {
            faults.route(pasid, handler);
        }
    }

    /// A PASID of an endpoint is attached to nothing any more. The guest hears of its faults as of
    /// those of any address space that does not exist.
    pub fn unroute(&self, endpoint: EndpointId, pasid: Pasid) {
        if let Some(faults) = self.endpoints.get(&endpoint) {
            faults.unroute(pasid);
        }
    }

    /// A source reports a fault. Never blocks.
    pub fn report(&self, fault: Fault) -> Outcome {
        let Some(faults) = self.endpoints.get(&fault.endpoint) else {
            log::warn!("fault of unknown endpoint {} dropped", fault.endpoint);
            return Outcome::Dropped;
        };
        let outcome = faults.report(fault);
        log::debug!("{fault}: {outcome:?}");
        if outcome == Outcome::Queued && !self.rung.swap(true, Ordering::SeqCst) {
            self.doorbell.ring();
        }
        outcome
    }

    /// Takes the next fault to tell the guest of: one of each endpoint in turn, oldest first.
    /// After `None` the doorbell rings for the next one.
    pub fn next(&self) -> Option<Fault> {
        self.rung.store(false, Ordering::SeqCst);
        let last = EndpointId(self.last.load(Ordering::Relaxed));
        let after = self.endpoints.range((Bound::Excluded(last), Bound::Unbounded));
        let mut in_turn = after.chain(self.endpoints.range(..=last));
        let fault = in_turn.find_map(|(_, faults)| faults.take())?;
        self.last.store(fault.endpoint.0, Ordering::Relaxed);
        Some(fault)
    }

    /// The guest has been told of a fault that [`next`](Self::next) returned.
    pub fn delivered(&self, fault: &Fault) {
        self.count(fault, |counters| &counters.delivered);
    }

    /// The guest had no buffer for a fault that [`next`](Self::next) returned.
    pub fn dropped(&self, fault: &Fault) {
        self.count(fault, |counters| &counters.dropped);
    }

    /// The guest's driver starts anew: what waits is of no interest to it.
    pub fn reset(&self) {
        for faults in self.endpoints.values() {
            faults.reset();
        }
    }

    /// The counters of each endpoint.
    pub fn counters(&self) -> impl Iterator<Item = (EndpointId, &Counters)> {
        self.endpoints.iter().map(|(&id, faults)| (id, &faults.counters))
    }

    fn count(&self, fault: &Fault, which: impl Fn(&Counters) -> &counters::Counter) {
        if let Some(faults) = self.endpoints.get(&fault.endpoint) {
            which(&faults.counters).add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::address::Iova;
    use crate::host::Access;

    #[derive(Clone, Default)]
    struct Rings(Arc<AtomicUsize>);

    impl Doorbell for Rings {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    const A: EndpointId = EndpointId(8);
    const B: EndpointId = EndpointId(16);

    fn iopf(depth: usize) -> (Iopf, Rings) {
        let rings = Rings::default();
        let iopf = Iopf::new([A, B], depth, Box::new(rings.clone()));
        iopf.route(A, None, Handler::Work);
        iopf.route(B, None, Handler::Work);
        (iopf, rings)
    }

    fn fault(endpoint: EndpointId, address: u64) -> Fault {
        Fault {
            endpoint,
            pasid: None,
            address: Iova(address),
            access: Access::READ,
            reason: Reason::Mapping,
        }
    }

    fn drain(iopf: &Iopf) -> Vec<(EndpointId, u64)> {
        std::iter::from_fn(|| iopf.next()).map(|f| (f.endpoint, f.address.0)).collect()
    }

    #[test]
    fn endpoints_take_turns_and_each_keeps_its_order() {
        let (iopf, _) = iopf(8);
        for address in 0..4 {
            iopf.report(fault(A, address));
        }
        iopf.report(fault(B, 0));
        assert_eq!(drain(&iopf), [(A, 0), (B, 0), (A, 1), (A, 2), (A, 3)]);
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_only_its_own() {
        let (iopf, _) = iopf(2);
        let outcomes: Vec<_> = (0..3).map(|address| iopf.report(fault(A, address))).collect();
        assert_eq!(outcomes, [Outcome::Queued, Outcome::Queued, Outcome::Dropped]);
        assert_eq!(iopf.report(fault(B, 0)), Outcome::Queued);
        assert_eq!(drain(&iopf), [(A, 0), (B, 0), (A, 1)]);
    }

    #[test]
    fn the_doorbell_rings_once_until_the_server_comes() {
        let (iopf, rings) = iopf(8);
        iopf.report(fault(A, 0));
        iopf.report(fault(B, 0));
        assert_eq!(rings.0.load(Ordering::SeqCst), 1);
        drain(&iopf);
        iopf.report(fault(B, 1));
        assert_eq!(rings.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn the_handler_of_the_attachment_decides() {
        let (iopf, rings) = iopf(8);
        iopf.route(A, None, Handler::Direct);
        assert_eq!(iopf.report(fault(A, 0)), Outcome::Direct);
        assert_eq!(iopf.next(), None);
        assert_eq!(rings.0.load(Ordering::SeqCst), 0);
        let other_pasid = Fault { pasid: Some(Pasid(1)), ..fault(A, 0) };
        assert_eq!(iopf.report(other_pasid), Outcome::Queued);
    }

    #[test]
    fn counters_add_up() {
        let (iopf, _) = iopf(3);
        for address in 0..5 {
            iopf.report(fault(A, address));
        }
        iopf.delivered(&iopf.next().unwrap());
        iopf.dropped(&iopf.next().unwrap());
        iopf.reset();
        iopf.route(A, None, Handler::Direct);
        iopf.report(fault(A, 9));
        let (_, counters) = iopf.counters().next().unwrap();
        assert_eq!(counters.to_string(), "reported 6, delivered 1, dropped 4, direct 1");
        assert_eq!(iopf.report(fault(EndpointId(99), 0)), Outcome::Dropped);
    }
}
