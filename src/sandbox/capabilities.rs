//! Capabilities: all given up but those that are needed.

use rustix::io::{Errno, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// Gives up all but `keep`, for the calling thread and those that it will start; what it does not
/// have it does not get. Returns what is left.
pub(super) fn reduce(keep: CapabilitySet) -> Result<CapabilitySet> {
    match clear_ambient_capability_set() {
        // Linux 4.2 and older have none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    // Requirements CAP_SETPCAP; who does not have it cannot gain anything by the set either, for the
    // process will get no new privileges.
    for_each_bounding(|one| keep.contains(one) || remove_capability_from_bounding_set(one).is_ok());
    let permitted = capabilities(None)?.permitted & keep;
    let sets =
        CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(permitted)
}

/// Goes through the bounding set as long as `go_on` says so.
fn for_each_bounding(mut go_on: impl FnMut(CapabilitySet) -> bool) {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !go_on(one) => return,
            Ok(_) => {}
            // Beyond the last one that the kernel knows.
            Err(_) => return,
        }
    }
}
