//! Filters on single interfaces by clsact: the programs of uplinks and of the overlay device on kernels without TCX. Those
//! of pods' veths are shared, and in [`super::tc`].
//!
//! Podnet's filters have the first priority, since they must see what others would end the chain at, and handles of their
//! own in it, so that filters of others at the same priority stay.

use std::collections::BTreeSet;

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla as _},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
    },
};

use super::{Error, Request, Socket, Tolerate, tc};

/// Hook of an interface, from the interface's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// What the interface receives.
    Ingress,
    /// What is sent out of it.
    Egress,
}

impl Direction {
    /// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` or `TC_H_MIN_EGRESS` of <linux/pkt_sched.h>.
    const fn parent(self) -> TcHandle {
        match self {
            Self::Ingress => TcHandle { major: 0xffff, minor: 0xfff2 },
            Self::Egress => TcHandle { major: 0xffff, minor: 0xfff3 },
        }
    }
}

/// A filter of podnet's on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter {
    /// Index of the interface.
    pub ifindex: u32,
    /// Hook of the interface.
    pub direction: Direction,
    /// Number that its owner gave it: the lower half of its handle.
    pub number: u16,
}

/// Upper half of the handles of podnet's filters ("pn").
const HANDLE_MAJOR: u16 = 0x706e;

impl Filter {
    fn message(self) -> TcMessage {
        let mut message = TcMessage::with_index(self.ifindex as i32);
        message.header.parent = self.direction.parent();
        message.header.handle = TcHandle { major: HANDLE_MAJOR, minor: self.number };
        message.header.info = tc::filter_info();
        message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        message
    }
}

/// Returns the request that gives an interface clsact, to which filters are attached. One that has it is success.
#[must_use]
pub fn add_clsact(ifindex: u32) -> Request {
    Request::new(
        format!("add clsact to link {ifindex}"),
        RouteNetlinkMessage::NewQueueDiscipline(tc::clsact_message(ifindex)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .tolerate(Tolerate::Exists)
}

/// Returns the request that attaches a program (a file descriptor), or replaces the filter's earlier one atomically.
#[must_use]
pub fn replace(filter: Filter, name: &str, program: i32) -> Request {
    let mut message = filter.message();
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    Request::new(
        format!("attach program {name} to link {} by clsact", filter.ifindex),
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Returns the request that takes a filter away; an absent one is success. Clsact stays: it may be another's, and costs
/// nothing.
#[must_use]
pub fn delete(filter: Filter) -> Request {
    Request::new(
        format!("detach the program of link {}", filter.ifindex),
        RouteNetlinkMessage::DelTrafficFilter(filter.message()),
        0,
    )
    .tolerate(Tolerate::NotFound)
}

impl Socket {
    /// Lists podnet's filters on single interfaces, with the numbers of their programs.
    pub fn device_filters(&mut self) -> Result<Vec<(Filter, u32)>, Error> {
        let answers =
            self.dump("list queueing disciplines", &RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        let devices: BTreeSet<u32> = answers.iter().filter_map(device_with_clsact).collect();
        let mut filters = Vec::new();
        for ifindex in devices {
            for direction in [Direction::Ingress, Direction::Egress] {
                let mut message = TcMessage::with_index(ifindex as i32);
                message.header.parent = direction.parent();
                let operation = format!("list filters of link {ifindex}");
                let answers = match self.dump(&operation, &RouteNetlinkMessage::GetTrafficFilter(message)) {
                    // Interface or clsact vanished meanwhile.
                    Err(error) if error.is_not_found() || error.cause.raw_os_error() == Some(libc::EINVAL) => continue,
                    answers => answers?,
                };
                filters.extend(answers.iter().filter_map(|answer| own_filter(answer, ifindex, direction)));
            }
        }
        Ok(filters)
    }
}

/// Returns the interface of a clsact that is not a pod's, whose filters are in shared blocks.
fn device_with_clsact(answer: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
    let is_clsact = message.attributes.iter().any(|one| matches!(one, TcAttribute::Kind(kind) if kind == "clsact"));
    let is_shared = message.attributes.iter().any(|one| {
        matches!(one, TcAttribute::Other(nla) if [tc::TCA_INGRESS_BLOCK, tc::TCA_EGRESS_BLOCK].contains(&nla.kind()))
    });
    (is_clsact && !is_shared).then_some(message.header.index as u32)
}

fn own_filter(answer: &RouteNetlinkMessage, ifindex: u32, direction: Direction) -> Option<(Filter, u32)> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
    let TcHandle { major, minor } = message.header.handle;
    (major == HANDLE_MAJOR && message.header.info == tc::filter_info()).then_some(())?;
    Some((Filter { ifindex, direction, number: minor }, tc::program_of(message)?))
}
