//! The manifests of `deploy/kubernetes` are what an API server takes, and say what podnet needs, no more and no less.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container, Namespace, PodSpec, Probe, ServiceAccount, Volume},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use podnet::config::{Config, StoreConfig};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::state::State;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes")
}

fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns the only document of a kind, strictly: the type has every field that the document has.
fn document<T: DeserializeOwned + Serialize>(name: &str, kind: &str) -> T {
    let mut found: Vec<Value> = documents(name).into_iter().filter(|document| document["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{name}: {kind}");
    let written = found.remove(0);
    let typed: T = serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{name}: {kind}: {error}"));
    let known = serde_json::to_value(&typed).unwrap();
    if let Some(path) = unknown(&written, &known, kind) {
        panic!("{name}: {path} is no field of the API");
    }
    typed
}

/// Returns the path of something that was written and is not known.
fn unknown(written: &Value, known: &Value, path: &str) -> Option<String> {
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => written.iter().find_map(|(key, value)| {
            let path = format!("{path}.{key}");
            match known.get(key) {
                Some(known) => unknown(value, known, &path),
                None => Some(path),
            }
        }),
        (Value::Array(written), Value::Array(known)) if written.len() == known.len() => {
            let pairs = written.iter().zip(known).enumerate();
            pairs
                .into_iter()
                .find_map(|(number, (written, known))| unknown(written, known, &format!("{path}[{number}]")))
        }
        (written, known) => (written != known).then(|| path.to_owned()),
    }
}

/// Returns verbs and resources that the ClusterRole allows.
pub(crate) fn permissions() -> BTreeSet<(String, String)> {
    let role: ClusterRole = document("podnet.yaml", "ClusterRole");
    let rules = role.rules.unwrap();
    assert!(rules.iter().all(|rule| rule.api_groups.as_deref() == Some(&[String::new()])), "{rules:?}");
    let pairs = rules.iter().flat_map(|rule| {
        let resources = rule.resources.clone().unwrap();
        rule.verbs
            .iter()
            .flat_map(move |verb| resources.clone().into_iter().map(move |resource| (verb.clone(), resource)))
    });
    pairs.collect()
}

fn pod(name: &str) -> PodSpec {
    document::<DaemonSet>(name, "DaemonSet").spec.unwrap().template.spec.unwrap()
}

/// Returns podnet's container of the DaemonSet.
pub(crate) fn container() -> Container {
    pod("podnet.yaml").containers.remove(0)
}

/// Returns the capabilities that the DaemonSet's container has.
pub(crate) fn capabilities() -> Vec<String> {
    let capabilities = container().security_context.unwrap().capabilities.unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    capabilities.add.unwrap()
}

fn config() -> Config {
    let data = document::<ConfigMap>("podnet.yaml", "ConfigMap").data.unwrap();
    Config::parse(&data["podnet.toml"]).unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn the_role_allows_what_the_store_asks_for_and_nothing_else() {
    // What the other tests of this suite see is checked against the same state.
    let asked = State::new().allowed;
    let asked: BTreeSet<_> =
        asked.iter().map(|(verb, resource)| ((*verb).to_owned(), (*resource).to_owned())).collect();
    assert_eq!(permissions(), asked);
    let binding: ClusterRoleBinding = document("podnet.yaml", "ClusterRoleBinding");
    let account: ServiceAccount = document("podnet.yaml", "ServiceAccount");
    let role: ClusterRole = document("podnet.yaml", "ClusterRole");
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!(
        (Some(&subject.name), &subject.namespace),
        (account.metadata.name.as_ref(), &account.metadata.namespace)
    );
    let spec = pod("podnet.yaml");
    assert_eq!(spec.service_account_name, account.metadata.name);
    assert_eq!(spec.automount_service_account_token, Some(true));
    let namespace: Namespace = document("podnet.yaml", "Namespace");
    assert_eq!(namespace.metadata.name, account.metadata.namespace);
    let labels = namespace.metadata.labels.unwrap();
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
}

#[test]
fn the_policy_is_in_force_for_what_the_account_may_write() {
    let policy: ValidatingAdmissionPolicy = document("podnet.yaml", "ValidatingAdmissionPolicy");
    let binding: ValidatingAdmissionPolicyBinding = document("podnet.yaml", "ValidatingAdmissionPolicyBinding");
    let binding = binding.spec.unwrap();
    assert_eq!(binding.policy_name, policy.metadata.name);
    assert_eq!(binding.validation_actions, Some(vec!["Deny".to_owned()]));
    let policy = policy.spec.unwrap();
    assert_eq!(policy.failure_policy.as_deref(), Some("Fail"));
    // A patch is an update there.
    let [rule] = &policy.match_constraints.unwrap().resource_rules.unwrap()[..] else { panic!("one rule") };
    assert_eq!(rule.operations, Some(vec!["UPDATE".to_owned()]));
    let written: BTreeSet<_> =
        permissions().into_iter().filter_map(|(verb, resource)| (verb == "patch").then_some(resource)).collect();
    assert_eq!(written, rule.resources.iter().flatten().cloned().collect());
    let account: ServiceAccount = document("podnet.yaml", "ServiceAccount");
    let (name, namespace) = (account.metadata.name.unwrap(), account.metadata.namespace.unwrap());
    let [condition] = &policy.match_conditions.unwrap()[..] else { panic!("one condition") };
    assert!(condition.expression.ends_with(&format!("'system:serviceaccount:{namespace}:{name}'")), "{condition:?}");
    let validations = policy.validations.unwrap();
    assert!(validations[0].expression.contains("variables.node == object.metadata.name"), "{validations:?}");
    // podnet takes this answer for a permission that it lacks, and says so.
    assert!(validations.iter().all(|one| one.reason.as_deref() == Some("Forbidden")), "{validations:?}");
}

#[test]
fn the_removal_uninstalls_before_and_after_the_clean_up() {
    let containers = pod("remove/remove.yaml").init_containers.unwrap();
    let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(names, ["uninstall", "cleanup", "uninstall-again"]);
    let [first, _, last] = &containers[..] else { panic!("{names:?}") };
    assert_eq!(Container { name: first.name.clone(), ..last.clone() }, *first);
}

#[test]
fn the_configuration_is_valid_and_fits_the_daemon_set() {
    let config = config();
    assert!(matches!(&config.store, Some(StoreConfig::Kubernetes(_))), "{config:?}");
    let container = container();
    let health = config.http.unwrap();
    for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe] {
        let Probe { http_get: Some(get), .. } = probe.clone().unwrap() else { panic!("{probe:?}") };
        assert_eq!(get.host.unwrap(), health.ip().to_string());
        assert_eq!(serde_json::to_value(get.port).unwrap(), health.port());
    }
    // What outlives the pod, or is known to the runtime by its path, is at the same path of the node.
    let environment = container.env.clone().unwrap();
    let value = |name: &str| environment.iter().find(|variable| variable.name == name).unwrap().value.clone().unwrap();
    for path in [
        config.socket.clone(),
        config.state_dir.clone(),
        config.bpffs.clone(),
        podnet::netns::NAMED_DIR.into(),
        value("PODNET_CNI_BIN_DIR").into(),
        value("PODNET_CNI_CONF_DIR").into(),
    ] {
        let mounts = container.volume_mounts.as_ref().unwrap();
        let mount =
            mounts.iter().find(|mount| path.starts_with(&mount.mount_path)).unwrap_or_else(|| panic!("{path:?}"));
        let volumes = pod("podnet.yaml").volumes.unwrap();
        let volume: &Volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
        assert_eq!(volume.host_path.as_ref().unwrap().path, mount.mount_path);
        assert!(mount.read_only != Some(true), "{path:?} is written to");
    }
    let node = environment.iter().find(|variable| variable.name == "PODNET_NODE").unwrap();
    let source = node.value_from.as_ref().unwrap().field_ref.as_ref().unwrap();
    assert_eq!(source.field_path, "spec.nodeName");
    let mount = format!("{}/net", value("PODNET_PROC_SYS"));
    assert!(container.volume_mounts.unwrap().iter().any(|volume| volume.mount_path == mount));
}

#[test]
fn the_pods_run_on_every_node_and_before_all_others() {
    for name in ["podnet.yaml", "remove/remove.yaml"] {
        let spec = pod(name);
        assert_eq!((spec.host_network, spec.host_pid), (Some(true), None));
        assert_eq!(spec.priority_class_name.as_deref(), Some("system-node-critical"));
        let tolerations = spec.tolerations.unwrap();
        assert!(
            tolerations
                .iter()
                .any(|all| all.operator.as_deref() == Some("Exists") && all.key.is_none() && all.effect.is_none())
        );
        let set: DaemonSet = document(name, "DaemonSet");
        let set = set.spec.unwrap();
        let labels = set.template.metadata.unwrap().labels.unwrap();
        assert!(set.selector.match_labels.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value)), "{name}");
        let volumes: BTreeSet<String> = spec.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            for mount in container.volume_mounts.iter().flatten() {
                assert!(volumes.contains(&mount.name), "{name}: {}", mount.name);
            }
            let security = container.security_context.as_ref().unwrap();
            assert!(security.privileged != Some(true) && security.read_only_root_filesystem == Some(true));
        }
    }
}

#[test]
fn the_bases_name_what_there_is() {
    for (base, resource) in [("", "podnet.yaml"), ("remove", "remove.yaml")] {
        let dir = folder().join(base);
        let text = std::fs::read_to_string(dir.join("kustomization.yaml")).unwrap();
        let base: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!((&base["kind"], &base["resources"]), (&"Kustomization".into(), &serde_json::json!([resource])));
        let image = &base["images"][0];
        let manifest = std::fs::read_to_string(dir.join(resource)).unwrap();
        let name = format!("image: {}:{}", image["name"].as_str().unwrap(), image["newTag"].as_str().unwrap());
        assert!(manifest.contains(&name), "{name}");
        assert_eq!(image["newTag"], env!("CARGO_PKG_VERSION"), "the image is that of this version");
    }
}

#[test]
fn unknown_fields_are_found() {
    let written = serde_json::json!({ "spec": { "a": [{ "b": 1, "c": 2 }] } });
    let known = serde_json::json!({ "spec": { "a": [{ "b": 1 }] }, "more": 1 });
    assert_eq!(unknown(&written, &known, "Pod").as_deref(), Some("Pod.spec.a[0].c"));
    assert_eq!(unknown(&known, &known, "Pod"), None);
}

#[test]
fn every_document_is_one_of_those_that_are_checked() {
    let kinds: Vec<String> =
        documents("podnet.yaml").iter().map(|document| document["kind"].as_str().unwrap().into()).collect();
    let checked = [
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ConfigMap",
        "DaemonSet",
    ];
    assert_eq!(kinds, checked);
}
