//! Two nodes with a pod each, which reach each other in both families.

use std::time::{Duration, Instant};

use harness::{
    Family, TestCluster, TestPod,
    peer::{self, PeerServer},
    wait_for,
};
use podnet::lab::options::Options;

const PORT: u16 = 8080;

pub(crate) struct Pair {
    pub(crate) cluster: TestCluster,
    pub(crate) pods: Vec<TestPod>,
    _servers: Vec<PeerServer>,
}

impl Pair {
    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let cluster = TestCluster::with(|options| {
            options.nodes = 2;
            change(options);
        });
        cluster.wait_for_routes();
        let pods: Vec<_> = cluster.add_pods(1).into_iter().flatten().collect();
        let servers = pods
            .iter()
            .flat_map(|pod| Family::ALL.map(|family| PeerServer::start(pod.netns(), pod.socket_address(family, PORT))))
            .collect();
        let pair = Self { cluster, pods, _servers: servers };
        pair.check_pods();
        pair
    }

    /// Waits until the pods reach each other in both directions and families; returns how long that took.
    pub(crate) fn check_pods(&self) -> Duration {
        let start = Instant::now();
        for family in Family::ALL {
            for (client, server) in [(0, 1), (1, 0)] {
                let (client, server) = (&self.pods[client], &self.pods[server]);
                let target = server.socket_address(family, PORT);
                wait_for(&format!("{} to reach {target}", client.name()), || {
                    let seen = peer::ask_within(client.netns(), target, Duration::from_millis(50));
                    seen.filter(|seen| seen.ip() == client.address(family))
                });
            }
        }
        start.elapsed()
    }
}
