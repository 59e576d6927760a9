//! The packet that an ICMP error is about: the error quotes its beginning (RFC 792; RFC 4443, section 3). An error belongs
//! to the flow of that packet, and must take its path: a kernel that has not seen the flow takes the error for a forgery.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};

use crate::{
    guard,
    ip::{Address, Family, Ip, protocol},
    packet::Octets,
};

/// Length of an ICMP header, after which the quoted packet starts.
const ICMP_LEN: u32 = 8;
const IPV6_LEN: u32 = 40;

/// Addresses and ports of a quoted packet, as its sender sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quote {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// First two words of the transport header as they stand in the packet.
    pub(crate) transport: [u16; 2],
    /// Third word: the identifier of an ICMP echo.
    pub(crate) identifier: u16,
    pub(crate) protocol: u8,
}

impl Quote {
    const EMPTY: Self = Self {
        source: Address::new(0, 0),
        destination: Address::new(0, 0),
        transport: [0; 2],
        identifier: 0,
        protocol: 0,
    };
}

/// Returns the packet that an ICMP error quotes. `None`: the packet is no error, or quotes too little, a later fragment,
/// extension headers, or a packet that somebody else sent than the one who is told.
#[inline(always)]
pub(crate) fn of_error(ctx: &TcContext, ip: &Ip) -> Option<Quote> {
    let mut quote = Quote::EMPTY;
    let quotes = match (ip.family, ip.transport.protocol()) {
        (Family::V4, protocol::ICMP) => read_v4(ctx.skb.skb, ip.transport.offset(), &mut quote),
        (Family::V6, protocol::ICMPV6) => read_v6(ctx.skb.skb, ip.transport.offset(), &mut quote),
        _ => false,
    };
    (quotes && quote.source == ip.destination).then_some(quote)
}

#[inline(never)]
fn read_v4(skb: *mut __sk_buff, offset: u32, quote: &mut Quote) -> bool {
    v4(&TcContext::new(skb), offset).map(|read| *quote = read).is_some()
}

#[inline(never)]
fn read_v6(skb: *mut __sk_buff, offset: u32, quote: &mut Quote) -> bool {
    v6(&TcContext::new(skb), offset).map(|read| *quote = read).is_some()
}

#[inline(always)]
fn v4(packet: &impl Octets, offset: u32) -> Option<Quote> {
    let [kind] = packet.octets::<1>(offset).ok()?;
    // Destination unreachable ("fragmentation needed" among them), time exceeded, parameter problem.
    if !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let start = offset + ICMP_LEN;
    let header = packet.octets::<20>(start).ok()?;
    let [version_ihl, _, _, _, _, _, fragment_high, fragment_low, _, protocol, ..] = header;
    // The first fragment has ports like a whole packet.
    let later_fragment = u16::from_be_bytes([fragment_high, fragment_low]) & guard::IPV4_OFFSET_MASK != 0;
    if version_ihl >> 4 != 4 || version_ihl & 0x0f < 5 || later_fragment {
        return None;
    }
    let [.., a, b, c, d, e, f, g, h] = header;
    let source = Address::from_v4(u32::from_ne_bytes([a, b, c, d]));
    let destination = Address::from_v4(u32::from_ne_bytes([e, f, g, h]));
    with_transport(packet, start + u32::from(version_ihl & 0x0f) * 4, source, destination, protocol)
}

#[inline(always)]
fn v6(packet: &impl Octets, offset: u32) -> Option<Quote> {
    let [kind] = packet.octets::<1>(offset).ok()?;
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if !matches!(kind, 1..=4) {
        return None;
    }
    let start = offset + ICMP_LEN;
    let [version, _, _, _, _, _, protocol, _] = packet.octets::<8>(start).ok()?;
    if version >> 4 != 6 || protocol::is_extension(protocol) {
        return None;
    }
    let source = Address::from_octets(packet.octets::<16>(start + 8).ok()?);
    let destination = Address::from_octets(packet.octets::<16>(start + 24).ok()?);
    with_transport(packet, start + IPV6_LEN, source, destination, protocol)
}

/// RFC 792 asks for eight bytes behind the header, RFC 4443 for all that fits.
#[inline(always)]
fn with_transport(
    packet: &impl Octets,
    offset: u32,
    source: Address,
    destination: Address,
    protocol: u8,
) -> Option<Quote> {
    let [a, b, c, d, e, f, ..] = packet.octets::<8>(offset).ok()?;
    let word = |high, low| u16::from_ne_bytes([high, low]);
    Some(Quote { source, destination, transport: [word(a, b), word(c, d)], identifier: word(e, f), protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [u8; 4] = [10, 244, 1, 2];
    const OTHER: [u8; 4] = [10, 244, 2, 3];

    fn error_v4(kind: u8, header: [u8; 20], transport: &[u8]) -> Vec<u8> {
        [&[kind, 4, 0, 0, 0, 0, 5, 20][..], &header, transport].concat()
    }

    fn header_v4(version_ihl: u8, fragment: u16, protocol: u8) -> [u8; 20] {
        let [high, low] = fragment.to_be_bytes();
        let [a, b, c, d] = POD;
        let [e, f, g, h] = OTHER;
        [version_ihl, 0, 5, 220, 0, 0, high, low, 64, protocol, 0, 0, a, b, c, d, e, f, g, h]
    }

    #[test]
    fn an_ipv4_error_quotes_addresses_and_ports() {
        let transport = [0x9c, 0x40, 0, 80, 1, 2, 3, 4];
        let packet = error_v4(3, header_v4(0x45, 0x4000, protocol::TCP), &transport);
        let expected = Quote {
            source: Address::from_v4(u32::from_ne_bytes(POD)),
            destination: Address::from_v4(u32::from_ne_bytes(OTHER)),
            transport: [40_000u16.to_be(), 80u16.to_be()],
            identifier: 0x0102u16.to_be(),
            protocol: protocol::TCP,
        };
        assert_eq!(v4(&packet.as_slice(), 0), Some(expected));
        // The first fragment of a datagram, and a packet with options.
        let first = error_v4(11, header_v4(0x45, 0x2000, protocol::TCP), &transport);
        assert_eq!(v4(&first.as_slice(), 0), Some(expected));
        let options = error_v4(12, header_v4(0x46, 0, protocol::TCP), &[&[1, 1, 1, 0][..], &transport].concat());
        assert_eq!(v4(&options.as_slice(), 0), Some(expected));
    }

    #[test]
    fn what_is_no_error_or_quotes_too_little_is_none() {
        let transport = [0; 8];
        for kind in [0, 5, 8] {
            let packet = error_v4(kind, header_v4(0x45, 0, protocol::UDP), &transport);
            assert_eq!(v4(&packet.as_slice(), 0), None);
        }
        for (version_ihl, fragment) in [(0x45, 1), (0x44, 0), (0x65, 0)] {
            let packet = error_v4(3, header_v4(version_ihl, fragment, protocol::UDP), &transport);
            assert_eq!(v4(&packet.as_slice(), 0), None);
        }
        let whole = error_v4(3, header_v4(0x45, 0, protocol::UDP), &transport);
        for length in 0..whole.len() {
            assert_eq!(v4(&&whole[..length], 0), None);
        }
    }

    #[test]
    fn an_ipv6_error_quotes_addresses_and_ports() {
        let source: [u8; 16] = core::array::from_fn(|i| 0xfd ^ i as u8);
        let destination: [u8; 16] = core::array::from_fn(|i| 0xfc ^ i as u8);
        let error = |kind, next| {
            let fixed = [0x60, 0, 0, 0, 5, 0, next, 64];
            [&[kind, 0, 0, 0, 0, 0, 5, 20][..], &fixed, &source, &destination, &[0, 53, 0x9c, 0x40, 0, 8, 7, 7]]
                .concat()
        };
        let packet = error(2, protocol::UDP);
        let expected = Quote {
            source: Address::from_octets(source),
            destination: Address::from_octets(destination),
            transport: [53u16.to_be(), 40_000u16.to_be()],
            identifier: 8u16.to_be(),
            protocol: protocol::UDP,
        };
        assert_eq!(v6(&packet.as_slice(), 0), Some(expected));
        for length in 0..packet.len() {
            assert_eq!(v6(&&packet[..length], 0), None);
        }
        assert_eq!(v6(&error(2, protocol::FRAGMENT).as_slice(), 0), None);
        assert_eq!(v6(&error(128, protocol::UDP).as_slice(), 0), None);
    }
}
