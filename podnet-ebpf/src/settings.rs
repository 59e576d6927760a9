//! The global `SETTINGS`: the daemon overwrites it before it loads the object; the verifier then takes it for a constant
//! and removes what is off.

use podnet_common::settings::Settings;

use crate::ip::{Address, Family};

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

/// Which bits of a destination are the key of `NODES`; `None`: the family has no pod CIDRs of the usual size.
#[inline(always)]
#[expect(clippy::cast_ptr_alignment, reason = "the masks are four words into a struct of words")]
pub(crate) fn node_mask(family: Family) -> Option<Address> {
    const {
        assert!(core::mem::offset_of!(Settings, node_mask_v4) % 4 == 0);
        assert!(core::mem::offset_of!(Settings, node_mask_v6) % 4 == 0);
    }
    match family {
        Family::V4 => {
            // SAFETY: as for `count_verdicts`; the field is aligned to a word (asserted above).
            let mask = unsafe { (&raw const SETTINGS.node_mask_v4).cast::<u32>().read_volatile() };
            (mask != 0).then(|| Address::v4_mask(mask))
        }
        Family::V6 => {
            // SAFETY: as for IPv4. Words, because the field is not aligned to more.
            let [a, b, c, d] = unsafe { (&raw const SETTINGS.node_mask_v6).cast::<[u32; 4]>().read_volatile() };
            (a != 0).then(|| Address::from_words([a, b, c, d]))
        }
    }
}

/// Whether some pod CIDR has another size than the usual one.
#[inline(always)]
pub(crate) fn nodes_lpm() -> bool {
    // SAFETY: as for `count_verdicts`.
    unsafe { (&raw const SETTINGS.nodes_lpm).read_volatile() != 0 }
}

/// Index of the bridge.
#[inline(always)]
pub(crate) fn bridge_ifindex() -> u32 {
    // SAFETY: as for `count_verdicts`.
    unsafe { (&raw const SETTINGS.bridge_ifindex).read_volatile() }
}

/// VXLAN network identifier of the overlay.
#[inline(always)]
pub(crate) fn vni() -> u32 {
    // SAFETY: as for `count_verdicts`.
    unsafe { (&raw const SETTINGS.vni).read_volatile() }
}
