//! Neighbour discovery (RFC 4861): a pod speaks for its own addresses and its own MAC only.

use podnet_common::{endpoint::link_local_address, verdict::DropReason};

use crate::{
    endpoint::Source,
    ip::{Address, icmpv6},
    packet::Octets,
};

/// Options that one message may have. The kernel's own messages have one or two; the verifier walks every number of
/// them, behind every number of extension headers.
const OPTIONS_MAX: u32 = 4;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// Checks a solicitation or a neighbour advertisement that lies at `at..end`. With an unspecified source, a
/// neighbour solicitation asks whether its target is taken (duplicate address detection), which makes any other node
/// that is about to take the target give up: so it must be the pod's own, as in an advertisement.
#[inline(always)]
pub(crate) fn check(
    packet: &impl Octets,
    source: Source,
    kind: u8,
    unspecified: bool,
    at: u32,
    end: u32,
) -> Result<(), DropReason> {
    if kind == icmpv6::ROUTER_SOLICITATION {
        return check_options(packet, source, at + 8, end);
    }
    if at + 24 > end {
        return Err(DropReason::Malformed);
    }
    if kind == icmpv6::NEIGHBOR_ADVERTISEMENT || unspecified {
        let target = Address::from_octets(packet.octets(at + 8)?);
        let own = target.is_specified() && target == source.v6();
        if !own && target != Address::from_octets(link_local_address(source.mac())) {
            return Err(DropReason::SpoofedNeighbor);
        }
    }
    check_options(packet, source, at + 24, end)
}

/// Checks that every link-layer address among the options is the pod's MAC.
#[inline(always)]
fn check_options(packet: &impl Octets, source: Source, start: u32, end: u32) -> Result<(), DropReason> {
    let mut offset = start;
    for _ in 0..OPTIONS_MAX {
        if offset == end {
            return Ok(());
        }
        if offset + 8 > end {
            return Err(DropReason::Malformed);
        }
        let [kind, units, m0, m1, m2, m3, m4, m5] = packet.octets::<8>(offset)?;
        if units == 0 {
            return Err(DropReason::Malformed);
        }
        if (kind == SOURCE_LINK_LAYER_ADDRESS || kind == TARGET_LINK_LAYER_ADDRESS)
            && !source.has_mac(u32::from_ne_bytes([m0, m1, m2, m3]), u16::from_ne_bytes([m4, m5]))
        {
            return Err(DropReason::SpoofedNeighbor);
        }
        offset += u32::from(units) * 8;
    }
    if offset == end { Ok(()) } else { Err(DropReason::Malformed) }
}
