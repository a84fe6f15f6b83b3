//! Random sequences of what can happen, in the daemon's parts and in a plain model of each: both
//! have to come to the same.

mod groups;
mod requests;
