//! Bounds-checked access to a packet: the only place with raw packet pointers. Common headers are read in place;
//! everything else is copied out by a helper, which also reaches parts that are not linear.

use aya_ebpf::programs::TcContext;
use podnet_common::verdict::DropReason;

/// Length of an Ethernet header.
pub(crate) const ETHERNET_LEN: u32 = 14;

/// Packet types, from <linux/if_packet.h>: the frame is for this host's MAC ...
pub(crate) const PACKET_HOST: u32 = 0;
/// ... or for another one's. Between the two are broadcast and multicast.
const PACKET_OTHERHOST: u32 = 3;

/// The first `LEN` bytes of a packet, proven to be there.
#[derive(Clone, Copy)]
pub(crate) struct Headers<const LEN: usize> {
    start: *const u8,
}

impl<const LEN: usize> Headers<LEN> {
    /// Reads a word in the packet's own byte order.
    #[inline(always)]
    pub(crate) fn read<W: Word, const OFFSET: usize>(self) -> W {
        const { assert!(OFFSET + size_of::<W>() <= LEN) }
        // SAFETY: `LEN` bytes from `start` on are in the packet, and the word is within them (asserted above).
        unsafe { W::load::<OFFSET>(self.start) }
    }

    /// Writes a word in the packet's own byte order.
    ///
    /// A store by pointer saves a call of `bpf_skb_store_bytes`, a fifth of the program's time. It makes the kernel put a
    /// prologue before the program (`tc_cls_act_prologue`), which unshares a cloned packet; for TCP's own clones, whose
    /// headers are private already, that is as much work as the call.
    #[inline(always)]
    pub(crate) fn write<W: Word, const OFFSET: usize>(self, word: W) {
        const { assert!(OFFSET + size_of::<W>() <= LEN) }
        // SAFETY: as for `read`; the packet is private to this program.
        unsafe { word.store::<OFFSET>(self.start.cast_mut()) }
    }
}

/// Integers that any bytes are valid for, and one instruction loads.
///
/// Words of a packet are not aligned. x86-64 and arm64 load them all the same, and the verifier allows it there
/// (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`). The compiler, though, would put each together from its bytes; and where
/// it is told that misaligned loads are fine, it makes them from the stack, too, where the verifier forbids them.
pub(crate) trait Word: Copy {
    /// Loads a word.
    ///
    /// # Safety
    ///
    /// `start + OFFSET` is valid for reads of a word.
    unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self;

    /// Stores a word.
    ///
    /// # Safety
    ///
    /// `start + OFFSET` is valid for writes of a word.
    unsafe fn store<const OFFSET: usize>(self, start: *mut u8);
}

macro_rules! word {
    ($type:ident, $load:literal, $store:literal) => {
        impl Word for $type {
            #[inline(always)]
            #[cfg(target_arch = "bpf")]
            unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                let word: u64;
                // SAFETY: the caller's promise; the instruction does nothing but load.
                unsafe {
                    core::arch::asm!(
                        $load,
                        word = lateout(reg) word,
                        start = in(reg) start,
                        offset = const OFFSET,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                word as Self
            }

            #[inline(always)]
            #[cfg(not(target_arch = "bpf"))]
            unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                // SAFETY: the caller's promise.
                unsafe { start.add(OFFSET).cast::<Self>().read_unaligned() }
            }

            #[inline(always)]
            #[cfg(target_arch = "bpf")]
            unsafe fn store<const OFFSET: usize>(self, start: *mut u8) {
                // SAFETY: the caller's promise; the instruction does nothing but store.
                unsafe {
                    core::arch::asm!(
                        $store,
                        start = in(reg) start,
                        word = in(reg) u64::from(self),
                        offset = const OFFSET,
                        options(nostack, preserves_flags),
                    );
                }
            }

            #[inline(always)]
            #[cfg(not(target_arch = "bpf"))]
            unsafe fn store<const OFFSET: usize>(self, start: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { start.add(OFFSET).cast::<Self>().write_unaligned(self) }
            }
        }
    };
}

word!(u8, "{word} = *(u8 *)({start} + {offset})", "*(u8 *)({start} + {offset}) = {word}");
word!(u16, "{word} = *(u16 *)({start} + {offset})", "*(u16 *)({start} + {offset}) = {word}");
word!(u32, "{word} = *(u32 *)({start} + {offset})", "*(u32 *)({start} + {offset}) = {word}");
word!(u64, "{word} = *(u64 *)({start} + {offset})", "*(u64 *)({start} + {offset}) = {word}");

/// Returns the packet's first `LEN` bytes.
///
/// # Errors
///
/// The packet is shorter: malformed.
#[inline(always)]
pub(crate) fn headers<const LEN: usize>(ctx: &TcContext) -> Result<Headers<LEN>, DropReason> {
    if let Some(headers) = linear(ctx) {
        return Ok(headers);
    }
    // Only now, and only the headers: GSO packets may keep everything in pages.
    if (ctx.len() as usize) < LEN || ctx.pull_data(LEN as u32).is_err() {
        return Err(DropReason::Malformed);
    }
    linear(ctx).ok_or(DropReason::Malformed)
}

/// Returns the packet's first `LEN` bytes if they are linear.
#[inline(always)]
pub(crate) fn linear<const LEN: usize>(ctx: &TcContext) -> Option<Headers<LEN>> {
    let start = ctx.data();
    (start + LEN <= ctx.data_end()).then_some(Headers { start: start as *const u8 })
}

/// Overwrites both MACs of the frame. `None`: its header is not linear.
#[inline(always)]
pub(crate) fn set_macs(ctx: &TcContext, macs: [u32; 3]) -> Option<()> {
    let headers = linear::<{ ETHERNET_LEN as usize }>(ctx)?;
    headers.write::<u32, 0>(macs[0]);
    headers.write::<u32, 4>(macs[1]);
    headers.write::<u32, 8>(macs[2]);
    Some(())
}

/// Index of the interface at whose hook the packet is.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Index of the interface by which the kernel received the packet last: of a packet that goes out, and has been forwarded,
/// where it came from. Zero: the node made it.
#[inline(always)]
pub(crate) fn ingress_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as for `ifindex`.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// Payload of each segment of a GSO packet in bytes; zero for all others.
#[inline(always)]
pub(crate) fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: as for `ifindex`.
    unsafe { (*ctx.skb.skb).gso_size }
}

/// Whether the kernel took a VLAN tag out of the frame.
#[inline(always)]
pub(crate) fn is_vlan_tagged(ctx: &TcContext) -> bool {
    // SAFETY: as for `ifindex`.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Whether the frame is for the MAC of the interface.
#[inline(always)]
pub(crate) fn is_for_this_host(ctx: &TcContext) -> bool {
    // SAFETY: as for `ifindex`.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST }
}

/// Whether the frame is for a broadcast or multicast MAC.
#[inline(always)]
pub(crate) fn is_group_frame(ctx: &TcContext) -> bool {
    // SAFETY: as for `ifindex`.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    kind != PACKET_HOST && kind != PACKET_OTHERHOST
}

/// Something to copy bytes from, wherever they are: a packet, or a slice in tests.
pub(crate) trait Octets {
    /// Length in bytes.
    fn len(&self) -> u32;

    /// Copies `N` bytes from an offset on.
    ///
    /// # Errors
    ///
    /// They are not all there: malformed.
    fn octets<const N: usize>(&self, offset: u32) -> Result<[u8; N], DropReason>;
}

impl Octets for TcContext {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn octets<const N: usize>(&self, offset: u32) -> Result<[u8; N], DropReason> {
        self.skb.load(offset as usize).map_err(|_errno| DropReason::Malformed)
    }
}

#[cfg(test)]
impl Octets for &[u8] {
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }

    fn octets<const N: usize>(&self, offset: u32) -> Result<[u8; N], DropReason> {
        let bytes = self.get(offset as usize..offset as usize + N).ok_or(DropReason::Malformed)?;
        Ok(core::array::from_fn(|i| bytes[i]))
    }
}
