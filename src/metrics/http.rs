//! HTTP, as little of it as a scraper needs: one request, one answer, then the end.

use httparse::{EMPTY_HEADER, Request};

/// The longest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 8 << 10;

/// Header lines that are taken; nothing in them matters.
const MAX_HEADERS: usize = 64;

/// Where the figures are.
const PATH: &str = "/metrics";

/// What they are: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With the figures; of HEAD without them.
    Figures { body: bool },
    /// There is nothing else here.
    NotFound,
    /// Nothing can be changed here.
    NotAllowed,
    /// It was no request.
    Bad(&'static str),
}

/// Reads the head of a request; `None`: there has to come more.
pub(super) fn answer_to(head: &[u8]) -> Option<Answer> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    match request.parse(head) {
        Ok(status) if status.is_complete() => Some(answer(&request)),
        Ok(_) if head.len() >= MAX_HEAD => Some(Answer::Bad("the head is too long")),
        Ok(_) => None,
        Err(httparse::Error::TooManyHeaders) => Some(Answer::Bad("too many header lines")),
        Err(_) => Some(Answer::Bad("this is no HTTP request")),
    }
}

fn answer(request: &Request) -> Answer {
    let path = request.path.unwrap_or_default();
    match (path.split('?').next(), request.method) {
        (Some(PATH), Some("GET")) => Answer::Figures { body: true },
        (Some(PATH), Some("HEAD")) => Answer::Figures { body: false },
        (Some(PATH), _) => Answer::NotAllowed,
        _ => Answer::NotFound,
    }
}

impl Answer {
    /// The bytes of the answer. `figures` are made only if they are asked for; `None`: they
    /// cannot be.
    pub(super) fn bytes(self, figures: impl FnOnce() -> Option<String>) -> Vec<u8> {
        let text = "text/plain; charset=utf-8";
        let (status, kind, content, body) = match self {
            Self::Figures { body } => match figures() {
                Some(figures) => ("200 OK", OPEN_METRICS, figures, body),
                None => ("500 Internal Server Error", text, "no figures\n".into(), body),
            },
            Self::NotFound => ("404 Not Found", text, format!("only {PATH} is here\n"), true),
            Self::NotAllowed => {
                ("405 Method Not Allowed", text, "only GET and HEAD are known\n".into(), true)
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
    fn requests_are_told_apart() {
        let rows = [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Answer::Figures { body: true })),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", Some(Answer::Figures { body: true })),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some(Answer::Figures { body: false })),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Answer::NotAllowed)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Answer::NotFound)),
            ("DELETE /metrics/x HTTP/1.1\r\n\r\n", Some(Answer::NotFound)),
            ("GET /metrics HTTP/1.1\r\n", None),
            ("GET /met", None),
            ("", None),
        ];
        for (head, expected) in rows {
            assert_eq!(answer_to(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn what_is_no_request_is_said_to_be_none() {
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        for head in ["\0\0\0\0", "GET /metrics HTTP/3.9\r\n\r\n", &long, &many] {
            assert!(matches!(answer_to(head.as_bytes()), Some(Answer::Bad(_))), "{head:.20}");
        }
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        let text =
            |answer: Answer| String::from_utf8(answer.bytes(|| Some("figures\n".into()))).unwrap();
        let whole = text(Answer::Figures { body: true });
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert!(whole.contains("\r\nContent-Length: 8\r\n"), "{whole}");
        assert!(whole.contains(&format!("\r\nContent-Type: {OPEN_METRICS}\r\n")), "{whole}");
        assert!(whole.ends_with("\r\nConnection: close\r\n\r\nfigures\n"), "{whole}");
        let head = text(Answer::Figures { body: false });
        assert_eq!(Some(head.as_str()), whole.strip_suffix("figures\n"));
        assert!(text(Answer::NotAllowed).contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(text(Answer::NotFound).starts_with("HTTP/1.1 404 "));
        assert!(text(Answer::Bad("because")).ends_with("\r\n\r\nbecause\n"));
        let none = Answer::Figures { body: true }.bytes(|| None);
        assert!(none.starts_with(b"HTTP/1.1 500 "));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            let _ = answer_to(&bytes);
        }
    }
}
