//! What comes to the socket of the figures, good and bad, and that it disturbs nobody.

use std::os::unix::net::UnixStream;

use testing::metrics::{METRICS, connect, parse, receive, request, scrape, send};
use testing::vm::Vm;

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn only_the_figures_are_there_and_only_to_be_read() {
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
        let answer = request(&vm.daemon, bytes);
        assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(bytes));
        assert!(answer.head.contains("\r\nConnection: close"), "{}", answer.head);
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
fn a_head_can_come_in_pieces_and_is_bounded() {
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
fn one_request_is_answered_whatever_follows_it() {
    let mut vm = Vm::new(METRICS);
    for behind in [GET, b"\0\xff\0\xff", &[b'x'; 10 << 10]] {
        let answer = request(&vm.daemon, &[GET, behind].concat());
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body.matches("# EOF\n").count(), 1);
    }
    vm.assert_works();
}

#[test]
fn who_goes_in_the_middle_is_forgotten() {
    let mut vm = Vm::new(METRICS);
    for len in 0..GET.len() {
        send(&mut connect(&vm.daemon), &GET[..len]);
    }
    // Asks, and goes before the answer.
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
fn silent_clients_hold_nobody_up_for_good() {
    let mut vm = Vm::new(METRICS);
    let silent: Vec<UnixStream> = (0..12)
        .map(|index| {
            let mut stream = connect(&vm.daemon);
            send(&mut stream, &GET[..index]);
            stream
        })
        .collect();
    vm.assert_works();
    let mut last = connect(&vm.daemon);
    // Longer than all of them before it can take.
    last.set_read_timeout(Some(6 * testing::wait::limit())).unwrap();
    send(&mut last, GET);
    assert_eq!(parse(&receive(&mut last)).status, 200);
    drop(silent);
}

#[test]
fn a_silent_client_does_not_keep_the_daemon_from_its_end() {
    let mut vm = Vm::new(METRICS);
    let mut silent = connect(&vm.daemon);
    vm.daemon.stop(libc::SIGTERM);
    assert!(receive(&mut silent).is_empty());
}

#[test]
fn many_at_once_are_all_answered() {
    let mut vm = Vm::new(METRICS);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..8).for_each(|_| assert_eq!(request(&vm.daemon, GET).status, 200)));
        }
    });
    vm.assert_works();
}
