//! What the programs decide, and the counters of it. Numbers are append-only: a retired one is never given again.

/// Number of entries of `COUNTERS`: verdicts first, drop reasons from [`DROP_REASON_BASE`].
pub const COUNTER_SLOTS: u32 = 64;
/// Index in `COUNTERS` of drop reason 0.
pub const DROP_REASON_BASE: u32 = 32;

map_type! {
    /// Packets and bytes of one verdict or drop reason on one CPU: value of `COUNTERS` (per-CPU array).
    pub struct Counter {
        /// Packets as the hook saw them: a GSO packet counts once.
        pub packets: u64,
        /// Bytes of those packets, Ethernet header included.
        pub bytes: u64,
    }
}

/// Declares an enum of append-only numbers with names for people and programs.
macro_rules! numbered {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $($(#[$variant_meta])* $variant = $number),* }

        impl $name {
            /// Every value, in ascending order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name that commands, logs and metrics show.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// Returns the value with this number, or `None` if this build does not know it.
            #[must_use]
            pub const fn from_raw(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

numbered! {
    /// Why a packet went where it went, unless it was dropped.
    pub enum Verdict {
        /// Redirected by `bpf_redirect_peer` into a pod of this node.
        RedirectedToPod = 0, "redirected_to_pod";
        /// Passed to the kernel: the destination is no pod that the maps know (the gateway, the node, a service
        /// address, the outside, multicast, broadcast).
        PassedNotPod = 1, "passed_not_pod";
        /// Passed to the kernel: ARP, neighbour discovery, or another protocol that is not forwarded IP.
        PassedNotForwarded = 2, "passed_not_forwarded";
        /// Passed to the kernel: the flow is owned by the kernel path, or not yet claimed for the eBPF path.
        PassedKernelFlow = 3, "passed_kernel_flow";
        /// Passed to the kernel: the packet needs what only the kernel path does (IP options, extension headers,
        /// fragments of a flow that is looked up, a VLAN tag).
        PassedUnsupported = 4, "passed_unsupported";
        /// Seen by `to_pod`: delivered to the pod by the kernel path.
        DeliveredByKernel = 5, "delivered_by_kernel";
        /// Redirected by `bpf_redirect_neigh` to the uplink, with the node's next hop.
        RedirectedToNode = 6, "redirected_to_node";
        /// Redirected to the overlay device, with the node's address as tunnel destination.
        RedirectedToOverlay = 7, "redirected_to_overlay";
        /// Seen by `to_uplink`: a packet between pods that the kernel path sends to another node.
        SentByKernel = 8, "sent_by_kernel";
        /// Passed to the kernel, which answers with "time exceeded": the TTL or hop limit ends here.
        PassedTtlExpired = 9, "passed_ttl_expired";
        /// Passed to the kernel, which fragments it or answers with "fragmentation needed" or "packet too big".
        PassedTooBig = 10, "passed_too_big";
    }
}

numbered! {
    /// Why a packet was dropped.
    pub enum DropReason {
        /// The frame or a header in it is shorter than it says.
        Malformed = 0, "malformed";
        /// The interface belongs to no endpoint (the pod is being removed, or was never published).
        UnknownEndpoint = 1, "unknown_endpoint";
        /// The source MAC is not the pod's own.
        SpoofedMac = 2, "spoofed_mac";
        /// The source address is not the pod's own.
        SpoofedAddress = 3, "spoofed_address";
        /// An ARP packet claims a sender address or MAC that is not the pod's own.
        SpoofedArp = 4, "spoofed_arp";
        /// A neighbour discovery packet claims a target or link-layer address that is not the pod's own.
        SpoofedNeighbor = 5, "spoofed_neighbor";
        /// A router advertisement or an ICMPv6 redirect, which no pod may send.
        RogueRouter = 6, "rogue_router";
        /// The source is a pod address that the sending node does not have: this node's own, or, in the overlay, one
        /// of another node than the outer source.
        SpoofedNode = 7, "spoofed_node";
        /// An overlay packet from an address that is no node's.
        UnknownNode = 8, "unknown_node";
    }
}

impl Verdict {
    /// Returns the index of this verdict in `COUNTERS`.
    #[must_use]
    pub const fn counter_index(self) -> u32 {
        self as u32
    }
}

impl DropReason {
    /// Returns the index of this reason in `COUNTERS`.
    #[must_use]
    pub const fn counter_index(self) -> u32 {
        DROP_REASON_BASE + self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_fit_the_counters() {
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::from_raw(*verdict as u32), Some(*verdict));
            assert!(verdict.counter_index() < DROP_REASON_BASE);
        }
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_raw(*reason as u32), Some(*reason));
            assert!(reason.counter_index() < COUNTER_SLOTS);
        }
        assert_eq!(Verdict::from_raw(u32::MAX), None);
        assert_eq!(DropReason::from_raw(u32::MAX), None);
    }
}
