//! The lab's file of nodes, which all of its daemons follow, and changes of it.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::topology::{Lab, NODES_FILE, write_atomically};
use crate::cluster::{ClusterNode, file};

/// The file of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodesFile {
    /// Where it is.
    pub path: PathBuf,
}

impl NodesFile {
    /// Returns the nodes, ordered by name.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or its nodes make no sense together.
    pub fn read(&self) -> Result<Vec<ClusterNode>> {
        Ok(file::read(&self.path)?.nodes().to_vec())
    }

    /// Replaces the file at once; a reader sees the old or the new one, never half of it. Does not judge the nodes.
    pub fn write(&self, nodes: &[ClusterNode]) -> Result<()> {
        let text = file::to_text(nodes)?;
        write_atomically(&self.path, text.as_bytes())
    }

    /// Adds a node.
    ///
    /// # Errors
    ///
    /// There is a node of that name.
    pub fn add(&self, node: ClusterNode) -> Result<()> {
        let mut nodes = self.read()?;
        ensure!(nodes.iter().all(|other| other.name != node.name), "there is a node {} already", node.name);
        nodes.push(node);
        self.write(&nodes)
    }

    /// Removes a node and returns it.
    ///
    /// # Errors
    ///
    /// There is no node of that name.
    pub fn remove(&self, name: &str) -> Result<ClusterNode> {
        let mut nodes = self.read()?;
        let position = nodes.iter().position(|node| node.name == name);
        let removed = nodes.remove(position.with_context(|| format!("there is no node {name}"))?);
        self.write(&nodes)?;
        Ok(removed)
    }

    /// Gives a node other addresses.
    ///
    /// # Errors
    ///
    /// There is no node of that name.
    pub fn readdress(&self, name: &str, addresses: Vec<IpAddr>) -> Result<()> {
        let mut nodes = self.read()?;
        let Some(node) = nodes.iter_mut().find(|node| node.name == name) else { bail!("there is no node {name}") };
        node.addresses = addresses;
        self.write(&nodes)
    }
}

impl Lab {
    /// Returns the file of nodes.
    #[must_use]
    pub fn nodes_file(&self) -> NodesFile {
        NodesFile { path: self.dir().join(NODES_FILE) }
    }

    /// Returns the lab's nodes as a store tells of them.
    #[must_use]
    pub fn cluster_nodes(&self) -> Vec<ClusterNode> {
        let node = |node: &super::Node| ClusterNode {
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        };
        self.nodes.iter().map(node).collect()
    }

    /// Gives the router the table of pod CIDRs that follows from the file of nodes, if it shall have one. What the file
    /// does not name any more stays in the router's table.
    pub fn configure_router(&self) -> Result<()> {
        match &self.network {
            Some(network) if network.router_knows_pods => {
                network.configure_router(&self.binary, &self.nodes_file().path).context("configure the lab's router")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Options;

    #[test]
    fn nodes_come_go_and_move() {
        let dir = tempfile::tempdir().unwrap();
        let file = NodesFile { path: dir.path().join("nodes.json") };
        let lab = Lab::plan(&Options::reference().unwrap()).unwrap();
        file.write(&lab.cluster_nodes()).unwrap();
        let text = std::fs::read_to_string(&file.path).unwrap();
        let first = r#"{"name":"node1","addresses":["192.168.1.11","fd00:192:168:1::11"],"podCIDRs":["10.244.1.0/24","fd00:10:244:1::/64"]}"#;
        assert!(text.replace([' ', '\n'], "").starts_with(&format!("{{\"nodes\":[{first},")), "{text}");

        let gone = file.remove("node2").unwrap();
        assert!(file.remove("node2").is_err());
        assert_eq!(file.read().unwrap().len(), 2);
        file.add(gone.clone()).unwrap();
        assert!(file.add(gone).is_err());
        file.readdress("node3", vec!["192.168.1.99".parse().unwrap()]).unwrap();
        let nodes = file.read().unwrap();
        assert_eq!(nodes[2].addresses[0].to_string(), "192.168.1.99");
        assert_eq!((nodes.len(), nodes[1].name.as_str()), (3, "node2"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "temporary files are left");
    }
}
