//! The JSON file of nodes: `{"nodes": [{"name": ..., "addresses": [...], "podCIDRs": [...]}]}`.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Cluster, ClusterNode};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    nodes: Vec<ClusterNode>,
}

/// Reads a file of nodes.
///
/// # Errors
///
/// Names the file; and line and column of a fault in it, or what is wrong with the nodes.
pub fn read(path: &Path) -> Result<Cluster> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("read {}", path.display()))
}

/// Parses the content of a file of nodes.
///
/// # Errors
///
/// Line and column of a fault in it, or what is wrong with the nodes.
pub fn parse(text: &[u8]) -> Result<Cluster> {
    let file: File = serde_json::from_slice(text)?;
    Cluster::new(file.nodes)
}

/// Returns the content of a file of these nodes.
pub fn to_text(nodes: &[ClusterNode]) -> Result<String> {
    let mut text = serde_json::to_string_pretty(&File { nodes: nodes.to_vec() }).context("encode the nodes")?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_named_by_line_and_column() {
        let error = |text: &str| format!("{:#}", parse(text.as_bytes()).unwrap_err());
        assert!(error("{\n\"nodes\": [,").contains("line 2 column 11"), "{}", error("{\n\"nodes\": [,"));
        assert!(error("{\"nodes\": [], \"x\": 1}").contains("unknown field `x`"));
        let node = r#"{"name":"a","addresses":["10.0.0.1"],"podCIDRs":["10.1.0.1/24"]}"#;
        assert!(error(&format!("{{\"nodes\":[{node}]}}")).contains("did you mean 10.1.0.0/24"));
    }

    #[test]
    fn nodes_survive_a_round_trip() {
        let node = ClusterNode {
            name: "a".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            pod_cidrs: vec!["fd00:1::/64".parse().unwrap()],
        };
        let text = to_text(std::slice::from_ref(&node)).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap().nodes(), [node]);
    }
}
