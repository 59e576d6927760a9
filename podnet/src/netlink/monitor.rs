//! The kernel's own news: tells when something that podnet made was taken away by someone else.

use anyhow::{Context as _, Result};
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, link::LinkAttribute},
    sys::AsyncSocket as _,
};

use super::link::Link;

/// Watches the calling thread's network namespace and calls `on_loss` whenever a link, an address, a neighbour or a
/// filter has been removed, except links of `ignored_group` (podnet's own deletions). Runs until its connection ends.
///
/// # Errors
///
/// The netlink connection cannot be opened, or ended.
pub async fn watch(ignored_group: u32, mut on_loss: impl FnMut(&str)) -> Result<()> {
    use futures_util::StreamExt as _;

    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Tc,
    ];
    let (mut connection, _handle, mut messages) =
        new_multicast_connection(&groups).context("open the netlink monitor")?;
    // Lost notifications are made good by the periodic resync.
    connection.socket_mut().socket_mut().set_no_enobufs(true).context("set the netlink monitor up")?;
    let connection = tokio::spawn(connection);
    while let Some((message, _)) = messages.next().await {
        let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
        match message {
            RouteNetlinkMessage::DelLink(link) => {
                let group = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Group(group) => Some(*group),
                    _ => None,
                });
                if group != Some(ignored_group) {
                    on_loss(&format!("link {} was deleted", Link::from_message(link).name));
                }
            }
            RouteNetlinkMessage::DelAddress(_) => on_loss("an address was deleted"),
            RouteNetlinkMessage::DelRoute(_) => on_loss("a route was deleted"),
            RouteNetlinkMessage::DelTrafficFilter(_) | RouteNetlinkMessage::DelQueueDiscipline(_) => {
                on_loss("a traffic control object was deleted");
            }
            _ => {}
        }
    }
    connection.abort();
    anyhow::bail!("the netlink monitor ended")
}
