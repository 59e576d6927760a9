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

map_type! {
    /// Whose an address is: value of `NODE_ADDRESSES`, keyed by each address of each node.
    pub struct NodeAddress {
        /// As [`Node::id`].
        pub id: u64,
    }
}
