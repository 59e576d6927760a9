//! A packet that the kernel path carries, as the programs see it that only watch: `to_pod` and `to_uplink`.

use aya_ebpf::programs::TcContext;

use crate::{
    extension, guard,
    ip::{Address, Family, Ip, Transport, ethertype},
    packet,
};

/// Reads an IP packet. `None`: it cannot be read, or has addresses that no pod has.
#[inline(always)]
pub(crate) fn packet(ctx: &TcContext) -> Option<Ip> {
    let ethernet = packet::headers::<14>(ctx).ok()?;
    match u16::from_be(ethernet.read::<u16, 12>()) {
        ethertype::IPV4 => ipv4(ctx),
        ethertype::IPV6 => ipv6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext) -> Option<Ip> {
    let header = packet::headers::<34>(ctx).ok()?;
    let version_ihl = header.read::<u8, 14>();
    let fragment = header.read::<u16, 20>() & guard::IPV4_FRAGMENT_MASK.to_be() != 0;
    Some(Ip {
        family: Family::V4,
        source: Address::from_v4(header.read::<u32, 26>()),
        destination: Address::from_v4(header.read::<u32, 30>()),
        // Packets with options are passed before anybody looks at flows; like fragments, they tell nothing here.
        transport: Transport::new(header.read::<u8, 23>(), 34, fragment || version_ihl != 0x45),
    })
}

#[inline(always)]
fn ipv6(ctx: &TcContext) -> Option<Ip> {
    let header = packet::headers::<54>(ctx).ok()?;
    let source = Address::new(header.read::<u64, 22>(), header.read::<u64, 30>());
    let destination = Address::new(header.read::<u64, 38>(), header.read::<u64, 46>());
    if source.to_v4().is_some() || destination.to_v4().is_some() {
        return None;
    }
    let transport = extension::walk_packet(ctx.skb.skb, header.read::<u8, 20>(), 54).result().ok()?;
    Some(Ip { family: Family::V6, source, destination, transport })
}
