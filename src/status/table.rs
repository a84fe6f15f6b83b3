//! Formats the table.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::view::{Endpoint, View};

/// Outcomes of groups that the guest responded to.
const BY_GUEST: [&str; 3] = ["success", "invalid", "failure"];

/// Formats a summary and a row for each endpoint. Given an earlier view and the time since then,
/// the table has rates, and its quantiles are those of this period.
pub(super) fn table(view: &View, before: Option<(&View, Duration)>) -> String {
    let rows = view.endpoints.iter().map(|(name, endpoint)| {
        let last = before.and_then(|(before, time)| Some((before.endpoints.get(name)?, time)));
        row(name, endpoint, last)
    });
    let columns = if before.is_some() { &COLUMNS[..] } else { &COLUMNS[..COLUMNS.len() - RATES] };
    let lines = format_rows(columns, &rows.collect::<Vec<_>>());
    format!("{}\n{}\n\n{lines}", program(view), device(view, before))
}

fn program(view: &View) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let up = Duration::try_from_secs_f64(now - view.started).unwrap_or_default();
    let front_end = if view.connected { "connected" } else { "none" };
    format!("vhost-user-iommu {}, up {}, front end: {front_end}", view.version, clock(up))
}

fn device(view: &View, before: Option<(&View, Duration)>) -> String {
    let View { requests, failed, mappings, domains, attachments, .. } = view;
    let rate = before.map_or(String::new(), |(before, time)| {
        format!(" ({}/s)", per_second(before.requests, *requests, time))
    });
    format!(
        "requests {requests}{rate}, failed {failed}, mappings {mappings}, domains {domains}, \
         attachments {attachments}"
    )
}

/// Titles above the column names, each with the index of its first column.
const TITLES: [(usize, &str); 3] =
    [(1, "unrecoverable faults"), (5, "page request groups"), (10, "response time")];

const COLUMNS: [&str; 14] = [
    "endpoint",
    "delivered",
    "dropped",
    "direct",
    "pending",
    "success",
    "invalid",
    "failure",
    "other",
    "pending",
    "p50",
    "p99",
    "faults/s",
    "groups/s",
];

/// Number of trailing columns that require an earlier view.
const RATES: usize = 2;

/// Returns the cells of an endpoint.
fn row(name: &str, endpoint: &Endpoint, before: Option<(&Endpoint, Duration)>) -> Vec<String> {
    let faults = ["delivered", "dropped", "direct"].map(|outcome| endpoint.faults(outcome));
    let groups = BY_GUEST.map(|outcome| endpoint.groups(outcome));
    let other = endpoint.all_groups() - groups.iter().sum::<u64>();
    let mut row = vec![name.to_owned()];
    row.extend(faults.iter().map(u64::to_string));
    row.push(endpoint.faults_waiting.to_string());
    row.extend(groups.iter().chain([&other, &endpoint.groups_waiting]).map(u64::to_string));
    let times = match before {
        Some((before, _)) => endpoint.response_times.since(&before.response_times),
        None => endpoint.response_times.clone(),
    };
    row.extend([0.5, 0.99].map(|part| times.quantile(part).map_or("-".into(), short)));
    if let Some((before, time)) = before {
        row.push(per_second(before.all_faults(), endpoint.all_faults(), time));
        row.push(per_second(before.all_groups(), endpoint.all_groups(), time));
    }
    row
}

/// Aligns the columns: the first to the left, numbers to the right.
fn format_rows(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let names: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
    let mut lines = vec![titles(&widths)];
    lines.extend([&names].into_iter().chain(rows).map(|row| line(&widths, row)));
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn titles(widths: &[usize]) -> String {
    TITLES.iter().fold(String::new(), |line, &(column, title)| {
        let start = widths.iter().take(column).map(|width| width + 2).sum();
        format!("{line:start$}{title}")
    })
}

fn line(widths: &[usize], row: &[String]) -> String {
    let cells = row.iter().zip(widths).enumerate().map(|(index, (cell, &width))| match index {
        0 => format!("{cell:width$}"),
        _ => format!("  {cell:>width$}"),
    });
    cells.collect()
}

fn per_second(before: u64, now: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64().max(f64::MIN_POSITIVE);
    format!("{:.0}", now.saturating_sub(before) as f64 / seconds)
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Formats a duration with three digits and a unit.
fn short(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = match seconds {
        _ if seconds < 1e-3 => (seconds * 1e6, "us"),
        _ if seconds < 1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::view::Buckets;

    fn view(requests: u64, groups: u64) -> View {
        let endpoint = Endpoint {
            faults: [("delivered".to_owned(), 12345678901)].into(),
            groups: [("success".to_owned(), groups), ("timed_out".to_owned(), 1)].into(),
            groups_waiting: 7,
            response_times: Buckets(vec![(0.001, groups), (f64::INFINITY, groups)]),
            ..Endpoint::default()
        };
        let endpoints = [("0000:00:02.0".to_owned(), endpoint)].into();
        View { requests, endpoints, ..View::default() }
    }

    /// Returns the cells of the only endpoint.
    fn cells(table: &str) -> Vec<&str> {
        table.lines().last().unwrap().split_whitespace().collect()
    }

    #[test]
    fn row_has_a_cell_for_each_column() {
        let once = table(&view(100, 10), None);
        let expected = "0000:00:02.0 12345678901 0 0 0 10 0 0 1 7 500 us 990 us";
        assert_eq!(cells(&once), expected.split(' ').collect::<Vec<_>>());
        assert!(!once.contains("/s"), "{once}");
        let lines: Vec<_> = once.lines().collect();
        assert_eq!(lines[4].find("delivered").unwrap() + 9, lines[5].find("901").unwrap() + 3);
    }

    #[test]
    fn rates_and_quantiles_are_those_since_the_earlier_view() {
        let (before, time) = (view(100, 10), Duration::from_secs(2));
        let next = table(&view(160, 10), Some((&before, time)));
        assert!(next.contains("requests 160 (30/s), failed 0"), "{next}");
        assert_eq!(cells(&next)[10..], ["-", "-", "0", "0"], "no response since then");
        let next = table(&view(160, 110), Some((&before, time)));
        assert_eq!(cells(&next)[10..], ["500", "us", "990", "us", "0", "50"]);
    }

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        let rows = [(1.234e-6, "1.23 us"), (0.0123, "12.3 ms"), (0.9, "900 ms"), (12.0, "12.0 s")];
        for (seconds, expected) in rows {
            assert_eq!(short(Duration::from_secs_f64(seconds)), expected);
        }
        assert_eq!(clock(Duration::from_secs(3600 * 30 + 61)), "30:01:01");
    }
}
