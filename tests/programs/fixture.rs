//! A node with two pods, as the programs see it: interfaces, maps, and a way to run a packet through a program. The
//! cluster around it, where a test asks for one, is in `cluster`.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use aya::{TestRun as _, TestRunOptions};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use podnet::{
    api::CounterStatus,
    config::UplinkAttach,
    datapath::{
        events::{Events, PacketSummary},
        features,
        loader::{Datapath, ensure_bpffs, pin_dir},
        logs::LogLevel,
    },
};
use podnet_common::{
    address::Address,
    endpoint::{Endpoint, EndpointSource, link_local_address},
    program_name,
    settings::Settings,
    verdict::{DropReason, Verdict},
};

/// MAC of the bridge and of every host-side veth.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x01];

const ACTION_PASS: i32 = -1;
const ACTION_DROP: i32 = 2;
const ACTION_REDIRECT: i32 = 7;
/// Size of `struct __sk_buff` (linux/bpf.h) since kernel 5.18.
const SKB_SIZE: usize = 192;

/// A pod on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) ifindex: u32,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) mac: [u8; 6],
}

impl Pod {
    pub(crate) const fn new(number: u8) -> Self {
        Self {
            ifindex: 10 + number as u32,
            v4: Ipv4Addr::new(10, 244, 1, number),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, number as u16),
            mac: [0x0a, 0x58, 0x0a, 0xf4, 0x01, number],
        }
    }

    pub(crate) fn link_local(self) -> Ipv6Addr {
        link_local_address(self.mac).into()
    }

    pub(crate) fn source(self) -> EndpointSource {
        EndpointSource { v4: self.v4.octets(), flags: 0, v6: self.v6.octets(), mac: self.mac, reserved: [0; 2] }
    }

    pub(crate) fn endpoint(self) -> Endpoint {
        Endpoint { ifindex: self.ifindex, flags: 0, mac: self.mac, gateway_mac: GATEWAY_MAC, mtu: 1500 }
    }
}

pub(crate) const POD_A: Pod = Pod::new(2);
pub(crate) const POD_B: Pod = Pod::new(3);

/// What a program is expected to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Verdict(Verdict),
    Drop(DropReason),
}

impl From<Verdict> for Expected {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl From<DropReason> for Expected {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// What a program did with a packet.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) decision: Expected,
    pub(crate) packet: Vec<u8>,
}

/// What a test says about a packet besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Skb {
    /// Interface at whose hook the packet is.
    pub(crate) ifindex: u32,
    /// Interface that received it.
    pub(crate) ingress_ifindex: u32,
    /// Payload of each segment; zero: no GSO packet.
    pub(crate) gso_size: u32,
}

impl Skb {
    /// As a `struct __sk_buff`.
    fn context(self) -> [u8; SKB_SIZE] {
        let mut context = [0; SKB_SIZE];
        let segments = if self.gso_size == 0 { 0 } else { 2 };
        for (offset, value) in [(36, self.ingress_ifindex), (40, self.ifindex), (164, segments), (176, self.gso_size)] {
            context[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        context
    }
}

impl From<u32> for Skb {
    fn from(ifindex: u32) -> Self {
        Self { ifindex, ..Self::default() }
    }
}

/// The programs, loaded, with pods A and B published.
pub(crate) struct Node {
    pub(crate) datapath: Datapath,
    pub(crate) pins: PathBuf,
    counters: Vec<CounterStatus>,
    // Last: unmounted when nothing uses it any more.
    _bpffs: Bpffs,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_settings(Settings::DEFAULT, LogLevel::Off)
    }

    pub(crate) fn with_settings(settings: Settings, log_level: LogLevel) -> Self {
        let bpffs = Bpffs::new();
        for pod in [POD_A, POD_B] {
            add_interface(pod);
        }
        let pins = pin_dir(bpffs.path());
        let datapath = Datapath::load(&pins, settings, log_level).unwrap_or_else(|error| panic!("{error:#}"));
        let counters = datapath.maps().counters().unwrap();
        let mut node = Self { datapath, pins, counters, _bpffs: bpffs };
        for pod in [POD_A, POD_B] {
            node.publish(pod);
        }
        node
    }

    pub(crate) fn publish(&mut self, pod: Pod) {
        let maps = self.datapath.maps_mut();
        maps.upsert_source(pod.ifindex, pod.source()).unwrap();
        maps.upsert_endpoint(pod.v4.into(), pod.endpoint()).unwrap();
        maps.upsert_endpoint(pod.v6.into(), pod.endpoint()).unwrap();
    }

    /// Makes every flow of both pods one that is looked up.
    pub(crate) fn touch_all(&mut self) {
        self.datapath.maps_mut().set_kernel_touched_all().unwrap();
    }

    pub(crate) fn is_touched(&self, pod: Pod) -> (bool, bool) {
        let endpoint = |address: Address| self.datapath.maps().endpoint(address).unwrap().unwrap();
        let flags = self.datapath.maps().source(pod.ifindex).unwrap().unwrap().flags;
        let v4 = endpoint(pod.v4.into()).flags & Endpoint::KERNEL_TOUCHED != 0;
        let v6 = endpoint(pod.v6.into()).flags & Endpoint::KERNEL_TOUCHED != 0;
        assert_eq!(v4, flags & EndpointSource::KERNEL_TOUCHED_V4 != 0, "both entries of {pod:?} say the same");
        assert_eq!(v6, flags & EndpointSource::KERNEL_TOUCHED_V6 != 0, "both entries of {pod:?} say the same");
        (v4, v6)
    }

    pub(crate) fn events(&self) -> Events {
        Events::from_pins(&self.pins).unwrap()
    }

    /// Runs a packet that a pod sends.
    pub(crate) fn run_from_pod(&mut self, pod: Pod, packet: &[u8]) -> Outcome {
        self.run(program_name::FROM_POD, pod.ifindex, packet)
    }

    /// Runs a packet that a pod sends, and checks what became of it.
    #[track_caller]
    pub(crate) fn check(&mut self, pod: Pod, packet: &[u8], expected: impl Into<Expected>) -> Vec<u8> {
        let expected = expected.into();
        let outcome = self.run_from_pod(pod, packet);
        assert_eq!(outcome.decision, expected, "{}", describe(packet, &outcome));
        assert_untouched(packet, &outcome);
        outcome.packet
    }

    /// Runs a packet that the kernel path delivers to a pod. It is never changed or dropped.
    #[track_caller]
    pub(crate) fn deliver(&mut self, pod: Pod, packet: &[u8]) {
        let outcome = self.run(program_name::TO_POD, pod.ifindex, packet);
        assert_eq!(outcome.decision, Verdict::DeliveredByKernel.into(), "{}", describe(packet, &outcome));
        assert_eq!(outcome.packet, packet, "{}", describe(packet, &outcome));
    }

    /// Runs a packet through a program, and finds the one counter that moved.
    #[track_caller]
    pub(crate) fn run(&mut self, program: &str, skb: impl Into<Skb>, packet: &[u8]) -> Outcome {
        let (action, output) = self.run_program(program, skb, packet);
        let after = self.datapath.maps().counters().unwrap();
        let moved: Vec<usize> = (0..after.len()).filter(|&slot| after[slot] != self.counters[slot]).collect();
        let hex = hex(packet);
        let [slot] = moved[..] else { panic!("counters {moved:?} moved instead of one\npacket {hex}") };
        let (before, now) = (&self.counters[slot], &after[slot]);
        assert_eq!(now.packets - before.packets, 1, "{} counts one packet\npacket {hex}", now.name);
        assert_eq!(now.bytes - before.bytes, packet.len() as u64, "{} counts the bytes\npacket {hex}", now.name);
        let decision = Verdict::ALL
            .get(slot)
            .map_or_else(|| DropReason::ALL[slot - Verdict::ALL.len()].into(), |verdict| (*verdict).into());
        let expected_action = match decision {
            Expected::Verdict(Verdict::RedirectedToPod | Verdict::RedirectedToNode | Verdict::RedirectedToOverlay) => {
                ACTION_REDIRECT
            }
            Expected::Verdict(_) => ACTION_PASS,
            Expected::Drop(_) => ACTION_DROP,
        };
        assert_eq!(action, expected_action, "the action belongs to {decision:?}\npacket {hex}");
        self.counters = after;
        Outcome { decision, packet: output }
    }

    /// Runs a packet through a program that has no business with it: it goes on as it is, and is not counted.
    #[track_caller]
    pub(crate) fn check_ignored(&mut self, program: &str, skb: impl Into<Skb>, packet: &[u8]) {
        let (action, output) = self.run_program(program, skb, packet);
        let now = self.datapath.maps().counters().unwrap();
        let moved: Vec<&str> =
            now.iter().zip(&self.counters).filter(|(a, b)| a != b).map(|(one, _)| one.name.as_str()).collect();
        assert_eq!((action, moved), (ACTION_PASS, vec![]), "packet {}", hex(packet));
        assert_eq!(output, packet, "the bytes stay\npacket {}", hex(packet));
    }

    /// Runs a packet through a program; nothing is checked.
    pub(crate) fn run_program(&self, program: &str, skb: impl Into<Skb>, packet: &[u8]) -> (i32, Vec<u8>) {
        let mut output = vec![0; packet.len() + 256];
        let context = skb.into().context();
        let result = self
            .datapath
            .program(program)
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut output),
                ctx_in: Some(&context),
                ..Default::default()
            })
            .unwrap_or_else(|error| {
                panic!("run {program} with {} bytes: {error}\npacket {}", packet.len(), hex(packet))
            });
        output.truncate(result.data_size_out as usize);
        (result.return_value.cast_signed(), output)
    }

    /// Returns nanoseconds per run, the best of several series.
    pub(crate) fn nanoseconds(&self, program: &str, skb: impl Into<Skb>, packet: &[u8]) -> u128 {
        let skb = skb.into();
        (0..7).map(|_| self.series(program, skb, packet, 200_000)).min().unwrap()
    }

    /// Returns nanoseconds per run of one series. Each run meets the packet as the run before has left it.
    pub(crate) fn series(&self, program: &str, skb: impl Into<Skb>, packet: &[u8], repeat: u32) -> u128 {
        let context = skb.into().context();
        let mut output = vec![0; packet.len() + 256];
        self.datapath
            .program(program)
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut output),
                ctx_in: Some(&context),
                repeat,
                ..Default::default()
            })
            .unwrap()
            .duration
            .as_nanos()
    }
}

/// Whether `BPF_PROG_TEST_RUN` takes a packet: since kernel 6.18 it refuses IP packets without a whole header. Those are
/// tried with real interfaces, in `live`.
pub(crate) fn is_runnable(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x00] => packet.len() >= 34,
        [0x86, 0xdd] => packet.len() >= 54,
        _ => true,
    }
}

/// A packet that is redirected has new MACs, and any other packet is what it was.
#[track_caller]
pub(crate) fn assert_untouched(packet: &[u8], outcome: &Outcome) {
    let kept = if outcome.decision == Verdict::RedirectedToPod.into() { 12 } else { 0 };
    assert_eq!(outcome.packet.len(), packet.len(), "the length stays\n{}", describe(packet, outcome));
    assert_eq!(outcome.packet[kept..], packet[kept..], "the bytes stay\n{}", describe(packet, outcome));
}

pub(crate) fn describe(packet: &[u8], outcome: &Outcome) -> String {
    format!("{:?} for {}\npacket {}", outcome.decision, PacketSummary::parse(packet), hex(packet))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(format!("({} bytes) ", bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn add_interface(pod: Pod) {
    let index = pod.ifindex;
    ip(&format!("link add name pod{index} index {index} address {} type veth peer name eth{index}", mac(GATEWAY_MAC)));
}

/// A MAC as people write it.
pub(crate) fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("run `ip` of iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Moves the calling thread to namespaces of its own.
#[expect(clippy::disallowed_methods, reason = "a test has its thread to itself")]
pub(crate) fn new_namespaces(flags: CloneFlags) {
    unshare(flags).expect("make namespaces for the test");
}

/// A bpffs in namespaces of the calling thread.
pub(crate) struct Bpffs(tempfile::TempDir);

impl Bpffs {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this suite loads eBPF programs: run it as root");
        new_namespaces(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET);
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make mounts private");
        let dir = tempfile::tempdir().unwrap();
        assert!(ensure_bpffs(dir.path()).unwrap(), "a bpffs was mounted");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path().display());
        }
    }
}

/// The ways in which this kernel attaches programs to uplinks.
pub(crate) fn ways() -> Vec<UplinkAttach> {
    let tcx = features::has_tcx().then_some(UplinkAttach::Tcx);
    tcx.into_iter().chain([UplinkAttach::Clsact]).collect()
}
