//! Layouts that podnet's eBPF programs and its daemon share: map keys and values, events, counters, settings.
//!
//! This crate is the single definition for both sides. It does no I/O and has no dependency, except aya's `Pod`
//! marker behind the feature `user`. Addresses, MACs and ports are byte arrays in network byte order; all other
//! integers are in the machine's own order. No layout has implicit padding.
#![no_std]

/// Declares a map layout: `repr(C)`, plain data, proven to be free of implicit padding.
macro_rules! map_type {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$type>())*,
            concat!(stringify!($name), " has implicit padding")
        );

        // SAFETY: `repr(C)` with integer and byte-array fields only, and no padding (asserted above).
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}

pub mod address;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod node;
pub mod settings;
pub mod verdict;

/// Version of every layout in this crate. Pins carry it (`v2/ENDPOINTS`), so that a daemon never re-uses a map
/// whose layout it does not know. Raise it when any layout changes, and that of the map in [`map_name::UNCHANGED_SINCE`].
pub const LAYOUT_VERSION: u32 = 2;

/// Names of the maps, as declared by the programs and pinned by the daemon.
pub mod map_name {
    /// Pod address -> endpoint: [`crate::endpoint::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Host-side interface index -> what the pod behind it may send: [`crate::endpoint::EndpointSource`].
    pub const ENDPOINTS_BY_IFINDEX: &str = "ENDPOINTS_BY_IFINDEX";
    /// Network address of a pod CIDR of the cluster's usual size -> how its pods are reached: [`crate::node::Node`].
    pub const NODES: &str = "NODES";
    /// Pod CIDR of another size ([`crate::node::NodePrefix`]) -> [`crate::node::Node`].
    pub const NODES_LPM: &str = "NODES_LPM";
    /// Address of a node -> whose it is: [`crate::node::NodeAddress`].
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Flow of an endpoint that the kernel path serves, too -> its owner: [`crate::flow::Flow`].
    pub const KERNEL_FLOWS: &str = "KERNEL_FLOWS";
    /// Counter index -> packets and bytes, per CPU: [`crate::verdict::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// All of the above, in the order in which `podnet maps dump` prints them.
    pub const ALL: [&str; 8] =
        [ENDPOINTS, ENDPOINTS_BY_IFINDEX, NODES, NODES_LPM, NODE_ADDRESSES, KERNEL_FLOWS, COUNTERS, EVENTS];
    /// The layout version in which key, value and their meaning became what they are. An upgrade from that version or a
    /// later one goes on with the very map; the others are made anew.
    pub const UNCHANGED_SINCE: [(&str, u32); ALL.len()] = [
        (ENDPOINTS, 2),
        (ENDPOINTS_BY_IFINDEX, 1),
        (NODES, 2),
        (NODES_LPM, 2),
        (NODE_ADDRESSES, 2),
        (KERNEL_FLOWS, 1),
        (COUNTERS, 1),
        (EVENTS, 2),
    ];
}

/// Names of the programs, as declared in the object.
pub mod program_name {
    /// Ingress of a pod's host-side veth: what the pod sends.
    pub const FROM_POD: &str = "from_pod";
    /// Egress of a pod's host-side veth: what the kernel path delivers to the pod.
    pub const TO_POD: &str = "to_pod";
    /// Ingress of an uplink: what other nodes and the outside send.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// Egress of an uplink or of the overlay device: what the kernel path sends to other nodes.
    pub const TO_UPLINK: &str = "to_uplink";
    /// Ingress of the overlay device: what other nodes send through the overlay, decapsulated.
    pub const FROM_OVERLAY: &str = "from_overlay";
    /// All of the above.
    pub const ALL: [&str; 5] = [FROM_POD, TO_POD, FROM_UPLINK, TO_UPLINK, FROM_OVERLAY];
}
