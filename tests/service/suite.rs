//! The tests.

use testing::counters;
use testing::testbed::report;

use crate::domain;
use crate::guest::{self, Qemu};
use crate::machine::{DEVICE, EXAMPLES, Machine, SERVICE, SOCKET};

/// Lists all files, users and units, except files that other programs write.
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
fn package_purge_leaves_no_files() {
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

    // Changes by the administrator, and an instance that has run.
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

    // An upgrade does not restart the instance.
    let pid = machine.property(SERVICE, "MainPID");
    machine.install();
    assert_eq!(machine.property(SERVICE, "MainPID"), pid);

    machine.run("dpkg --remove vhost-user-iommu 2>&1");
    machine.run("[ ! -e /run/vhost-user-iommu ] && [ -e /etc/vhost-user-iommu/vm1.toml ]");
    machine.run(&format!("[ ! -e /proc/{pid} ]"));
    machine.run("dpkg --purge vhost-user-iommu 2>&1");
    machine.run(&format!("{TRACES} >/run/after.list"));
    let traces = machine.try_run("diff /run/before.list /run/after.list");
    assert_eq!(traces.status, 0, "files of the package remain:\n{}", traces.text);
    machine.finish(&[]);
}

#[test]
fn instance_serves_guests_sequentially() {
    let mut machine = Machine::with_instance();
    assert_eq!(machine.property(SERVICE, "ActiveState"), "inactive");

    // A QEMU unit that is bound to the instance starts it, and is stopped when it ends. A process
    // in the guest shares its address space with the accelerator.
    let qemu = Qemu::boot_bound(&mut machine, "first");
    machine.wait_for_status(SERVICE, CONNECTED);
    let output = qemu.wait_for_guest(&mut machine);
    let result = output.lines().find(|line| line.starts_with("ok: touch: "));
    report(result.unwrap_or_else(|| panic!("output of the guest:\n{output}")));
    machine.run(&format!("systemctl kill --signal USR1 {SERVICE}"));
    machine.wait_for_log(SERVICE, "page requests of endpoint ");
    let counters = counters::page_requests_at_end(&machine.journal(SERVICE));
    assert_eq!(counters.len(), 1, "{counters:?}");
    counters.iter().for_each(counters::assert_all_completed_by_driver);

    // Without the binding QEMU would not notice the loss of its IOMMU once the guest runs.
    machine.run(&format!("systemctl kill --signal KILL {SERVICE}"));
    qemu.wait_until_stopped(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "signal");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");
    report("QEMU was stopped with the daemon that it is bound to");

    // A connection starts the instance, which serves several sequentially.
    let second = Qemu::without_guest(&mut machine, "second", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    let pid = machine.property(SERVICE, "MainPID");
    second.stop(&mut machine);
    machine.wait_for_status(SERVICE, WAITING);
    let third = Qemu::without_guest(&mut machine, "third", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    assert_eq!(machine.property(SERVICE, "MainPID"), pid);

    // The socket remains after a stop.
    machine.run(&format!("systemctl stop {SERVICE}"));
    third.wait_until_failed(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "success");
    assert_eq!(machine.property(SERVICE, "ExecMainStatus"), "0");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");

    // After a restart the instance waits for the next front end.
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
fn failed_instance_is_started_by_next_front_end() {
    let mut machine = Machine::with_instance();

    // Kill.
    let first = Qemu::without_guest(&mut machine, "first", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    machine.run(&format!("systemctl kill --signal KILL {SERVICE}"));
    first.wait_until_failed(&mut machine);
    assert_eq!(machine.property(SERVICE, "Result"), "signal");
    assert_eq!(machine.property(SOCKET, "SubState"), "listening");
    report("the daemon was killed, its socket listens");

    // Hang: the event loops that serve the guest stall, all other threads run.
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
    report("the watchdog killed a daemon whose event loops stalled");
    let third = Qemu::without_guest(&mut machine, "third", "vm1");
    machine.wait_for_status(SERVICE, CONNECTED);
    third.stop(&mut machine);
    report("the next front end started a new daemon");

    // Invalid configuration: each connection starts the daemon once and is closed.
    let (service, socket) = (SERVICE.replace("vm1", "vm2"), SOCKET.replace("vm1", "vm2"));
    let rows =
        [("page-size = 3000", "2", "3000"), (MISSING_DEVICE, "4", FILE), (REALTIME, "5", "RTPRIO")];
    machine.run(&format!("systemctl start {socket}"));
    for (index, (config, code, part)) in rows.into_iter().enumerate() {
        machine.run(&format!("printf '{config}\\n' >/etc/vhost-user-iommu/vm2.toml"));
        let qemu = Qemu::without_guest(&mut machine, &format!("wrong{index}"), "vm2");
        let journal = assert_start_fails(&mut machine, &qemu, &service, code, &[part]);
        let starts = journal.lines().filter(|line| line.starts_with("Starting ")).count();
        assert_eq!(starts, index + 1, "{journal}");
    }

    // With the permission that it lacked.
    machine.add_drop_in(&service, "realtime.conf");
    let _right = Qemu::without_guest(&mut machine, "right", "vm2");
    machine.wait_for_status(&service, CONNECTED);
    let pid = machine.property(&service, "MainPID");
    // The request thread sets its policy when it starts to serve.
    let policies = format!("cut -d ' ' -f 41 /proc/{pid}/task/*/stat");
    machine.run(&format!("until {policies} | grep -qx {SCHED_RR}; do sleep 0.2; done"));
    machine.finish(&[]);
}

const MISSING_DEVICE: &str = "endpoint = \"00:02.0,vfio=/dev/vfio/devices/vfio0\"";
const REALTIME: &str = "endpoint = \"00:02.0,sim=/run/vhost-user-iommu/vm2/accel.sock\"\\n\
                        realtime = true";

/// The scheduling policy in the format of proc_pid_stat(5).
const SCHED_RR: &str = "2";

/// Asserts that the instance fails to start, with this exit status and a log line that contains all
/// `parts`, and that the QEMU which connected fails. Returns the log of the instance.
fn assert_start_fails(
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
    let line = journal.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    report(line.unwrap_or_else(|| panic!("no line with {parts:?} in:\n{journal}")));
    journal
}

/// Stalls the event loops of the request and event queues of the instance.
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
fn instance_can_use_only_devices_of_its_drop_in() {
    let mut machine = Machine::boot_with_device();
    machine.install();
    grant_to_group(&mut machine);
    machine.run(&format!(
        "printf '[[endpoint]]\\naddress = \"00:03.0\"\\nvfio = \"{FILE}\"\\n' | \
         cat /host/vm1.toml - >/etc/vhost-user-iommu/vm1.toml"
    ));
    machine.run(&format!("systemctl enable --now {SOCKET} 2>&1"));

    // The user can open the file, but DeviceAllow= denies it.
    let denied = Qemu::without_guest(&mut machine, "denied", "vm1");
    assert_start_fails(&mut machine, &denied, SERVICE, "4", &[FILE, "DeviceAllow="]);

    machine.add_drop_in(SERVICE, "vfio.conf");
    let allowed = Qemu::boot(&mut machine, "allowed");
    machine.wait_for_status(SERVICE, CONNECTED);
    let output = allowed.wait_for_guest(&mut machine);
    assert!(output.contains("ok: touch: "), "output of the guest:\n{output}");
    // The device bypasses the IOMMU until a driver attaches it, so all guest memory is pinned.
    let pid = machine.property(SERVICE, "MainPID");
    let pinned = machine.run(&format!("grep '^VmPin:' /proc/{pid}/status"));
    let kibibytes = guest::MEMORY_MIB * 1024;
    assert!(pinned.ends_with(&format!(" {kibibytes} kB")), "{pinned}");
    report("a physical device can access guest memory");
    allowed.stop(&mut machine);
    machine.wait_for_status(SERVICE, WAITING);
    machine.finish(&[]);
}

/// The file of the first device that is bound to VFIO.
const FILE: &str = "/dev/vfio/devices/vfio0";

/// Binds the device to VFIO and gives the group access to its files, as in `docs/service.md`.
fn grant_to_group(machine: &mut Machine) {
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
fn libvirt_runs_documented_domain() {
    let mut machine = Machine::boot();
    machine.install();
    for command in domain::commands() {
        machine.run(command);
    }
    let run = "virt-qemu-run --verbose --root=/run/embed /host/domain.xml";
    machine.run(&format!("systemd-run --quiet --unit libvirt {run} 2>&1"));
    machine.wait_for_log("libvirt.service", "guest running");
    // QEMU has connected to the IOMMU and then to the accelerator.
    assert_eq!(machine.property(SERVICE, "StatusText"), CONNECTED);
    machine.wait_for_log(SERVICE, "Received client version");
    machine.run("systemctl stop libvirt");
    machine.wait_for_status(SERVICE, WAITING);
    machine.finish(&[]);
}
