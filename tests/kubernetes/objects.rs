//! Node objects as an API server holds them.

use serde_json::{Value, json};

/// A Node object: what the tests vary of it.
#[derive(Clone, Debug)]
pub(crate) struct FakeNode {
    pub(crate) name: String,
    /// `InternalIP` addresses.
    pub(crate) addresses: Vec<String>,
    pub(crate) pod_cidrs: Vec<String>,
    /// When it was made, as RFC 3339.
    pub(crate) created: String,
    /// Conditions by type; each is a whole object.
    pub(crate) conditions: Vec<Value>,
    /// Number of heart-beats.
    pub(crate) beats: u64,
    /// Number of images that kubelet reports: they are what makes real objects large.
    pub(crate) images: usize,
}

impl FakeNode {
    /// Makes a node with these addresses and pod CIDRs; kubelet has reported it ready.
    pub(crate) fn new(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Self {
        Self {
            name: name.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            pod_cidrs: pod_cidrs.iter().map(ToString::to_string).collect(),
            created: "2026-01-01T00:00:00Z".into(),
            conditions: vec![json!({
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
                "lastHeartbeatTime": "2026-01-01T00:00:10Z", "lastTransitionTime": "2026-01-01T00:00:10Z",
            })],
            beats: 0,
            images: 2,
        }
    }

    /// Makes node N of the reference cluster.
    pub(crate) fn numbered(number: u32) -> Self {
        let (high, low) = (number / 250, number % 250);
        Self::new(
            &format!("node{number}"),
            &[&format!("192.168.{}.{}", 10 + high, low + 1), &format!("fd00:192::{number:x}")],
            &[&format!("10.{}.{low}.0/24", 64 + high), &format!("fd00:10:{number:x}::/64")],
        )
    }

    /// Returns the status of a condition.
    pub(crate) fn condition(&self, kind: &str) -> Option<&Value> {
        self.conditions.iter().find(|condition| condition["type"] == kind)
    }

    /// Sets a condition as another component of the cluster does.
    pub(crate) fn set_condition(&mut self, kind: &str, status: &str) {
        self.conditions.retain(|condition| condition["type"] != kind);
        self.conditions.push(json!({
            "type": kind, "status": status, "reason": "Test", "message": "set by a test",
            "lastHeartbeatTime": "2026-01-01T00:00:20Z", "lastTransitionTime": "2026-01-01T00:00:20Z",
        }));
    }

    /// Returns the object as it stands in an event or as the answer to a request; items of lists lack `kind` and
    /// `apiVersion`.
    pub(crate) fn object(&self, version: u64) -> Value {
        let mut object = self.item(version);
        object["kind"] = "Node".into();
        object["apiVersion"] = "v1".into();
        object
    }

    /// Returns the object as it stands in a list.
    pub(crate) fn item(&self, version: u64) -> Value {
        let beat = format!("2026-01-01T{:02}:{:02}:00Z", self.beats / 60 % 24, self.beats % 60);
        let mut addresses: Vec<Value> =
            self.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        addresses.push(json!({"type": "Hostname", "address": self.name}));
        let mut spec = json!({ "providerID": format!("fake://{}", self.name) });
        if let Some(first) = self.pod_cidrs.first() {
            spec["podCIDR"] = first.as_str().into();
            spec["podCIDRs"] = json!(self.pod_cidrs);
        }
        let image = |number: usize| {
            json!({
                "names": [
                    format!("registry.example/team/service-{number}@sha256:{number:064x}"),
                    format!("registry.example/team/service-{number}:v1.{number}.0"),
                ],
                "sizeBytes": 50_000_000 + number,
            })
        };
        json!({
            "metadata": {
                "name": self.name, "uid": format!("5f0c7b1e-0000-4000-8000-{:012x}", self.name.len()),
                "resourceVersion": version.to_string(), "creationTimestamp": self.created,
                "labels": { "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux" },
                "annotations": { "node.alpha.kubernetes.io/ttl": "0", "test/beat": beat },
                "managedFields": [{
                    "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": beat,
                    "fieldsType": "FieldsV1", "fieldsV1": { "f:status": { "f:conditions": {
                        "k:{\"type\":\"Ready\"}": { "f:lastHeartbeatTime": {} } } } },
                    "subresource": "status",
                }],
            },
            "spec": spec,
            "status": {
                "capacity": { "cpu": "8", "memory": "32779788Ki", "pods": "110" },
                "addresses": addresses,
                "conditions": self.conditions,
                "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
                "nodeInfo": { "kubeletVersion": "v1.36.0", "containerRuntimeVersion": "containerd://2.3.0", "operatingSystem": "linux" },
                "images": (0..self.images).map(image).collect::<Vec<_>>(),
            },
        })
    }
}

/// Returns a `Status`, the answer of a request that fails.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

/// Returns a bookmark.
pub(crate) fn bookmark(version: u64) -> Value {
    json!({
        "type": "BOOKMARK",
        "object": {
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
            "spec": {},
            "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } }, "nodeInfo": { "machineID": "" } },
        },
    })
}
