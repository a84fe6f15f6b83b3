//! A QEMU in the machine, run as the user that libvirt uses.

use crate::machine::{Machine, SERVICE};

/// Size of its memory in MiB, as `scripts/guest/service-vm` sets it.
pub const MEMORY_MIB: u64 = 256;

/// The line with which a guest reports the end of its work.
const DONE: &str = "service-guest: status ";

const KERNEL: &str = "-smp 1 -kernel /host/bzImage -initrd /host/guest.initrd \
                      -append 'console=ttyS0 loglevel=5 no_timer_check panic=-1 \
                      endpoint=0000:00:02.0'";

/// A QEMU that has been started; the field is its unit.
pub struct Qemu(String);

impl Qemu {
    /// Starts QEMU with a guest.
    pub fn boot(machine: &mut Machine, name: &str) -> Self {
        Self::start(machine, "", name, "vm1", KERNEL)
    }

    /// Starts QEMU with a guest. Its unit is bound to that of the instance.
    pub fn boot_bound(machine: &mut Machine, name: &str) -> Self {
        let properties = format!("--property BindsTo={SERVICE} --property After={SERVICE}");
        Self::start(machine, &properties, name, "vm1", KERNEL)
    }

    /// Starts QEMU without a guest, for `instance`.
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

    /// Waits until the guest has done its work. Returns its output.
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

    /// Waits until QEMU exits with an error. Returns the end of its output.
    pub fn wait_until_failed(&self, machine: &mut Machine) -> String {
        let state = machine.wait_for(&self.0, "SubState", |state| state != "running");
        let output = machine.run(&format!("tail -n 2 {}", self.log()));
        assert_eq!(state, "failed", "output of {}:\n{output}", self.0);
        output
    }

    /// Waits until systemd has stopped QEMU.
    pub fn wait_until_stopped(self, machine: &mut Machine) {
        machine.wait_for(&self.0, "ActiveState", |state| matches!(state, "inactive" | "failed"));
    }

    /// Stops QEMU.
    pub fn stop(self, machine: &mut Machine) {
        machine.run(&format!("systemctl stop {}", self.0));
    }

    fn log(&self) -> String {
        format!("/run/{}.log", self.0.trim_end_matches(".service"))
    }
}
