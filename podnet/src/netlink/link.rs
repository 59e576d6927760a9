//! Links: the bridge and its ports, veth pairs.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::{
    LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVxlan,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth,
            InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
        },
    },
};

use super::{Error, Request, Socket, Tolerate};
use crate::api::Mac;

/// Index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX` in net/flow.h).
pub const LOOPBACK: u32 = 1;

/// What podnet wants to know of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MAC; zero for links without one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// Link group (`IFLA_GROUP`).
    pub group: u32,
    /// `bridge`, `veth`, ...; empty for hardware.
    pub kind: String,
    /// Bridge port settings as podnet makes them; `None` unless a bridge port.
    pub port: Option<PortSettings>,
    /// UDP port of a VXLAN device in collect-metadata mode; `None` unless it is one.
    pub vxlan_port: Option<u16>,
    /// Its other end, for a veth: index, where it is.
    pub peer: Option<u32>,
    /// Number of the namespace where its other end is, if that is another one.
    pub peer_netns: Option<i32>,
}

/// The settings of a bridge port that podnet cares about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// A frame may leave by the port that it came by: a pod that reaches itself through a service address, with
    /// br_netfilter on.
    pub hairpin: bool,
    /// The bridge learns source MACs from the port.
    pub learning: bool,
    /// Frames to unknown MACs are flooded to the port.
    pub unicast_flood: bool,
}

impl PortSettings {
    /// What every pod's port has: MACs are known from the start, so nothing is learned and nothing flooded.
    pub const POD: Self = Self { hairpin: true, learning: false, unicast_flood: false };
}

/// A veth pair to create: the host end in this namespace, the other in the pod's.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// MAC of the host end.
    pub host_mac: Mac,
    /// Index of the bridge that the host end joins.
    pub bridge: u32,
    /// Name of the pod end.
    pub pod_name: &'a str,
    /// MAC of the pod end.
    pub pod_mac: Mac,
    /// Network namespace of the pod.
    pub pod_netns: BorrowedFd<'a>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

impl VethPair<'_> {
    /// Returns the one request that creates the pair: the host end up and on the bridge, the pod end down (the kernel
    /// refuses `IFF_UP` on the peer with ENOTCONN).
    #[must_use]
    pub fn create(&self) -> Request {
        // One queue, as veth uses by itself: unasked, the kernel makes one per CPU and waits for a grace period when it
        // then turns all but one off (veth_init_queues in drivers/net/veth.c).
        let one_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.pod_name.to_owned()),
            LinkAttribute::Address(self.pod_mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::NetNsFd(self.pod_netns.as_raw_fd()),
        ];
        peer.attributes.extend(one_queue.clone());
        let mut host = LinkMessage::default();
        host.header.flags = LinkFlags::Up;
        host.header.change_mask = LinkFlags::Up;
        host.attributes = vec![
            LinkAttribute::IfName(self.host_name.to_owned()),
            LinkAttribute::Address(self.host_mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Controller(self.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        host.attributes.extend(one_queue);
        Request::new(
            format!("create veth {} with {} in the pod's namespace", self.host_name, self.pod_name),
            RouteNetlinkMessage::NewLink(host),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }
}

/// Returns the request that creates a bridge: still down, no spanning tree, no multicast snooping (it can swallow neighbour
/// solicitations), a fixed MAC (or the bridge would take that of its lowest port).
#[must_use]
pub fn create_bridge(name: &str, mac: Mac, mtu: u32) -> Request {
    let message = LinkBridge::new(name).forward_delay(0).mcast_snooping(false).address(mac.0.to_vec()).mtu(mtu);
    Request::new(
        format!("create bridge {name}"),
        RouteNetlinkMessage::NewLink(message.build()),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Returns the request that creates a VXLAN device, still down, that takes network identifier and destination from each
/// packet's metadata (collect-metadata mode). It learns nothing, and has no IPv6 link-local address. Whether an IPv6 sender
/// gave its UDP packets a checksum is the sender's business (RFC 6935).
#[must_use]
pub fn create_vxlan(name: &str, mac: Mac, mtu: u32, udp_port: u16) -> Request {
    let message = LinkMessageBuilder::<LinkVxlan>::new(name)
        .collect_metadata(true)
        .learning(false)
        .port(udp_port)
        .udp_zero_csum6_rx(true)
        .address(mac.0.to_vec())
        .mtu(mtu);
    Request::new(
        format!("create VXLAN device {name}"),
        RouteNetlinkMessage::NewLink(message.build()),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Returns the request that gives a link its MTU.
#[must_use]
pub fn set_mtu(ifindex: u32, mtu: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).mtu(mtu).build();
    Request::new(format!("set the MTU of link {ifindex} to {mtu}"), RouteNetlinkMessage::SetLink(message), 0)
}

/// Returns the request that gives a link its MAC, MTU and state "up".
#[must_use]
pub fn set_link(ifindex: u32, mac: Option<Mac>, mtu: u32) -> Request {
    let mut message = LinkUnspec::new_with_index(ifindex).mtu(mtu).up();
    if let Some(mac) = mac {
        message = message.address(mac.0.to_vec());
    }
    Request::new(format!("set link {ifindex}"), RouteNetlinkMessage::SetLink(message.build()), 0)
}

/// Returns the requests that give a link its name back, and leave it up. Before kernel 6.2 a link that is up keeps its
/// name.
#[must_use]
pub fn rename(ifindex: u32, name: &str) -> Vec<Request> {
    let set =
        |operation: String, message: LinkMessage| Request::new(operation, RouteNetlinkMessage::SetLink(message), 0);
    vec![
        set(format!("set link {ifindex} down"), LinkUnspec::new_with_index(ifindex).down().build()),
        set(format!("rename link {ifindex} to {name}"), LinkUnspec::new_with_index(ifindex).name(name).build()),
        set_up(ifindex),
    ]
}

/// Returns the request that brings a link up.
#[must_use]
pub fn set_up(ifindex: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).up().build();
    Request::new(format!("bring link {ifindex} up"), RouteNetlinkMessage::SetLink(message), 0)
}

/// Returns the request that makes a link a port of a bridge.
#[must_use]
pub fn set_master(ifindex: u32, bridge: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).controller(bridge).build();
    Request::new(format!("add link {ifindex} to bridge {bridge}"), RouteNetlinkMessage::SetLink(message), 0)
}

/// Returns the request that keeps the kernel from giving a link an IPv6 link-local address once it has a carrier. A bridge
/// port needs none, and each would cost routes, multicast groups and their reports to all pods. A link that has no IPv6
/// is as asked.
#[must_use]
pub fn omit_link_local(ifindex: u32) -> Request {
    let mut message = LinkUnspec::new_with_index(ifindex).build();
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
    Request::new(format!("keep link {ifindex} without an IPv6 address"), RouteNetlinkMessage::SetLink(message), 0)
        .tolerate(Tolerate::NoFamily)
}

/// Returns the request that sets a bridge port up.
#[must_use]
pub fn set_port(ifindex: u32, settings: PortSettings) -> Request {
    let message = LinkBridgePort::new(ifindex)
        .hairpin(settings.hairpin)
        .learning(settings.learning)
        .flood(settings.unicast_flood)
        .build();
    // The kernel reads a port's settings from RTM_NEWLINK alone (rtnl_newlink in net/core/rtnetlink.c).
    Request::new(format!("set bridge port {ifindex} up"), RouteNetlinkMessage::NewLink(message), 0)
}

/// Returns the request that puts the link of a name into a group. For links of an earlier life of the node: an index
/// may mean a link of somebody else's by now.
#[must_use]
pub fn set_group_by_name(name: &str, group: u32) -> Request {
    let message = LinkUnspec::new_with_name(name).link_group(group).build();
    Request::new(format!("put link {name} into group {group}"), RouteNetlinkMessage::SetLink(message), 0)
        .tolerate(Tolerate::NotFound)
}

/// Returns the request that puts a link into a group.
#[must_use]
pub fn set_group(ifindex: u32, group: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).link_group(group).build();
    Request::new(format!("put link {ifindex} into group {group}"), RouteNetlinkMessage::SetLink(message), 0)
        .tolerate(Tolerate::NotFound)
}

/// Returns the request that deletes every link of a group in one go: the kernel waits for its grace periods once,
/// not once per link.
#[must_use]
pub fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::Group(group)];
    Request::new(format!("delete links of group {group}"), RouteNetlinkMessage::DelLink(message), 0)
        .tolerate(Tolerate::NotFound)
}

/// Returns the request that deletes a link. One that does not exist is success.
#[must_use]
pub fn delete(ifindex: u32) -> Request {
    let message = LinkUnspec::new_with_index(ifindex).build();
    Request::new(format!("delete link {ifindex}"), RouteNetlinkMessage::DelLink(message), 0)
        .tolerate(Tolerate::NotFound)
}

/// Returns the index of an interface in the calling thread's namespace.
///
/// # Errors
///
/// There is none of that name.
pub fn ifindex(name: &str) -> Result<u32, Error> {
    nix::net::if_::if_nametoindex(name).map_err(|error| Error::new(&format!("look link {name} up"), error.into()))
}

impl Socket {
    /// Looks a link up by name.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, Error> {
        let message = LinkUnspec::new_with_name(name).build();
        let answer = self.get(&format!("look link {name} up"), RouteNetlinkMessage::GetLink(message))?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewLink(message)) => Some(Link::from_message(message)),
            _ => None,
        })
    }

    /// Lists the links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let answers = self.dump("list links", &RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(message)),
                _ => None,
            })
            .collect())
    }
}

impl Link {
    /// Takes what podnet wants to know out of a message.
    #[must_use]
    pub fn from_message(message: LinkMessage) -> Self {
        let mut link =
            Self { ifindex: message.header.index, up: message.header.flags.contains(LinkFlags::Up), ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(octets) => link.mac = octets.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(number) => link.peer_netns = Some(number),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                            LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                                link.port = Some(PortSettings::from_attributes(&port));
                            }
                            LinkInfo::Data(InfoData::Vxlan(vxlan)) => link.vxlan_port = vxlan_port(&vxlan),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

fn vxlan_port(attributes: &[InfoVxlan]) -> Option<u16> {
    if !attributes.contains(&InfoVxlan::CollectMetadata(true)) {
        return None;
    }
    attributes.iter().find_map(|attribute| match attribute {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

impl PortSettings {
    fn from_attributes(attributes: &[InfoBridgePort]) -> Self {
        let mut settings = Self { hairpin: false, learning: false, unicast_flood: false };
        for attribute in attributes {
            match attribute {
                InfoBridgePort::HairpinMode(on) => settings.hairpin = *on,
                InfoBridgePort::Learning(on) => settings.learning = *on,
                InfoBridgePort::UnicastFlood(on) => settings.unicast_flood = *on,
                _ => {}
            }
        }
        settings
    }
}
