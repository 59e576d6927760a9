//! iperf3 between two pods, while the programs are detached and attached again: one connection, from start to end.
//!
//! ```text
//!   a: iperf3 -c --(eBPF | kernel | eBPF)--> b: iperf3 -s
//! ```

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::{Family, TestLab, interfaces, wait_for};
use podnet::{api::DatapathRequest, netns::Netns};
use podnet_common::verdict::Verdict;
use serde_json::Value;

/// Seconds that the client sends for; long enough for three phases.
const SECONDS: u64 = 9;

/// Kills a process that a test leaves behind when it panics.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It has ended by itself unless the test panicked.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(netns: &Netns, arguments: &[&str]) -> Child {
    let spawn = || Command::new("iperf3").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    netns.run(|| Ok(spawn())).unwrap().unwrap_or_else(|error| panic!("start iperf3 (package iperf3): {error}"))
}

fn listens(netns: &Netns) -> bool {
    // 5201 in hexadecimal, in state LISTEN.
    harness::command::read_proc(netns, "/proc/net/tcp6")
        .lines()
        .any(|line| line.contains(":1451 ") && line.contains(" 0A "))
}

#[test]
fn one_stream_outlives_detach_and_attach() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let _server = Reaped(start(b.netns(), &["-s", "-1"]));
    wait_for("iperf3 to listen", || listens(b.netns()).then_some(()));
    let target = b.address(Family::V4).to_string();
    let seconds = SECONDS.to_string();
    // cubic: BBR's pacing would hide that the path changes.
    let client = start(a.netns(), &["-c", &target, "-t", &seconds, "-i", "1", "-C", "cubic", "-J"]);

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

    let output = wait_with_deadline(client);
    let report: Value = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    assert!(report["error"].is_null(), "{report}");
    let intervals = report["intervals"].as_array().unwrap();
    let rates: Vec<f64> = intervals.iter().map(|one| one["sum"]["bits_per_second"].as_f64().unwrap()).collect();
    assert!(rates.len() as u64 >= SECONDS, "{rates:?}");
    assert!(rates.iter().all(|rate| *rate > 1e6), "the stream stood still: {rates:?}");
    println!("Gbit/s by second: {:?}", rates.iter().map(|rate| (rate / 1e8).round() / 10.0).collect::<Vec<_>>());
}

fn wait_with_deadline(client: Child) -> String {
    let mut client = Reaped(client);
    let mut stdout = client.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout).unwrap());
    let deadline = Duration::from_secs(SECONDS + 20);
    let ended = podnet::lab::poll::until(deadline, || Ok(reader.is_finished().then_some(()))).unwrap();
    assert!(ended.is_some(), "iperf3 did not end");
    reader.join().unwrap()
}
