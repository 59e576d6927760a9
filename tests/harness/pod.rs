//! A pod of a test: a network namespace, attached by the CNI plugin; the namespace goes with the value.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::Result;
use podnet::{
    api::Mac,
    lab::{
        node::make_netns,
        runtime::{Added, Request, Runtime},
    },
    netns::{NAMED_DIR, Netns},
};

use crate::node::TestNode;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A network namespace for a pod, before CNI ADD or after CNI DEL.
#[derive(Debug)]
pub struct Unattached {
    /// What the CNI plugin is told.
    pub request: Request,
    runtime: Runtime,
    netns: OwnedNetns,
}

impl Unattached {
    /// Makes the network namespace.
    pub fn new(node: &TestNode, name: &str) -> Self {
        let netns = OwnedNetns::new(node.netns_name(name));
        let request = Request {
            container_id: netns.name.clone(),
            netns: Some(Path::new(NAMED_DIR).join(&netns.name)),
            pod_name: name.into(),
            ..Request::default()
        };
        Self { request, runtime: node.runtime(), netns }
    }

    /// Attaches the pod.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn add(self) -> Result<TestPod> {
        self.try_add().map_err(|(_, error)| error)
    }

    /// Attaches the pod; gives the namespace back if that fails.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn try_add(self) -> std::result::Result<TestPod, (Box<Self>, anyhow::Error)> {
        match self.runtime.add(&self.request) {
            Ok(added) => Ok(TestPod { added, unattached: self }),
            Err(error) => Err((Box::new(self), error)),
        }
    }

    /// Calls CNI DEL.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn del(&self) -> Result<()> {
        self.runtime.del(&self.request)
    }

    /// Returns the pod's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns.netns
    }
}

/// A pod that CNI ADD attached.
#[derive(Debug)]
pub struct TestPod {
    /// What ADD answered.
    pub added: Added,
    unattached: Unattached,
}

impl TestPod {
    /// Returns the pod's name.
    pub fn name(&self) -> &str {
        &self.unattached.request.pod_name
    }

    /// Returns the pod's network namespace.
    pub fn netns(&self) -> &Netns {
        self.unattached.netns()
    }

    /// Returns the container ID.
    pub fn container_id(&self) -> &str {
        &self.unattached.request.container_id
    }

    /// Returns the pod's address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        let mut all = self.added.addresses.iter().map(ipnetwork::IpNetwork::ip);
        all.find(|address| Family::of(*address) == family)
            .unwrap_or_else(|| panic!("{self:?} has no {family:?} address"))
    }

    /// Returns the gateway of a family.
    pub fn gateway(&self, family: Family) -> IpAddr {
        let mut all = self.added.gateways.iter().copied();
        all.find(|address| Family::of(*address) == family)
            .unwrap_or_else(|| panic!("{self:?} has no {family:?} gateway"))
    }

    /// Returns the pod's address of a family with a port.
    pub fn socket_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Returns the MAC of the pod's interface.
    pub fn mac(&self) -> Mac {
        self.added.mac
    }

    /// Returns the name of the host-side veth.
    pub fn host_ifname(&self) -> &str {
        &self.added.host_ifname
    }

    /// Calls CNI CHECK.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn check(&self) -> Result<()> {
        self.unattached.runtime.check(&self.unattached.request, &self.added)
    }

    /// Calls CNI DEL; returns the namespace, which a runtime removes afterwards.
    ///
    /// # Errors
    ///
    /// What the plugin answered.
    pub fn del(self) -> Result<Unattached> {
        self.unattached.del()?;
        Ok(self.unattached)
    }

    /// Returns the namespace and what the CNI plugin is told, for a caller that detaches the pod by itself.
    pub fn into_unattached(self) -> Unattached {
        self.unattached
    }
}

/// A named network namespace that goes with this value.
#[derive(Debug)]
pub struct OwnedNetns {
    /// The namespace.
    pub netns: Netns,
    name: String,
}

impl OwnedNetns {
    /// Makes a network namespace whose `lo` is up.
    pub fn new(name: String) -> Self {
        Self { netns: make_netns(&name).unwrap_or_else(|error| panic!("{error:#}")), name }
    }
}

impl Drop for OwnedNetns {
    fn drop(&mut self) {
        if let Err(error) = Netns::delete_named(&self.name) {
            eprintln!("remove network namespace {}: {error:#}", self.name);
        }
    }
}
