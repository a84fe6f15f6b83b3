//! The tests.

use testing::counters;
use testing::testbed::report;

use crate::domain;
use crate::guest::{self, Qemu};
use crate::machine::{DEVICE, EXAMPLES, Machine, SERVICE, SOCKET};

/// All files, and who there is, before and after; but what others than the package write.
const TRACES: &str = "{ find / /run -xdev -not -path '/run/log/*' -not -path '/run/*.list' \
                      -not -path '/run/systemd/*' -not -path '/run/udev/*' \
                      -not -path '/run/virtlogd*' \
                      -not -path '/var/lib/dpkg/*' -not -path /var/log/dpkg.log \
                      -not -path '/tmp/systemd-private-*' -not -path '/var/tmp/systemd-private-*' \
                      | sort; cat /etc/passwd /etc/group; \
                      systemctl list-units --all --plain --no-legend 'vhost-user-iommu*'; }";

const WAITING: &str = "waiting for a front end on /run/vhost-user-iommu/vm1.sock";
const CONNECTED: &str = "front end connected";

#[test]
fn the_package_is_installed_and_leaves_nothing_behind() {
    let mut machine = Machine::boot();
    machine.run(&format!("{TRACES} >/run/before.list"));
    machine.install();
    let units = format!("{SERVICE} {SOCKET}");
    assert_eq!(machine.run(&format!("systemd-analyze verify --man=no {units} 2>&1")), "");
    let exposure = machine.run(&format!("systemd-analyze security --threshold=15 {SERVICE}"));
    report(exposure.lines().last().unwrap_or_default());
    machine.run("gzip --test /usr/share/man/man1/vhost-user-iommu*.1.gz");
    machine.run("cd / && md5sum --quiet --check /var/lib/dpkg/info/vhost-user-iommu.md5sums");
    let capabilities = machine.run("vhost-user-iommu --print-capabilities");
    assert!(capabilities.contains(r#""type": "iommu""#), "{capabilities}");

    // What an administrator adds, and an instance that has been at work.
    machine.run("cp /host/vm1.toml /etc/vhost-user-iommu/");
    machine.run(&format!("systemctl enable --now {SOCKET} 2>&1"));
    machine.add_drop_in(SERVICE, "vfio.conf");
    machine.run(&format!("udevadm verify {EXAMPLES}/70-vhost-user-iommu.rules 2>&1"));
    machine.run(&format!("systemctl start {SERVICE}"));
    assert_eq!(machine.property(SERVICE, "StatusText"), WAITING);
    let devices = machine.property(SERVICE, "DeviceAllow");
    for device in ["/dev/iommu rw", "/dev/vfio/devices/vfio0 rw"] {
        assert!(devices.lines().any(|line| line == device), "{devices}");
    }

    // An upgrade leaves it alone.
    let pid = machine.property(SERVICE, "MainPID");
    machine.install();
    assert_eq!(machine.property(SERVICE, "MainPID"), pid);

    machine.run("dpkg --remove vhost-user-iommu 2>&1");
    machine.run("[ ! -e /run/vhost-user-iommu ] && [ -e /etc/vhost-user-iommu/vm1.toml ]");
    machine.run(&format!("[ ! -e /proc/{pid} ]"));
    machine.run("dpkg --purge vhost-user-iommu 2>&1");
    machine.run(&format!("{TRACES} >/run/after.list"));
    let traces = machine.try_run("diff /run/before.list /run/after.list");
    assert_eq!(traces.status, 0, "of the package there is left:\n{}", traces.text);
    machine.finish(&[]);
}

#[test]
fn an_instance_carries_one_guest_after_the_other() {
    let mut machine = Machine::with_instance();
    assert_eq!(machine.property(SERVICE, "ActiveState"), "inactive");

    // A QEMU that is bound to it starts it, and ends with it. A process in the guest shares its
    // address space with the accelerator.
    let qemu = Qemu::boot_bound(&mut machine, "first");
    machine.wait_for_status(SERVICE, CONNECTED);
    let said = qemu.wait_for_guest(&mut machine);
    let result = said.lines().find(|line| line.starts_with("ok: touch: "));
    report(result.unwrap_or_else(|| panic!("the guest says:\n{said}")));
    machine.run(&format!("systemctl kill --signal USR1 {SERVICE}"));
    machine.wait_for_log(SERVICE, "page requests of endpoint ");
    let counters = counters::page_requests_at_end(&machine.journal(SERVICE));
    assert_eq!(counters.len(), 1, "{counters:?}");
    counters.iter().for_each(counters::assert_all_answered);

    // By itself a QEMU whose guest has started its driver would not see that its IOMMU is lost.
    machine.run(&format!("systemctl kill --signal KILL {SERVICE}"));
    qemu.wait_until_stopped(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "signal");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");
    report("a QEMU that was bound to a daemon has ended with it");

    // A connection starts it. It serves several, one after the other.
    let second = Qemu::without_guest(&mut machine, "second", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    let pid = machine.property(SERVICE, "MainPID");
    second.stop(&mut machine);
    machine.wait_for_status(SERVICE, WAITING);
    let third = Qemu::without_guest(&mut machine, "third", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    assert_eq!(machine.property(SERVICE, "MainPID"), pid);

    // The socket stays after a stop.
    machine.run(&format!("systemctl stop {SERVICE}"));
    third.wait_until_failed(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "success");
    assert_eq!(machine.property(SERVICE, "ExecMainStatus"), "0");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");

    // After a restart it waits for the next one.
    let fourth = Qemu::without_guest(&mut machine, "fourth", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    let pid = machine.property(SERVICE, "MainPID");
    machine.run(&format!("systemctl restart {SERVICE}"));
    fourth.wait_until_failed(&mut machine);
    machine.wait_for_status(SERVICE, WAITING);
    assert_ne!(machine.property(SERVICE, "MainPID"), pid);
    machine.finish(&[]);
}

#[test]
fn after_a_failure_the_next_guest_finds_a_fresh_instance() {
    let mut machine = Machine::with_instance();

    // Killed.
    let first = Qemu::without_guest(&mut machine, "first", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    machine.run(&format!("systemctl kill --signal KILL {SERVICE}"));
    first.wait_until_failed(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "signal");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");
    report("a daemon was killed, its socket listens");

    // Hanging: the loop that serves the guest stands still, all other threads run.
    machine.run(&format!("mkdir -p /run/systemd/system/{SERVICE}.d"));
    machine.run(&format!(
        "printf '[Service]\\nWatchdogSec=10\\n' >/run/systemd/system/{SERVICE}.d/watchdog.conf"
    ));
    machine.run("systemctl daemon-reload");
    let second = Qemu::without_guest(&mut machine, "second", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    stall(&mut machine);
    machine.wait_for_log(SERVICE, "no heartbeat from the event loop");
    assert_eq!(machine.wait_for(SERVICE, "Result", |result| result != "success"), "watchdog");
    machine.run("systemctl stop stall");
    second.wait_until_failed(&mut machine);
    report("a daemon whose loops stand still was ended by the watchdog");
    let third = Qemu::without_guest(&mut machine, "third", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    third.stop(&mut machine);
    report("the next front end found a fresh one");

    // Misconfigured: each front end is told at once, and starts it once.
    let (service, socket) = (SERVICE.replace("vm1", "vm2"), SOCKET.replace("vm1", "vm2"));
    let rows =
        [("page-size = 3000", "2", "3000"), (MISSING_DEVICE, "4", FILE), (REALTIME, "5", "RTPRIO")];
    machine.run(&format!("systemctl start {socket}"));
    for (index, (config, code, part)) in rows.into_iter().enumerate() {
        machine.run(&format!("printf '{config}\\n' >/etc/vhost-user-iommu/vm2.toml"));
        let qemu = Qemu::without_guest(&mut machine, &format!("wrong{index}"), "vm2");
        let journal = assert_refused(&mut machine, &qemu, &service, code, &[part]);
        let starts = journal.lines().filter(|line| line.starts_with("Starting ")).count();
        assert_eq!(starts, index + 1, "{journal}");
    }

    // Allowed what it has been refused.
    machine.add_drop_in(&service, "realtime.conf");
    let _right = Qemu::without_guest(&mut machine, "right", "vm2");
    machine.wait_for_status(&service, CONNECTED);
    let pid = machine.property(&service, "MainPID");
    // The thread that serves requests asks for it at its first turn.
    let policies = format!("cut -d ' ' -f 41 /proc/{pid}/task/*/stat");
    machine.run(&format!("until {policies} | grep -qx {SCHED_RR}; do sleep 0.2; done"));
    machine.finish(&[]);
}

const MISSING_DEVICE: &str = "endpoint = \"00:02.0,vfio=/dev/vfio/devices/vfio0\"";
const REALTIME: &str = "endpoint = \"00:02.0,sim=/run/vhost-user-iommu/vm2/accel.sock\"\\n\
                        realtime = true";

/// As proc_pid_stat(5) writes it.
const SCHED_RR: &str = "2";

/// An instance cannot start, and so the QEMU that started it has ended: by this exit status, and a
/// line that says all `parts`. Returns the instance's journal.
fn assert_refused(
    machine: &mut Machine,
    qemu: &Qemu,
    service: &str,
    code: &str,
    parts: &[&str],
) -> String {
    qemu.wait_until_failed(machine);
    machine.wait_for(service, "ActiveState", |state| state == "failed");
    assert_eq!(machine.property(service, "ExecMainStatus"), code);
    let journal = machine.journal(service);
    let said = journal.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    report(said.unwrap_or_else(|| panic!("nothing of {parts:?} in:\n{journal}")));
    journal
}

/// Holds the instance's loops for requests and events where they wait, from now on.
fn stall(machine: &mut Machine) {
    let pid = machine.property(SERVICE, "MainPID");
    let threads = machine.run(&format!("grep -l vring /proc/{pid}/task/*/comm"));
    let threads: Vec<_> = threads.lines().filter_map(|path| path.split('/').nth(4)).collect();
    assert!(!threads.is_empty());
    let attach: String = threads.iter().map(|thread| format!(" -p {thread}")).collect();
    machine.run(&format!(
        "systemd-run --quiet --unit stall strace -o /dev/null -e trace=epoll_wait \
         -e inject=epoll_wait:delay_exit=3600s{attach} 2>&1"
    ));
}

#[test]
fn an_instance_has_the_devices_that_it_is_given() {
    let mut machine = Machine::boot_with_device();
    machine.install();
    give_to_group(&mut machine);
    machine.run(&format!(
        "printf '[[endpoint]]\\naddress = \"00:03.0\"\\nvfio = \"{FILE}\"\\n' | \
         cat /host/vm1.toml - >/etc/vhost-user-iommu/vm1.toml"
    ));
    machine.run(&format!("systemctl enable --now {SOCKET} 2>&1"));

    // The file is open to the user, but not to the instance.
    let refused = Qemu::without_guest(&mut machine, "refused", "vm1");
    assert_refused(&mut machine, &refused, SERVICE, "4", &[FILE, "DeviceAllow="]);

    machine.add_drop_in(SERVICE, "vfio.conf");
    let given = Qemu::boot(&mut machine, "given");
    machine.wait_for_status(SERVICE, CONNECTED);
    let said = given.wait_for_guest(&mut machine);
    assert!(said.contains("ok: touch: "), "the guest says:\n{said}");
    // The device can reach all of the guest's memory, as long as no driver attaches it.
    let pid = machine.property(SERVICE, "MainPID");
    let pinned = machine.run(&format!("grep '^VmPin:' /proc/{pid}/status"));
    let kibibytes = guest::MEMORY_MIB * 1024;
    assert!(pinned.ends_with(&format!(" {kibibytes} kB")), "{pinned}");
    report("a device of the host reaches the guest's memory");
    given.stop(&mut machine);
    machine.wait_for_status(SERVICE, WAITING);
    machine.finish(&[]);
}

/// The first device that is bound to VFIO.
const FILE: &str = "/dev/vfio/devices/vfio0";

/// Binds the device to VFIO, and opens its files to the group, as `docs/service.md` says.
fn give_to_group(machine: &mut Machine) {
    let rules = "70-vhost-user-iommu.rules";
    machine.run(&format!(
        "sed 's/0000:01:00.0/{DEVICE}/' {EXAMPLES}/{rules} >/etc/udev/rules.d/{rules}"
    ));
    machine.run("udevadm control --reload && udevadm trigger --settle /dev/iommu");
    machine.run(&format!(
        "echo vfio-pci >/sys/bus/pci/devices/{DEVICE}/driver_override && \
         echo {DEVICE} >/sys/bus/pci/drivers_probe && udevadm settle"
    ));
    let groups = machine.run(&format!("stat --format=%G /dev/iommu {FILE} | uniq"));
    assert_eq!(groups, "vhost-user-iommu");
}

#[test]
fn libvirt_runs_the_domain_of_its_document() {
    let mut machine = Machine::boot();
    machine.install();
    for command in domain::commands() {
        machine.run(command);
    }
    let run = "virt-qemu-run --verbose --root=/run/embed /host/domain.xml";
    machine.run(&format!("systemd-run --quiet --unit libvirt {run} 2>&1"));
    machine.wait_for_log("libvirt.service", "guest running");
    // QEMU has found the IOMMU and, at the socket that came with it, the accelerator.
    assert_eq!(machine.property(SERVICE, "StatusText"), CONNECTED);
    machine.wait_for_log(SERVICE, "Received client version");
    machine.run("systemctl stop libvirt");
    machine.wait_for_status(SERVICE, WAITING);
    machine.finish(&[]);
}
