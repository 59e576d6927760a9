//! An IP packet's addresses and transport header, the same for both families, and the numbers of the protocols.

use core::ptr;

use podnet_common::{address::Address as AddressKey, endpoint::EndpointSource, verdict::DropReason};

/// Ethertypes in host byte order.
pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const VLAN: u16 = 0x8100;
    pub(crate) const SERVICE_VLAN: u16 = 0x88a8;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// IP protocols and IPv6 extension headers.
pub(crate) mod protocol {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const DCCP: u8 = 33;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const AUTHENTICATION: u8 = 51;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const DESTINATION: u8 = 60;
    pub(crate) const SCTP: u8 = 132;
    pub(crate) const UDP_LITE: u8 = 136;

    #[inline(always)]
    pub(crate) const fn is_tcp_or_udp(number: u8) -> bool {
        number == TCP || number == UDP
    }

    /// Whether the transport header starts with source and destination port.
    #[inline(always)]
    pub(crate) const fn has_ports(number: u8) -> bool {
        matches!(number, TCP | UDP | DCCP | SCTP | UDP_LITE)
    }

    /// Whether another header follows that the kernel looks behind.
    #[inline(always)]
    pub(crate) const fn is_extension(number: u8) -> bool {
        matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
    }
}

/// Types of ICMPv6 messages.
pub(crate) mod icmpv6 {
    pub(crate) const ECHO_REQUEST: u8 = 128;
    pub(crate) const ECHO_REPLY: u8 = 129;
    pub(crate) const MLD_REPORT: u8 = 131;
    pub(crate) const MLD_DONE: u8 = 132;
    pub(crate) const ROUTER_SOLICITATION: u8 = 133;
    pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(crate) const NEIGHBOR_SOLICITATION: u8 = 135;
    pub(crate) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    pub(crate) const REDIRECT: u8 = 137;
    pub(crate) const MLD2_REPORT: u8 = 143;
}

/// Family of a packet. Known at compile time wherever it matters, since each has a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The `KERNEL_TOUCHED_*` bit of the family.
    #[inline(always)]
    pub(crate) const fn touched_flag(self) -> u32 {
        match self {
            Self::V4 => EndpointSource::KERNEL_TOUCHED_V4,
            Self::V6 => EndpointSource::KERNEL_TOUCHED_V6,
        }
    }
}

/// A packet that may be forwarded.
pub(crate) struct Ip {
    pub(crate) family: Family,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) transport: Transport,
}

/// An address as two words that stand in memory as the address stands in a packet (IPv4: v4-mapped).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Address {
    high: u64,
    low: u64,
}

impl Address {
    #[inline(always)]
    pub(crate) const fn new(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// From an IPv4 address as it stands in a packet.
    #[inline(always)]
    pub(crate) const fn from_v4(v4: u32) -> Self {
        let low = if cfg!(target_endian = "little") {
            (v4 as u64) << 32 | 0xffff_0000
        } else {
            0x0000_ffff_0000_0000 | v4 as u64
        };
        Self { high: 0, low }
    }

    /// The mask that keeps the v4-mapped prefix and these bits of an IPv4 address, as they stand in a packet.
    #[inline(always)]
    pub(crate) const fn v4_mask(mask: u32) -> Self {
        let low = if cfg!(target_endian = "little") {
            (mask as u64) << 32 | 0xffff_ffff
        } else {
            0xffff_ffff_0000_0000 | mask as u64
        };
        Self { high: u64::MAX, low }
    }

    /// See [`Address::to_words`].
    #[inline(always)]
    pub(crate) const fn from_words([a, b, c, d]: [u32; 4]) -> Self {
        if cfg!(target_endian = "little") {
            Self { high: a as u64 | (b as u64) << 32, low: c as u64 | (d as u64) << 32 }
        } else {
            Self { high: (a as u64) << 32 | b as u64, low: (c as u64) << 32 | d as u64 }
        }
    }

    #[inline(always)]
    pub(crate) const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self { high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]) }
    }

    /// The bits of the address that are set in a mask.
    #[inline(always)]
    pub(crate) const fn masked(self, mask: Self) -> Self {
        Self { high: self.high & mask.high, low: self.low & mask.low }
    }

    /// The IPv4 address as it stands in a packet, if this is one: a v4-mapped address. What has such an address in an
    /// IPv6 header is no pod's or node's.
    #[inline(always)]
    pub(crate) const fn to_v4(self) -> Option<u32> {
        let (prefix, v4) = if cfg!(target_endian = "little") {
            (self.low as u32, (self.low >> 32) as u32)
        } else {
            ((self.low >> 32) as u32, self.low as u32)
        };
        if self.high == 0 && prefix == u32::from_be(0xffff) { Some(v4) } else { None }
    }

    /// Whether this is a v4-mapped address in an IPv6 header; see [`Address::to_v4`].
    #[inline(always)]
    pub(crate) fn is_v6_mapped(self, family: Family) -> bool {
        family == Family::V6 && self.to_v4().is_some()
    }

    /// Whether the address is link-local (RFC 4291, section 2.5.6).
    #[inline(always)]
    pub(crate) const fn is_link_local(self) -> bool {
        u64::from_be(self.high) >> 54 == 0xfe80 >> 6
    }

    /// The address as four words that stand in memory as it stands in a packet.
    #[inline(always)]
    pub(crate) const fn to_words(self) -> [u32; 4] {
        if cfg!(target_endian = "little") {
            [self.high as u32, (self.high >> 32) as u32, self.low as u32, (self.low >> 32) as u32]
        } else {
            [(self.high >> 32) as u32, self.high as u32, (self.low >> 32) as u32, self.low as u32]
        }
    }

    /// Whether it is anything but `::`.
    #[inline(always)]
    pub(crate) const fn is_specified(self) -> bool {
        self.high | self.low != 0
    }

    /// Whether it comes before another one in the order of their octets; `None` if they are equal.
    #[inline(always)]
    pub(crate) const fn is_before(self, other: Self) -> Option<bool> {
        if self.high != other.high {
            Some(u64::from_be(self.high) < u64::from_be(other.high))
        } else if self.low != other.low {
            Some(u64::from_be(self.low) < u64::from_be(other.low))
        } else {
            None
        }
    }

    /// The same 16 bytes as a key of `ENDPOINTS`.
    #[inline(always)]
    pub(crate) fn as_key(&self) -> &AddressKey {
        const { assert!(size_of::<Address>() == size_of::<AddressKey>()) }
        // SAFETY: both are 16 plain bytes, and a key needs no alignment.
        unsafe { &*ptr::from_ref(self).cast::<AddressKey>() }
    }
}

/// Where the transport header of a packet is, and what is known about the packet besides. One word, so that a
/// subprogram can return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Transport(u64);

impl Transport {
    const FRAGMENT: u64 = 1 << 8;
    const LATER_FRAGMENT: u64 = 1 << 9;
    const NEIGHBOR_DISCOVERY: u64 = 1 << 10;
    const LINK_SCOPED: u64 = 1 << 11;
    const UNSUPPORTED: u64 = 1 << 12;
    const OFFSET_SHIFT: u32 = 16;

    /// `fragment`: the packet is a part of a bigger one, or its transport header is not to be looked at for another
    /// reason.
    #[inline(always)]
    pub(crate) const fn new(protocol: u8, offset: u32, fragment: bool) -> Self {
        let flags = if fragment { Self::FRAGMENT } else { 0 };
        Self(protocol as u64 | flags | (offset as u64) << Self::OFFSET_SHIFT)
    }

    #[inline(always)]
    pub(crate) const fn protocol(self) -> u8 {
        self.0 as u8
    }

    /// Offset of the transport header in the frame.
    #[inline(always)]
    pub(crate) const fn offset(self) -> u32 {
        (self.0 >> Self::OFFSET_SHIFT) as u32
    }

    #[inline(always)]
    pub(crate) const fn is_fragment(self) -> bool {
        self.0 & Self::FRAGMENT != 0
    }

    /// A fragment other than the first: there is no transport header in it.
    #[inline(always)]
    pub(crate) const fn as_later_fragment(self) -> Self {
        Self(self.0 | Self::LATER_FRAGMENT)
    }

    #[inline(always)]
    pub(crate) const fn is_later_fragment(self) -> bool {
        self.0 & Self::LATER_FRAGMENT != 0
    }

    #[inline(always)]
    pub(crate) const fn as_neighbor_discovery(self) -> Self {
        Self(self.0 | Self::NEIGHBOR_DISCOVERY)
    }

    #[inline(always)]
    pub(crate) const fn is_neighbor_discovery(self) -> bool {
        self.0 & Self::NEIGHBOR_DISCOVERY != 0
    }

    /// The source address is link-local or unspecified.
    #[inline(always)]
    pub(crate) const fn as_link_scoped(self) -> Self {
        Self(self.0 | Self::LINK_SCOPED)
    }

    #[inline(always)]
    pub(crate) const fn is_link_scoped(self) -> bool {
        self.0 & Self::LINK_SCOPED != 0
    }

    /// The packet has IP options: it is the kernel's, and its transport header is elsewhere.
    #[inline(always)]
    pub(crate) const fn as_unsupported(self) -> Self {
        Self(self.0 | Self::UNSUPPORTED)
    }

    #[inline(always)]
    pub(crate) const fn is_unsupported(self) -> bool {
        self.0 & Self::UNSUPPORTED != 0
    }
}

/// A `Result<Transport, DropReason>` in one word: a BPF subprogram returns no more.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Outcome(u64);

impl Outcome {
    /// No transport header is so far away: offsets have 32 bits.
    const ERROR: u64 = 1 << 63;

    #[inline(always)]
    pub(crate) fn result(self) -> Result<Transport, DropReason> {
        if self.0 & Self::ERROR == 0 {
            Ok(Transport(self.0))
        } else {
            Err(DropReason::from_raw(self.0 as u32).unwrap_or(DropReason::Malformed))
        }
    }
}

impl From<Result<Transport, DropReason>> for Outcome {
    #[inline(always)]
    fn from(result: Result<Transport, DropReason>) -> Self {
        match result {
            Ok(transport) => Self(transport.0),
            Err(reason) => Self(Self::ERROR | reason as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_bytes_of_their_keys() {
        let v4 = Address::from_v4(u32::from_ne_bytes([10, 244, 1, 2]));
        assert_eq!(*v4.as_key(), AddressKey::from_v4_octets([10, 244, 1, 2]));
        let octets = core::array::from_fn(|i| i as u8);
        assert_eq!(Address::from_octets(octets).as_key().octets, octets);
    }

    #[test]
    fn addresses_are_ordered_as_their_octets() {
        let low = Address::from_octets([0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
        let high = Address::from_octets([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(low.is_before(high), Some(true));
        assert_eq!(high.is_before(low), Some(false));
        assert_eq!(low.is_before(low), None);
        let near = |last| Address::from_v4(u32::from_ne_bytes([10, 244, 1, last]));
        assert_eq!(near(2).is_before(near(200)), Some(true));
    }

    #[test]
    fn masks_and_words_follow_the_bytes() {
        let v4 = u32::from_ne_bytes([10, 244, 1, 2]);
        let masked = Address::from_v4(v4).masked(Address::v4_mask(u32::from_ne_bytes([255, 255, 255, 0])));
        assert_eq!(masked.as_key().octets, AddressKey::from_v4_octets([10, 244, 1, 0]).octets);
        assert_eq!(Address::from_v4(v4).to_v4(), Some(v4));
        assert!(Address::from_v4(v4).is_v6_mapped(Family::V6) && !Address::from_v4(v4).is_v6_mapped(Family::V4));
        let octets: [u8; 16] = core::array::from_fn(|i| i as u8 * 17);
        let address = Address::from_octets(octets);
        assert_eq!((address.to_v4(), address.is_v6_mapped(Family::V6)), (None, false));
        assert_eq!(address.to_words().map(u32::to_ne_bytes).concat(), octets);
        assert_eq!(Address::from_words(address.to_words()), address);
    }

    #[test]
    fn link_local_is_ten_bits() {
        let with = |a, b| Address::from_octets([a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).is_link_local();
        assert!(with(0xfe, 0x80) && with(0xfe, 0xbf));
        assert!(!with(0xfe, 0x7f) && !with(0xfe, 0xc0) && !with(0xfd, 0x80) && !with(0, 0));
    }

    #[test]
    fn outcomes_round_trip() {
        for reason in DropReason::ALL {
            assert_eq!(Outcome::from(Err(*reason)).result(), Err(*reason));
        }
        let transport = Transport::new(protocol::TCP, u32::MAX, true).as_link_scoped();
        assert_eq!(Outcome::from(Ok(transport)).result(), Ok(transport));
        assert_eq!(transport.protocol(), protocol::TCP);
        assert_eq!(transport.offset(), u32::MAX);
        assert!(transport.is_fragment() && transport.is_link_scoped());
        assert!(!transport.is_later_fragment() && !transport.is_neighbor_discovery());
    }
}
