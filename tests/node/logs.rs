//! The programs' log lines, whose level changes while traffic flows.

use harness::{Family, TestLab, icmp, wait_for};
use podnet::api::{LogLevels, client::Client};

fn set_level(lab: &TestLab, level: &str) {
    let levels = LogLevels { ebpf: Some(level.into()), ..LogLevels::default() };
    let now = Client::new(&lab.node().socket()).set_log(&levels).unwrap();
    assert_eq!(now.ebpf.as_deref(), Some(level));
}

fn lines(lab: &TestLab) -> usize {
    std::fs::read_to_string(lab.node().log_path()).unwrap().matches("redirect: interface").count()
}

#[test]
fn the_programs_log_what_they_are_asked_for() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let ping = || icmp::ping(a.netns(), b.address(Family::V4), 3, 56);
    ping();
    assert_eq!(lines(&lab), 0, "off by default");
    set_level(&lab, "trace");
    ping();
    wait_for("the programs' lines in the daemon's log", || (lines(&lab) >= 6).then_some(()));
    set_level(&lab, "off");
    let before = lines(&lab);
    ping();
    assert_eq!(lines(&lab), before);
    let error = Client::new(&lab.node().socket())
        .set_log(&LogLevels { ebpf: Some("loud".into()), ..LogLevels::default() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("off, error, warn"), "{error}");
}
