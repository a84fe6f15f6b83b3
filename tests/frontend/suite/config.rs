//! Feature bits and the configuration space.

use vhost::vhost_user::VhostUserProtocolFeatures;

use testing::front_end::{CONFIG_LEN, Config, feature};
use testing::request::attach;
use testing::vm::{EP0, Vm};

#[test]
fn offered_features_are_those_implemented() {
    let vm = Vm::realized("");
    let protocol = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ;
    let extension = feature::PASID | feature::PAGE_REQUEST;
    let offered = feature::DRIVER | extension | feature::PROTOCOL_FEATURES;
    assert_eq!(vm.front_end.features, offered);
    assert!(vm.front_end.protocol.contains(protocol), "{:?}", vm.front_end.protocol);
    // With these, the front end would send messages that are not supported.
    let never = VhostUserProtocolFeatures::STATUS | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    assert!(!vm.front_end.protocol.intersects(never), "{:?}", vm.front_end.protocol);
}

#[test]
fn bypass_and_mmio_features_are_not_offered() {
    let vm = Vm::realized("");
    assert_eq!(vm.front_end.features & (feature::BYPASS | feature::MMIO), 0);
}

#[test]
fn config_space_contains_defaults() {
    let mut vm = Vm::realized("");
    let config = vm.front_end.config();
    let expected = Config {
        page_size_mask: 0x1000,
        input_range: (0, u64::MAX),
        domain_range: (0, u32::MAX),
        probe_size: config.probe_size,
        bypass: 1,
        reserved: [0; 3],
    };
    assert_eq!(config, expected);
    assert_eq!(config.probe_size % 8, 0);
}

#[test]
fn config_space_contains_options() {
    let mut vm =
        Vm::realized("--page-size 65536 --input-range 0x10000-0xffffffffffff --boot-bypass off");
    let config = vm.front_end.config();
    assert_eq!(config.page_size_mask, 0x1_0000);
    assert_eq!(config.input_range, (0x1_0000, 0xffff_ffff_ffff));
    assert_eq!(config.bypass, 0);
}

#[test]
fn config_space_reads_at_any_offset_and_size() {
    let mut vm = Vm::realized("");
    let mut whole = vm.front_end.read_config(0, CONFIG_LEN);
    whole.resize(0x1000, 0);
    for offset in 0..CONFIG_LEN + 4 {
        for len in [1, 2, 3, 4, 7, 8, 40, 64, 256] {
            let expected = &whole[offset as usize..(offset + len) as usize];
            assert_eq!(vm.front_end.read_config(offset, len), expected, "{len} bytes at {offset}");
        }
    }
    // The maximum size of a message.
    assert_eq!(vm.front_end.read_config(0, 0xff0), whole[..0xff0]);
    assert_eq!(vm.front_end.read_config(0xfff, 1), [0]);
}

#[test]
fn write_of_whole_config_space_changes_only_bypass() {
    let mut vm = Vm::realized("");
    let before = vm.front_end.config();
    vm.front_end.write_config(0, &[0; CONFIG_LEN as usize]);
    assert_eq!(vm.front_end.config(), Config { bypass: 0, ..before.clone() });
    vm.front_end.write_bypass(1);
    assert_eq!(vm.front_end.config(), before);
}

#[test]
fn config_space_accepts_writes_at_any_offset_and_size() {
    let mut vm = Vm::new("");
    let before = vm.front_end.config();
    for offset in 0..CONFIG_LEN + 4 {
        for len in [1, 2, 4, 8, 40, 256] {
            vm.front_end.write_config(offset, &vec![0xff; len]);
            assert_eq!(vm.front_end.config(), before, "{len} bytes at {offset}");
        }
    }
    vm.front_end.write_config(0xfff, &[0]);
    vm.front_end.write_config(36, &[0]);
    assert_eq!(vm.front_end.config(), Config { bypass: 0, ..before.clone() });
    vm.front_end.write_config(35, &[0, 1, 0]);
    assert_eq!(vm.front_end.config(), before);
    vm.ok(attach(1, EP0));
}

#[test]
fn bypass_always_reads_as_0_or_1() {
    let mut vm = Vm::new("");
    for start in [0, 1] {
        for value in [2, 3, 0x80, 0xfe, 0xff] {
            vm.front_end.write_bypass(start);
            vm.front_end.write_bypass(value);
            assert!(vm.front_end.config().bypass <= 1, "after {value:#x}");
        }
        vm.front_end.write_bypass(start);
        assert_eq!(vm.front_end.config().bypass, start);
    }
}
