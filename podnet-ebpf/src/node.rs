//! Maps `NODES`, `NODES_LPM` and `NODE_ADDRESSES`: the cluster's nodes, by the destination of a packet. The daemon writes
//! them; the programs only read.
//!
//! All have `BPF_F_NO_PREALLOC`, like the maps of `endpoint`, and with the same consequence: a program that meets a
//! removal may see another node's entry for the rest of its run. One packet then goes to a node that does not have its
//! destination, which forwards it, or drops it; or one packet of a node that is going is judged as another one's.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{HashMap, LpmTrie, lpm_trie::Key},
};
use podnet_common::{
    address::Address as AddressKey,
    node::{Node as NodeValue, NodeAddress},
};

use crate::{
    ip::{Address, Family},
    settings,
};

#[map]
static NODES: HashMap<AddressKey, NodeValue> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
static NODES_LPM: LpmTrie<AddressKey, NodeValue> = LpmTrie::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
static NODE_ADDRESSES: HashMap<AddressKey, NodeAddress> = HashMap::with_max_entries(131_072, BPF_F_NO_PREALLOC);

/// Looks up the pod CIDR that an address is in: exactly by the cluster's usual size of a CIDR (6 ns at any number of
/// nodes), and only where there are others by the longest prefix (60 ns at a thousand).
///
/// The address is of the family itself: for IPv6, no v4-mapped one.
#[inline(always)]
pub(crate) fn lookup(address: &Address, family: Family) -> Option<Node> {
    if let Some(mask) = settings::node_mask(family)
        && let Some(node) = NODES.get_ptr(address.masked(mask).as_key())
    {
        return Some(Node(node));
    }
    if settings::nodes_lpm() {
        return NODES_LPM.get(Key::new(128, *address.as_key())).map(|node| Node(node));
    }
    None
}

/// Looks up the number of the node that has an address.
#[inline(always)]
pub(crate) fn owner_of_address(address: &Address) -> Option<u64> {
    // SAFETY: a map value is readable until the program ends (see the module's comment).
    NODE_ADDRESSES.get_ptr(address.as_key()).map(|owner| unsafe { (*owner).id })
}

/// An entry of `NODES` or `NODES_LPM`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Node(*const NodeValue);

#[expect(clippy::cast_ptr_alignment, reason = "a map value is aligned to 8, and the fields' offsets are asserted")]
impl Node {
    /// The node's number.
    #[inline(always)]
    pub(crate) fn id(self) -> u64 {
        // SAFETY: a map value is readable until the program ends (see the module's comment).
        unsafe { (*self.0).id }
    }

    /// Whether the pod CIDR is this node's own.
    #[inline(always)]
    pub(crate) fn is_local(self) -> bool {
        self.flags() & NodeValue::LOCAL != 0
    }

    /// Whether the programs can send to the node.
    #[inline(always)]
    pub(crate) fn is_reachable(self) -> bool {
        self.flags() & (NodeValue::DIRECT | NodeValue::OVERLAY) != 0
    }

    /// Whether it is reached through the overlay.
    #[inline(always)]
    pub(crate) fn is_in_overlay(self) -> bool {
        self.flags() & NodeValue::OVERLAY != 0
    }

    #[inline(always)]
    fn flags(self) -> u32 {
        // SAFETY: as for `id`.
        unsafe { (*self.0).flags }
    }

    /// Index of the uplink or overlay device.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as for `id`.
        unsafe { (*self.0).ifindex }
    }

    /// Largest IP packet that the way to the node carries.
    #[inline(always)]
    pub(crate) fn mtu(self) -> u32 {
        // SAFETY: as for `id`.
        unsafe { (*self.0).mtu }
    }

    /// The node's address in the overlay.
    #[inline(always)]
    pub(crate) fn address(self) -> Address {
        const { assert!(offset_of!(NodeValue, address) % 8 == 0) }
        // SAFETY: as for `id`; the field has 16 bytes and is aligned to 8 (asserted above).
        let [high, low] = unsafe { (&raw const (*self.0).address).cast::<[u64; 2]>().read() };
        Address::new(high, low)
    }

    /// The next hop on the uplink.
    #[inline(always)]
    pub(crate) fn next_hop(self) -> Address {
        const { assert!(offset_of!(NodeValue, next_hop) % 8 == 0) }
        // SAFETY: as for `address`.
        let [high, low] = unsafe { (&raw const (*self.0).next_hop).cast::<[u64; 2]>().read() };
        Address::new(high, low)
    }

    /// The first 12 bytes of an inner frame for the node as three words.
    #[inline(always)]
    pub(crate) fn macs(self) -> [u32; 3] {
        const {
            assert!(offset_of!(NodeValue, mac) % 4 == 0);
            assert!(offset_of!(NodeValue, own_mac) == offset_of!(NodeValue, mac) + 6);
        }
        // SAFETY: as for `id`; the two fields are adjacent, have 12 bytes in all and start aligned (asserted above).
        unsafe { (&raw const (*self.0).mac).cast::<[u32; 3]>().read() }
    }
}
