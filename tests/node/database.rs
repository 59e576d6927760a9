//! The daemon's database in trouble: no room, no writing, damaged, lost. Pods keep their network, and no address is given
//! twice.
//!
//! ```text
//!   a <----- one TCP connection per family -----> b      all the while
//! ```

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
};

use harness::{Family, TestLab, TestPod, command, icmp, interfaces, maps, pod::Unattached, tcp, wait_for};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podnet::{api::DatapathMode, config::Config, lab::runtime::CniError};

const PORT: u16 = 8080;

/// A small file system of its own where the daemon keeps its state.
struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Stops the daemon, puts the disk in its place, and moves the daemon's state there.
    fn of(lab: &TestLab) -> Self {
        lab.stop_daemon();
        let path = lab.node().state_dir();
        let database = std::fs::read(path.join("podnet.db")).unwrap();
        let options = Some("size=1m,mode=0700");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        std::fs::write(path.join("podnet.db"), database).unwrap();
        Self { path }
    }

    fn fill(&self) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path.join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path.join("filler")).unwrap();
    }

    fn remount(&self, flags: MsFlags) {
        mount(None::<&str>, &self.path, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path.display());
        }
    }
}

/// Connections between two pods that must outlive everything.
struct Traffic {
    _server: tcp::EchoServer,
    connections: [tcp::LiveConnection; 2],
}

impl Traffic {
    fn start(a: &TestPod, b: &TestPod) -> Self {
        let server = tcp::EchoServer::start(b.netns(), PORT);
        let start = |family| tcp::LiveConnection::start(a.netns(), b.socket_address(family, PORT));
        Self { _server: server, connections: Family::ALL.map(start) }
    }

    fn goes_on(&self) {
        for connection in &self.connections {
            connection.wait_for_rounds(5);
        }
    }

    fn finish(self) {
        self.goes_on();
        for connection in self.connections {
            connection.finish();
        }
    }
}

fn cni_error(error: &anyhow::Error) -> CniError {
    error.downcast_ref::<CniError>().unwrap_or_else(|| panic!("no CNI error: {error:#}")).clone()
}

fn names(lab: &TestLab) -> Vec<String> {
    let mut names: Vec<String> = lab.pods().into_iter().map(|pod| pod.pod.name).collect();
    names.sort();
    names
}

fn veths(lab: &TestLab) -> BTreeSet<(u32, String)> {
    let links = interfaces::links(lab.netns()).into_iter();
    links.filter(|link| link.ifname.starts_with("pn")).map(|link| (link.ifindex, link.ifname)).collect()
}

/// Asserts that kernel, maps and pools hold nothing of pods beyond these.
fn assert_holds(lab: &TestLab, pods: usize) {
    wait_for(&format!("{pods} veths"), || (veths(lab).len() == pods).then_some(()));
    assert_eq!(maps::endpoints(lab.node()).keys().count(), 2 * pods);
    assert_eq!(maps::endpoints_by_ifindex(lab.node()).keys().count(), pods);
    for pool in lab.status().pools {
        assert_eq!(pool.used, pods as u64, "{pool:?}");
    }
}

fn queued(lab: &TestLab) -> usize {
    std::fs::read_dir(Config::deletions_dir(&lab.node().socket())).map_or(0, Iterator::count)
}

#[test]
fn a_disk_that_fills_up_keeps_pods_and_frees_those_that_go() {
    let lab = TestLab::new();
    let (a, b, c, d) = (lab.add_pod("a"), lab.add_pod("b"), lab.add_pod("c"), lab.add_pod("d"));
    let disk = Disk::of(&lab);
    lab.start_daemon();
    let traffic = Traffic::start(&a, &b);

    disk.fill();
    let error = cni_error(&lab.try_add_pod("e").unwrap_err());
    assert!(error.details.contains("podnet.db") && error.details.contains("make room"), "{error}");
    assert_holds(&lab, 4);
    let status = lab.status();
    assert!(!status.ready && status.not_ready_reason.as_deref().unwrap().contains("make room"), "{status:?}");
    // What goes is gone at once, also without the daemon, and stays so.
    let c = c.del().unwrap();
    c.del().unwrap();
    assert_eq!(names(&lab), ["a", "b", "d"]);
    assert_holds(&lab, 3);
    assert_eq!(queued(&lab), 1);
    lab.kill_daemon();
    let d = d.del().unwrap();
    lab.start_daemon_by(&harness::binary());
    wait_for("the queue to be worked off", || (names(&lab) == ["a", "b"]).then_some(()));
    assert_holds(&lab, 2);
    traffic.goes_on();

    disk.make_room();
    // Not the next resync, but whoever asks finds out.
    wait_for("the daemon to be ready", || lab.status().ready.then_some(()));
    // The very pod whose deletion waits may come back before anything else does.
    let c = c.add().unwrap();
    lab.kill_daemon();
    lab.start_daemon();
    assert_eq!(names(&lab), ["a", "b", "c"]);
    assert_eq!(queued(&lab), 0);
    assert_holds(&lab, 3);
    icmp::ping(c.netns(), a.address(Family::V6), 1, 56);
    drop(d.add().unwrap().del().unwrap());
    traffic.finish();
}

#[test]
fn a_disk_without_room_for_a_database_is_named() {
    let lab = TestLab::new();
    let disk = Disk::of(&lab);
    std::fs::remove_file(disk.path.join("podnet.db")).unwrap();
    disk.fill();
    let said = lab.refused_start();
    assert!(said.contains("podnet.db: make room"), "{said}");
    disk.make_room();
    lab.start_daemon();
    let a = lab.add_pod("a");
    for netns in [lab.netns(), a.netns()] {
        interfaces::wait_for_carriers(netns);
    }
    icmp::ping(lab.netns(), a.address(Family::V4), 1, 56);
}

#[test]
fn a_read_only_state_folder_is_named_and_nothing_is_lost() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    let traffic = Traffic::start(&a, &b);
    let before = veths(&lab);
    let disk = Disk::of(&lab);
    disk.remount(MsFlags::MS_RDONLY);
    let said = lab.refused_start();
    let folder = disk.path.display().to_string();
    assert!(said.contains(&folder) && said.contains("make it writable") && said.contains("Read-only"), "{said}");
    assert_eq!(cni_error(&lab.try_add_pod("c").unwrap_err()).code, 11);
    assert_eq!(veths(&lab), before);
    traffic.goes_on();
    let b = b.del().unwrap();
    disk.remount(MsFlags::empty());
    lab.start_daemon();
    wait_for("the queued deletion", || (names(&lab) == ["a"]).then_some(()));
    let b = b.add().unwrap();
    icmp::ping(a.netns(), b.address(Family::V4), 1, 56);
    let c = lab.add_pod("c");
    assert_eq!(addresses(&[&a, &b, &c]).len(), 6);
    drop(traffic);
}

fn addresses(pods: &[&TestPod]) -> BTreeSet<IpAddr> {
    pods.iter().flat_map(|pod| Family::ALL.map(|family| pod.address(family))).collect()
}

/// Damages the database as this says, and lets an operator do what the daemon tells.
fn outlive_damage(datapath: DatapathMode, damage: fn(&mut Vec<u8>)) {
    let lab = TestLab::with_datapath(datapath);
    let (a, b, c) = (lab.add_pod("a"), lab.add_pod("b"), lab.add_pod("c"));
    let traffic = Traffic::start(&a, &b);
    let before = veths(&lab);
    lab.stop_daemon();
    let path = lab.node().state_dir().join("podnet.db");
    let mut bytes = std::fs::read(&path).unwrap();
    damage(&mut bytes);
    std::fs::write(&path, &bytes).unwrap();

    let said = lab.refused_start();
    let (name, advice) = (path.display().to_string(), "takes over the pods that run");
    assert!(said.contains(&name) && said.contains("corrupt") && said.contains(advice), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the evidence was changed");
    assert_eq!(veths(&lab), before);
    traffic.goes_on();

    std::fs::rename(&path, path.with_extension("broken")).unwrap();
    lab.start_daemon();
    traffic.goes_on();
    assert_eq!(veths(&lab), before);
    let status = lab.status();
    assert_eq!((status.pods, status.repairs), (3, 0), "{}", lab.log_tail());
    assert!(status.warnings.iter().any(|warning| warning.contains("took over 3 pods")), "{:?}", status.warnings);
    let known: BTreeSet<IpAddr> = lab.pods().into_iter().flat_map(|pod| pod.addresses).collect();
    assert_eq!(known, addresses(&[&a, &b, &c]));
    let d = lab.add_pod("d");
    assert_eq!(addresses(&[&a, &b, &c, &d]).len(), 8, "an address was given twice");
    icmp::ping(d.netns(), a.address(Family::V4), 1, 56);
    // Whoever knows the container finds it.
    a.check().unwrap();
    let mut again = Unattached::new(&lab, "again");
    a.container_id().clone_into(&mut again.request.container_id);
    assert_eq!(cni_error(&again.add().unwrap_err()).code, 100);
    // The next start knows all that this one found.
    lab.kill_daemon();
    lab.start_daemon();
    assert_eq!(lab.status().pods, 4);
    traffic.finish();
    let (gone, left) = (c.host_ifname().to_owned(), b.into_unattached());
    c.del().unwrap();
    // Without a DEL: the namespace ends.
    drop(left);
    wait_for("the pod without a DEL to be released", || (lab.status().pods == 2).then_some(()));
    wait_for("the veth of the deleted pod to go", || veths(&lab).iter().all(|(_, name)| *name != gone).then_some(()));
    for pool in lab.status().pools {
        assert_eq!(pool.used, 2, "{pool:?}");
    }
}

#[test]
fn a_database_with_a_damaged_header_can_be_moved_away_under_running_pods() {
    for datapath in [DatapathMode::Ebpf, DatapathMode::Kernel] {
        outlive_damage(datapath, |bytes| bytes[..100].fill(0x2a));
    }
}

#[test]
fn a_database_with_a_damaged_page_can_be_moved_away_under_running_pods() {
    outlive_damage(DatapathMode::Ebpf, |bytes| bytes[4096..4096 + 2048].fill(0xff));
}

#[test]
fn a_database_that_is_lost_with_the_bridge_is_made_up_for_by_the_maps() {
    let lab = TestLab::new();
    let (a, b) = (lab.add_pod("a"), lab.add_pod("b"));
    lab.kill_daemon();
    for name in ["podnet.db", "podnet.db-wal"] {
        drop(std::fs::remove_file(lab.node().state_dir().join(name)));
    }
    command::ip(lab.netns(), "link delete v-net-0");
    lab.start_daemon();
    let known: BTreeSet<IpAddr> = lab.pods().into_iter().flat_map(|pod| pod.addresses).collect();
    assert_eq!(known, addresses(&[&a, &b]));
    icmp::ping(a.netns(), b.address(Family::V4), 1, 56);
    icmp::ping(lab.netns(), b.address(Family::V6), 1, 56);
    a.del().unwrap();
    b.del().unwrap();
    assert_holds(&lab, 0);
}

#[test]
fn a_stale_log_beside_a_new_database_does_no_harm() {
    let lab = TestLab::new();
    let a = lab.add_pod("a");
    lab.kill_daemon();
    // An operator who forgets `podnet.db-wal`.
    let path = lab.node().state_dir().join("podnet.db");
    std::fs::rename(&path, path.with_extension("away")).unwrap();
    assert!(File::open(path.with_extension("db-wal")).is_ok(), "a daemon that was killed leaves its log");
    lab.start_daemon();
    assert_eq!(lab.status().pods, 1);
    icmp::ping(lab.netns(), a.address(Family::V4), 1, 56);
}
