//! Counters of the device model.

use std::fmt;

use super::request::RequestType;
use super::status::Status;
use crate::counter::Count;

/// Outcome of a request whose buffer was returned unwritten.
const UNWRITTEN: &str = "unwritten";

/// Number of outcomes: each status, and unwritten.
const OUTCOMES: usize = Status::ALL.len() + 1;

/// Counters of requests, and the current size of the device's state. They are updated while the
/// lock of the device is held.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    requests: [[Count; OUTCOMES]; RequestType::ALL.len()],
    /// Mappings in all domains together.
    pub mappings: Count,
    /// Domains.
    pub domains: Count,
    /// Endpoints and PASIDs that are attached to a domain.
    pub attachments: Count,
}

impl DeviceCounters {
    /// Counts a request. `status` is `None` if its buffer was returned unwritten.
    pub(super) fn count(&self, request_type: RequestType, status: Option<Status>) {
        let outcome = status.map_or(OUTCOMES - 1, |status| status as usize);
        self.requests[request_type as usize][outcome].add(1);
    }

    /// Returns the number of requests of each type.
    pub fn requests(&self) -> [RequestCounts; RequestType::ALL.len()] {
        RequestType::ALL.map(|request_type| RequestCounts {
            request_type,
            outcomes: std::array::from_fn(|outcome| {
                self.requests[request_type as usize][outcome].get()
            }),
        })
    }
}

/// Number of requests of one type by outcome.
#[derive(Clone, Copy, Debug)]
pub struct RequestCounts {
    /// The type.
    pub request_type: RequestType,
    outcomes: [u64; OUTCOMES],
}

impl RequestCounts {
    /// Returns the number of requests with any outcome.
    pub fn total(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Returns the name and number of each outcome.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Status::ALL.iter().map(|status| status.name()).chain([UNWRITTEN]);
        names.zip(self.outcomes)
    }
}

/// Formats the total and all outcomes that occurred.
impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "received {}:", self.total())?;
        let mut separator = "";
        for (name, count) in self.outcomes().filter(|(_, count)| *count > 0) {
            write!(f, "{separator} {name} {count}")?;
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_type_and_outcome() {
        let counters = DeviceCounters::default();
        for (index, request_type) in RequestType::ALL.into_iter().enumerate() {
            for (outcome, status) in Status::ALL.into_iter().map(Some).chain([None]).enumerate() {
                (0..index + outcome).for_each(|_| counters.count(request_type, status));
            }
        }
        for (index, counts) in counters.requests().into_iter().enumerate() {
            assert_eq!(counts.request_type, RequestType::ALL[index]);
            for (outcome, (name, count)) in counts.outcomes().enumerate() {
                assert_eq!(count, (index + outcome) as u64, "{:?} {name}", counts.request_type);
            }
        }
    }

    #[test]
    fn display_lists_total_and_nonzero_outcomes() {
        let counters = DeviceCounters::default();
        counters.count(RequestType::Map, Some(Status::Ok));
        counters.count(RequestType::Map, Some(Status::Ok));
        counters.count(RequestType::Map, Some(Status::NoEnt));
        counters.count(RequestType::Map, None);
        let map = counters.requests()[RequestType::Map as usize];
        assert_eq!(map.to_string(), "received 4: ok 2, noent 1, unwritten 1");
    }
}
