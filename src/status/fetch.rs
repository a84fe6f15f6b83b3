//! One request over HTTP, on a unix socket.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response};

use super::StatusError;

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// How long the daemon can take for the next piece of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer that is read: that of many more endpoints than there can be.
const MAX_ANSWER: u64 = 64 << 20;

/// The figures of whoever serves them on a socket.
pub(super) fn fetch(path: &Path) -> Result<String, StatusError> {
    let mut stream =
        UnixStream::connect(path).map_err(|error| StatusError::Nobody(path.into(), error))?;
    let answer = ask(&mut stream).map_err(|error| reason(&error));
    let text = answer.and_then(|answer| body(&answer));
    text.map_err(|error| StatusError::NoFigures(path.into(), error))
}

fn ask(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock => format!("nothing within {} seconds", PATIENCE.as_secs()),
        _ => error.to_string(),
    }
}

/// What follows the head of an answer that says that all is well.
fn body(answer: &[u8]) -> Result<String, String> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut response = Response::new(&mut headers);
    let len = match response.parse(answer) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Err("the answer is cut short".into()),
        Err(_) => return Err("the answer is not HTTP".into()),
    };
    match response.code {
        Some(200) => {}
        code => return Err(format!("the answer is HTTP status {}", code.unwrap_or_default())),
    }
    String::from_utf8(answer[len..].to_vec()).map_err(|_| "the answer is not text".into())
}

#[cfg(test)]
mod tests {
    use super::{body, reason};

    #[test]
    fn that_nothing_comes_is_said_as_such() {
        let reason = |error: i32| reason(&std::io::Error::from_raw_os_error(error));
        assert_eq!(reason(libc::EAGAIN), "nothing within 5 seconds");
        assert!(reason(libc::ECONNRESET).contains("reset"));
    }

    #[test]
    fn only_a_whole_answer_that_is_well_has_a_body() {
        let body = |answer: &str| body(answer.as_bytes());
        assert_eq!(body("HTTP/1.1 200 OK\r\nA: b\r\n\r\nfigures\n"), Ok("figures\n".into()));
        for (answer, part) in [
            ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n", "cut short"),
            ("", "cut short"),
            ("\0\0", "not HTTP"),
        ] {
            assert!(body(answer).unwrap_err().contains(part), "{answer}");
        }
    }
}
