//! Drops all capabilities that the daemon does not require.

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Drops all capabilities but `keep`, for the calling thread and all threads that it starts later.
/// Capabilities in `keep` that the process does not have are not gained. Returns those that remain.
pub(super) fn reduce(keep: CapabilitySet) -> Result<CapabilitySet> {
    match clear_ambient_capability_set() {
        // Linux 4.2 and older have no ambient set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    reduce_bounding_set(keep);
    let permitted = capabilities(None)?.permitted & keep;
    let sets =
        CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(permitted)
}

/// Removing a capability requires CAP_SETPCAP. Without it the bounding set stays unchanged, which
/// is harmless: with no_new_privs the process cannot gain capabilities from it.
fn reduce_bounding_set(keep: CapabilitySet) {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // Fails beyond the last capability that the kernel defines.
        let Ok(is_set) = capability_is_in_bounding_set(capability) else { return };
        let is_dropped = is_set && !keep.contains(capability);
        if is_dropped && remove_capability_from_bounding_set(capability).is_err() {
            return;
        }
    }
}
