//! Who the node is: an ID of this installation, kept in the state folder, and its addresses.

use std::{
    io::{ErrorKind, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

const FILE_NAME: &str = "node-id";

/// Where the kernel makes an ID (random(4)).
const KERNEL_UUID: &str = "/proc/sys/kernel/random/uuid";

/// Returns the installation's ID, and makes it if there is none. Who loses the state folder is a new node: the records
/// of its pods are lost as well.
///
/// # Errors
///
/// The state folder cannot be read or written.
pub(super) fn installation(state_dir: &Path) -> Result<String> {
    if let Some(id) = known_installation(state_dir)? {
        return Ok(id);
    }
    let id = std::fs::read_to_string(KERNEL_UUID).with_context(|| format!("read {KERNEL_UUID}"))?;
    let path = state_dir.join(FILE_NAME);
    let write = || -> Result<()> {
        std::fs::create_dir_all(state_dir)?;
        let mut file = tempfile::NamedTempFile::new_in(state_dir)?;
        file.write_all(id.as_bytes())?;
        // Others will know the node by it: it must not be lost with the power.
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    write().with_context(|| format!("write the node's ID to {}", path.display()))?;
    Ok(id.trim().to_owned())
}

/// Returns the installation's ID; `None`: it has none.
///
/// # Errors
///
/// The file cannot be read, or is empty.
pub(super) fn known_installation(state_dir: &Path) -> Result<Option<String>> {
    let path = state_dir.join(FILE_NAME);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("read the node's ID in {}", path.display()))?,
    };
    ensure!(!text.trim().is_empty(), "{} is empty; remove it, and the node gets a new ID", path.display());
    Ok(Some(text.trim().to_owned()))
}

/// Removes the installation's ID; none is success.
pub(super) fn forget(state_dir: &Path) -> Result<()> {
    let path = state_dir.join(FILE_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Addresses outside of every site (RFC 5737, RFC 3849): the way to them is the default route.
const FAR: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// Returns the source addresses of the node's default routes, IPv4 first.
pub(super) fn default_addresses() -> Vec<IpAddr> {
    FAR.into_iter().filter_map(source_towards).collect()
}

/// Asks the kernel for the source address: connecting a UDP socket sends nothing.
fn source_towards(far: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr =
        if far.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    let address = socket.local_addr().ok()?.ip();
    let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!address.is_loopback() && !address.is_unspecified() && !is_link_local).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        assert_eq!(known_installation(&state_dir).unwrap(), None);
        let id = installation(&state_dir).unwrap();
        assert_eq!(id.len(), 36, "{id:?}");
        assert_eq!(installation(&state_dir).unwrap(), id);
        forget(&state_dir).unwrap();
        forget(&state_dir).unwrap();
        assert_ne!(installation(&state_dir).unwrap(), id);
        std::fs::write(state_dir.join(FILE_NAME), "\n").unwrap();
        assert!(installation(&state_dir).unwrap_err().to_string().contains("is empty"));
    }
}
