//! The families of figures, and what they are read from. `docs/observing.md` lists them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::Sources;
use crate::counter::TimesSnapshot;

/// All of them.
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
        let help = "When the daemon was started, since 1970";
        to.encode_descriptor("start_time", help, Some(&Unit::Seconds), MetricType::Gauge)?
            .encode_gauge(&started.as_secs_f64())
    }

    fn device(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let device = &self.sources.device;
        let requests = device.requests();
        let rows = requests.iter().flat_map(|read| {
            read.outcomes().map(|(status, count)| {
                (
                    [("type", read.request_type.name().to_owned()), ("status", status.to_owned())],
                    count,
                )
            })
        });
        counters(to, "requests", "Requests of the driver", rows)?;
        gauge(to, "mappings", "Mappings over all domains", device.mappings.get())?;
        gauge(to, "domains", "Domains", device.domains.get())?;
        let help = "Endpoints, and PASIDs of endpoints, that are attached to a domain";
        gauge(to, "attachments", help, device.attachments.get())
    }

    fn transport(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let transport = &self.sources.transport;
        let connected = transport.connected.get();
        gauge(to, "front_end_connected", "1 while a front end is connected", connected)?;
        counter(to, "front_ends", "Front ends that have connected", transport.front_ends.get())?;
        let queue = &transport.requests;
        let help = "Wake-ups of the thread that serves the request queue";
        counter(to, "request_queue_wake_ups", help, queue.wake_ups.get())?;
        let help = "Times that the thread gave up polling and went to sleep";
        counter(to, "request_queue_sleeps", help, queue.sleeps.get())?;
        let help = "Looks at an empty request queue, 64 in a row, after which it was polled on";
        counter(to, "request_queue_polls", help, queue.polls.get())?;
        let found = [("wake_up", &queue.woken_batches), ("poll", &queue.polled_batches)];
        let rows = found.map(|(how, count)| ([("found_by", how.to_owned())], count.get()));
        let help = "Batches of requests that were found and answered together";
        counters(to, "request_queue_batches", help, rows)?;
        let signals = [("request", &queue.signals), ("event", &transport.event_signals)];
        let rows = signals.map(|(queue, count)| ([("queue", queue.to_owned())], count.get()));
        counters(to, "driver_signals", "Signals sent to the driver", rows)?;
        let help = "From a batch found to all of it answered and the driver signalled; one \
                    batch of eight is timed";
        times(to, "request_batch", help, [([], queue.times.read())])
    }

    fn faults(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let all: Vec<_> = self.sources.faults.counters().collect();
        gauge(to, "endpoints", "Endpoints behind the IOMMU", all.len() as u64)?;
        let label = |id| ("endpoint", format!("{id}"));
        let ended = |id, outcome: &str| [label(id), ("outcome", outcome.to_owned())];

        let rows = all.iter().flat_map(|&(id, faults, _)| {
            faults.by_outcome().map(|(outcome, count)| (ended(id, outcome), count))
        });
        counters(
            to,
            "faults",
            "Faults that cannot be recovered from, by what became of them",
            rows,
        )?;
        let rows = all.iter().map(|&(id, faults, _)| ([label(id)], faults.pending));
        gauges(to, "faults_waiting", "Faults that wait to be delivered", rows)?;

        let rows = all.iter().map(|&(id, _, requests)| ([label(id)], requests.requests));
        counters(to, "page_requests", "Page requests of the endpoint", rows)?;
        let rows = all.iter().flat_map(|&(id, _, requests)| {
            requests.by_outcome().map(|(outcome, count)| (ended(id, outcome), count))
        });
        let help = "Groups of page requests, by how they were answered";
        counters(to, "page_groups", help, rows)?;
        let rows = all.iter().map(|&(id, _, requests)| ([label(id)], requests.pending));
        gauges(to, "page_groups_waiting", "Groups of page requests without an answer", rows)?;

        let rows = self.sources.faults.response_times().flat_map(|(id, read)| {
            let of = |by: &str| [label(id), ("answered_by", by.to_owned())];
            [(of("guest"), read.by_guest), (of("daemon"), read.by_daemon)]
        });
        let help = "From the first page request of a group to the answer of the group";
        times(to, "page_group_answer", help, rows)
    }
}

/// The labels of a row: names and values.
type Labels<const N: usize> = [(&'static str, String); N];

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

fn counters<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, u64)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    family(metric, rows, encode_counter)
}

fn gauge(to: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn gauges<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, u64)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    family(metric, rows, |metric, value| metric.encode_gauge(&value))
}

fn times<const N: usize>(
    to: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels<N>, TimesSnapshot)>,
) -> fmt::Result {
    let metric = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    family(metric, rows, |metric, read| {
        let bound =
            |bucket| TimesSnapshot::upper_bound(bucket).map_or(f64::INFINITY, |t| t.as_secs_f64());
        let buckets: Vec<_> = read
            .buckets
            .iter()
            .enumerate()
            .map(|(bucket, &count)| (bound(bucket), count))
            .collect();
        metric.encode_histogram::<NoLabelSet>(
            read.total.as_secs_f64(),
            read.count(),
            &buckets,
            None,
        )
    })
}
