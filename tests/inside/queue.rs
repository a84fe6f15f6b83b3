//! One fault queue of the kernel's, and threads that ask, read, answer, detach and attach at once.
//!
//! The kernel uses cookies again, lowest first, and answers groups itself when their attachment
//! goes. An answer to a wrong one would leave another without, or be one too many: the kernel
//! would refuse an answer (an error in the log), or somebody would wait forever.

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
const ASKERS: u32 = 2;
/// What each of them asks for.
const GROUPS: usize = 5000;
/// Groups that an asker has waiting at a time.
const BURST: u32 = 4;

/// What has become of the groups, by their names.
#[derive(Default)]
struct Fates {
    told: Mutex<BTreeMap<u32, bool>>,
    changed: Condvar,
    /// Those that were answered with SUCCESS, from before the answer on.
    agreed: Mutex<BTreeSet<u32>>,
    invalid: AtomicUsize,
}

impl Fates {
    fn tell(&self, name: u32, success: bool) {
        let agreed = self.agreed.lock().unwrap().contains(&name);
        assert!(agreed || !success, "group {name} was told SUCCESS that nobody gave");
        let before = self.told.lock().unwrap().insert(name, success);
        assert_eq!(before, None, "group {name} was answered twice");
        self.invalid.fetch_add(usize::from(!success), Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn wait_for(&self, names: &[u32]) {
        let told = self.told.lock().unwrap();
        let waits = |told: &mut BTreeMap<u32, bool>| !names.iter().all(|n| told.contains_key(n));
        let (told, _) = self.changed.wait_timeout_while(told, wait::limit(), waits).unwrap();
        let left: Vec<_> = names.iter().filter(|name| !told.contains_key(name)).collect();
        assert!(left.is_empty(), "groups without an answer: {left:?}");
    }
}

/// Each name has an address of its own.
fn address_of(name: u32) -> Iova {
    Iova(u64::from(name) * PAGE)
}

fn ask(device: &MockDevice, fates: &Fates, asker: u32) {
    let mut random = Random(0x1234_5678 + u64::from(asker));
    let mut total = 0;
    for round in 0.. {
        let first = 1 + (round * ASKERS + asker) * BURST;
        let asked: Vec<u32> = (first..first + BURST)
            .filter(|&name| {
                let pasid = PASIDS[random.below(PASIDS.len())];
                device.request_page(name, pasid, address_of(name), Access::WRITE)
            })
            .collect();
        fates.wait_for(&asked);
        total += asked.len();
        if total >= GROUPS {
            return;
        }
    }
}

/// Reads groups, keeps some for a while, and answers them in any order.
fn answer(queue: &FaultQueue, fates: &Fates, is_over: &AtomicBool) {
    let mut random = Random(0xdead_beef);
    let mut kept = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        kept.extend(queue.read_groups().unwrap());
        let linger = random.below(3) == 0;
        while kept.len() >= if linger { 3 } else { 1 } {
            let group = kept.swap_remove(random.below(kept.len()));
            let name = (group.pages[0].address.0 / PAGE) as u32;
            let success = random.below(3) > 0;
            if success {
                fates.agreed.lock().unwrap().insert(name);
            }
            queue.respond(group.cookie, success);
            if random.below(4) == 0 {
                // Once more: it does not wait any more, or another has its cookie.
                queue.respond(group.cookie, !success);
            }
        }
        thread::yield_now();
    }
}

fn change(iommufd: &Iommufd, is_over: &AtomicBool) -> u64 {
    let mut random = Random(0xfeed);
    let spaces: [Arc<AddressSpace>; 2] = Default::default();
    let mut changes = 0;
    while !is_over.load(Ordering::Relaxed) {
        let pasid = PASIDS[random.below(PASIDS.len())];
        let to = match random.below(3) {
            0 => Translation::Blocked,
            n => Translation::Domain(DomainId(n as u32), spaces[n - 1].clone()),
        };
        iommufd.set_translation(ENDPOINT, pasid, &to).unwrap();
        changes += 1;
        for _ in 0..random.below(10) {
            thread::yield_now();
        }
    }
    changes
}

#[test]
fn no_group_is_answered_for_another_whatever_happens_at_once() {
    errors::count_from_now();
    let mut iommufd = Iommufd::open().unwrap();
    let device = iommufd.add_mock(ENDPOINT).unwrap();
    let queue = iommufd.fault_queue(ENDPOINT).unwrap();
    let fates = Arc::new(Fates::default());
    let listener = fates.clone();
    device.set_on_response(Box::new(move |name, success| listener.tell(name, success)));
    let is_over = AtomicBool::new(false);
    let changes = thread::scope(|scope| {
        scope.spawn(|| answer(&queue, &fates, &is_over));
        let changer = scope.spawn(|| change(&iommufd, &is_over));
        let askers: Vec<_> = (0..ASKERS)
            .map(|n| {
                scope.spawn({
                    let (device, fates) = (&device, &fates);
                    move || ask(device, fates, n)
                })
            })
            .collect();
        let failed = askers.into_iter().filter_map(|asker| asker.join().err()).count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "askers that have failed");
        changer.join().unwrap()
    });
    assert_eq!(queue.read_groups().unwrap(), [], "groups that nobody asked for");
    let told = fates.told.lock().unwrap().len();
    let invalid = fates.invalid.load(Ordering::Relaxed);
    println!("{told} groups, {invalid} INVALID, {changes} changes of attachments");
    assert!(told >= 2 * GROUPS && changes > 500 && invalid < told, "not much has happened");
    assert_eq!(errors::count(), 0, "errors in the log");
}
