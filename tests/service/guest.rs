//! A QEMU in the machine, by the user that libvirt runs it as.

use crate::machine::{Machine, SERVICE};

/// How much memory it has, in mebibytes, as `scripts/guest/service-vm` says.
pub const MEMORY_MIB: u64 = 256;

/// What a guest says when it has done what it was booted for.
const DONE: &str = "service-guest: status ";

const KERNEL: &str = "-smp 1 -kernel /host/bzImage -initrd /host/guest.initrd \
                      -append 'console=ttyS0 loglevel=5 no_timer_check panic=-1 \
                      endpoint=0000:00:02.0'";

/// One that has started, by the name of its unit.
pub struct Qemu(String);

impl Qemu {
    /// Starts one that has a guest.
    pub fn boot(machine: &mut Machine, name: &str) -> Self {
        Self::start(machine, "", name, "vm1", KERNEL)
    }

    /// Starts one that has a guest, and lets systemd end it with its instance.
    pub fn boot_bound(machine: &mut Machine, name: &str) -> Self {
        let properties = format!("--property BindsTo={SERVICE} --property After={SERVICE}");
        Self::start(machine, &properties, name, "vm1", KERNEL)
    }

    /// Starts one that has all but a guest, for `instance`.
    pub fn without_guest(machine: &mut Machine, name: &str, instance: &str) -> Self {
        Self::start(machine, "", name, instance, "-S")
    }

    fn start(
        machine: &mut Machine,
        properties: &str,
        name: &str,
        instance: &str,
        args: &str,
    ) -> Self {
        machine.run(&format!("sh /host/vm '{properties}' {name} {instance} {args} 2>&1"));
        Self(format!("{name}.service"))
    }

    /// Waits until its guest has done what it was booted for. Returns what it has said.
    pub fn wait_for_guest(&self, machine: &mut Machine) -> String {
        let Self(unit) = self;
        let log = self.log();
        machine.run(&format!(
            "until grep -qs '^{DONE}' {log}; do \
             [ \"$(systemctl show --property SubState --value {unit})\" = running ] || break; \
             sleep 0.5; done"
        ));
        machine.run(&format!("tr -d '\\r' <{log}"))
    }

    /// Waits until it has ended by itself, and not well. Returns its last words.
    pub fn fails(&self, machine: &mut Machine) -> String {
        let ended = machine.wait_for(&self.0, "SubState", |state| state != "running");
        let words = machine.run(&format!("tail -n 2 {}", self.log()));
        assert_eq!(ended, "failed", "{} says:\n{words}", self.0);
        words
    }

    /// Waits until systemd has ended it, well or not.
    pub fn ends(self, machine: &mut Machine) {
        machine.wait_for(&self.0, "ActiveState", |state| matches!(state, "inactive" | "failed"));
    }

    /// Ends it.
    pub fn stop(self, machine: &mut Machine) {
        machine.run(&format!("systemctl stop {}", self.0));
    }

    fn log(&self) -> String {
        format!("/run/{}.log", self.0.trim_end_matches(".service"))
    }
}
