//! Endpoints: a pod's attachment on this node, found by address (to deliver) and by interface (to guard).

map_type! {
    /// Where a local pod is: value of `ENDPOINTS`, keyed by [`crate::address::Address`], one entry per address.
    pub struct Endpoint {
        /// Index of the host-side veth in the node's network namespace: the target of `bpf_redirect_peer`.
        pub ifindex: u32,
        /// Bits of [`Endpoint::KERNEL_TOUCHED`]; set by the programs, preserved by the daemon.
        pub flags: u32,
        /// MAC of the pod-side veth: destination of delivered frames.
        pub mac: [u8; 6],
        /// MAC of the gateway (the bridge): source of delivered frames.
        pub gateway_mac: [u8; 6],
        /// MTU of the veth in bytes: a larger packet is the kernel's to refuse.
        pub mtu: u32,
    }
}

impl Endpoint {
    /// The kernel path has delivered a packet from another pod to this address, so that a packet which this
    /// address sends to a pod may be the reply of a flow that netfilter translated. Its flows are looked up in
    /// `KERNEL_FLOWS`; those of endpoints without the flag need no look-up at all. Never cleared while the pod lives.
    pub const KERNEL_TOUCHED: u32 = 1 << 0;
}

map_type! {
    /// What the pod behind a host-side veth may send: value of `ENDPOINTS_BY_IFINDEX`, keyed by the veth's index
    /// (`u32`, native byte order).
    pub struct EndpointSource {
        /// The pod's IPv4 address in network byte order; all zero if it has none.
        pub v4: [u8; 4],
        /// Bits of [`EndpointSource::KERNEL_TOUCHED_V4`] and [`EndpointSource::KERNEL_TOUCHED_V6`]; set by the
        /// programs, preserved by the daemon.
        pub flags: u32,
        /// The pod's IPv6 address in network byte order; all zero if it has none.
        pub v6: [u8; 16],
        /// MAC of the pod-side veth: the only source MAC that the pod may use.
        pub mac: [u8; 6],
        /// Always zero.
        pub reserved: [u8; 2],
    }
}

impl EndpointSource {
    /// [`Endpoint::KERNEL_TOUCHED`] holds for the pod's IPv4 address. Each flag has a byte of its own, so that CPUs
    /// that set different ones at the same time do not undo each other.
    pub const KERNEL_TOUCHED_V4: u32 = 1 << 0;
    /// [`Endpoint::KERNEL_TOUCHED`] holds for the pod's IPv6 address.
    pub const KERNEL_TOUCHED_V6: u32 = 1 << 8;
}

/// Returns the link-local address that the kernel gives an interface with this MAC (modified EUI-64, RFC 4291,
/// appendix A), in network byte order: the only link-local source that a pod may use.
#[must_use]
#[inline(always)]
pub const fn link_local_address(mac: [u8; 6]) -> [u8; 16] {
    let [a, b, c, d, e, f] = mac;
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_address_is_modified_eui_64() {
        let address = core::net::Ipv6Addr::from(link_local_address([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02]));
        assert_eq!(address, "fe80::858:aff:fef4:102".parse::<core::net::Ipv6Addr>().unwrap());
    }
}
