//! Values that the daemon writes into the object's `.rodata` before it loads the programs. They are constants to
//! the verifier, so a stage that is off costs nothing.

map_type! {
    /// The global `SETTINGS` of the object.
    pub struct Settings {
        /// Drop events that one CPU may send per tick of 2^30 ns (1.07 s); zero sends none.
        pub events_per_tick: u32,
        /// Non-zero: verdicts are counted (drops always are).
        pub count_verdicts: u32,
    }
}

impl Settings {
    /// Name of the global in the object.
    pub const NAME: &'static str = "SETTINGS";
    /// What the object holds if the daemon writes nothing.
    pub const DEFAULT: Self = Self { events_per_tick: 256, count_verdicts: 1 };
}
