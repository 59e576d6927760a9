//! Maps `ENDPOINTS` and `ENDPOINTS_BY_IFINDEX`, and their lookups. The daemon writes entries; the programs only set
//! flags in them.
//!
//! Both are hashes with `BPF_F_NO_PREALLOC`: a node has far fewer pods than the maps have room for. An entry that is
//! removed while a program holds it stays readable (its memory is returned to the system after an RCU grace period
//! only), but since kernel 6.1 another entry of the same map may be made of it at once (`bpf_mem_alloc`). So a program
//! that meets a removal may see, for the rest of its run, some other pod's entry. What follows is bounded:
//!
//! * a target's fields are used once, and lead to a pod that is there; it gets one frame for an address that is not
//!   its own, and ignores it;
//! * a source's fields belong to the guard of a pod that is going: at worst its last packet is dropped, or passes as
//!   the pod that took its place in memory;
//! * a flag that is set in the wrong entry costs that endpoint a look-up per packet, nothing else.

use core::mem::offset_of;

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap};
use podnet_common::{
    address::Address as AddressKey,
    endpoint::{Endpoint, EndpointSource},
};

use crate::ip::Address;

#[map]
static ENDPOINTS: HashMap<AddressKey, Endpoint> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
static ENDPOINTS_BY_IFINDEX: HashMap<u32, EndpointSource> = HashMap::with_max_entries(32_768, BPF_F_NO_PREALLOC);

/// Looks up the endpoint that has an address.
#[inline(always)]
pub(crate) fn lookup(address: &Address) -> Option<Target> {
    ENDPOINTS.get_ptr_mut(address.as_key()).map(Target)
}

/// Looks up what the pod behind a host-side veth may send.
#[inline(always)]
pub(crate) fn source(ifindex: u32) -> Option<Source> {
    ENDPOINTS_BY_IFINDEX.get_ptr_mut(ifindex).map(Source)
}

/// An entry of `ENDPOINTS`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Target(*mut Endpoint);

impl Target {
    /// Index of the host-side veth.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: a map value is readable until the program ends (see the module's comment).
        unsafe { (*self.0).ifindex }
    }

    /// MTU of the veth.
    #[inline(always)]
    pub(crate) fn mtu(self) -> u32 {
        // SAFETY: as for `ifindex`.
        unsafe { (*self.0).mtu }
    }

    /// Whether packets from or to the endpoint need a look at the flow.
    #[inline(always)]
    pub(crate) fn is_touched(self) -> bool {
        // SAFETY: as for `ifindex`. Volatile: `to_pod` sets the flag on other CPUs.
        unsafe { (&raw const (*self.0).flags).read_volatile() & Endpoint::KERNEL_TOUCHED != 0 }
    }

    /// Sets the flag that [`Target::is_touched`] reads.
    #[inline(always)]
    pub(crate) fn touch(self) {
        if !self.is_touched() {
            // SAFETY: as for `ifindex`.
            unsafe { set_flag(&raw mut (*self.0).flags, Endpoint::KERNEL_TOUCHED) };
        }
    }

    /// The first 12 bytes of a frame for the endpoint, its MAC and the gateway's, as three words.
    #[inline(always)]
    #[expect(clippy::cast_ptr_alignment, reason = "a map value is aligned to 8, and the field's offset is asserted")]
    pub(crate) fn macs(self) -> [u32; 3] {
        const {
            assert!(offset_of!(Endpoint, mac) % 4 == 0);
            assert!(offset_of!(Endpoint, gateway_mac) == offset_of!(Endpoint, mac) + 6);
        }
        // SAFETY: as for `ifindex`; the two fields are adjacent, have 12 bytes in all and start aligned (asserted above).
        unsafe { (&raw const (*self.0).mac).cast::<[u32; 3]>().read() }
    }
}

/// An entry of `ENDPOINTS_BY_IFINDEX`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Source(*mut EndpointSource);

#[expect(clippy::cast_ptr_alignment, reason = "a map value is aligned to 8, and each field to its size in it")]
impl Source {
    /// The pod's IPv4 address as it stands in a packet; zero if it has none.
    #[inline(always)]
    pub(crate) fn v4(self) -> u32 {
        // SAFETY: a map value is readable until the program ends (see the module's comment), and aligned to 8 bytes.
        unsafe { (&raw const (*self.0).v4).cast::<u32>().read() }
    }

    /// The pod's IPv6 address; unspecified if it has none.
    #[inline(always)]
    pub(crate) fn v6(self) -> Address {
        // SAFETY: as for `v4`; the field is 8 bytes into the value.
        let [high, low] = unsafe { (&raw const (*self.0).v6).cast::<[u64; 2]>().read() };
        Address::new(high, low)
    }

    /// The pod's MAC.
    #[inline(always)]
    pub(crate) fn mac(self) -> [u8; 6] {
        // SAFETY: as for `v4`.
        unsafe { (*self.0).mac }
    }

    /// Whether a MAC, as its first four and last two bytes stand in a packet, is the pod's.
    #[inline(always)]
    pub(crate) fn has_mac(self, first: u32, last: u16) -> bool {
        // SAFETY: as for `v4`; the field is 24 bytes into the value.
        let (own_first, own_last) = unsafe {
            let mac = &raw const (*self.0).mac;
            (mac.cast::<u32>().read(), mac.cast::<u16>().add(2).read())
        };
        (first ^ own_first) | u32::from(last ^ own_last) == 0
    }

    /// The `KERNEL_TOUCHED_*` bits.
    #[inline(always)]
    pub(crate) fn flags(self) -> u32 {
        // SAFETY: as for `v4`. Volatile: `to_pod` sets flags on other CPUs.
        unsafe { (&raw const (*self.0).flags).read_volatile() }
    }

    /// Sets one of [`Source::flags`].
    #[inline(always)]
    pub(crate) fn touch(self, flag: u32) {
        if self.flags() & flag == 0 {
            // SAFETY: as for `v4`.
            unsafe { set_flag(&raw mut (*self.0).flags, flag) };
        }
    }

    /// Makes a source of a value that outlives it, for tests.
    #[cfg(test)]
    pub(crate) fn of(value: &mut EndpointSource) -> Self {
        Self(value)
    }
}

/// Sets one flag. Each flag has a byte of its own, so this is a plain store, and cannot undo one by another CPU.
///
/// # Safety
///
/// `flags` is valid for writes.
#[inline(always)]
unsafe fn set_flag(flags: *mut u32, flag: u32) {
    let index = flag.trailing_zeros() / 8;
    // By a shift, not out of an array: the verifier forbids what the compiler makes of an index into the stack.
    let value = (flag >> (index * 8)) as u8;
    let index = if cfg!(target_endian = "little") { index } else { 3 - index };
    // SAFETY: the caller's promise; a `u32` has four bytes.
    unsafe { flags.cast::<u8>().add(index as usize).write_volatile(value) };
}
