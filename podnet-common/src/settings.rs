//! Values that the daemon writes into the object's `.rodata` before it loads the programs. They are constants to
//! the verifier, so a stage that is off costs nothing.

map_type! {
    /// The global `SETTINGS` of the object.
    pub struct Settings {
        /// Drop events that one CPU may send per tick of 2^30 ns (1.07 s); zero sends none.
        pub events_per_tick: u32,
        /// Non-zero: verdicts are counted (drops always are).
        pub count_verdicts: u32,
        /// Prefix of the cluster's usual IPv4 pod CIDR as a mask in network byte order: what of a destination is the key
        /// of `NODES`. All zero: no IPv4 pod CIDR is there.
        pub node_mask_v4: [u8; 4],
        /// Likewise for IPv6.
        pub node_mask_v6: [u8; 16],
        /// Non-zero: some pod CIDR has another size, so what `NODES` has not is looked up in `NODES_LPM`.
        pub nodes_lpm: u32,
        /// Index of the bridge: what it has received and sends on through an uplink went by the kernel path.
        pub bridge_ifindex: u32,
        /// VXLAN network identifier of the overlay.
        pub vni: u32,
    }
}

impl Settings {
    /// Name of the global in the object.
    pub const NAME: &'static str = "SETTINGS";
    /// What the object holds if the daemon writes nothing.
    pub const DEFAULT: Self = Self {
        events_per_tick: 256,
        count_verdicts: 1,
        node_mask_v4: [0; 4],
        node_mask_v6: [0; 16],
        nodes_lpm: 0,
        bridge_ifindex: 0,
        vni: 0,
    };
}
