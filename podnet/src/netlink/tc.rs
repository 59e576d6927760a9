//! Traffic control: every pod's host-side veth joins two shared filter blocks, one for what the pod sends and one for
//! what it is sent. Each block holds one filter, so a pod is attached by one message, and the program of all pods is
//! replaced by one.
//!
//! A block exists as long as a queueing discipline refers to it, and its filter with it; so the filters are offered
//! again with every pod, which costs nothing where they are already there.

use rtnetlink::{
    packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla as _},
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
    },
};

use super::{Error, Request, Socket, Tolerate};

/// A shared filter block of pod veths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// Ingress of the host-side veths: what pods send.
    FromPod,
    /// Egress of the host-side veths: what pods are sent by the kernel path.
    ToPod,
}

impl Block {
    /// Index of the block in the namespace ("pn" and a number, so that it meets no hand-made block).
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::FromPod => 0x706e_0001,
            Self::ToPod => 0x706e_0002,
        }
    }
}

// Attributes of <linux/rtnetlink.h> that rtnetlink has no name for.
pub(super) const TCA_INGRESS_BLOCK: u16 = 13;
pub(super) const TCA_EGRESS_BLOCK: u16 = 14;
/// `TC_H_CLSACT` of <linux/pkt_sched.h>.
const TC_H_CLSACT: TcHandle = TcHandle { major: 0xffff, minor: 0xfff1 };
/// Handle of the clsact qdisc, as the kernel names it.
const CLSACT_HANDLE: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Priority of podnet's filter in its block.
const PRIORITY: u16 = 1;
/// Handle of podnet's filter in its block.
const FILTER_HANDLE: TcHandle = TcHandle { major: 0, minor: 1 };
/// `ETH_P_ALL` of <linux/if_ether.h>: the filter sees every protocol.
const ETH_P_ALL: u16 = 3;

/// The message about clsact on a link.
pub(super) fn clsact_message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TC_H_CLSACT;
    message.header.handle = CLSACT_HANDLE;
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    message
}

/// Priority and protocol of podnet's filters as `tcm_info`.
pub(super) fn filter_info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// Returns the ID of the program of a filter.
pub(super) fn program_of(filter: &TcMessage) -> Option<u32> {
    filter.attributes.iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else { return None };
        options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        })
    })
}

/// Returns the request that attaches a veth to the shared blocks. A veth that is attached already is success.
#[must_use]
pub fn attach(ifindex: u32) -> Request {
    let block = |kind, block: Block| TcAttribute::Other(DefaultNla::new(kind, block.index().to_ne_bytes().to_vec()));
    let mut message = clsact_message(ifindex);
    message.attributes.extend([block(TCA_INGRESS_BLOCK, Block::FromPod), block(TCA_EGRESS_BLOCK, Block::ToPod)]);
    Request::new(
        format!("attach link {ifindex} to the shared filter blocks"),
        RouteNetlinkMessage::NewQueueDiscipline(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .tolerate(Tolerate::Exists)
}

/// Returns the request that takes clsact, with whatever is attached to it, from a link.
#[must_use]
pub fn detach(ifindex: u32) -> Request {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TC_H_CLSACT;
    message.header.handle = CLSACT_HANDLE;
    Request::new(
        format!("detach link {ifindex} from its filter blocks"),
        RouteNetlinkMessage::DelQueueDiscipline(message),
        0,
    )
    .tolerate(Tolerate::NoQdisc)
}

fn filter_message(block: Block) -> TcMessage {
    let mut message = TcMessage::with_index(TcHeader::TCM_IFINDEX_MAGIC_BLOCK as i32);
    // `tcm_block_index` shares the field `tcm_parent`.
    message.header.parent = TcHandle::from(block.index());
    message.header.handle = FILTER_HANDLE;
    message.header.info = filter_info();
    message
}

fn bpf_filter_message(block: Block, name: &str, program: i32) -> TcMessage {
    let mut message = filter_message(block);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    message
}

/// Returns the request that puts a program (a file descriptor) into a block which has none. One that has is success.
#[must_use]
pub fn offer_filter(block: Block, name: &str, program: i32) -> Request {
    Request::new(
        format!("attach program {name}"),
        RouteNetlinkMessage::NewTrafficFilter(bpf_filter_message(block, name, program)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .tolerate(Tolerate::Exists)
}

/// Returns the request that replaces a block's program atomically: every packet meets the old or the new one. A block that
/// went with its last veth is success: the next veth brings one, with the program.
#[must_use]
pub fn replace_filter(block: Block, name: &str, program: i32) -> Request {
    Request::new(
        format!("replace program {name}"),
        RouteNetlinkMessage::NewTrafficFilter(bpf_filter_message(block, name, program)),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
    .tolerate(Tolerate::NoQdisc)
}

/// Returns the request that takes the program out of a block. A block without one, or no block, is success.
#[must_use]
pub fn delete_filter(block: Block) -> Request {
    let mut message = filter_message(block);
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
    Request::new(
        format!("detach the program of block {:#x}", block.index()),
        RouteNetlinkMessage::DelTrafficFilter(message),
        0,
    )
    // What the kernel says of a block that does not exist: there is none before the first pod.
    .tolerate(Tolerate::NoQdisc)
}

impl Socket {
    /// Lists the links that are attached to both shared blocks.
    pub fn attached_links(&mut self) -> Result<Vec<u32>, Error> {
        let answers =
            self.dump("list queueing disciplines", &RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
        let wanted = [(TCA_INGRESS_BLOCK, Block::FromPod), (TCA_EGRESS_BLOCK, Block::ToPod)];
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(message) => Some(message),
                _ => None,
            })
            .filter(|message| wanted.iter().all(|(kind, block)| block_of(message, *kind) == Some(block.index())))
            .map(|message| message.header.index as u32)
            .collect())
    }

    /// Returns the ID of the program in a block; `None` if the block or its filter does not exist.
    pub fn filter_program(&mut self, block: Block) -> Result<Option<u32>, Error> {
        let mut message = TcMessage::with_index(TcHeader::TCM_IFINDEX_MAGIC_BLOCK as i32);
        message.header.parent = TcHandle::from(block.index());
        // The kernel answers the dump of a block that does not exist with no filters.
        let answers = match self.dump("list filters", &RouteNetlinkMessage::GetTrafficFilter(message)) {
            Err(error) if error.is_not_found() || error.cause.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            answers => answers?,
        };
        let program = answers.into_iter().find_map(|answer| {
            let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { return None };
            program_of(&message)
        });
        Ok(program)
    }
}

fn block_of(message: &TcMessage, kind: u16) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Other(nla) if nla.kind() == kind => {
            let mut value = [0; 4];
            (nla.value_len() == 4).then(|| nla.emit_value(&mut value))?;
            Some(u32::from_ne_bytes(value))
        }
        _ => None,
    })
}
