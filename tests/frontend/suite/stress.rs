//! Random sequences of all operations: page requests, valid, invalid, late and repeated responses,
//! attach and detach, resets. The test predicts each status, and the counters must add up.

use testing::accel::denied_write;
use testing::daemon;
use testing::event::Fault;
use testing::memory::PAGE;
use testing::paging::{Channel, FAILURE, Group, INVALID, SUCCESS, backing};
use testing::random::Random;
use testing::request::status::*;
use testing::request::{RW, map, page_resp};
use testing::vm::{ENDPOINTS, Vm};
use testing::wait;

const STEPS: u32 = 10_000;
const CHANNELS: u32 = 6;
/// Assigned to channels cyclically.
const PASIDS: [Option<u32>; 3] = [None, Some(1), Some(0xf_ffff)];
/// The first of the address windows to which jobs write.
const WINDOWS: u64 = 0x1_0000_0000;
const WINDOW: u64 = 0x10_0000;

fn each_group_is_completed_once(seed: u64) {
    let mut stress = Stress::new(seed);
    for _ in 0..STEPS {
        stress.step();
    }
    stress.finish();
}

#[test]
fn seed_1() {
    each_group_is_completed_once(1);
}

#[test]
fn seed_2() {
    each_group_is_completed_once(2);
}

#[test]
fn seed_3() {
    each_group_is_completed_once(3);
}

#[test]
fn seed_4() {
    each_group_is_completed_once(0xdead_beef);
}

/// Run by `scripts/test long`.
#[test]
#[ignore = "takes minutes"]
fn seeds_of_the_long_suite() {
    (5..505).for_each(each_group_is_completed_once);
}

/// The state of a group from the driver's view when it responds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum GroupState {
    Outstanding,
    Complete,
    /// The attachment was replaced, before or after the page request: the status of the response
    /// shows which.
    Unknown,
}

/// A job of a channel. Its index determines its address window.
struct Job {
    channel: Channel,
    state: GroupState,
    denied: bool,
}

/// An endpoint or a PASID of one.
struct Space {
    index: usize,
    pasid: Option<u32>,
    domain: Option<u32>,
}

struct Stress {
    vm: Vm,
    random: Random,
    spaces: Vec<Space>,
    next_domain: u32,
    jobs: Vec<Job>,
    /// The job of each channel of each endpoint.
    running: Vec<(Channel, Option<usize>)>,
    /// Events of a group whose last event was not received yet.
    partial: Vec<Fault>,
    outstanding: Vec<Group>,
    responded: Vec<Group>,
    /// Accepted responses by endpoint and code.
    accepted: [[u64; 3]; ENDPOINTS.len()],
}

impl Stress {
    fn new(seed: u64) -> Self {
        let vm = Vm::paging_with("--max-page-groups 4 --page-response-timeout 600", 8);
        let channel = |index, n: u32| Channel::new(index, n, PASIDS[n as usize % PASIDS.len()]);
        let endpoints = 0..ENDPOINTS.len();
        let space = |index| PASIDS.map(|pasid| Space { index, pasid, domain: None });
        let mut stress = Self {
            vm,
            random: Random(seed),
            spaces: endpoints.clone().flat_map(space).collect(),
            next_domain: 1,
            jobs: Vec::new(),
            running: endpoints
                .flat_map(|index| (0..CHANNELS).map(move |n| (channel(index, n), None)))
                .collect(),
            partial: Vec::new(),
            outstanding: Vec::new(),
            responded: Vec::new(),
            accepted: Default::default(),
        };
        (0..stress.spaces.len()).for_each(|space| stress.attach(space));
        stress
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.start_job(),
            30..50 => self.read_events(),
            50..75 => self.respond_to_one(),
            75..82 => self.respond_incorrectly(),
            82..90 => self.check_outcomes(),
            90 | 91 => self.detach_or_attach(),
            92 => self.attach_to_new_domain(),
            93 => self.attach_to_same_domain(),
            94 => self.hold_buffers(),
            95..97 => self.refill(),
            97 => self.pause_and_continue(),
            98 => self.reset_random_function(),
            _ => match self.random.below(10) {
                0 => self.restart(Vm::reset),
                1 => self.restart(Vm::lose_front_end),
                _ => {}
            },
        }
    }

    fn start_job(&mut self) {
        let chosen = self.random.below(self.running.len());
        let (channel, None) = self.running[chosen] else { return };
        if self.spaces[self.space_of(channel)].domain.is_none() {
            return;
        }
        let pages = 1 + self.random.below(4);
        let most = if daemon::has_small_groups() { 1 } else { 4 };
        self.vm.accel(channel.index).group_pages = 1 + self.random.below(most) as u32;
        let job = self.jobs.len();
        self.vm.write_pages(channel, WINDOWS + job as u64 * WINDOW, pages as u64);
        self.jobs.push(Job { channel, state: GroupState::Outstanding, denied: false });
        self.running[chosen].1 = Some(job);
    }

    fn space_of(&self, channel: Channel) -> usize {
        self.spaces
            .iter()
            .position(|space| (space.index, space.pasid) == (channel.index, channel.pasid))
            .unwrap()
    }

    fn read_events(&mut self) {
        while let Some(event) = self.vm.events.try_receive() {
            self.partial.push(event);
            if event.has(Fault::LAST) {
                self.outstanding.push(Group::new(&std::mem::take(&mut self.partial)));
            }
        }
    }

    /// Returns the job of a group; `None` if the pages are the accelerator's own data structures.
    fn job_of(&mut self, group: &Group) -> Option<&mut Job> {
        let window = group.pages[0].checked_sub(WINDOWS)? / WINDOW;
        self.jobs.get_mut(window as usize)
    }

    fn respond_to_one(&mut self) {
        if self.outstanding.is_empty() {
            return;
        }
        let chosen = self.random.below(self.outstanding.len());
        let group = self.outstanding.swap_remove(chosen);
        match self.random.below(20) {
            0 => self.respond(&group, FAILURE),
            1..5 => self.respond(&group, INVALID),
            // Without a mapping: the endpoint repeats the page request.
            5..7 => self.respond(&group, SUCCESS),
            _ => self.resolve(&group),
        }
    }

    fn resolve(&mut self, group: &Group) {
        for &page in &group.pages {
            let space = self.space_of(group.channel());
            // The page may already be mapped, or the domain may not exist.
            let domain = self.spaces[space].domain.unwrap_or(u32::MAX);
            let status = self.vm.status(&map(domain, page, page + PAGE - 1, backing(page), RW));
            assert!([OK, INVAL, NOENT].contains(&status), "MAP: {status}");
        }
        self.respond(group, SUCCESS);
    }

    /// Sends the first response to a group.
    fn respond(&mut self, group: &Group, code: u16) {
        let status = self.vm.status(&group.response(code));
        let state = self.job_of(group).map_or(GroupState::Unknown, |job| job.state);
        let expected = match state {
            GroupState::Outstanding => status == OK,
            GroupState::Complete => status == NOENT,
            GroupState::Unknown => status == OK || status == NOENT,
        };
        assert!(expected, "status {status} for {state:?} {group:x?}");
        self.responded.push(group.clone());
        if status != OK {
            return;
        }
        let index = group.channel().index;
        self.accepted[index][usize::from(code)] += 1;
        match (code, self.job_of(group)) {
            // After INVALID, a group of several pages is requested again page by page.
            (INVALID, Some(job)) => job.denied = group.pages.len() == 1,
            (FAILURE, _) => self.reset_function(index),
            _ => {}
        }
    }

    /// Sends an invalid response to an outstanding group, and a response to a completed one.
    fn respond_incorrectly(&mut self) {
        let choose = |groups: &[Group], random: &mut Random| {
            (!groups.is_empty()).then(|| groups[random.below(groups.len())].clone())
        };
        if let Some(group) = choose(&self.responded, &mut self.random) {
            self.vm.expect(NOENT, group.response(SUCCESS));
        }
        let Some(group) = choose(&self.outstanding, &mut self.random) else { return };
        let other = (group.endpoint, Some(0xabc));
        let (request, status) = match self.random.below(5) {
            0 => (group.response(3), INVAL),
            1 => (group.response(SUCCESS).patched(9, 1), INVAL),
            2 => (group.response(SUCCESS).patched(20, 1), INVAL),
            3 => (group.response(SUCCESS).cut(24), INVAL),
            _ => (page_resp(other.0, other.1, group.id, SUCCESS), NOENT),
        };
        self.vm.expect(status, request);
    }

    fn check_outcomes(&mut self) {
        for slot in 0..self.running.len() {
            let (channel, Some(job)) = self.running[slot] else { continue };
            let Some(outcome) = self.vm.accel(channel.index).outcome(channel.number) else {
                continue;
            };
            if !self.jobs[job].denied {
                assert_eq!(outcome, Ok(()), "job {job}");
            } else if let Err(testing::accel::AccessError::Denied { address, .. }) = outcome {
                assert_eq!(outcome, denied_write(address), "job {job}");
            } else {
                panic!("job {job} was denied, but its outcome is {outcome:x?}");
            }
            self.running[slot].1 = None;
        }
    }

    fn detach_or_attach(&mut self) {
        let space = self.random.below(self.spaces.len());
        match self.spaces[space].domain.take() {
            None => self.attach(space),
            Some(domain) => {
                let channel = self.channel_in(space);
                self.vm.ok(channel.detach_from(domain));
                self.end_jobs(GroupState::Complete, |channel_of_job| {
                    same_space(channel_of_job, channel)
                });
            }
        }
    }

    /// Returns a channel with the endpoint and PASID of the space.
    fn channel_in(&self, space: usize) -> Channel {
        let Space { index, pasid, .. } = self.spaces[space];
        Channel::new(index, 0, pasid)
    }

    /// Attaches a space to a new domain.
    fn attach(&mut self, space: usize) {
        let domain = self.next_domain;
        self.next_domain += 1;
        let channel = self.channel_in(space);
        self.vm.ok(channel.attach(domain));
        self.vm.map_home(domain, channel.index);
        self.vm.accel(channel.index).enable_page_requests();
        self.spaces[space].domain = Some(domain);
    }

    /// Attaches a space to a new domain, with its channels stopped or running.
    fn attach_to_new_domain(&mut self) {
        let space = self.random.below(self.spaces.len());
        let channel = self.channel_in(space);
        let stop_before = self.random.coin();
        if stop_before {
            self.end_jobs(GroupState::Complete, |other| same_space(other, channel));
        }
        self.attach(space);
        if !stop_before {
            self.end_jobs(GroupState::Unknown, |other| same_space(other, channel));
        }
    }

    fn attach_to_same_domain(&mut self) {
        let space = self.random.below(self.spaces.len());
        if let Some(domain) = self.spaces[space].domain {
            self.vm.ok(self.channel_in(space).attach(domain));
        }
    }

    /// Stops the channels that match `predicate`. The groups of their jobs are in `state` afterwards.
    fn end_jobs(&mut self, state: GroupState, predicate: impl Fn(Channel) -> bool) {
        for (channel, job) in self.running.iter_mut().filter(|(channel, _)| predicate(*channel)) {
            self.vm.accel(channel.index).stop(channel.number);
            *job = None;
        }
        for job in self.jobs.iter_mut().filter(|job| predicate(job.channel)) {
            job.state =
                if job.state == GroupState::Complete { GroupState::Complete } else { state };
        }
    }

    fn hold_buffers(&mut self) {
        self.vm.events.hold = true;
    }

    fn refill(&mut self) {
        self.vm.events.hold = false;
        self.vm.events.refill();
    }

    fn pause_and_continue(&mut self) {
        let bases = self.vm.pause();
        self.vm.cont(bases);
    }

    fn reset_random_function(&mut self) {
        let index = self.random.below(ENDPOINTS.len());
        self.reset_function(index);
    }

    fn reset_function(&mut self, index: usize) {
        self.vm.accel(index).reset();
        self.end_jobs(GroupState::Complete, |channel| channel.index == index);
    }

    /// Resets the device, or replaces the front end.
    fn restart(&mut self, reset: fn(&mut Vm)) {
        self.vm.events.hold = false;
        reset(&mut self.vm);
        self.end_jobs(GroupState::Complete, |_| true);
        // Events from before the reset are lost with their virtqueue.
        self.partial.clear();
        self.responded.append(&mut self.outstanding);
        (0..self.spaces.len()).for_each(|space| self.attach(space));
    }

    /// Responds to all groups until every channel is idle.
    fn finish(mut self) {
        self.refill();
        wait::until("completion of all jobs", || {
            self.read_events();
            for group in std::mem::take(&mut self.outstanding) {
                self.resolve(&group);
            }
            self.check_outcomes();
            self.running.iter().all(|(_, job)| job.is_none()).then_some(())
        });
        wait::until("completion of all groups", || {
            self.read_events();
            for group in std::mem::take(&mut self.outstanding) {
                self.respond(&group, INVALID);
            }
            (0..ENDPOINTS.len())
                .all(|index| self.vm.page_requests(index)["waiting"] == 0)
                .then_some(())
        });
        assert_eq!(self.partial, []);
        for index in 0..ENDPOINTS.len() {
            let counted = self.vm.page_requests(index);
            let responses = ["success", "invalid", "failure"].map(|name| counted[name]);
            assert_eq!(responses, self.accepted[index], "{counted:?}");
        }
    }
}

fn same_space(a: Channel, b: Channel) -> bool {
    (a.index, a.pasid) == (b.index, b.pasid)
}
