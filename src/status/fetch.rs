//! Fetches the metrics over HTTP from a unix socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response};

use super::{InvalidResponse, StatusError};

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Timeout for each read and write on the socket.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a response in bytes, far above that for the maximum number of endpoints.
const MAX_RESPONSE: u64 = 64 << 20;

/// Returns the text of the metrics that are served on a socket.
pub(super) fn fetch(path: &Path) -> Result<String, StatusError> {
    let mut stream =
        UnixStream::connect(path).map_err(|error| StatusError::Connect(path.into(), error))?;
    let response = request(&mut stream).map_err(read_error);
    let body = response.and_then(|response| body(&response));
    body.map_err(|error| StatusError::Response(path.into(), error))
}

fn request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(REQUEST)?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(response)
}

fn read_error(error: io::Error) -> InvalidResponse {
    match error.kind() {
        ErrorKind::WouldBlock => InvalidResponse::Timeout,
        _ => InvalidResponse::Io(error),
    }
}

/// Returns the body of a response with status 200.
fn body(response: &[u8]) -> Result<String, InvalidResponse> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut head = Response::new(&mut headers);
    let len = match head.parse(response) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Err(InvalidResponse::Truncated),
        Err(_) => return Err(InvalidResponse::NotHttp),
    };
    match head.code {
        Some(200) => {}
        code => return Err(InvalidResponse::Status(code.unwrap_or_default())),
    }
    String::from_utf8(response[len..].to_vec()).map_err(|_| InvalidResponse::NotText)
}

#[cfg(test)]
mod tests {
    use super::{body, read_error};

    #[test]
    fn read_error_reports_a_timeout() {
        let text = |error| read_error(std::io::Error::from_raw_os_error(error)).to_string();
        assert_eq!(text(libc::EAGAIN), "no data within 5 seconds");
        assert!(text(libc::ECONNRESET).contains("reset"));
    }

    #[test]
    fn body_rejects_all_but_complete_responses_with_status_200() {
        let body = |response: &str| body(response.as_bytes());
        assert_eq!(body("HTTP/1.1 200 OK\r\nA: b\r\n\r\nmetrics\n").unwrap(), "metrics\n");
        for (response, part) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", "truncated"),
            ("", "truncated"),
            ("\0\0", "not HTTP"),
        ] {
            assert!(body(response).unwrap_err().to_string().contains(part), "{response}");
        }
    }
}
