//! Configuration of the store `kubernetes`: how the API server is reached.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use axum::http::Uri;
use serde::{Deserialize, Serialize};

/// How the API server is reached; by default as a pod's service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct KubernetesConfig {
    /// A kubeconfig file, instead of the service account.
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig; none: its current one.
    pub context: Option<String>,
    /// URL of the API server, instead of the kubeconfig's or the service `kubernetes`: that one may need a kube-proxy
    /// which itself waits for the node's network.
    pub api_server: Option<String>,
}

impl KubernetesConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if let Some(path) = &self.kubeconfig {
            ensure!(path.is_absolute(), "store.kubeconfig: {} is not an absolute path", path.display());
        }
        ensure!(
            self.context.is_none() || self.kubeconfig.is_some(),
            "store.context: it names a context of a kubeconfig, but there is no store.kubeconfig"
        );
        self.api_server().map(drop)
    }

    /// Returns the URL of the API server, if one is given.
    ///
    /// # Errors
    ///
    /// It is no URL of a server.
    pub fn api_server(&self) -> Result<Option<Uri>> {
        let Some(text) = &self.api_server else { return Ok(None) };
        let uri: Uri = text.parse().with_context(|| format!("store.api-server: {text:?}"))?;
        ensure!(
            matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some(),
            "store.api-server: {text:?} is no URL of a server; give one such as https://192.168.1.10:6443"
        );
        Ok(Some(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, StoreConfig};

    #[test]
    fn a_store_needs_its_kind_alone() {
        let config = Config::parse("[store]\nkind = \"kubernetes\"").unwrap();
        assert_eq!(config.store, Some(StoreConfig::Kubernetes(KubernetesConfig::default())));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), config, "{text}");
    }

    #[test]
    fn all_keys_are_read() {
        let text = "[store]\nkind = \"kubernetes\"\nkubeconfig = \"/etc/k\"\ncontext = \"a\"\napi-server = \"https://[fd00::1]:6443\"";
        let config = Config::parse(text).unwrap();
        let Some(StoreConfig::Kubernetes(store)) = &config.store else { panic!("{config:?}") };
        assert_eq!(store.context.as_deref(), Some("a"));
        assert_eq!(store.api_server().unwrap().unwrap().host(), Some("[fd00::1]"));
        assert_eq!(Config::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn faults_name_the_key() {
        for (line, word) in [
            ("kubeconfig = \"k\"", "store.kubeconfig"),
            ("context = \"a\"", "store.context"),
            ("api-server = \"10.0.0.1:6443\"", "store.api-server"),
            ("api-server = \"ftp://a\"", "store.api-server"),
            ("apiserver = \"https://a\"", "apiserver"),
        ] {
            let error = Config::parse(&format!("[store]\nkind = \"kubernetes\"\n{line}")).unwrap_err();
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }
}
