//! Addresses as map keys: 16 bytes, IPv4 as v4-mapped IPv6 (RFC 4291, section 2.5.5.2).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

map_type! {
    /// An IPv6 address, or an IPv4 address in its v4-mapped form `::ffff:a.b.c.d`; network byte order.
    pub struct Address {
        /// The 16 bytes as they stand in a packet.
        pub octets: [u8; 16],
    }
}

impl Address {
    /// Returns the v4-mapped form of four octets in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn from_v4_octets(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self { octets: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }

    /// Returns an IPv6 address from its 16 octets in network byte order.
    #[must_use]
    #[inline(always)]
    pub const fn from_v6_octets(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// Returns the address in the standard library's form; a v4-mapped address becomes IPv4.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4_octets(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self::from_v6_octets(address.octets())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_stored_mapped_and_comes_back_as_v4() {
        let v4 = Ipv4Addr::new(10, 244, 1, 2);
        let address = Address::from(v4);
        assert_eq!(address.octets, v4.to_ipv6_mapped().octets());
        assert_eq!(address.to_ip(), IpAddr::V4(v4));
    }

    #[test]
    fn v6_round_trips() {
        let v6: Ipv6Addr = "fd00:10:244:1::2".parse().unwrap();
        assert_eq!(Address::from(v6).to_ip(), IpAddr::V6(v6));
    }
}
