//! The kernel's own news: tells when something that podnet made was taken away by someone else.
//!
//! Each ADD of a pod makes some thirty notifications, of which none matters here; so the monitor gathers them for a
//! moment, and takes apart only those of losses.

use std::{io, thread, time::Duration};

use anyhow::{Context as _, Result};
use bytes::BytesMut;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage, address::AddressScope, link::LinkAttribute},
    sys::{Socket, protocols::NETLINK_ROUTE},
};

use super::link::Link;

/// What is watched.
const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Tc];

/// How long notifications gather behind the first.
const GATHER: Duration = Duration::from_millis(20);

/// Room for the notifications of hundreds of ADDs.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Room for one notification.
const DATAGRAM_LEN: usize = 64 << 10;

// Message types from <linux/rtnetlink.h>.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;

/// Watches the calling thread's network namespace, on a thread of its own, and calls `on_loss` whenever a link, a global
/// address or a traffic control object has been removed or a link been set down, except links of `ignored_group`
/// (podnet's own deletions). Ends when `on_loss` returns false.
///
/// # Errors
///
/// The netlink socket or the thread cannot be made.
pub fn watch(ignored_group: u32, mut on_loss: impl FnMut(String) -> bool + Send + 'static) -> Result<()> {
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
                if let Some(loss) = next_loss(&socket, &mut datagram, ignored_group)
                    && !on_loss(loss)
                {
                    return;
                }
            }
        })
        .context("start the netlink monitor's thread")?;
    Ok(())
}

/// Waits for notifications, and returns the first removal among those of a moment; others of that moment are dropped,
/// since one is reason enough to compare everything.
fn next_loss(socket: &Socket, datagram: &mut BytesMut, ignored_group: u32) -> Option<String> {
    let mut loss = receive(socket, datagram, 0, ignored_group).unwrap_or_else(|error| Some(lost_notifications(&error)));
    thread::sleep(GATHER);
    loop {
        match receive(socket, datagram, libc::MSG_DONTWAIT, ignored_group) {
            Ok(found) => loss = loss.or(found),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return loss,
            Err(error) => return Some(lost_notifications(&error)),
        }
    }
}

fn lost_notifications(error: &io::Error) -> String {
    format!("notifications of the kernel were lost ({error})")
}

/// Receives one datagram and returns the first removal in it.
fn receive(socket: &Socket, datagram: &mut BytesMut, flags: i32, ignored_group: u32) -> io::Result<Option<String>> {
    datagram.clear();
    datagram.reserve(DATAGRAM_LEN);
    socket.recv(datagram, flags)?;
    let mut rest: &[u8] = datagram;
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        if let Some(loss) = loss(rest, message.message_type(), ignored_group) {
            return Ok(Some(loss));
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(None)
}

fn loss(message: &[u8], message_type: u16, ignored_group: u32) -> Option<String> {
    match message_type {
        RTM_NEWLINK if sets_down(message) => set_down(message, ignored_group),
        RTM_DELLINK | RTM_DELADDR => deleted(message, ignored_group),
        RTM_DELQDISC | RTM_DELTFILTER => Some("a traffic control object was deleted".into()),
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

fn set_down(message: &[u8], ignored_group: u32) -> Option<String> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else { return None };
    let ignored = link.attributes.contains(&LinkAttribute::Group(ignored_group));
    (!ignored).then(|| format!("link {} was set down", Link::from_message(link).name))
}

fn deleted(message: &[u8], ignored_group: u32) -> Option<String> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            let ignored = link.attributes.contains(&LinkAttribute::Group(ignored_group));
            (!ignored).then(|| format!("link {} was deleted", Link::from_message(link).name))
        }
        // Every veth that goes takes its link-local address along.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
            (address.header.scope == AddressScope::Universe).then(|| "an address was deleted".into())
        }
        _ => None,
    }
}
