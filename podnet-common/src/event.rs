//! Records of the ring buffer `EVENTS`.

/// Bytes of the packet that an event carries, from the Ethernet header on.
pub const CAPTURE_LEN: usize = 96;

map_type! {
    /// One dropped packet.
    pub struct Event {
        /// `CLOCK_MONOTONIC` (coarse), in nanoseconds.
        pub timestamp_ns: u64,
        /// Number of a [`crate::verdict::DropReason`].
        pub reason: u32,
        /// Number of a [`Hook`].
        pub hook: u32,
        /// Interface at whose hook the packet was seen, in the node's network namespace.
        pub ifindex: u32,
        /// Length of the packet in bytes, Ethernet header included.
        pub packet_len: u32,
        /// How many bytes of `data` are valid.
        pub captured_len: u32,
        /// Events that were not sent since the last one of this CPU, because the rate limit was reached or the ring
        /// buffer was full.
        pub lost: u32,
        /// The first bytes of the packet as the hook saw it.
        pub data: [u8; CAPTURE_LEN],
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Hook {
    /// Ingress of a pod's host-side veth.
    FromPod = 0,
    /// Egress of a pod's host-side veth.
    ToPod = 1,
    /// Ingress of an uplink.
    FromUplink = 2,
    /// Egress of an uplink or of the overlay device.
    ToUplink = 3,
    /// Ingress of the overlay device.
    FromOverlay = 4,
}

impl Hook {
    /// Returns the program's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FromPod => crate::program_name::FROM_POD,
            Self::ToPod => crate::program_name::TO_POD,
            Self::FromUplink => crate::program_name::FROM_UPLINK,
            Self::ToUplink => crate::program_name::TO_UPLINK,
            Self::FromOverlay => crate::program_name::FROM_OVERLAY,
        }
    }

    /// Returns the hook with this number, or `None` if this build does not know it.
    #[must_use]
    pub const fn from_raw(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::FromPod),
            1 => Some(Self::ToPod),
            2 => Some(Self::FromUplink),
            3 => Some(Self::ToUplink),
            4 => Some(Self::FromOverlay),
            _ => None,
        }
    }
}
