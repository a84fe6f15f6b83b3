//! HTTP requests to the metrics socket, valid and malformed. None affects other clients.

use std::os::unix::net::UnixStream;

use testing::metrics::{METRICS, connect, parse, receive, request, scrape, send};
use testing::vm::Vm;

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn http_get_metrics_is_the_only_valid_request() {
    let vm = Vm::new(METRICS);
    let rows: [(&[u8], u16); 8] = [
        (GET, 200),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET /metrics SMTP/1.1\r\n\r\n", 400),
    ];
    for (bytes, status) in rows {
        let response = request(&vm.daemon, bytes);
        assert_eq!(response.status, status, "{}", String::from_utf8_lossy(bytes));
        assert!(response.head.contains("\r\nConnection: close"), "{}", response.head);
    }
    let whole = request(&vm.daemon, GET);
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(whole.head.contains(kind), "{}", whole.head);
    assert!(whole.body.ends_with("# EOF\n"), "{}", whole.body);
    let head = request(&vm.daemon, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.head.contains(kind), "{}", head.head);
}

#[test]
fn http_head_may_arrive_in_parts_and_is_limited() {
    let mut vm = Vm::new(METRICS);
    let mut stream = connect(&vm.daemon);
    for byte in GET {
        send(&mut stream, &[*byte]);
    }
    assert_eq!(parse(&receive(&mut stream)).status, 200);
    let long = [b"GET /".as_slice(), &[b'x'; 64 << 10]].concat();
    assert_eq!(request(&vm.daemon, &long).status, 400);
    let many = [b"GET /metrics HTTP/1.1\r\n".as_slice(), &b"a: b\r\n".repeat(100)].concat();
    assert_eq!(request(&vm.daemon, &many).status, 400);
    vm.assert_works();
}

#[test]
fn http_data_after_the_first_request_is_ignored() {
    let mut vm = Vm::new(METRICS);
    for excess in [GET, b"\0\xff\0\xff", &[b'x'; 10 << 10]] {
        let response = request(&vm.daemon, &[GET, excess].concat());
        assert_eq!(response.status, 200);
        assert_eq!(response.body.matches("# EOF\n").count(), 1);
    }
    vm.assert_works();
}

#[test]
fn http_client_disconnect_is_tolerated() {
    let mut vm = Vm::new(METRICS);
    for len in 0..GET.len() {
        send(&mut connect(&vm.daemon), &GET[..len]);
    }
    // A complete request, disconnected before the response.
    for _ in 0..100 {
        send(&mut connect(&vm.daemon), GET);
    }
    let mut half = connect(&vm.daemon);
    send(&mut half, &GET[..9]);
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(receive(&mut half).is_empty());
    assert_eq!(scrape(&vm.daemon).get("endpoints"), 3);
    vm.assert_works();
}

#[test]
fn idle_http_clients_block_others_for_limited_time() {
    let mut vm = Vm::new(METRICS);
    let idle: Vec<UnixStream> = (0..12)
        .map(|index| {
            let mut stream = connect(&vm.daemon);
            send(&mut stream, &GET[..index]);
            stream
        })
        .collect();
    vm.assert_works();
    let mut last = connect(&vm.daemon);
    // Longer than the time limits of all clients before it together.
    last.set_read_timeout(Some(6 * testing::wait::limit())).unwrap();
    send(&mut last, GET);
    assert_eq!(parse(&receive(&mut last)).status, 200);
    drop(idle);
}

#[test]
fn idle_http_client_does_not_delay_shutdown() {
    let mut vm = Vm::new(METRICS);
    let mut idle = connect(&vm.daemon);
    vm.daemon.stop(libc::SIGTERM);
    assert!(receive(&mut idle).is_empty());
}

#[test]
fn each_concurrent_http_request_gets_a_response() {
    let mut vm = Vm::new(METRICS);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..8).for_each(|_| assert_eq!(request(&vm.daemon, GET).status, 200)));
        }
    });
    vm.assert_works();
}
