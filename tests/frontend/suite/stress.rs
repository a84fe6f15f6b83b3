//! Everything at once: endpoints that ask, a driver that answers rightly, wrongly, late and for
//! others, and address spaces that come and go. Each status is foreseen, and the sums add up.

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
/// Channels share them in turn.
const PASIDS: [Option<u32>; 3] = [None, Some(1), Some(0xf_ffff)];
/// Where jobs write: a window for each.
const WINDOWS: u64 = 0x1_0000_0000;
const WINDOW: u64 = 0x10_0000;

fn whatever_happens_each_group_is_answered_once_and_the_sums_add_up(seed: u64) {
    let mut stress = Stress::new(seed);
    for _ in 0..STEPS {
        stress.step();
    }
    stress.finish();
}

#[test]
fn seed_1() {
    whatever_happens_each_group_is_answered_once_and_the_sums_add_up(1);
}

#[test]
fn seed_2() {
    whatever_happens_each_group_is_answered_once_and_the_sums_add_up(2);
}

#[test]
fn seed_3() {
    whatever_happens_each_group_is_answered_once_and_the_sums_add_up(3);
}

#[test]
fn seed_4() {
    whatever_happens_each_group_is_answered_once_and_the_sums_add_up(0xdead_beef);
}

/// What the driver knows of a group that is answered now.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Waits,
    Gone,
    /// Its space has moved: whether it was asked for before or after that shows in the answer.
    Open,
}

/// Work of a channel; its number gives its window.
struct Job {
    channel: Channel,
    fate: Fate,
    denied: bool,
}

/// An address space of an endpoint.
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
    /// What each channel of each endpoint works on.
    running: Vec<(Channel, Option<usize>)>,
    /// Events of a group whose last one has not come.
    parts: Vec<Fault>,
    waiting: Vec<Group>,
    answered: Vec<Group>,
    /// Answers that were taken, by endpoint and code.
    taken: [[u64; 3]; ENDPOINTS.len()],
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
            parts: Vec::new(),
            waiting: Vec::new(),
            answered: Vec::new(),
            taken: Default::default(),
        };
        (0..stress.spaces.len()).for_each(|space| stress.attach(space));
        stress
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.start_job(),
            30..50 => self.read_events(),
            50..75 => self.answer_one(),
            75..82 => self.answer_wrongly(),
            82..90 => self.look_at_outcomes(),
            90 | 91 => self.detach_or_attach(),
            92 => self.attach_elsewhere(),
            93 => self.attach_again(),
            94 => self.starve(),
            95..97 => self.refill(),
            97 => self.stop_and_go_on(),
            98 => self.reset_a_function(),
            _ => match self.random.below(10) {
                0 => self.begin_anew(Vm::reset),
                1 => self.begin_anew(Vm::lose_front_end),
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
        self.jobs.push(Job { channel, fate: Fate::Waits, denied: false });
        self.running[chosen].1 = Some(job);
    }

    fn space_of(&self, channel: Channel) -> usize {
        let is_its = |space: &Space| (space.index, space.pasid) == (channel.index, channel.pasid);
        self.spaces.iter().position(is_its).unwrap()
    }

    fn read_events(&mut self) {
        while let Some(event) = self.vm.events.try_receive() {
            self.parts.push(event);
            if event.has(Fault::LAST) {
                self.waiting.push(Group::new(&std::mem::take(&mut self.parts)));
            }
        }
    }

    /// The job that a group is for; none if it asks for what the accelerator itself needs.
    fn job_of(&mut self, group: &Group) -> Option<&mut Job> {
        let window = group.pages[0].checked_sub(WINDOWS)? / WINDOW;
        self.jobs.get_mut(window as usize)
    }

    fn answer_one(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let chosen = self.random.below(self.waiting.len());
        let group = self.waiting.swap_remove(chosen);
        match self.random.below(20) {
            0 => self.answer(&group, FAILURE),
            1..5 => self.answer(&group, INVALID),
            // The page is not there: it is asked for again.
            5..7 => self.answer(&group, SUCCESS),
            _ => self.resolve(&group),
        }
    }

    fn resolve(&mut self, group: &Group) {
        for &page in &group.pages {
            let space = self.space_of(group.channel());
            // It can have been mapped, or gone, meanwhile.
            let domain = self.spaces[space].domain.unwrap_or(u32::MAX);
            let status = self.vm.status(&map(domain, page, page + PAGE - 1, backing(page), RW));
            assert!([OK, INVAL, NOENT].contains(&status), "MAP: {status}");
        }
        self.answer(group, SUCCESS);
    }

    /// Answers a group that has not been answered.
    fn answer(&mut self, group: &Group, code: u16) {
        let status = self.vm.status(&group.response(code));
        let fate = self.job_of(group).map_or(Fate::Open, |job| job.fate);
        let foreseen = match fate {
            Fate::Waits => status == OK,
            Fate::Gone => status == NOENT,
            Fate::Open => status == OK || status == NOENT,
        };
        assert!(foreseen, "status {status} for {group:x?} that is {fate:?}");
        self.answered.push(group.clone());
        if status != OK {
            return;
        }
        let index = group.channel().index;
        self.taken[index][usize::from(code)] += 1;
        match (code, self.job_of(group)) {
            // A larger group that is refused is asked for again, page by page.
            (INVALID, Some(job)) => job.denied = group.pages.len() == 1,
            (FAILURE, _) => self.reset_function(index),
            _ => {}
        }
    }

    /// One of the waiting groups with something wrong, or one that was answered.
    fn answer_wrongly(&mut self) {
        let some = |groups: &[Group], random: &mut Random| {
            (!groups.is_empty()).then(|| groups[random.below(groups.len())].clone())
        };
        if let Some(group) = some(&self.answered, &mut self.random) {
            self.vm.expect(NOENT, group.response(SUCCESS));
        }
        let Some(group) = some(&self.waiting, &mut self.random) else { return };
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

    fn look_at_outcomes(&mut self) {
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
                panic!("job {job} was denied and has ended with {outcome:x?}");
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
                self.end_jobs(Fate::Gone, |channel_of_job| same_space(channel_of_job, channel));
            }
        }
    }

    /// Any channel that stands for the space.
    fn channel_in(&self, space: usize) -> Channel {
        let Space { index, pasid, .. } = self.spaces[space];
        Channel::new(index, 0, pasid)
    }

    /// Attaches a space, from wherever it was, to a new domain.
    fn attach(&mut self, space: usize) {
        let domain = self.next_domain;
        self.next_domain += 1;
        let channel = self.channel_in(space);
        self.vm.ok(channel.attach(domain));
        self.vm.map_home(domain, channel.index);
        self.vm.accel(channel.index).enable_page_requests();
        self.spaces[space].domain = Some(domain);
    }

    /// Channels go on meanwhile, or are stopped before.
    fn attach_elsewhere(&mut self) {
        let space = self.random.below(self.spaces.len());
        let channel = self.channel_in(space);
        let stop_before = self.random.coin();
        if stop_before {
            self.end_jobs(Fate::Gone, |other| same_space(other, channel));
        }
        self.attach(space);
        if !stop_before {
            self.end_jobs(Fate::Open, |other| same_space(other, channel));
        }
    }

    fn attach_again(&mut self) {
        let space = self.random.below(self.spaces.len());
        if let Some(domain) = self.spaces[space].domain {
            self.vm.ok(self.channel_in(space).attach(domain));
        }
    }

    /// Stops the channels chosen. What becomes of the groups of their jobs is `fate`.
    fn end_jobs(&mut self, fate: Fate, chosen: impl Fn(Channel) -> bool) {
        for (channel, job) in self.running.iter_mut().filter(|(channel, _)| chosen(*channel)) {
            self.vm.accel(channel.index).stop(channel.number);
            *job = None;
        }
        for job in self.jobs.iter_mut().filter(|job| chosen(job.channel)) {
            job.fate = if job.fate == Fate::Gone { Fate::Gone } else { fate };
        }
    }

    fn starve(&mut self) {
        self.vm.events.hold = true;
    }

    fn refill(&mut self) {
        self.vm.events.hold = false;
        self.vm.events.refill();
    }

    fn stop_and_go_on(&mut self) {
        let bases = self.vm.pause();
        self.vm.cont(bases);
    }

    fn reset_a_function(&mut self) {
        let index = self.random.below(ENDPOINTS.len());
        self.reset_function(index);
    }

    fn reset_function(&mut self, index: usize) {
        self.vm.accel(index).reset();
        self.end_jobs(Fate::Gone, |channel| channel.index == index);
    }

    /// The driver resets the device, or the front end goes and another comes.
    fn begin_anew(&mut self, how: fn(&mut Vm)) {
        self.vm.events.hold = false;
        how(&mut self.vm);
        self.end_jobs(Fate::Gone, |_| true);
        // The events of before have gone with their ring.
        self.parts.clear();
        self.answered.append(&mut self.waiting);
        (0..self.spaces.len()).for_each(|space| self.attach(space));
    }

    /// Answers all there is until every channel has ended.
    fn finish(mut self) {
        self.refill();
        wait::until("the end of all work", || {
            self.read_events();
            for group in std::mem::take(&mut self.waiting) {
                self.resolve(&group);
            }
            self.look_at_outcomes();
            self.running.iter().all(|(_, job)| job.is_none()).then_some(())
        });
        wait::until("the last groups", || {
            self.read_events();
            for group in std::mem::take(&mut self.waiting) {
                self.answer(&group, INVALID);
            }
            let waits = |index| self.vm.page_requests(index)["waiting"] > 0;
            (!(0..ENDPOINTS.len()).any(waits)).then_some(())
        });
        assert_eq!(self.parts, []);
        for index in 0..ENDPOINTS.len() {
            let counted = self.vm.page_requests(index);
            let taken = ["success", "invalid", "failure"].map(|name| counted[name]);
            assert_eq!(taken, self.taken[index], "{counted:?}");
        }
    }
}

fn same_space(a: Channel, b: Channel) -> bool {
    (a.index, a.pasid) == (b.index, b.pasid)
}
