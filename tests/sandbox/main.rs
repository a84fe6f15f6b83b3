//! The sandbox from both sides: what is tried from inside it is refused, and what the kernel says
//! of a daemon in it is right.
//!
//! - [`program`] runs a daemon that tries things, or one that serves.
//! - [`attempts`] tries, [`state`] looks.

mod attempts;
mod program;
mod state;
