//! iperf3 between two pods, while the programs are detached and attached again: one connection, from start to end.
//!
//! ```text
//!   a: iperf3 -c --(eBPF | kernel | eBPF)--> b: iperf3 -s
//! ```

use std::net::SocketAddr;

use harness::{Family, TestLab, interfaces, iperf, wait_for};
use podnet::api::DatapathRequest;
use podnet_common::verdict::Verdict;

/// Seconds that the client sends for; long enough for three phases.
const SECONDS: u64 = 9;

const PORT: u16 = 5201;

#[test]
fn one_stream_outlives_detach_and_attach() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = iperf::Server::start(b.netns(), PORT);
    let client = iperf::Client::start(a.netns(), SocketAddr::new(b.address(Family::V4), PORT), SECONDS, &[]);

    let redirected = || lab.counters().verdict(Verdict::RedirectedToPod);
    let bridged = || interfaces::statistics(lab.netns())["v-net-0"].rx_packets;
    let grows = |what: &str, count: &dyn Fn() -> u64, by: u64| {
        let start = count();
        wait_for(what, || (count() > start + by).then_some(()));
    };
    // A thousand packets of one of the paths: far more than pods send by themselves.
    grows("the stream to flow by eBPF", &redirected, 1_000);
    lab.set_datapath(DatapathRequest::Detach);
    grows("the stream to flow by the kernel", &bridged, 1_000);
    let before = redirected();
    lab.set_datapath(DatapathRequest::Attach);
    grows("the stream to come back to eBPF", &redirected, 1_000);
    assert!(redirected() > before);
    let bridged_after = bridged();
    grows("the stream to go on by eBPF", &redirected, 1_000);
    assert!(bridged() - bridged_after < 100, "the stream still takes the kernel path as well");

    println!("Gbit/s by second: {:?}", client.finish().gigabits());
}
