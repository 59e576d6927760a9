//! Map `KERNEL_FLOWS`: who owns a flow of an endpoint that the kernel path has touched. The rules are in
//! `podnet_common::flow`; this file keeps them under concurrency.
//!
//! CPUs do not lock one another out. Every change of state is one `bpf_map_update_elem` with the whole key, and never
//! a store by pointer: an LRU map gives the memory of an evicted entry to another flow at once, which such a store
//! would then claim. When two CPUs change a flow at the same time, one change is lost. What is lost degrades to the
//! kernel path: a claim (tried again at the next packet), a `SEEN_*` bit (likewise), or the kernel's ownership, which
//! leaves no owner. Should a claim win over the kernel's ownership, `to_pod` finds out after [`GRACE_TICKS`].

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_EXIST, BPF_NOEXIST},
    helpers::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::LruHashMap,
    programs::TcContext,
};
use podnet_common::flow::{Flow, FlowKey};

use crate::{
    ip::{Address, Ip, icmpv6, protocol},
    packet::{self, Octets as _},
    quote::{self, Quote},
    trace,
};

#[map]
static KERNEL_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(131_072, 0);

/// Ticks after which a flow of the kernel's is so idle that a SYN may open a new one with its tuple: as long as the
/// kernel's own conntrack remembers a closed connection (`nf_conntrack_tcp_timeout_time_wait`).
const IDLE_TICKS: u32 = 120;
/// Ticks for which packets may still be under way in the kernel after the last one was handed to it.
const GRACE_TICKS: u32 = 2;

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Ebpf,
    Kernel,
}

/// Decides the path of a packet that a pod sends to a pod, one of which is touched. Not for fragments.
#[inline(always)]
pub(crate) fn path(ctx: &TcContext, ip: &Ip) -> Path {
    let Some(Direction { key, seen }) = direction(ctx, ip) else {
        return quote::of_error(ctx, ip).map_or(Path::Kernel, |quote| path_of_quoted(&quote));
    };
    let entry = lookup(&key);
    let state = entry.map_or(0, |entry| entry.flow.state);
    if is_ebpfs(state) {
        return Path::Ebpf;
    }
    let now = tick();
    let idle = entry.map_or(0, |entry| now.wrapping_sub(entry.flow.last_seen));
    let live_in_kernel = state & Flow::OWNED_BY_KERNEL != 0 && idle <= IDLE_TICKS;
    if !live_in_kernel && opens_connection(ctx, ip) {
        return claim(ctx, &key, entry.is_some(), now);
    }
    match entry {
        None => update(ctx, &key, Flow { state: seen, last_seen: now }, BPF_NOEXIST),
        Some(_) if state & seen == 0 => update(ctx, &key, Flow { state: state | seen, last_seen: now }, BPF_EXIST),
        Some(entry) => {
            entry.refresh(now);
            true
        }
    };
    Path::Kernel
}

/// Decides the path of an ICMP error by the packet that it quotes: that of the packet's flow, which stays as it is.
#[inline(always)]
pub(crate) fn path_of_quoted(quote: &Quote) -> Path {
    let Quote { source, destination, transport: [from_port, to_port], identifier, protocol } = *quote;
    let (from_port, to_port) = if protocol::has_ports(protocol) {
        (from_port, to_port)
    } else if protocol == protocol::ICMP || protocol == protocol::ICMPV6 {
        // No error is sent about an error (RFC 1122, section 3.2.2; RFC 4443, section 2.4): it is an echo.
        (identifier, identifier)
    } else {
        (0, 0)
    };
    let Direction { key, .. } = Direction::new(source, from_port, destination, to_port, protocol);
    let state = lookup(&key).map_or(0, |entry| entry.flow.state);
    if is_ebpfs(state) { Path::Ebpf } else { Path::Kernel }
}

/// Whether the eBPF path has a flow to itself.
#[inline(always)]
const fn is_ebpfs(state: u32) -> bool {
    state & (Flow::OWNED_BY_EBPF | Flow::OWNED_BY_KERNEL) == Flow::OWNED_BY_EBPF
}

/// Claims the flow that a SYN opens. If another CPU made or evicted the entry meanwhile, the kernel path takes the
/// packet, which is always right.
#[inline(always)]
fn claim(ctx: &TcContext, key: &Key, exists: bool, now: u32) -> Path {
    let flag = if exists { BPF_EXIST } else { BPF_NOEXIST };
    if update(ctx, key, Flow { state: Flow::OWNED_BY_EBPF, last_seen: now }, flag) { Path::Ebpf } else { Path::Kernel }
}

/// Remembers a packet that the kernel path delivers from a pod to a pod.
#[inline(always)]
pub(crate) fn delivered_by_kernel(ctx: &TcContext, ip: &Ip) {
    if ip.transport.is_fragment() {
        return;
    }
    let Some(Direction { key, seen }) = direction(ctx, ip) else { return };
    let now = tick();
    let Some(entry) = lookup(&key) else {
        update(ctx, &key, Flow { state: Flow::OWNED_BY_KERNEL, last_seen: now }, BPF_ANY);
        return;
    };
    let Flow { state, last_seen } = entry.flow;
    let seen_bits = state & (Flow::SEEN_FROM_FIRST | Flow::SEEN_FROM_SECOND);
    if state & Flow::OWNED_BY_KERNEL != 0 {
        entry.refresh(now);
    } else if state & Flow::OWNED_BY_EBPF != 0 {
        // Packets that were handed to the kernel before the claim still arrive, for a while. Later ones are of
        // another, translated flow that came to use the same tuple.
        if now.wrapping_sub(last_seen) > GRACE_TICKS {
            update(ctx, &key, Flow { state: Flow::OWNED_BY_KERNEL | seen_bits, last_seen: now }, BPF_ANY);
        }
    } else if state & seen != 0 {
        // BPF_EXIST: an entry that was evicted meanwhile stays absent.
        update(ctx, &key, Flow { state: Flow::OWNED_BY_EBPF | seen_bits, last_seen: now }, BPF_EXIST);
    } else {
        update(ctx, &key, Flow { state: Flow::OWNED_BY_KERNEL | seen_bits, last_seen: now }, BPF_ANY);
    }
}

/// A [`FlowKey`] in words, because a key of bytes would be put together byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Key {
    first: Address,
    second: Address,
    first_port: u16,
    second_port: u16,
    protocol: u8,
    reserved: [u8; 3],
}

impl Key {
    #[inline(always)]
    fn as_key(&self) -> &FlowKey {
        const { assert!(size_of::<Key>() == size_of::<FlowKey>()) }
        // SAFETY: the same fields in the same order and of the same sizes, without padding on either side.
        unsafe { &*core::ptr::from_ref(self).cast::<FlowKey>() }
    }
}

/// The flow of a packet, and the packet's direction in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Direction {
    key: Key,
    /// `SEEN_FROM_FIRST` or `SEEN_FROM_SECOND`.
    seen: u32,
}

impl Direction {
    /// Puts the end with the smaller (address, port) first; ports as they stand in the packet.
    #[inline(always)]
    const fn new(from: Address, from_port: u16, to: Address, to_port: u16, protocol: u8) -> Self {
        let forward = match from.is_before(to) {
            Some(before) => before,
            None => u16::from_be(from_port) <= u16::from_be(to_port),
        };
        let reserved = [0; 3];
        if forward {
            let key = Key { first: from, second: to, first_port: from_port, second_port: to_port, protocol, reserved };
            Self { key, seen: Flow::SEEN_FROM_FIRST }
        } else {
            let key = Key { first: to, second: from, first_port: to_port, second_port: from_port, protocol, reserved };
            Self { key, seen: Flow::SEEN_FROM_SECOND }
        }
    }
}

/// Returns the flow of a packet; `None` for ICMP that is no echo (errors concern flows, but are none) and for a
/// transport header that is cut.
#[inline(always)]
fn direction(ctx: &TcContext, ip: &Ip) -> Option<Direction> {
    let number = ip.transport.protocol();
    let offset = ip.transport.offset();
    let (from_port, to_port) = if protocol::has_ports(number) {
        ports(ctx, offset)?
    } else if number == protocol::ICMP || number == protocol::ICMPV6 {
        let [kind, _, _, _, a, b, _, _] = ctx.octets::<8>(offset).ok()?;
        let identifier = if is_echo(number, kind) { u16::from_ne_bytes([a, b]) } else { return None };
        (identifier, identifier)
    } else {
        (0, 0)
    };
    Some(Direction::new(ip.source, from_port, ip.destination, to_port, number))
}

/// Source and destination port as they stand in the packet: read in place behind the fixed headers of Ethernet and IP.
#[inline(always)]
fn ports(ctx: &TcContext, offset: u32) -> Option<(u16, u16)> {
    if offset == 34
        && let Some(headers) = packet::linear::<38>(ctx)
    {
        return Some((headers.read::<u16, 34>(), headers.read::<u16, 36>()));
    }
    if offset == 54
        && let Some(headers) = packet::linear::<58>(ctx)
    {
        return Some((headers.read::<u16, 54>(), headers.read::<u16, 56>()));
    }
    let [a, b, c, d] = ctx.octets::<4>(offset).ok()?;
    Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
}

#[inline(always)]
const fn is_echo(number: u8, kind: u8) -> bool {
    if number == protocol::ICMP {
        kind == ICMP_ECHO_REQUEST || kind == ICMP_ECHO_REPLY
    } else {
        kind == icmpv6::ECHO_REQUEST || kind == icmpv6::ECHO_REPLY
    }
}

/// Whether the packet is a TCP SYN without ACK.
#[inline(always)]
fn opens_connection(ctx: &TcContext, ip: &Ip) -> bool {
    ip.transport.protocol() == protocol::TCP
        && ctx
            .octets::<1>(ip.transport.offset() + TCP_FLAGS_OFFSET)
            .is_ok_and(|[flags]| flags & (TCP_SYN | TCP_ACK) == TCP_SYN)
}

/// An entry as it was when it was looked up.
#[derive(Clone, Copy)]
struct Entry {
    value: *mut Flow,
    flow: Flow,
}

impl Entry {
    /// Notes that the kernel path carries the flow now. By pointer: in an entry that became another flow's it makes
    /// that flow look busy, which is harmless.
    #[inline(always)]
    fn refresh(self, now: u32) {
        if self.flow.last_seen != now {
            // SAFETY: an LRU map's memory lives as long as the map; the field is aligned.
            unsafe { (&raw mut (*self.value).last_seen).write_volatile(now) };
        }
    }
}

#[inline(always)]
fn lookup(key: &Key) -> Option<Entry> {
    let value = KERNEL_FLOWS.get_ptr_mut(key.as_key())?;
    // SAFETY: as in `refresh`. Volatile: other CPUs write.
    let flow = unsafe {
        Flow {
            state: (&raw const (*value).state).read_volatile(),
            last_seen: (&raw const (*value).last_seen).read_volatile(),
        }
    };
    Some(Entry { value, flow })
}

/// Returns whether the map took the flow.
#[inline(always)]
fn update(ctx: &TcContext, key: &Key, flow: Flow, flag: u32) -> bool {
    let taken = KERNEL_FLOWS.insert(key.as_key(), flow, u64::from(flag)).is_ok();
    if taken {
        trace::flow_changed(ctx.skb.skb, flow.state);
    }
    taken
}

/// The current tick; see [`Flow::TICK_SHIFT`].
#[inline(always)]
fn tick() -> u32 {
    // SAFETY: the helper takes no argument. The coarse clock is a load, not a read of the hardware.
    (unsafe { bpf_ktime_get_coarse_ns() } >> Flow::TICK_SHIFT) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Address {
        Address::from_v4(u32::from_ne_bytes([10, 244, 1, last]))
    }

    #[test]
    fn both_directions_have_one_key() {
        for (from, from_port, to, to_port) in
            [(v4(2), 40_000u16, v4(3), 80u16), (v4(3), 1, v4(2), 65_535), (v4(2), 0x00ff, v4(2), 0xff00)]
        {
            let there = Direction::new(from, from_port.to_be(), to, to_port.to_be(), protocol::TCP);
            let back = Direction::new(to, to_port.to_be(), from, from_port.to_be(), protocol::TCP);
            assert_eq!(there.key, back.key);
            assert_eq!(there.seen ^ back.seen, Flow::SEEN_FROM_FIRST | Flow::SEEN_FROM_SECOND);
        }
    }

    #[test]
    fn the_smaller_end_is_first_in_network_byte_order() {
        let Direction { key, seen } = Direction::new(v4(3), 80u16.to_be(), v4(2), 443u16.to_be(), protocol::TCP);
        assert_eq!(seen, Flow::SEEN_FROM_SECOND);
        let flow_key = key.as_key();
        assert_eq!(flow_key.first, podnet_common::address::Address::from_v4_octets([10, 244, 1, 2]));
        assert_eq!((flow_key.first_port, flow_key.second_port), (443u16.to_be_bytes(), 80u16.to_be_bytes()));
        assert_eq!((flow_key.protocol, flow_key.reserved), (6, [0; 3]));
        // With equal addresses the ports decide, as numbers.
        assert_eq!(Direction::new(v4(2), 0x0100u16.to_be(), v4(2), 0x00ffu16.to_be(), 6).seen, Flow::SEEN_FROM_SECOND);
    }

    #[test]
    fn only_echo_has_an_identifier() {
        assert!(is_echo(protocol::ICMP, 0) && is_echo(protocol::ICMP, 8));
        assert!(!is_echo(protocol::ICMP, 3) && !is_echo(protocol::ICMP, 128));
        assert!(is_echo(protocol::ICMPV6, 128) && is_echo(protocol::ICMPV6, 129));
        assert!(!is_echo(protocol::ICMPV6, 1) && !is_echo(protocol::ICMPV6, 8));
    }
}
