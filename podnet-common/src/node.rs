//! Nodes of the cluster: how their pods are reached, and which outer source their overlay packets may have.

use crate::address::Address;

map_type! {
    /// How the pods of one pod CIDR are reached: value of `NODES`, keyed by the network address of the CIDR (an
    /// [`Address`] masked to [`crate::settings::Settings::node_mask_v4`] or `node_mask_v6`), and of `NODES_LPM` for
    /// CIDRs of other sizes.
    pub struct Node {
        /// Number of the node in the cluster; the same in all of its entries and in `NODE_ADDRESSES`.
        pub id: u64,
        /// Overlay: destination of the outer header, and the usual outer source of what the node sends.
        pub address: Address,
        /// Direct: next hop on the uplink, of the pod CIDR's own family.
        pub next_hop: Address,
        /// Index of the uplink or overlay device in the node's network namespace; zero unless direct or overlay.
        pub ifindex: u32,
        /// [`Node::LOCAL`], [`Node::DIRECT`] or [`Node::OVERLAY`]; none: the node cannot be reached now, and packets to
        /// it are passed to the kernel.
        pub flags: u32,
        /// Largest IP packet in bytes that the way to the node carries.
        pub mtu: u32,
        /// Overlay: destination MAC of the inner frame.
        pub mac: [u8; 6],
        /// Overlay: source MAC of the inner frame.
        pub own_mac: [u8; 6],
    }
}

impl Node {
    /// The CIDR is this node's own.
    pub const LOCAL: u32 = 1 << 0;
    /// By `bpf_redirect_neigh` to the uplink.
    pub const DIRECT: u32 = 1 << 1;
    /// By `bpf_skb_set_tunnel_key` and `bpf_redirect` to the overlay device.
    pub const OVERLAY: u32 = 1 << 2;
}

map_type! {
    /// Key of `NODES_LPM`: a pod CIDR of another size than the cluster's usual one.
    pub struct NodePrefix {
        /// Bits of `address` that count (native byte order); IPv4: 96 more than in the CIDR.
        pub prefix_len: u32,
        /// Network address.
        pub address: Address,
    }
}

impl core::fmt::Display for NodePrefix {
    /// As people write a CIDR: `10.244.4.0/22`.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let address = self.address.to_ip();
        let mapped = if address.is_ipv4() { 96 } else { 0 };
        write!(f, "{address}/{}", self.prefix_len.saturating_sub(mapped))
    }
}

map_type! {
    /// Whose an address is: value of `NODE_ADDRESSES`, keyed by each address of each node.
    pub struct NodeAddress {
        /// As [`Node::id`].
        pub id: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_shown_as_cidrs() {
        let v4 = NodePrefix { prefix_len: 118, address: Address::from_v4_octets([10, 244, 4, 0]) };
        assert!(alloc_free_eq(&v4, "10.244.4.0/22"));
        let mut octets = [0; 16];
        octets[..2].copy_from_slice(&[0xfd, 0]);
        let v6 = NodePrefix { prefix_len: 60, address: Address::from_v6_octets(octets) };
        assert!(alloc_free_eq(&v6, "fd00::/60"));
    }

    /// Compares what is shown without an allocator.
    fn alloc_free_eq(value: &impl core::fmt::Display, expected: &str) -> bool {
        use core::fmt::Write as _;
        struct Rest<'a>(&'a str);
        impl core::fmt::Write for Rest<'_> {
            fn write_str(&mut self, part: &str) -> core::fmt::Result {
                self.0 = self.0.strip_prefix(part).ok_or(core::fmt::Error)?;
                Ok(())
            }
        }
        let mut rest = Rest(expected);
        write!(rest, "{value}").is_ok() && rest.0.is_empty()
    }
}
