//! The last snapshot on disk: in force when the daemon starts and the store is away.

use std::{io::ErrorKind, path::Path};

use anyhow::{Context as _, Result};

use super::{Cluster, ClusterNode};

const FILE_NAME: &str = "cluster.json";

/// Stores a snapshot in the state folder, atomically.
pub fn store(state_dir: &Path, cluster: &Cluster) -> Result<()> {
    let path = state_dir.join(FILE_NAME);
    let write = || -> Result<()> {
        let file = tempfile::NamedTempFile::new_in(state_dir)?;
        let mut writer = std::io::BufWriter::new(file);
        serde_json::to_writer(&mut writer, cluster.nodes())?;
        writer.into_inner()?.persist(&path)?;
        Ok(())
    };
    write().with_context(|| format!("store the cluster's nodes in {}", path.display()))
}

/// Returns the snapshot that was stored last; `None`: none ever was.
///
/// # Errors
///
/// The file cannot be read, or makes no sense.
pub fn load(state_dir: &Path) -> Result<Option<Cluster>> {
    let path = state_dir.join(FILE_NAME);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    let nodes: Vec<ClusterNode> =
        serde_json::from_slice(&text).with_context(|| format!("read the cluster's nodes in {}", path.display()))?;
    Ok(Some(Cluster::new(nodes)?))
}

/// Removes the snapshot; one that is not there is success.
pub fn remove(state_dir: &Path) -> Result<()> {
    let path = state_dir.join(FILE_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_survives() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
        let node = ClusterNode {
            name: "node1".into(),
            addresses: vec!["192.168.1.11".parse().unwrap()],
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        };
        let cluster = Cluster::new(vec![node]).unwrap();
        store(folder.path(), &cluster).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(cluster));
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
    }
}
