//! The metric families and the counters that they are read from. `docs/observing.md` lists them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Sources;
use crate::address::EndpointId;
use crate::counter::TimesSnapshot;

/// All metric families.
pub(super) struct Families {
    pub(super) sources: Sources,
    pub(super) started: SystemTime,
}

impl fmt::Debug for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Families")
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.program(&mut encoder)?;
        self.device(&mut encoder)?;
        self.transport(&mut encoder)?;
        self.faults(&mut encoder)
    }
}

impl Families {
    fn program(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        to.encode_descriptor("build", "The program", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let help = "Start time of the daemon since the Unix epoch";
        to.encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?
            .encode_gauge(&started.as_secs_f64())
    }

    fn device(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let device = &self.sources.device;
        let requests = device.requests();
        let rows = requests.iter().flat_map(|read| {
            let request_type = read.request_type.name();
            read.outcomes().map(move |(status, count)| {
                ([("type", request_type.to_owned()), ("status", status.to_owned())], count)
            })
        });
        counters(to, "requests", "Requests of the driver by type and status", rows)?;
        gauge(to, "mappings", "Mappings in all domains", device.mappings.get())?;
        gauge(to, "domains", "Domains", device.domains.get())?;
        let help = "Endpoints and PASIDs of endpoints that are attached to a domain";
        gauge(to, "attachments", help, device.attachments.get())
    }

    fn transport(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let transport = &self.sources.transport;
        let connected = transport.connected.get();
        gauge(to, "front_end_connected", "Whether a front end is connected", connected)?;
        counter(to, "front_ends", "Front ends that have connected", transport.front_ends.get())?;
        let signals =
            [("request", &transport.requests.signals), ("event", &transport.event_signals)];
        let rows = signals.map(|(queue, count)| ([("queue", queue.to_owned())], count.get()));
        counters(to, "driver_signals", "Signals sent to the driver", rows)?;
        self.request_queue(to)
    }

    fn request_queue(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let queue = &self.sources.transport.requests;
        let help = "Wake-ups of the thread that serves the request queue";
        counter(to, "request_queue_wake_ups", help, queue.wake_ups.get())?;
        let help = "Times that this thread stopped polling to sleep";
        counter(to, "request_queue_sleeps", help, queue.sleeps.get())?;
        let help = "Rounds of 64 polls of an empty request queue after which polling continued";
        counter(to, "request_queue_polls", help, queue.polls.get())?;
        let found = [("wake_up", &queue.woken_batches), ("poll", &queue.polled_batches)];
        let rows = found.map(|(event, count)| ([("found_by", event.to_owned())], count.get()));
        let help = "Batches of requests, by the event that found them";
        counters(to, "request_queue_batches", help, rows)?;
        let help = "Time from finding a batch of requests to signalling the driver, for one batch \
                    in eight";
        times(to, "request_batch", help, [([], queue.times.read())])
    }

    fn faults(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let all: Vec<_> = self.sources.faults.counters().collect();
        gauge(to, "endpoints", "Endpoints behind the IOMMU", all.len() as u64)?;
        let labels = |id, outcome: &str| [label(id), ("outcome", outcome.to_owned())];

        let rows = all.iter().flat_map(|&(id, faults, _)| {
            faults.by_outcome().map(|(outcome, count)| (labels(id, outcome), count))
        });
        counters(to, "faults", "Unrecoverable faults by outcome", rows)?;
        let rows = all.iter().map(|&(id, faults, _)| ([label(id)], faults.pending));
        gauges(to, "faults_waiting", "Unrecoverable faults in the fault queue", rows)?;

        let rows = all.iter().map(|&(id, _, requests)| ([label(id)], requests.requests));
        counters(to, "page_requests", "Page requests", rows)?;
        let rows = all.iter().flat_map(|&(id, _, requests)| {
            requests.by_outcome().map(|(outcome, count)| (labels(id, outcome), count))
        });
        let help = "Page request groups by outcome";
        counters(to, "page_groups", help, rows)?;
        let rows = all.iter().map(|&(id, _, requests)| ([label(id)], requests.outstanding));
        gauges(to, "page_groups_waiting", "Page request groups without a response", rows)?;

        let rows = self.sources.faults.response_times().flat_map(|(id, read)| {
            [("guest", read.by_guest), ("daemon", read.by_daemon)]
                .map(|(by, times)| ([label(id), ("answered_by", by.to_owned())], times))
        });
        let help = "Time from the first page request of a group to its response";
        times(to, "page_group_answer", help, rows)
    }
}

fn label(endpoint: EndpointId) -> (&'static str, String) {
    ("endpoint", endpoint.to_string())
}

/// The labels of a row: names and values.
type Labels<const N: usize> = [(&'static str, String); N];

/// Encodes a counter without labels.
fn counter(to: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    encode_counter(&mut metric, value)
}

fn encode_counter(metric: &mut MetricEncoder, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

/// Encodes the value of each row under its labels.
fn family<const N: usize, V>(
    mut metric: MetricEncoder,
    rows: impl IntoIterator<Item = (Labels<N>, V)>,
    encode: impl Fn(&mut MetricEncoder, V) -> fmt::Result,
) -> fmt::Result {
    rows.into_iter()
        .try_for_each(|(labels, value)| encode(&mut metric.encode_family(&labels)?, value))
}

/// Encodes a family of counters.
fn counters<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, u64)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    family(metric, rows, encode_counter)
}

/// Encodes a gauge without labels.
fn gauge(to: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// Encodes a family of gauges.
fn gauges<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, u64)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    family(metric, rows, |metric, value| metric.encode_gauge(&value))
}

/// Encodes a family of histograms.
fn times<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, TimesSnapshot)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    family(metric, rows, |metric, times| {
        let counts = times.buckets.iter().enumerate();
        let buckets: Vec<_> = counts.map(|(bucket, &count)| (upper_bound(bucket), count)).collect();
        let total = times.total.as_secs_f64();
        metric.encode_histogram::<NoLabelSet>(total, times.count(), &buckets, None)
    })
}

/// Returns the upper bound of a bucket in seconds.
fn upper_bound(bucket: usize) -> f64 {
    TimesSnapshot::upper_bound(bucket).map_or(f64::INFINITY, |bound| bound.as_secs_f64())
}
