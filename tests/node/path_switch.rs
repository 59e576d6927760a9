//! The eBPF path is taken away, given back and replaced while traffic flows.
//!
//! ```text
//!   a --(eBPF: host veth of a -> b)--------------> b
//!    \--(kernel: host veth, v-net-0, host veth)--/
//! ```

use harness::{Family, TestLab, TestPod, interfaces, tcp, udp};
use podnet::api::{DatapathMode, DatapathRequest};
use podnet_common::verdict::Verdict;

const PORT: u16 = 8080;

/// Rounds of a connection that cannot be mistaken for what pods send by themselves.
const ROUNDS: u64 = 200;

fn bridge_packets(lab: &TestLab) -> u64 {
    interfaces::statistics(lab.netns())["v-net-0"].rx_packets
}

fn redirected(lab: &TestLab) -> u64 {
    lab.counters().verdict(Verdict::RedirectedToPod)
}

/// Starts one connection from a to b per family.
fn connect(a: &TestPod, b: &TestPod) -> Vec<tcp::LiveConnection> {
    Family::ALL.map(|family| tcp::LiveConnection::start(a.netns(), b.socket_address(family, PORT))).into()
}

fn go_on(connections: &[tcp::LiveConnection]) {
    for connection in connections {
        connection.wait_for_rounds(ROUNDS);
    }
}

#[test]
fn connections_survive_detach_and_attach() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    let mut connections = connect(&a, &b);
    let start = redirected(&lab);
    go_on(&connections);
    assert!(redirected(&lab) - start >= ROUNDS, "the connection is not on the eBPF path");

    lab.set_datapath(DatapathRequest::Detach);
    assert!(!lab.status().datapath.attached);
    let (ebpf, kernel) = (redirected(&lab), bridge_packets(&lab));
    go_on(&connections);
    assert!(bridge_packets(&lab) - kernel >= ROUNDS, "the connection is not on the kernel path");
    assert_eq!(redirected(&lab), ebpf);
    // These know nothing but the kernel path.
    connections.extend(connect(&a, &b));

    lab.set_datapath(DatapathRequest::Attach);
    assert!(lab.status().datapath.attached);
    let ebpf = redirected(&lab);
    go_on(&connections);
    assert!(redirected(&lab) - ebpf >= ROUNDS, "the connection did not come back to the eBPF path");
    for connection in connections {
        connection.finish();
    }
}

#[test]
fn connections_survive_repeated_switching() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    let connections = connect(&a, &b);
    for _ in 0..10 {
        for change in [DatapathRequest::Detach, DatapathRequest::Attach] {
            lab.set_datapath(change);
            for connection in &connections {
                connection.wait_for_rounds(5);
            }
        }
    }
    // A pod that comes while the programs are detached is served by them afterwards.
    lab.set_datapath(DatapathRequest::Detach);
    let c = lab.add_pod("c");
    let _server_c = tcp::EchoServer::start(c.netns(), PORT);
    tcp::exchange(a.netns(), c.socket_address(Family::V4, PORT), 1_000_000);
    lab.set_datapath(DatapathRequest::Attach);
    let before = redirected(&lab);
    tcp::exchange(a.netns(), c.socket_address(Family::V6, PORT), 1_000_000);
    assert!(redirected(&lab) > before);
    for connection in connections {
        connection.finish();
    }
}

#[test]
fn a_node_without_pods_is_switched_too() {
    let lab = TestLab::new();
    // The filter blocks exist only while a pod's veth refers to them.
    lab.set_datapath(DatapathRequest::Detach);
    assert!(!lab.status().datapath.attached);
    lab.set_datapath(DatapathRequest::Detach);
    lab.set_datapath(DatapathRequest::Attach);
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    let before = redirected(&lab);
    tcp::exchange(a.netns(), b.socket_address(Family::V4, PORT), 1_000_000);
    assert!(lab.status().datapath.attached && redirected(&lab) > before);
}

#[test]
fn reload_loses_no_packet() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = tcp::EchoServer::start(b.netns(), PORT);
    for family in Family::ALL {
        let target = b.socket_address(family, PORT);
        let _udp = udp::EchoServer::start(b.netns(), target);
        let connection = tcp::LiveConnection::start(a.netns(), target);
        let flood = udp::Flood::start(a.netns(), target);
        let kernel = bridge_packets(&lab);
        for _ in 0..20 {
            lab.set_datapath(DatapathRequest::Reload);
            flood.wait_for_answers(100);
        }
        // Not one packet took the kernel path meanwhile, but for what pods send by themselves.
        assert!(bridge_packets(&lab) - kernel < 40);
        connection.wait_for_rounds(5);
        connection.finish();
        let tally = flood.finish();
        assert_eq!(tally.lost(), 0, "{family:?}: {tally:?}");
    }
}

#[test]
fn a_kernel_node_refuses_nothing_and_attaches_nothing() {
    let lab = TestLab::with_datapath(DatapathMode::Kernel);
    let status = lab.status().datapath;
    assert_eq!((status.mode, status.attached), (DatapathMode::Kernel, false));
    assert_eq!(status.reason, None, "nothing is missing that was asked for");
}
