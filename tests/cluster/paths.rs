//! Which path carries the packets of each node of a test's cluster.

use harness::{TestCluster, TestNode};
use podnet::{api::DatapathMode, config::RoutingMode, lab::Options};

/// Name of the node of a mixed cluster whose path is the kernel's.
const KERNEL_NODE: &str = "node2";

/// Which path carries the packets of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// eBPF on all nodes.
    Ebpf,
    /// The kernel's on all nodes.
    Kernel,
    /// The second node's path is the kernel's, that of the others eBPF.
    Mixed,
}

impl Paths {
    /// Makes a cluster without pods whose nodes have their routes: a packet of an earlier moment would go the kernel's
    /// way, and its endpoints be remembered as touched.
    pub(crate) fn cluster(self, mode: RoutingMode) -> TestCluster {
        self.cluster_with(mode, |_| {})
    }

    /// Makes a cluster with other options, too.
    pub(crate) fn cluster_with(self, mode: RoutingMode, change: impl FnOnce(&mut Options)) -> TestCluster {
        let cluster = TestCluster::with(|options| {
            options.mode = mode;
            match self {
                Self::Ebpf => {}
                Self::Kernel => options.datapath = DatapathMode::Kernel,
                Self::Mixed => options.kernel_nodes = vec![KERNEL_NODE.into()],
            }
            change(options);
        });
        cluster.wait_for_routes();
        cluster
    }

    /// Returns whether a node's path is eBPF.
    pub(crate) fn is_ebpf(self, node: &TestNode) -> bool {
        self == Self::Ebpf || self == Self::Mixed && node.name() != KERNEL_NODE
    }
}
