//! The sandbox from both sides: attempts from inside it are denied, and the kernel reports the right
//! state of a sandboxed daemon.
//!
//! - [`program`] runs a daemon that makes attempts, or one that serves.
//! - [`attempts`] has tests from inside, [`state`] from outside.

mod attempts;
mod program;
mod state;
