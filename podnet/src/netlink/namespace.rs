//! The numbers by which the kernel names other network namespaces in its answers (`RTM_GETNSID`, ip-netns(8)).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{Error, Socket};

impl Socket {
    /// Returns the number of a namespace as seen from the socket's own; `None` if it has none, since nothing of it is
    /// connected to this one.
    pub fn namespace_number(&mut self, netns: BorrowedFd<'_>) -> Result<Option<i32>, Error> {
        let mut message = NsidMessage::default();
        // Descriptors are not negative.
        message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().unsigned_abs()));
        let answer = self.get("ask for the number of a network namespace", RouteNetlinkMessage::GetNsId(message))?;
        let Some(RouteNetlinkMessage::NewNsId(message)) = answer else { return Ok(None) };
        Ok(message.attributes.into_iter().find_map(|attribute| match attribute {
            // -1: none.
            NsidAttribute::Id(number) => (number >= 0).then_some(number),
            _ => None,
        }))
    }
}
