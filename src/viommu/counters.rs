//! What the device model counts.

use std::fmt;

use super::status::Status;
use super::wire::{request, size};
use crate::counter::Count;

/// What a request was, by its type alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// ATTACH.
    Attach,
    /// DETACH.
    Detach,
    /// MAP.
    Map,
    /// UNMAP.
    Unmap,
    /// PROBE.
    Probe,
    /// PAGE_RESP.
    PageResponse,
    /// Of a type that does not exist, or too short to have one.
    Unknown,
}

impl RequestType {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Attach,
        Self::Detach,
        Self::Map,
        Self::Unmap,
        Self::Probe,
        Self::PageResponse,
        Self::Unknown,
    ];

    /// That of the bytes that the driver wrote.
    pub fn of(bytes: &[u8]) -> Self {
        match bytes.first_chunk::<{ size::HEAD }>().map(|head| head[0]) {
            Some(request::ATTACH) => Self::Attach,
            Some(request::DETACH) => Self::Detach,
            Some(request::MAP) => Self::Map,
            Some(request::UNMAP) => Self::Unmap,
            Some(request::PROBE) => Self::Probe,
            Some(request::PAGE_RESP) => Self::PageResponse,
            _ => Self::Unknown,
        }
    }

    /// Its name, for people and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Map => "map",
            Self::Unmap => "unmap",
            Self::Probe => "probe",
            Self::PageResponse => "page_response",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of a request that went back unwritten, beside the statuses.
const UNWRITTEN: &str = "unwritten";

/// The ways in which a request can end.
const ENDS: usize = Status::ALL.len() + 1;

/// What the device has done so far, and how large it is. Changes with the device's lock held.
#[derive(Debug, Default)]
pub struct DeviceCounters {
    requests: [[Count; ENDS]; RequestType::ALL.len()],
    /// Mappings over all domains.
    pub mappings: Count,
    /// Domains.
    pub domains: Count,
    /// Endpoints, and PASIDs of endpoints, that are attached to a domain.
    pub attachments: Count,
}

impl DeviceCounters {
    /// Counts a request; `status`: what its driver has read, if anything.
    pub(super) fn count(&self, request_type: RequestType, status: Option<Status>) {
        let end = status.map_or(ENDS - 1, |status| status as usize);
        self.requests[request_type as usize][end].add(1);
    }

    /// The requests so far, by type.
    pub fn requests(&self) -> [RequestCounts; RequestType::ALL.len()] {
        RequestType::ALL.map(|request_type| RequestCounts {
            request_type,
            ends: std::array::from_fn(|end| self.requests[request_type as usize][end].get()),
        })
    }
}

/// What became of the requests of a type.
#[derive(Clone, Copy, Debug)]
pub struct RequestCounts {
    /// The type.
    pub request_type: RequestType,
    ends: [u64; ENDS],
}

impl RequestCounts {
    /// How many there were.
    pub fn total(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// How many ended in which way, for each way.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Status::ALL.iter().map(|status| status.name()).chain([UNWRITTEN]);
        names.zip(self.ends)
    }
}

impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "received {}:", self.total())?;
        let some = self.outcomes().filter(|(_, count)| *count > 0);
        some.enumerate().try_for_each(|(index, (name, count))| {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma} {name} {count}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_and_each_end_is_counted_by_itself() {
        let counters = DeviceCounters::default();
        for (times, request_type) in RequestType::ALL.into_iter().enumerate() {
            for (more, status) in Status::ALL.into_iter().map(Some).chain([None]).enumerate() {
                (0..times + more).for_each(|_| counters.count(request_type, status));
            }
        }
        for (times, read) in counters.requests().into_iter().enumerate() {
            assert_eq!(read.request_type, RequestType::ALL[times]);
            for (more, (name, count)) in read.outcomes().enumerate() {
                assert_eq!(count, (times + more) as u64, "{:?} {name}", read.request_type);
            }
        }
    }

    #[test]
    fn a_line_says_what_there_was() {
        let counters = DeviceCounters::default();
        counters.count(RequestType::Map, Some(Status::Ok));
        counters.count(RequestType::Map, Some(Status::Ok));
        counters.count(RequestType::Map, Some(Status::NoEnt));
        counters.count(RequestType::Map, None);
        let map = counters.requests()[RequestType::Map as usize];
        assert_eq!(map.to_string(), "received 4: ok 2, noent 1, unwritten 1");
    }

    #[test]
    fn a_kind_is_that_of_a_whole_head() {
        assert_eq!(RequestType::of(&[request::MAP, 0, 0, 0]), RequestType::Map);
        assert_eq!(RequestType::of(&[request::MAP, 0, 0]), RequestType::Unknown);
        assert_eq!(RequestType::of(&[99; 40]), RequestType::Unknown);
        assert_eq!(RequestType::of(&[]), RequestType::Unknown);
    }
}
