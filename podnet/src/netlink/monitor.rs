//! The kernel's own news: tells when something that podnet made was taken away by someone else, and when the ways to other
//! nodes may have changed.
//!
//! Each ADD of a pod makes some thirty notifications, of which none matters here; so the monitor gathers them for a
//! moment, and takes apart only those that may.

use std::{io, thread, time::Duration};

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload, NlasIterator},
    packet_route::{RouteNetlinkMessage, address::AddressScope, link::LinkAttribute},
    sys::{Socket, protocols::NETLINK_ROUTE},
};

use super::{link::Link, route::PODNET_PROTOCOL};

/// What is watched.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Tc,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Netconf,
    MulticastGroup::Ipv6Netconf,
];

/// How long notifications gather behind the first.
const GATHER: Duration = Duration::from_millis(20);

/// Room for the notifications of hundreds of ADDs.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Room for one notification.
const DATAGRAM_LEN: usize = 64 << 10;

// Message types and header fields from <linux/rtnetlink.h> and <linux/if_link.h>.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;
const RTM_NEWNETCONF: u16 = 80;
const RTPROT_KERNEL: u8 = 2;
const RT_TABLE_LOCAL: u8 = 255;
const RTM_F_CLONED: u32 = 0x200;
const IFLA_IFNAME: u16 = 3;
// From <linux/netconf.h>.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// The first thing that was taken away.
    pub lost: Option<String>,
    /// The first thing by which the ways to other nodes may have changed.
    pub moved: Option<String>,
}

impl News {
    /// Keeps what came first of each kind.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { lost: self.lost.or(other.lost), moved: self.moved.or(other.moved) }
    }

    fn lost(what: impl Into<String>) -> Self {
        Self { lost: Some(what.into()), moved: None }
    }

    fn moved(what: impl Into<String>) -> Self {
        Self { lost: None, moved: Some(what.into()) }
    }

    fn is_empty(&self) -> bool {
        self.lost.is_none() && self.moved.is_none()
    }
}

/// What podnet does itself, which is no news.
pub struct Own {
    /// Group of links that podnet deletes.
    pub group: u32,
    /// Number of the socket by which podnet changes routes.
    pub port: u32,
    /// Recognises the names of links that lead to no other node: veths of pods, the bridge.
    pub is_local_link: Box<dyn Fn(&str) -> bool + Send>,
}

/// Watches the calling thread's network namespace, on a thread of its own, and calls `on_news`: a link, a global address,
/// a route of podnet's, a neighbour or a traffic control object has been removed, a link been set down, or forwarding been
/// set; a link, an address or somebody else's route has changed. Ends when `on_news` returns false.
///
/// # Errors
///
/// The netlink socket or the thread cannot be made.
pub fn watch(own: Own, mut on_news: impl FnMut(News) -> bool + Send + 'static) -> Result<()> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        for group in GROUPS {
            socket.add_membership(group as u32)?;
        }
        Ok(socket)
    };
    let socket = open().context("open the netlink monitor")?;
    let mut datagram = BytesMut::new();
    thread::Builder::new()
        .name("monitor".into())
        .spawn(move || {
            loop {
                let news = next_news(&socket, &mut datagram, &own);
                if !news.is_empty() && !on_news(news) {
                    return;
                }
            }
        })
        .context("start the netlink monitor's thread")?;
    Ok(())
}

/// Waits for notifications, and returns the first news of each kind among those of a moment; others of that moment are
/// dropped, since one is reason enough to compare everything.
fn next_news(socket: &Socket, datagram: &mut BytesMut, own: &Own) -> News {
    let mut news = receive(socket, datagram, 0, own).unwrap_or_else(|error| overrun(&error));
    thread::sleep(GATHER);
    loop {
        match receive(socket, datagram, libc::MSG_DONTWAIT, own) {
            Ok(found) => news = news.or(found),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
            Err(error) => return news.or(overrun(&error)),
        }
    }
}

fn overrun(error: &io::Error) -> News {
    let what = format!("notifications of the kernel were lost ({error})");
    News { lost: Some(what.clone()), moved: Some(what) }
}

/// Receives one datagram and returns the first news in it.
fn receive(socket: &Socket, datagram: &mut BytesMut, flags: i32, own: &Own) -> io::Result<News> {
    datagram.clear();
    datagram.reserve(DATAGRAM_LEN);
    socket.recv(datagram, flags)?;
    let mut news = News::default();
    let mut rest: &[u8] = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        let length = message.length() as usize;
        let whole = rest.get(..length).unwrap_or(rest);
        if let Some(found) = examine(whole, message.message_type(), message.port_number(), own) {
            news = news.or(found);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(news)
}

fn examine(message: &[u8], message_type: u16, port: u32, own: &Own) -> Option<News> {
    match message_type {
        RTM_NEWLINK if sets_down(message) => set_down(message, own),
        RTM_NEWLINK => link_changed(message, own),
        RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR => taken_apart(message, own),
        RTM_NEWROUTE => route_changed(message, None, own),
        RTM_DELROUTE => route_changed(message, Some(port), own),
        // The kernel's own news of neighbours come from port 0.
        RTM_NEWNEIGH | RTM_DELNEIGH if port != 0 && port != own.port => {
            Some(News::lost("somebody changed a neighbour"))
        }
        RTM_NEWNETCONF if is_one_setting(message) => Some(News::lost("forwarding or reverse path filtering was set")),
        RTM_DELQDISC | RTM_DELTFILTER => Some(News::lost("a traffic control object was deleted")),
        _ => None,
    }
}

/// Returns whether a link message says that the link has just been set down: most say something else, and need not be
/// taken apart.
fn sets_down(message: &[u8]) -> bool {
    // `ifi_flags` and `ifi_change` of `struct ifinfomsg`, behind the netlink header.
    let word = |offset| message.get(offset..offset + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let up = libc::IFF_UP as u32;
    word(24).zip(word(28)).is_some_and(|(flags, change)| change & up != 0 && change != u32::MAX && flags & up == 0)
}

fn set_down(message: &[u8], own: &Own) -> Option<News> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else { return None };
    let ignored = link.attributes.contains(&LinkAttribute::Group(own.group));
    let name = Link::from_message(link).name;
    (!ignored).then(|| link_news(&name, "was set down", own))
}

/// A link that came up, or has another MTU, may be a way to other nodes. Most messages are of pods' veths.
fn link_changed(message: &[u8], own: &Own) -> Option<News> {
    // `ifi_family` of `struct ifinfomsg`: the bridge's messages about its ports say nothing of ways.
    if i32::from(*message.get(16)?) == libc::AF_BRIDGE {
        return None;
    }
    let name = NlasIterator::new(message.get(32..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == IFLA_IFNAME)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned())?;
    (!(own.is_local_link)(&name)).then(|| News::moved(format!("link {name} changed")))
}

fn link_news(name: &str, what: &str, own: &Own) -> News {
    let text = format!("link {name} {what}");
    let moved = (!(own.is_local_link)(name)).then(|| text.clone());
    News { lost: Some(text), moved }
}

fn taken_apart(message: &[u8], own: &Own) -> Option<News> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            let ignored = link.attributes.contains(&LinkAttribute::Group(own.group));
            (!ignored).then(|| link_news(&Link::from_message(link).name, "was deleted", own))
        }
        // Every veth that goes takes its link-local address along.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
            let what = "an address was deleted";
            (address.header.scope == AddressScope::Universe)
                .then(|| News { lost: Some(what.into()), moved: Some(what.into()) })
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
            (address.header.scope == AddressScope::Universe).then(|| News::moved("an address was added"))
        }
        _ => None,
    }
}

/// Returns whether a message about the settings of an interface, or of all, says that one was changed: an interface that is
/// new tells them all.
fn is_one_setting(message: &[u8]) -> bool {
    // Behind the netlink header and `struct netconfmsg`, padded.
    let attributes = NlasIterator::new(message.get(20..).unwrap_or_default()).filter_map(Result::ok);
    let settings: Vec<u16> =
        attributes.map(|attribute| attribute.kind()).filter(|kind| *kind != NETCONFA_IFINDEX).collect();
    matches!(settings.as_slice(), [NETCONFA_FORWARDING | NETCONFA_RP_FILTER])
}

/// Routes that the kernel makes by itself come and go with addresses and links, whose news is enough; unless somebody
/// deletes one of them. `deleted_by`: the port of who deleted it; the kernel's is 0.
fn route_changed(message: &[u8], deleted_by: Option<u32>, own: &Own) -> Option<News> {
    // `rtm_table`, `rtm_protocol` and `rtm_flags` of `struct rtmsg`, behind the netlink header.
    let (table, protocol) = (*message.get(20)?, *message.get(21)?);
    let flags = u32::from_ne_bytes(message.get(24..28)?.try_into().ok()?);
    if table == RT_TABLE_LOCAL || flags & RTM_F_CLONED != 0 {
        return None;
    }
    if protocol == RTPROT_KERNEL {
        let by_somebody = deleted_by.is_some_and(|port| port != 0 && port != own.port);
        return by_somebody.then(|| News::lost("a route to an interface's own network was deleted"));
    }
    if protocol == PODNET_PROTOCOL {
        let by_another = deleted_by.is_some_and(|port| port != own.port);
        return by_another.then(|| News::lost("a route to another node was deleted"));
    }
    Some(News::moved("a route changed"))
}
