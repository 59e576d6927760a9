//! Drop events: reads the ring buffer `EVENTS`, and decodes what it can of each packet.

use std::{
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use bytes::Buf as _;
use podnet_common::{
    event::{CAPTURE_LEN, Event, Hook},
    map_name,
    verdict::DropReason,
};

use super::maps;
use crate::api::Mac;

/// The reader of the ring buffer. There must be one per node: what one takes, another does not see.
///
/// Its descriptor is readable when there are events: drive it with `AsyncFd`, call [`Events::next_event`] until it
/// returns `None`, then clear the readiness.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the pinned ring buffer.
    pub fn from_pins(pin_dir: &Path) -> Result<Self> {
        let map = maps::open(pin_dir, map_name::EVENTS)?;
        let ring = map.try_into().with_context(|| format!("map {}", pin_dir.join(map_name::EVENTS).display()))?;
        Ok(Self(ring))
    }

    /// Takes the next event; `None` if there is none now.
    pub fn next_event(&mut self) -> Option<DropEvent> {
        // A record of another size is none of this layout's; the next one may be.
        loop {
            let record = self.0.next()?;
            if let Some(event) = DropEvent::decode(&record) {
                return Some(event);
            }
            tracing::warn!(bytes = record.len(), "skip a record of unknown size in the ring buffer EVENTS");
        }
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// `CLOCK_MONOTONIC` (coarse), in nanoseconds.
    pub timestamp_ns: u64,
    /// Number of the reason; [`DropEvent::reason_name`] names it.
    pub reason: u32,
    /// Number of the hook; [`DropEvent::hook_name`] names it.
    pub hook: u32,
    /// Interface at whose hook the packet was seen.
    pub ifindex: u32,
    /// Length of the packet in bytes.
    pub packet_len: u32,
    /// Events that were not sent since the last one of the same CPU.
    pub lost: u32,
    /// The first bytes of the packet.
    pub data: Vec<u8>,
}

impl DropEvent {
    /// Decodes a record; `None` if it is not as long as an [`Event`].
    #[must_use]
    pub fn decode(mut record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Event>() {
            return None;
        }
        let timestamp_ns = record.get_u64_ne();
        let [reason, hook, ifindex, packet_len, captured_len, lost] = std::array::from_fn(|_| record.get_u32_ne());
        let captured = (captured_len as usize).min(CAPTURE_LEN);
        Some(Self { timestamp_ns, reason, hook, ifindex, packet_len, lost, data: record[..captured].to_vec() })
    }

    /// Returns the name of the reason, or `unknown`: a newer build's programs may know more.
    #[must_use]
    pub fn reason_name(&self) -> &'static str {
        DropReason::from_raw(self.reason).map_or("unknown", DropReason::as_str)
    }

    /// Returns the name of the hook, or `unknown`.
    #[must_use]
    pub fn hook_name(&self) -> &'static str {
        Hook::from_raw(self.hook).map_or("unknown", Hook::as_str)
    }

    /// Returns what the first bytes say about the packet, as far as they go.
    #[must_use]
    pub fn summary(&self) -> PacketSummary {
        PacketSummary::parse(&self.data)
    }
}

impl std::fmt::Display for DropEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} interface {}: {}, {} bytes",
            self.hook_name(),
            self.reason_name(),
            self.ifindex,
            self.summary(),
            self.packet_len
        )
    }
}

/// What the first bytes of a packet say; fields are absent where the packet is too short, or says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSummary {
    /// Source MAC. Not an [`Mac`] that an interface must be able to have: the packet may be spoofed.
    pub source_mac: Option<Mac>,
    /// Destination MAC.
    pub destination_mac: Option<Mac>,
    /// Ethertype, behind VLAN tags that are in the frame.
    pub ethertype: Option<u16>,
    /// Source address; the sender's of an ARP packet.
    pub source: Option<IpAddr>,
    /// Destination address; the target's of an ARP packet.
    pub destination: Option<IpAddr>,
    /// IP protocol: of IPv6, the first header's.
    pub protocol: Option<u8>,
    /// Source and destination port of TCP, UDP and SCTP.
    pub ports: Option<(u16, u16)>,
    /// Type of ICMP or ICMPv6.
    pub icmp_type: Option<u8>,
}

impl PacketSummary {
    /// Parses the first bytes of an Ethernet frame.
    #[must_use]
    pub fn parse(data: &[u8]) -> Self {
        let mut summary =
            Self { destination_mac: array(data, 0).map(Mac), source_mac: array(data, 6).map(Mac), ..Self::default() };
        let mut offset = 12;
        while matches!(ethertype(data, offset), Some(0x8100 | 0x88a8)) {
            offset += 4;
        }
        summary.ethertype = ethertype(data, offset);
        let payload = data.get(offset + 2..).unwrap_or_default();
        match summary.ethertype {
            Some(0x0800) => summary.parse_ipv4(payload),
            Some(0x86dd) => summary.parse_ipv6(payload),
            Some(0x0806) => {
                summary.source = array::<4>(payload, 14).map(IpAddr::from);
                summary.destination = array::<4>(payload, 24).map(IpAddr::from);
            }
            _ => {}
        }
        summary
    }

    fn parse_ipv4(&mut self, header: &[u8]) {
        self.source = array::<4>(header, 12).map(IpAddr::from);
        self.destination = array::<4>(header, 16).map(IpAddr::from);
        self.protocol = header.get(9).copied();
        let later_fragment = array(header, 6).is_some_and(|field| u16::from_be_bytes(field) & 0x1fff != 0);
        let header_len = header.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
        if !later_fragment && header_len >= 20 {
            self.parse_transport(header.get(header_len..).unwrap_or_default());
        }
    }

    fn parse_ipv6(&mut self, header: &[u8]) {
        self.source = array::<16>(header, 8).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
        self.destination = array::<16>(header, 24).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
        self.protocol = header.get(6).copied();
        self.parse_transport(header.get(40..).unwrap_or_default());
    }

    fn parse_transport(&mut self, header: &[u8]) {
        match self.protocol {
            Some(6 | 17 | 132) => {
                self.ports = array(header, 0)
                    .zip(array(header, 2))
                    .map(|(from, to)| (u16::from_be_bytes(from), u16::from_be_bytes(to)));
            }
            Some(1 | 58) => self.icmp_type = header.first().copied(),
            _ => {}
        }
    }
}

impl std::fmt::Display for PacketSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(mac) = self.source_mac {
            write!(f, "from {mac} ")?;
        }
        match (self.ethertype, self.protocol) {
            (Some(0x0806), _) => f.write_str("ARP")?,
            (_, Some(6)) => f.write_str("TCP")?,
            (_, Some(17)) => f.write_str("UDP")?,
            (_, Some(132)) => f.write_str("SCTP")?,
            (_, Some(1)) => f.write_str("ICMP")?,
            (_, Some(58)) => f.write_str("ICMPv6")?,
            (_, Some(protocol)) => write!(f, "IP protocol {protocol}")?,
            (Some(ethertype), None) => write!(f, "ethertype {ethertype:#06x}")?,
            (None, None) => f.write_str("truncated frame")?,
        }
        if let Some(kind) = self.icmp_type {
            write!(f, " type {kind}")?;
        }
        if let (Some(source), Some(destination)) = (self.source, self.destination) {
            match self.ports {
                Some((from, to)) => write!(f, " {source} port {from} > {destination} port {to}")?,
                None => write!(f, " {source} > {destination}")?,
            }
        }
        Ok(())
    }
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

fn ethertype(data: &[u8], offset: usize) -> Option<u16> {
    array(data, offset).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPOOFED: [u8; 42] = [
        0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x01, 0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02, 0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0,
        64, 17, 0, 0, 10, 244, 1, 9, 10, 244, 1, 3, 0x9c, 0x40, 0, 53, 0, 8, 0, 0,
    ];

    fn record(captured: u32) -> Vec<u8> {
        let mut record = 7u64.to_ne_bytes().to_vec();
        for field in [DropReason::SpoofedAddress as u32, Hook::FromPod as u32, 12, 42, captured, 3] {
            record.extend(field.to_ne_bytes());
        }
        record.extend(SPOOFED);
        record.resize(size_of::<Event>(), 0);
        record
    }

    #[test]
    fn a_record_is_decoded_and_described() {
        let event = DropEvent::decode(&record(42)).unwrap();
        assert_eq!((event.timestamp_ns, event.ifindex, event.packet_len, event.lost), (7, 12, 42, 3));
        assert_eq!(event.data, SPOOFED);
        assert_eq!(
            event.to_string(),
            "from_pod spoofed_address interface 12: from 0a:58:0a:f4:01:02 UDP 10.244.1.9 port 40000 > 10.244.1.3 port 53, 42 bytes"
        );
    }

    #[test]
    fn records_of_other_sizes_and_wrong_lengths_are_harmless() {
        assert_eq!(DropEvent::decode(&record(42)[1..]), None);
        assert_eq!(DropEvent::decode(&record(u32::MAX)).unwrap().data.len(), CAPTURE_LEN);
    }

    #[test]
    fn every_prefix_of_a_packet_can_be_summarised() {
        for len in 0..SPOOFED.len() {
            let summary = PacketSummary::parse(&SPOOFED[..len]);
            assert_eq!(summary.ports.is_some(), len >= 38, "{summary}");
            assert_eq!(summary.source.is_some(), len >= 30, "{summary}");
        }
    }
}
