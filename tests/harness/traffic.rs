//! Traffic between pods that goes on while a test changes things around it: connections and echoes in both families.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    Family, TestPod,
    tcp::{EchoServer, LiveConnection},
    udp::{self, Flood, Tally},
};

/// Port of the servers, unlike that of tests' own.
const PORT: u16 = 8070;

/// Pause after each echo, and after each round of a connection: traffic shall be there, not the machine be busy.
const PAUSE: Duration = Duration::from_millis(2);

/// A TCP connection and a stream of UDP echoes, in each family, between each of some pairs of pods.
#[derive(Debug)]
pub struct Steady {
    connections: Vec<(String, LiveConnection)>,
    floods: Vec<(String, Flood)>,
    _tcp_servers: Vec<EchoServer>,
    _udp_servers: Vec<udp::EchoServer>,
}

impl Steady {
    /// Starts traffic from the first to the second pod of each pair; returns when all of it goes on.
    pub fn start(pairs: &[(&TestPod, &TestPod)]) -> Self {
        let mut known = BTreeSet::new();
        let servers: Vec<_> = pairs.iter().map(|(_, server)| server).filter(|pod| known.insert(pod.name())).collect();
        let tcp_servers = servers.iter().map(|pod| EchoServer::start(pod.netns(), PORT)).collect();
        let udp_servers = servers
            .iter()
            .flat_map(|pod| {
                Family::ALL.map(|family| udp::EchoServer::start(pod.netns(), pod.socket_address(family, PORT)))
            })
            .collect();
        let (mut connections, mut floods) = (Vec::new(), Vec::new());
        for (client, server) in pairs {
            for family in Family::ALL {
                let (name, target) =
                    (format!("{} to {}", client.name(), server.name()), server.socket_address(family, PORT));
                connections.push((name.clone(), LiveConnection::start_paced(client.netns(), target, PAUSE)));
                floods.push((name, Flood::start_paced(client.netns(), target, PAUSE)));
            }
        }
        Self { connections, floods, _tcp_servers: tcp_servers, _udp_servers: udp_servers }
    }

    /// Waits until every connection and every stream has gone on; panics if a connection broke.
    pub fn wait_for_progress(&self) {
        for (_, connection) in &self.connections {
            connection.wait_for_rounds(3);
        }
        for (_, flood) in &self.floods {
            flood.wait_for_answers(20);
        }
    }

    /// Ends the traffic; panics if a connection broke or an echo was lost. Returns how many echoes there were.
    pub fn finish_without_loss(self) -> u64 {
        let tallies = self.finish();
        for (name, tally) in &tallies {
            assert_eq!(tally.lost(), 0, "{name}: echoes were lost: {tally:?}");
        }
        tallies.iter().map(|(_, tally)| tally.answered).sum()
    }

    /// Ends the traffic; panics if a connection broke. Returns what became of each stream of echoes.
    pub fn finish(self) -> Vec<(String, Tally)> {
        for (_, connection) in self.connections {
            connection.finish();
        }
        self.floods.into_iter().map(|(name, flood)| (name, flood.finish())).collect()
    }
}
