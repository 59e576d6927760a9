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
}

macro_rules! word {
    ($type:ident, $instruction:literal) => {
        impl Word for $type {
            #[inline(always)]
            #[cfg(target_arch = "bpf")]
            unsafe fn load<const OFFSET: usize>(start: *const u8) -> Self {
                let word: u64;
                // SAFETY: the caller's promise; the instruction does nothing but load.
                unsafe {
                    core::arch::asm!(
                        $instruction,
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
        }
    };
}

word!(u8, "{word} = *(u8 *)({start} + {offset})");
word!(u16, "{word} = *(u16 *)({start} + {offset})");
word!(u32, "{word} = *(u32 *)({start} + {offset})");
word!(u64, "{word} = *(u64 *)({start} + {offset})");

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
///
/// A store by pointer saves a call of `bpf_skb_store_bytes`, a fifth of the program's time. It makes the kernel put a
/// prologue before the program (`tc_cls_act_prologue`), which unshares a cloned packet; for TCP's own clones, whose
/// headers are private already, that is as much work as the call.
#[inline(always)]
pub(crate) fn set_macs(ctx: &TcContext, macs: [u32; 3]) -> Option<()> {
    let Headers { start } = linear::<{ ETHERNET_LEN as usize }>(ctx)?;
    // SAFETY: 14 bytes from `start` on are in the packet, which is private to this program.
    unsafe {
        store_word::<0>(start, macs[0]);
        store_word::<4>(start, macs[1]);
        store_word::<8>(start, macs[2]);
    }
    Some(())
}

/// Stores a word that may be misaligned; see [`Word`].
///
/// # Safety
///
/// `start + OFFSET` is valid for writes of a word.
#[inline(always)]
unsafe fn store_word<const OFFSET: usize>(start: *const u8, word: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise; the instruction does nothing but store.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({start} + {offset}) = {word}",
            start = in(reg) start,
            word = in(reg) u64::from(word),
            offset = const OFFSET,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        start.cast_mut().add(OFFSET).cast::<u32>().write_unaligned(word);
    }
}

/// Index of the interface at whose hook the packet is.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is readable while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
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
