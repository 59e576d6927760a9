//! Drop events, their rate limit, and the programs' log lines.

use std::os::fd::AsRawFd as _;

use podnet::datapath::logs::LogLevel;
use podnet_common::{event::CAPTURE_LEN, program_name, settings::Settings, verdict::DropReason};

use crate::{
    cluster::SETTINGS,
    fixture::{Node, POD_A, POD_B},
    packets::{IPV4, UDP, frame, ipv4, udp, udp_v4},
};

fn spoofed(payload: usize) -> Vec<u8> {
    frame(POD_A, IPV4, &ipv4(POD_B.v4, POD_B.v4, UDP, &[udp(40_000, 53), vec![0x5a; payload]].concat()))
}

#[test]
fn a_drop_is_told_with_its_packet() {
    let mut node = Node::new();
    let mut events = node.events();
    assert!(events.as_raw_fd() >= 0);
    assert_eq!(events.next_event(), None);
    for payload in [0, 1, 41, 42, 43, 1000] {
        let packet = spoofed(payload);
        node.check(POD_A, &packet, DropReason::SpoofedAddress);
        let event = events.next_event().unwrap();
        assert_eq!(event.data, packet[..packet.len().min(CAPTURE_LEN)], "{} bytes", packet.len());
        assert_eq!((event.reason_name(), event.hook_name()), ("spoofed_address", program_name::FROM_POD));
        assert_eq!((event.ifindex, event.packet_len as usize, event.lost), (POD_A.ifindex, packet.len(), 0));
        assert!(event.timestamp_ns > 0);
        let text = event.to_string();
        assert!(text.contains("UDP 10.244.1.3 port 40000 > 10.244.1.3 port 53"), "{text}");
    }
    let runt = [&spoofed(0)[..12], &[8, 6]].concat();
    node.check(POD_A, &runt, DropReason::Malformed);
    assert_eq!(events.next_event().unwrap().data, runt);
    node.check(POD_A, &udp_v4(POD_A, POD_B), podnet_common::verdict::Verdict::RedirectedToPod);
    assert_eq!(events.next_event(), None, "only drops are events");
}

#[test]
fn one_cpu_sends_so_many_events_a_tick_and_counts_the_rest() {
    let node = Node::with_settings(Settings { events_per_tick: 5, ..Settings::DEFAULT }, LogLevel::Off);
    pin_to_one_cpu();
    let mut events = node.events();
    let packet = spoofed(0);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let (mut sent, mut received, mut told_lost) = (0u64, 0u64, 0u64);
    // Until an event of a second tick tells how many were lost in the first.
    while told_lost == 0 {
        assert!(std::time::Instant::now() < deadline, "{sent} drops, {received} events, none told of lost ones");
        node.run_program(program_name::FROM_POD, POD_A.ifindex, &packet);
        sent += 1;
        while let Some(event) = events.next_event() {
            received += 1;
            told_lost += u64::from(event.lost);
        }
    }
    assert_eq!(sent, received + told_lost, "no event vanishes untold");
    assert!(received <= 3 * 5, "{received} events of {sent} drops");
    let counted = node.datapath.maps().counter(DropReason::SpoofedAddress.counter_index()).unwrap();
    assert_eq!(counted.packets, sent, "every drop is counted");
}

#[test]
fn events_can_be_off() {
    let mut node = Node::with_settings(Settings { events_per_tick: 0, ..Settings::DEFAULT }, LogLevel::Off);
    node.check(POD_A, &spoofed(0), DropReason::SpoofedAddress);
    assert_eq!(node.events().next_event(), None);
}

#[test]
fn verdict_counters_can_be_off_but_drops_are_counted() {
    let mut node = Node::with_settings(Settings { count_verdicts: 0, ..Settings::DEFAULT }, LogLevel::Off);
    let (action, _) = node.run_program(program_name::FROM_POD, POD_A.ifindex, &udp_v4(POD_A, POD_B));
    assert_eq!(action, 7);
    assert!(node.datapath.maps().counters().unwrap().iter().all(|counter| counter.packets == 0));
    node.check(POD_A, &spoofed(0), DropReason::SpoofedAddress);
}

#[test]
fn the_ring_being_full_is_told_later() {
    let node = Node::with_settings(Settings { events_per_tick: u32::MAX, ..Settings::DEFAULT }, LogLevel::Off);
    pin_to_one_cpu();
    let mut events = node.events();
    let packet = spoofed(0);
    let sent = 5_000;
    for _ in 0..sent {
        node.run_program(program_name::FROM_POD, POD_A.ifindex, &packet);
    }
    let mut received = 0;
    while let Some(event) = events.next_event() {
        assert_eq!(event.lost, 0);
        received += 1;
    }
    assert!(received < sent, "the ring holds fewer than {sent} events");
    node.run_program(program_name::FROM_POD, POD_A.ifindex, &packet);
    assert_eq!(events.next_event().unwrap().lost, sent - received);
}

#[test]
fn programs_log_at_every_level() {
    for level in LogLevel::ALL {
        let mut node = Node::with_settings(Settings::DEFAULT, level);
        node.check(POD_A, &spoofed(0), DropReason::SpoofedAddress);
        node.check(POD_A, &udp_v4(POD_A, POD_B), podnet_common::verdict::Verdict::RedirectedToPod);
        node.deliver(POD_B, &udp_v4(POD_A, POD_B));
        assert_eq!(node.datapath.log_level(), level);
        match node.datapath.take_logs() {
            None => assert_eq!(level, LogLevel::Off),
            Some(mut logs) => logs.forward(),
        }
        assert!(node.datapath.take_logs().is_none());
    }
}

#[test]
fn programs_load_with_all_settings() {
    // What is off is removed before the kernel judges the rest, so each combination is another program to it.
    for level in [LogLevel::Off, LogLevel::Trace] {
        for bits in 0..16_u32 {
            let is_set = |bit: u32| bits & (1 << bit) != 0;
            let value = |bit: u32, value: u32| if is_set(bit) { value } else { 0 };
            let settings = Settings {
                node_mask_v4: if is_set(0) { SETTINGS.node_mask_v4 } else { [0; 4] },
                node_mask_v6: if is_set(1) { SETTINGS.node_mask_v6 } else { [0; 16] },
                nodes_lpm: value(2, 1),
                bridge_ifindex: value(3, 7),
                events_per_tick: value(2, 10),
                count_verdicts: value(1, 1),
                vni: value(3, 1),
            };
            if level == LogLevel::Trace && bits % 5 != 0 {
                continue;
            }
            drop(Node::with_settings(settings, level));
        }
    }
}

fn pin_to_one_cpu() {
    let mut set = nix::sched::CpuSet::new();
    set.set(0).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("pin the test to CPU 0");
}
