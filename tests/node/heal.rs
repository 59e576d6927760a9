//! Everything of a node that somebody may break is whole again within seconds, counted and logged.
//!
//! The whole state is compared, so that a repair that leaves something else behind is seen, too.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use harness::{
    Family, TestLab, TestPod,
    command::{self, run},
    icmp, maps,
};
use podnet_common::{address::Address, endpoint::Endpoint, endpoint::EndpointSource};

/// Longer than a repair takes that a notification of the kernel causes; shorter than the 30 s between two resyncs.
const SOON: Duration = Duration::from_secs(10);

/// A repair that the next resync makes, at one a second.
const RESYNCED: Duration = Duration::from_secs(15);

/// Two pods of a node.
struct Site {
    lab: TestLab,
    pods: [TestPod; 2],
    whole: BTreeSet<String>,
}

impl Site {
    fn new() -> Self {
        let lab = TestLab::new();
        let pods = ["a", "b"].map(|name| lab.add_pod(name));
        harness::interfaces::wait_for_carriers(lab.netns());
        let site = Self { whole: state(&lab), lab, pods };
        site.check_pods();
        site
    }

    /// Restarts the daemon so that it compares every second.
    fn resync_often(&self) {
        self.lab.restart_with(|config| config.resync_seconds = 1);
    }

    fn veth(&self) -> &str {
        self.pods[0].host_ifname()
    }

    fn check_pods(&self) {
        let [a, b] = &self.pods;
        for family in Family::ALL {
            icmp::ping(a.netns(), b.address(family), 1, 56);
            icmp::ping(self.lab.netns(), a.address(family), 1, 56);
            icmp::ping(b.netns(), self.lab.gateway(family), 1, 56);
        }
    }

    /// Breaks something, and waits until it is whole again.
    fn breaks(&self, what: &str, within: Duration, breakage: impl FnOnce()) {
        let before = self.lab.status().repairs;
        let logged = self.lab.log().matches("repaired").count();
        let start = Instant::now();
        breakage();
        let now = std::cell::RefCell::new(BTreeSet::new());
        let ended = podnet::lab::poll::until(within, || {
            now.replace(state(&self.lab));
            Ok((self.lab.status().repairs > before && *now.borrow() == self.whole).then_some(()))
        });
        let elapsed = start.elapsed();
        let now = now.into_inner();
        assert!(
            ended.unwrap().is_some(),
            "{what}: after {elapsed:?} and {} repairs, missing {:?}, new {:?}\n{}",
            self.lab.status().repairs - before,
            self.whole.difference(&now).collect::<Vec<_>>(),
            now.difference(&self.whole).collect::<Vec<_>>(),
            self.lab.log_tail()
        );
        assert!(self.lab.log().matches("repaired").count() > logged, "{what}: not logged");
        println!("{what}: whole after {elapsed:.0?}");
        self.check_pods();
        for pod in &self.pods {
            pod.check().unwrap();
        }
    }

    fn breaks_by(&self, within: Duration, command: &str) {
        let words: Vec<_> = command.split_ascii_whitespace().collect();
        self.breaks(command, within, || drop(run(self.lab.netns(), words[0], &words[1..])));
    }

    fn breaks_setting(&self, within: Duration, name: &str, value: &str) {
        self.breaks(&format!("{name} = {value}"), within, || command::set_sysctl(self.lab.netns(), name, value));
    }
}

/// Everything that podnet made on a node, line by line, without the bridge's index, which changes with a new one.
fn state(lab: &TestLab) -> BTreeSet<String> {
    let show = |command: &str| -> Vec<String> {
        let words: Vec<_> = command.split_ascii_whitespace().collect();
        // What does not exist is shown by nothing.
        let text = command::try_run(lab.netns(), words[0], &words[1..]).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    };
    let fields = |line: &str, wanted: &[usize]| -> String {
        let all: Vec<_> = line.split_whitespace().collect();
        wanted.iter().filter_map(|position| all.get(*position).copied()).collect::<Vec<_>>().join(" ")
    };
    let mut lines = Vec::new();
    lines.extend(show("ip -o link show").iter().map(|line| fields(line, &[1, 2, 3, 4, 7, 8, 9, 16, 17, 18])));
    lines.extend(show("ip -o addr show dev v-net-0").iter().map(|line| fields(line, &[2, 3])));
    for family in ["-4", "-6"] {
        let routes = show(&format!("ip {family} route show dev v-net-0"));
        lines.extend(routes.into_iter().filter(|line| !line.starts_with("fe80") && !line.contains("linkdown")));
    }
    lines.extend(show("ip neigh show dev v-net-0 nud permanent").into_iter().filter(|line| !line.starts_with("ff02")));
    lines.extend(show("bridge fdb show br v-net-0").into_iter().filter(|line| line.contains("master v-net-0 static")));
    lines.extend(show("tc qdisc show").into_iter().filter(|line| line.contains("clsact")));
    for block in [0x706e_0001_u32, 0x706e_0002] {
        let filters = show(&format!("tc filter show block {block}"));
        let names = filters.iter().flat_map(|line| line.split_whitespace()).filter(|word| word.contains("_pod"));
        lines.extend(names.map(str::to_owned));
    }
    for setting in ["ipv4/ip_forward", "ipv4/conf/v-net-0/send_redirects", "ipv6/conf/all/forwarding"] {
        let value = command::read_sysctl(lab.netns(), &format!("net.{}", setting.replace('/', ".")));
        lines.push(format!("{setting} = {value}"));
    }
    // Elements that expire are the packets' doing.
    let nft = show("nft list table inet podnet");
    lines.extend(nft.iter().filter(|line| !line.contains("expires")).map(|line| format!("nft {line}")));
    lines.extend(maps::endpoints(lab.node()).iter().map(|entry| {
        let (address, endpoint) = entry.unwrap();
        format!("{} at {:?}", address.to_ip(), Endpoint { flags: 0, ..endpoint })
    }));
    lines.extend(maps::endpoints_by_ifindex(lab.node()).iter().map(|entry| {
        let (ifindex, source) = entry.unwrap();
        format!("{ifindex} from {:?}", EndpointSource { flags: 0, ..source })
    }));
    lines.into_iter().collect()
}

#[test]
fn what_the_kernel_tells_of_is_repaired_soon() {
    let site = Site::new();
    let veth = site.veth().to_owned();
    let [a, _] = &site.pods;
    site.breaks_by(SOON, &format!("tc filter del block {}", 0x706e_0001));
    site.breaks_by(SOON, &format!("tc filter del block {}", 0x706e_0002));
    site.breaks_by(SOON, &format!("tc qdisc del dev {veth} clsact"));
    site.breaks_by(SOON, &format!("ip link set {veth} nomaster"));
    site.breaks("taken by another bridge", SOON, || {
        command::ip(site.lab.netns(), "link add other0 type bridge");
        command::ip(site.lab.netns(), &format!("link set {veth} master other0"));
        command::ip(site.lab.netns(), "link del other0");
    });
    for family in Family::ALL {
        let (option, bits) = if family == Family::V4 { ("-4", 24) } else { ("-6", 64) };
        let gateway = site.lab.gateway(family);
        let network = ipnetwork::IpNetwork::new(gateway, bits).unwrap().network();
        site.breaks_by(SOON, &format!("ip {option} addr del {gateway}/{bits} dev v-net-0"));
        site.breaks_by(SOON, &format!("ip {option} route del {network}/{bits} dev v-net-0"));
        site.breaks_by(SOON, &format!("ip neigh del {} dev v-net-0", a.address(family)));
        site.breaks_by(
            SOON,
            &format!("ip neigh replace {} lladdr 02:00:00:00:00:99 dev v-net-0 nud permanent", a.address(family)),
        );
    }
    site.breaks_by(SOON, "ip -4 addr flush dev v-net-0");
    site.breaks_by(SOON, "ip -6 addr flush dev v-net-0 scope global");
    site.breaks_setting(SOON, "net.ipv4.ip_forward", "0");
    site.breaks_setting(SOON, "net.ipv6.conf.all.forwarding", "0");
}

#[test]
fn a_bridge_that_was_deleted_gets_its_pods_back() {
    let site = Site::new();
    site.breaks_by(SOON, "ip link del v-net-0");
    site.breaks_by(SOON, "ip link del v-net-0");
    // The path of the kernel is whole by itself.
    site.lab.set_datapath(podnet::api::DatapathRequest::Detach);
    site.check_pods();
    site.lab.set_datapath(podnet::api::DatapathRequest::Attach);
    let c = site.lab.add_pod("c");
    icmp::ping(c.netns(), site.pods[0].address(Family::V4), 1, 56);
}

#[test]
fn what_the_kernel_keeps_silent_about_is_repaired_by_the_resync() {
    let site = Site::new();
    site.resync_often();
    let veth = site.veth().to_owned();
    let [a, b] = &site.pods;
    site.breaks_by(RESYNCED, &format!("bridge fdb del {} dev {veth} master static", a.mac()));
    site.breaks_by(RESYNCED, "ip link set v-net-0 address 02:00:00:00:00:99");
    site.breaks_by(RESYNCED, "ip link set v-net-0 mtu 1400");
    site.breaks_by(RESYNCED, &format!("ip link set {veth} mtu 1400"));
    site.breaks_setting(RESYNCED, "net.ipv4.conf.v-net-0.send_redirects", "1");
    site.breaks_by(RESYNCED, "nft delete table inet podnet");
    site.breaks_by(RESYNCED, "nft flush table inet podnet");
    let addresses = Family::ALL.map(|family| Address::from(a.address(family)));
    site.breaks("addresses of a pod's own interface deleted", RESYNCED, || {
        command::ip(a.netns(), "-4 addr flush dev eth0");
        command::ip(a.netns(), "-6 addr flush dev eth0 scope global");
    });
    site.breaks("entries of a pod deleted", RESYNCED, || {
        let mut endpoints = maps::endpoints(site.lab.node());
        for address in addresses {
            endpoints.remove(&address).unwrap();
        }
        let mut sources = maps::endpoints_by_ifindex(site.lab.node());
        sources.remove(&site.lab.pods()[0].host_ifindex).unwrap();
    });
    site.breaks("entries of a pod changed", RESYNCED, || {
        let mut endpoints = maps::endpoints(site.lab.node());
        for (address, other) in addresses.iter().zip(Family::ALL.map(|family| Address::from(b.address(family)))) {
            let endpoint = endpoints.get(&other, 0).unwrap();
            endpoints.insert(address, endpoint, 0).unwrap();
        }
    });
    site.breaks("entries of nobody added", RESYNCED, || {
        let mut endpoints = maps::endpoints(site.lab.node());
        let endpoint = endpoints.get(&addresses[0], 0).unwrap();
        endpoints.insert(Address::from_v4_octets([10, 244, 1, 200]), endpoint, 0).unwrap();
        let mut sources = maps::endpoints_by_ifindex(site.lab.node());
        let source = sources.iter().next().unwrap().unwrap().1;
        sources.insert(9999, source, 0).unwrap();
    });
}
