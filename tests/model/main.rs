//! Random sequences of events, applied to a part of the daemon and to a simple model of it. Both
//! must have the same results.

mod groups;
mod requests;
