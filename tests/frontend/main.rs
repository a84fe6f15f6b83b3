//! Tests of the built daemon over its sockets: the test is VMM, guest driver and accelerator driver
//! in one. See the crate [`testing`].

mod suite;
mod uprobe;

/// The tests of `host` run these tests on the mock device, without those of the list.
#[test]
fn tests_excluded_on_mock_device_exist() {
    let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
    let tests = testing::testbed::output(tests.arg("--list"));
    for name in testing::daemon::NOT_ON_MOCK {
        assert!(tests.contains(name), "no test is named {name}");
    }
}
