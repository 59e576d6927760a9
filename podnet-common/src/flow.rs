//! Flows between two pods of which at least one is also served by the kernel path, and who owns each.
//!
//! A reply must go back the way its request came, or netfilter could not undo a translation. An absent entry means
//! "kernel path", which is always right; so a lost or evicted entry costs speed, never correctness. A flow comes to
//! the eBPF path in one of two ways:
//!
//! * a TCP SYN from a pod straight to a pod address opens a flow that no translation can concern: it is claimed
//!   at once;
//! * for everything else, `from_pod` notes that it handed a packet to the kernel (`SEEN_*`), and when `to_pod` sees
//!   the kernel deliver a packet with those very addresses and ports, nobody translated it: the flow is claimed.
//!
//! A packet that the kernel delivers although `from_pod` never handed it up with this tuple was translated on the
//! way: the flow becomes kernel-owned.

use crate::address::Address;

map_type! {
    /// A flow, the same for both directions: key of `KERNEL_FLOWS`. The end with the smaller (address, port) in
    /// network byte order is the first one.
    pub struct FlowKey {
        /// Address of the first end.
        pub first: Address,
        /// Address of the second end.
        pub second: Address,
        /// Port of the first end in network byte order; the ICMP identifier for echo (both ends); zero if the
        /// protocol has no ports.
        pub first_port: [u8; 2],
        /// Port of the second end in network byte order; likewise.
        pub second_port: [u8; 2],
        /// IP protocol number.
        pub protocol: u8,
        /// Always zero.
        pub reserved: [u8; 3],
    }
}

map_type! {
    /// Who owns a flow: value of `KERNEL_FLOWS` (LRU hash).
    pub struct Flow {
        /// Bits of [`Flow::OWNED_BY_EBPF`], [`Flow::OWNED_BY_KERNEL`], [`Flow::SEEN_FROM_FIRST`] and
        /// [`Flow::SEEN_FROM_SECOND`].
        pub state: u32,
        /// Last time the kernel path carried a packet of the flow, in [`Flow::TICK_SHIFT`] ticks of the monotonic
        /// clock.
        pub last_seen: u32,
    }
}

impl Flow {
    /// The programs may redirect the flow's packets.
    pub const OWNED_BY_EBPF: u32 = 1 << 0;
    /// The kernel translated the flow: both directions take the kernel path.
    pub const OWNED_BY_KERNEL: u32 = 1 << 1;
    /// `from_pod` handed a packet from the first end to the second end to the kernel.
    pub const SEEN_FROM_FIRST: u32 = 1 << 2;
    /// `from_pod` handed a packet from the second end to the first end to the kernel.
    pub const SEEN_FROM_SECOND: u32 = 1 << 3;
    /// A tick is 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`.
    pub const TICK_SHIFT: u32 = 30;
}
