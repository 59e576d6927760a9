//! iperf3 between two pods.

use std::{
    io::Read as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use podnet::netns::Netns;
use serde_json::Value;

use crate::wait_for;

/// How much longer than it sends a client may take.
const GRACE: Duration = Duration::from_secs(20);

/// A process that ends with the value, also by a panic.
#[derive(Debug)]
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It has ended by itself unless the test panicked.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A server for one stream.
#[derive(Debug)]
pub struct Server {
    _process: Reaped,
}

impl Server {
    /// Starts a server; returns when it listens.
    pub fn start(netns: &Netns, port: u16) -> Self {
        let process = spawn(netns, &["-s", "-1", "-p", &port.to_string()]);
        let listens = || {
            let sockets = crate::command::read_proc(netns, "/proc/net/tcp6");
            sockets.lines().any(|line| line.contains(&format!(":{port:04X} ")) && line.contains(" 0A ")).then_some(())
        };
        wait_for("iperf3 to listen", listens);
        Self { _process: process }
    }
}

/// A client that sends for a time.
#[derive(Debug)]
pub struct Client {
    process: Reaped,
    seconds: u64,
}

impl Client {
    /// Starts to send for so many seconds. cubic: BBR's pacing would hide that the path changes.
    pub fn start(netns: &Netns, target: std::net::SocketAddr, seconds: u64, more: &[&str]) -> Self {
        let (address, port, time) = (target.ip().to_string(), target.port().to_string(), seconds.to_string());
        let fixed = ["-c", &address, "-p", &port, "-t", &time, "-i", "1", "-C", "cubic", "-J"];
        Self { process: spawn(netns, &[&fixed, more].concat()), seconds }
    }

    /// Waits for the end, and returns the report; panics if the stream broke or stood still for a second.
    pub fn finish(mut self) -> Report {
        let mut stdout = self.process.0.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let deadline = Duration::from_secs(self.seconds) + GRACE;
        let ended = podnet::lab::poll::until(deadline, || Ok(reader.is_finished().then_some(()))).unwrap();
        assert!(ended.is_some(), "iperf3 did not end");
        let report = Report::parse(&reader.join().unwrap());
        assert!(report.rates.len() as u64 >= self.seconds, "{report:?}");
        assert!(report.rates.iter().all(|rate| *rate > 1e6), "the stream stood still: {report:?}");
        report
    }
}

/// What iperf3 measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Bits per second of each second.
    pub rates: Vec<f64>,
    /// Segments that were sent again.
    pub retransmits: u64,
}

impl Report {
    fn parse(text: &str) -> Self {
        let report: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(report["error"].is_null(), "{report}");
        let intervals = report["intervals"].as_array().unwrap();
        let rates = intervals.iter().map(|one| one["sum"]["bits_per_second"].as_f64().unwrap()).collect();
        Self { rates, retransmits: report["end"]["sum_sent"]["retransmits"].as_u64().unwrap_or_default() }
    }

    /// Returns the rates in Gbit/s, rounded.
    pub fn gigabits(&self) -> Vec<f64> {
        self.rates.iter().map(|rate| (rate / 1e8).round() / 10.0).collect()
    }
}

fn spawn(netns: &Netns, arguments: &[&str]) -> Reaped {
    let spawn = || Command::new("iperf3").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = netns.run(|| Ok(spawn())).unwrap();
    Reaped(child.unwrap_or_else(|error| panic!("start iperf3 (package iperf3): {error}")))
}
