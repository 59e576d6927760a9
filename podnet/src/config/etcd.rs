//! Configuration of the store `etcd`: where etcd is, who the node is there, and how long its absence is borne.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::validate_pod_cidr;

/// The store `etcd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EtcdConfig {
    /// URLs of members of the etcd cluster, each with its port, such as `https://10.0.0.5:2379`.
    pub endpoints: Vec<String>,
    /// Beginning of all keys; clusters that share an etcd have one each.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Addresses at which the other nodes reach this one, at most one per family; empty: the source addresses of its
    /// default routes.
    #[serde(default)]
    pub node_addresses: Vec<IpAddr>,
    /// Prefix length of each node's IPv4 pod CIDR; the same on all nodes.
    #[serde(default = "default_node_prefix_ipv4")]
    pub node_prefix_ipv4: u8,
    /// Prefix length of each node's IPv6 pod CIDR; the same on all nodes.
    #[serde(default = "default_node_prefix_ipv6")]
    pub node_prefix_ipv6: u8,
    /// Seconds after which etcd counts a node as away that has not reported.
    #[serde(default = "default_lease")]
    pub lease_seconds: u32,
    /// Seconds for which the others keep a node that is away; then they forget it, and its pod CIDRs are free.
    #[serde(default = "default_grace")]
    pub grace_seconds: u32,
    /// PEM file of the authorities that etcd's certificate must come from; required with `https`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// PEM file of the certificate that podnet shows to etcd.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// PEM file of that certificate's key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Name that etcd's certificate must have; none: the host of the endpoint.
    #[serde(default)]
    pub server_name: Option<String>,
    /// User of etcd.
    #[serde(default)]
    pub user: Option<String>,
    /// File that holds the user's password; white space at its end does not count.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

fn default_prefix() -> String {
    "/podnet".into()
}

const fn default_node_prefix_ipv4() -> u8 {
    24
}

const fn default_node_prefix_ipv6() -> u8 {
    64
}

const fn default_lease() -> u32 {
    30
}

const fn default_grace() -> u32 {
    300
}

impl EtcdConfig {
    /// Returns the configuration with these endpoints and all defaults.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            prefix: default_prefix(),
            node_addresses: Vec::new(),
            node_prefix_ipv4: default_node_prefix_ipv4(),
            node_prefix_ipv6: default_node_prefix_ipv6(),
            lease_seconds: default_lease(),
            grace_seconds: default_grace(),
            ca: None,
            certificate: None,
            key: None,
            server_name: None,
            user: None,
            password_file: None,
        }
    }

    /// Returns the prefix length of nodes' pod CIDRs in the family of a range.
    #[must_use]
    pub fn node_prefix(&self, range: IpNetwork) -> u8 {
        if range.is_ipv4() { self.node_prefix_ipv4 } else { self.node_prefix_ipv6 }
    }

    /// Checks the section, and what of the rest of the file it depends on.
    ///
    /// # Errors
    ///
    /// Names the field and the fix.
    pub(super) fn validate(&self, cluster_cidrs: &[IpNetwork], pod_cidrs: &[IpNetwork]) -> Result<()> {
        self.validate_endpoints()?;
        self.validate_credentials()?;
        let well_formed = self.prefix.strip_prefix('/').is_some_and(|rest| {
            !rest.is_empty() && rest.split('/').all(|part| !part.is_empty()) && !rest.contains(char::is_whitespace)
        });
        ensure!(
            well_formed,
            "store.prefix: {:?} does not begin with a slash, ends with one, or has empty parts; use one like \"/podnet\"",
            self.prefix
        );
        ensure!(
            (3..=3600).contains(&self.lease_seconds),
            "store.lease-seconds: {} is not in 3..=3600",
            self.lease_seconds
        );
        ensure!(
            (1..=604_800).contains(&self.grace_seconds),
            "store.grace-seconds: {} is not in 1..=604800 (a week)",
            self.grace_seconds
        );
        self.validate_ranges(cluster_cidrs, pod_cidrs)?;
        for (position, address) in self.node_addresses.iter().enumerate() {
            ensure!(
                self.node_addresses[..position].iter().all(|other| other.is_ipv4() != address.is_ipv4()),
                "store.node-addresses: {address} is the second address of its family; give one per family"
            );
            ensure!(
                !cluster_cidrs.iter().any(|range| range.contains(*address)),
                "store.node-addresses: {address} is inside of cluster-cidrs, which hold pods' addresses alone"
            );
        }
        Ok(())
    }

    fn validate_endpoints(&self) -> Result<()> {
        ensure!(!self.endpoints.is_empty(), "store.endpoints: the list is empty; give the URLs of etcd's members");
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            let port = rest.and_then(|rest| rest.rsplit_once(':')).and_then(|(_, port)| port.parse::<u16>().ok());
            ensure!(
                port.is_some_and(|port| port != 0),
                "store.endpoints: {endpoint:?} is no URL like \"https://10.0.0.5:2379\" (http or https, host, port)"
            );
        }
        let is_https = |endpoint: &String| endpoint.starts_with("https://");
        ensure!(
            self.endpoints.iter().all(is_https) || !self.endpoints.iter().any(is_https),
            "store.endpoints: some are http and some https; make them alike"
        );
        let is_https = self.endpoints.iter().all(is_https);
        ensure!(
            !is_https || self.ca.is_some(),
            "store.ca: it is missing; https needs the PEM file of the authority of etcd's certificate"
        );
        for (field, is_given) in [
            ("ca", self.ca.is_some()),
            ("certificate", self.certificate.is_some()),
            ("key", self.key.is_some()),
            ("server-name", self.server_name.is_some()),
        ] {
            ensure!(is_https || !is_given, "store.{field}: the endpoints are http; write https, or leave it out");
        }
        Ok(())
    }

    fn validate_credentials(&self) -> Result<()> {
        ensure!(
            self.certificate.is_some() == self.key.is_some(),
            "store.certificate and store.key: one is given without the other"
        );
        ensure!(
            self.user.is_some() == self.password_file.is_some(),
            "store.user and store.password-file: one is given without the other"
        );
        for (field, path) in [
            ("ca", &self.ca),
            ("certificate", &self.certificate),
            ("key", &self.key),
            ("password-file", &self.password_file),
        ] {
            if let Some(path) = path {
                ensure!(path.is_absolute(), "store.{field}: {} is not an absolute path", path.display());
            }
        }
        Ok(())
    }

    fn validate_ranges(&self, cluster_cidrs: &[IpNetwork], pod_cidrs: &[IpNetwork]) -> Result<()> {
        ensure!(
            !cluster_cidrs.is_empty(),
            "cluster-cidrs: the list is empty; the store etcd takes nodes' pod CIDRs out of it, such as [\"10.244.0.0/16\", \"fd00:10:244::/48\"]"
        );
        for (position, range) in cluster_cidrs.iter().enumerate() {
            ensure!(
                cluster_cidrs[..position].iter().all(|other| other.is_ipv4() != range.is_ipv4()),
                "cluster-cidrs: {range} is the second range of its family; the store etcd needs one per family"
            );
            let (size, family) = (self.node_prefix(*range), if range.is_ipv4() { "ipv4" } else { "ipv6" });
            let field = format!("store.node-prefix-{family}");
            ensure!(size >= range.prefix(), "{field}: a /{size} does not fit into {range} of cluster-cidrs");
            let first = IpNetwork::new(range.network(), size).with_context(|| field.clone())?;
            validate_pod_cidr(first).context(field)?;
        }
        for cidr in pod_cidrs {
            let range = cluster_cidrs.iter().find(|range| range.contains(cidr.network()));
            ensure!(
                range.is_some_and(|range| self.node_prefix(*range) == cidr.prefix()),
                "pod-cidrs: {cidr} is no pod CIDR of the store etcd: it must be inside of cluster-cidrs, and as long as node-prefix-ipv4 or node-prefix-ipv6 says"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, StoreConfig};

    fn parse(rest: &str) -> Result<Config, String> {
        let text = if rest.contains("cluster-cidrs") {
            rest.to_owned()
        } else {
            format!("cluster-cidrs = [\"10.244.0.0/16\", \"fd00:10:244::/48\"]\n[store]\nkind = \"etcd\"\n{rest}")
        };
        Config::parse(&text).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_minimal_section_takes_the_defaults_and_survives_writing() {
        let config = parse("endpoints = [\"http://10.0.0.5:2379\", \"http://[fd00::5]:2379\"]").unwrap();
        let Some(StoreConfig::Etcd(etcd)) = &config.store else { panic!("{config:?}") };
        assert_eq!((etcd.prefix.as_str(), etcd.lease_seconds, etcd.grace_seconds), ("/podnet", 30, 300));
        assert_eq!((etcd.node_prefix_ipv4, etcd.node_prefix_ipv6), (24, 64));
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn errors_name_the_field_and_the_fix() {
        let http = "endpoints = [\"http://10.0.0.5:2379\"]\n";
        let https = "endpoints = [\"https://10.0.0.5:2379\"]\n";
        let top = |line: &str| format!("{line}\n[store]\nkind = \"etcd\"\n{http}");
        for (text, words) in [
            ("endpoints = []".to_owned(), "store.endpoints: the list is empty"),
            ("endpoints = [\"10.0.0.5:2379\"]".to_owned(), "is no URL like"),
            ("endpoints = [\"http://10.0.0.5\"]".to_owned(), "is no URL like"),
            ("endpoints = [\"http://a:1\", \"https://b:1\"]\nca = \"/ca\"".to_owned(), "make them alike"),
            (https.to_owned(), "store.ca: it is missing"),
            (format!("{http}ca = \"/ca\""), "store.ca: the endpoints are http"),
            (format!("{https}ca = \"ca.pem\""), "store.ca: ca.pem is not an absolute path"),
            (format!("{https}ca = \"/ca\"\nkey = \"/key\""), "one is given without the other"),
            (format!("{http}user = \"podnet\""), "store.user and store.password-file"),
            (format!("{http}prefix = \"podnet/\""), "store.prefix"),
            (format!("{http}lease-seconds = 1"), "store.lease-seconds: 1 is not in 3..=3600"),
            (format!("{http}grace-seconds = 0"), "store.grace-seconds"),
            (format!("{http}node-prefix-ipv4 = 12"), "a /12 does not fit into 10.244.0.0/16"),
            (format!("{http}node-prefix-ipv4 = 31"), "store.node-prefix-ipv4: 10.244.0.0/31: the prefix length"),
            (format!("{http}node-prefix-ipv6 = 200"), "store.node-prefix-ipv6"),
            (format!("{http}node-addresses = [\"10.0.0.1\", \"10.0.0.2\"]"), "second address of its family"),
            (format!("{http}node-addresses = [\"10.244.3.1\"]"), "inside of cluster-cidrs"),
            (format!("{http}leaseseconds = 1"), "unknown field `leaseseconds`"),
            (top("cluster-cidrs = []"), "cluster-cidrs: the list is empty"),
            (top("cluster-cidrs = [\"10.1.0.0/16\", \"10.2.0.0/16\"]"), "second range of its family"),
            (top("cluster-cidrs = [\"10.1.0.0/16\"]\npod-cidrs = [\"10.2.0.0/24\"]"), "inside of cluster-cidrs"),
            (top("cluster-cidrs = [\"10.1.0.0/16\"]\npod-cidrs = [\"10.1.0.0/23\"]"), "pod-cidrs: 10.1.0.0/23"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
