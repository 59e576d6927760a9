//! The global `SETTINGS`: the daemon overwrites it before it loads the object; the verifier then takes it for a constant
//! and removes what is off.

use podnet_common::settings::Settings;

#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::DEFAULT;

/// Whether verdicts are counted.
#[inline(always)]
pub(crate) fn count_verdicts() -> bool {
    // SAFETY: a valid static. Volatile, because the value is not the one that the compiler sees.
    unsafe { (&raw const SETTINGS.count_verdicts).read_volatile() != 0 }
}

/// Drop events that one CPU may send per tick.
#[inline(always)]
pub(crate) fn events_per_tick() -> u32 {
    // SAFETY: as for `count_verdicts`.
    unsafe { (&raw const SETTINGS.events_per_tick).read_volatile() }
}
