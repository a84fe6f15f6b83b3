//! The subset of HTTP that a scraper uses: one request and one response per connection.

use httparse::{EMPTY_HEADER, Request};

/// Maximum size of the head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 8 << 10;

/// Maximum number of header lines, which are ignored.
const MAX_HEADERS: usize = 64;

/// Path of the metrics.
const PATH: &str = "/metrics";

/// Content type of the metrics: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The response to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// The metrics; HEAD omits the body.
    Metrics { body: bool },
    /// No resource has this path.
    NotFound,
    /// The method is neither GET nor HEAD.
    NotAllowed,
    /// The request is malformed.
    Bad(&'static str),
}

/// Parses the head of a request; `None` if it is incomplete.
pub(super) fn respond(head: &[u8]) -> Option<Response> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(status) if status.is_complete() => Some(route(&request)),
        Ok(_) if head.len() >= MAX_HEAD => Some(Response::Bad("the head is too long")),
        Ok(_) => None,
        Err(httparse::Error::TooManyHeaders) => Some(Response::Bad("too many header lines")),
        Err(_) => Some(Response::Bad("not an HTTP request")),
    }
}

fn route(request: &Request) -> Response {
    let path = request.path.unwrap_or_default();
    match (path.split('?').next(), request.method) {
        (Some(PATH), Some("GET")) => Response::Metrics { body: true },
        (Some(PATH), Some("HEAD")) => Response::Metrics { body: false },
        (Some(PATH), _) => Response::NotAllowed,
        _ => Response::NotFound,
    }
}

impl Response {
    /// Encodes the response. Calls `metrics` only if the response contains them; it returns `None`
    /// on failure.
    pub(super) fn bytes(self, metrics: impl FnOnce() -> Option<String>) -> Vec<u8> {
        let text = "text/plain; charset=utf-8";
        let (status, kind, content, body) = match self {
            Self::Metrics { body } => match metrics() {
                Some(metrics) => ("200 OK", OPEN_METRICS, metrics, body),
                None => {
                    ("500 Internal Server Error", text, "cannot encode the metrics\n".into(), body)
                }
            },
            Self::NotFound => ("404 Not Found", text, format!("the metrics are at {PATH}\n"), true),
            Self::NotAllowed => {
                ("405 Method Not Allowed", text, "only GET and HEAD are supported\n".into(), true)
            }
            Self::Bad(why) => ("400 Bad Request", text, format!("{why}\n"), true),
        };
        let allow = if self == Self::NotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
             Connection: close\r\n\r\n",
            content.len()
        );
        let body = if body { content.as_str() } else { "" };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_routed_by_path_and_method() {
        let rows = [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Response::Metrics { body: true })),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", Some(Response::Metrics { body: true })),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Response::Metrics { body: false })),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Response::NotAllowed)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Response::NotFound)),
            ("DELETE /metrics/x HTTP/1.1\r\n\r\n", Some(Response::NotFound)),
            ("GET /metrics HTTP/1.1\r\n", None),
            ("GET /met", None),
            ("", None),
        ];
        for (head, expected) in rows {
            assert_eq!(respond(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn malformed_requests_are_bad() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        for head in ["\0\0\0\0", "GET /metrics HTTP/3.9\r\n\r\n", &long, &many] {
            assert!(matches!(respond(head.as_bytes()), Some(Response::Bad(_))), "{head:.20}");
        }
    }

    #[test]
    fn responses_have_a_length_and_close_the_connection() {
        let text = |response: Response| {
            String::from_utf8(response.bytes(|| Some("metrics\n".into()))).unwrap()
        };
        let whole = text(Response::Metrics { body: true });
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert!(whole.contains("\r\nContent-Length: 8\r\n"), "{whole}");
        assert!(whole.contains(&format!("\r\nContent-Type: {OPEN_METRICS}\r\n")), "{whole}");
        assert!(whole.ends_with("\r\nConnection: close\r\n\r\nmetrics\n"), "{whole}");
        let head = text(Response::Metrics { body: false });
        assert_eq!(Some(head.as_str()), whole.strip_suffix("metrics\n"));
        assert!(text(Response::NotAllowed).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(text(Response::NotFound).starts_with("HTTP/1.1 404 "));
        assert!(text(Response::Bad("because")).ends_with("\r\n\r\nbecause\n"));
        let none = Response::Metrics { body: true }.bytes(|| None);
        assert!(none.starts_with(b"HTTP/1.1 500 "));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = respond(&bytes);
        }
    }
}
