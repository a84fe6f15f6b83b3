//! One fault queue of the kernel, and threads that concurrently make page requests, read groups,
//! respond, and change attachments.
//!
//! The kernel reuses cookies, lowest first, and completes groups when their attachment changes. A
//! response to the wrong group would leave a page request without a response, or would be one too
//! many: the kernel would reject a response, which is logged as an error, or a wait would time out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use vhost_user_iommu::address::{DomainId, EndpointId, Iova, Pasid};
use vhost_user_iommu::host::iommufd::mock_device::MockDevice;
use vhost_user_iommu::host::iommufd::{FaultQueue, Iommufd};
use vhost_user_iommu::host::{Access, AddressSpace, HostIommu, Translation};

use crate::errors;
use testing::memory::PAGE;
use testing::random::Random;
use testing::wait;

const ENDPOINT: EndpointId = EndpointId(0x10);
const PASIDS: [Option<Pasid>; 3] = [None, Some(Pasid(1)), Some(Pasid(0xf_ffff))];
const REQUESTERS: u32 = 2;
/// Groups that each requester makes.
const GROUPS: usize = 5000;
/// Pending groups of a requester.
const BURST: u32 = 4;

/// The responses to groups, by identifier.
#[derive(Default)]
struct Responses {
    received: Mutex<BTreeMap<u32, bool>>,
    changed: Condvar,
    /// Groups that were completed with SUCCESS, added before the response is written.
    success: Mutex<BTreeSet<u32>>,
    invalid: AtomicUsize,
}

impl Responses {
    fn receive(&self, id: u32, success: bool) {
        let expected = self.success.lock().unwrap().contains(&id);
        assert!(expected || !success, "group {id} received a SUCCESS that was not written");
        let before = self.received.lock().unwrap().insert(id, success);
        assert_eq!(before, None, "group {id} received two responses");
        self.invalid.fetch_add(usize::from(!success), Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn wait_for(&self, ids: &[u32]) {
        let pending =
            |received: &mut BTreeMap<u32, bool>| !ids.iter().all(|id| received.contains_key(id));
        let received = self.received.lock().unwrap();
        let (received, _) =
            self.changed.wait_timeout_while(received, wait::limit(), pending).unwrap();
        let left: Vec<_> = ids.iter().filter(|id| !received.contains_key(id)).collect();
        assert!(left.is_empty(), "groups without a response: {left:?}");
    }
}

/// Returns the address of a group, which identifies it.
fn address_of(id: u32) -> Iova {
    Iova(u64::from(id) * PAGE)
}

fn make_requests(device: &MockDevice, responses: &Responses, requester: u32) {
    let mut random = Random(0x1234_5678 + u64::from(requester));
    let mut total = 0;
    for round in 0.. {
        let first = 1 + (round * REQUESTERS + requester) * BURST;
        let requested: Vec<u32> = (first..first + BURST)
            .filter(|&id| {
                let pasid = PASIDS[random.below(PASIDS.len())];
                device.request_page(id, pasid, address_of(id), Access::WRITE)
            })
            .collect();
        responses.wait_for(&requested);
        total += requested.len();
        if total >= GROUPS {
            return;
        }
    }
}

/// Reads groups, keeps some of them, and responds in any order.
fn respond(queue: &FaultQueue, responses: &Responses, done: &AtomicBool) {
    let mut random = Random(0xdead_beef);
    let mut kept = Vec::new();
    while !done.load(Ordering::Relaxed) {
        kept.extend(queue.read().unwrap());
        let keep = random.below(3) == 0;
        while kept.len() >= if keep { 3 } else { 1 } {
            // The mock device makes groups of one page request.
            let request = kept.swap_remove(random.below(kept.len()));
            let id = (request.address.0 / PAGE) as u32;
            let success = random.below(3) > 0;
            if success {
                responses.success.lock().unwrap().insert(id);
            }
            queue.respond(request.cookie, success);
            if random.below(4) == 0 {
                // A second response: the group is not pending, or its cookie was reused.
                queue.respond(request.cookie, !success);
            }
        }
        thread::yield_now();
    }
}

/// Changes attachments; returns how often.
fn change_attachments(iommufd: &Iommufd, done: &AtomicBool) -> u64 {
    let mut random = Random(0xfeed);
    let spaces: [Arc<AddressSpace>; 2] = Default::default();
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        let pasid = PASIDS[random.below(PASIDS.len())];
        let translation = match random.below(3) {
            0 => Translation::Blocked,
            n => Translation::Domain(DomainId(n as u32), spaces[n - 1].clone()),
        };
        iommufd.set_translation(ENDPOINT, pasid, &translation).unwrap();
        changes += 1;
        for _ in 0..random.below(10) {
            thread::yield_now();
        }
    }
    changes
}

#[test]
fn each_group_receives_only_its_own_response() {
    errors::count_from_now();
    let mut iommufd = Iommufd::open().unwrap();
    let device = iommufd.add_mock(ENDPOINT).unwrap();
    let queue = iommufd.fault_queue(ENDPOINT).unwrap();
    let responses = Arc::new(Responses::default());
    let receiver = responses.clone();
    device.set_on_response(Box::new(move |id, success| receiver.receive(id, success)));
    let done = AtomicBool::new(false);
    let changes = thread::scope(|scope| {
        scope.spawn(|| respond(&queue, &responses, &done));
        let changer = scope.spawn(|| change_attachments(&iommufd, &done));
        let requesters: Vec<_> = (0..REQUESTERS)
            .map(|n| {
                scope.spawn({
                    let (device, responses) = (&device, &responses);
                    move || make_requests(device, responses, n)
                })
            })
            .collect();
        let failed = requesters.into_iter().filter_map(|thread| thread.join().err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "requesters that failed");
        changer.join().unwrap()
    });
    assert_eq!(queue.read().unwrap(), [], "groups that were not requested");
    let received = responses.received.lock().unwrap().len();
    let invalid = responses.invalid.load(Ordering::Relaxed);
    println!("{received} groups, {invalid} INVALID, {changes} changes of attachments");
    assert!(received >= 2 * GROUPS && changes > 500 && invalid < received, "too little coverage");
    assert_eq!(errors::count(), 0, "errors in the log");
}
