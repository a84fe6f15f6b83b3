//! Random sequences of events, applied to a part of the daemon and to a simple model of it. Both
//! must have the same results.

mod groups;
mod requests;

/// Returns the number of random sequences: PROPTEST_CASES, or `default`.
fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").map_or(default, |cases| cases.parse().expect("PROPTEST_CASES"))
}
