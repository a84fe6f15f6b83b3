//! The tests, grouped by subject.

mod attach;
mod bypass;
mod command_line;
mod config;
mod dma;
mod faults;
mod framing;
mod life_cycle;
mod limits;
mod malformed;
mod map;
mod metrics;
mod metrics_http;
mod outstanding;
mod page_request;
mod page_response;
mod pasid;
mod probe;
mod service;
mod starved;
mod status;
mod storm;
mod stress;
mod trace;
mod unmap;
