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
pub mod settings;
pub mod verdict;

/// Version of every layout in this crate. Pins carry it (`v1/ENDPOINTS`), so that a daemon never re-uses a map
/// whose layout it does not know. Raise it when any layout changes.
pub const LAYOUT_VERSION: u32 = 1;

/// Names of the maps, as declared by the programs and pinned by the daemon.
pub mod map_name {
    /// Pod address -> endpoint: [`crate::endpoint::Endpoint`].
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// Host-side interface index -> what the pod behind it may send: [`crate::endpoint::EndpointSource`].
    pub const ENDPOINTS_BY_IFINDEX: &str = "ENDPOINTS_BY_IFINDEX";
    /// Flow of an endpoint that the kernel path serves, too -> its owner: [`crate::flow::Flow`].
    pub const KERNEL_FLOWS: &str = "KERNEL_FLOWS";
    /// Counter index -> packets and bytes, per CPU: [`crate::verdict::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
    /// All of the above, in the order in which `podnet maps dump` prints them.
    pub const ALL: [&str; 5] = [ENDPOINTS, ENDPOINTS_BY_IFINDEX, KERNEL_FLOWS, COUNTERS, EVENTS];
}

/// Names of the programs, as declared in the object.
pub mod program_name {
    /// Ingress of a pod's host-side veth: what the pod sends.
    pub const FROM_POD: &str = "from_pod";
    /// Egress of a pod's host-side veth: what the kernel path delivers to the pod.
    pub const TO_POD: &str = "to_pod";
}
