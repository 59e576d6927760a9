//! Clears the node's condition `NetworkUnavailable` once podnet serves, and whenever somebody sets it again: as long as it
//! is true, no pod is scheduled to the node. Nothing else is ever written.

use k8s_openapi::{api::core::v1::NodeCondition, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    api::{Patch, PatchParams},
    core::Request,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    Timing,
    connect::{Refusal, connect, request_text},
    follow::{Condition, NODES},
    object::NETWORK_UNAVAILABLE,
};
use crate::config::kubernetes::KubernetesConfig;

/// The condition's reason while podnet serves.
const REASON: &str = "PodnetIsUp";

/// Keeps the condition cleared, for ever.
#[derive(Debug)]
pub(super) struct Announcer {
    pub(super) config: KubernetesConfig,
    pub(super) own: String,
    pub(super) timing: Timing,
    /// Whether podnet serves.
    pub(super) ready: watch::Receiver<bool>,
    /// The condition as the API server has it.
    pub(super) condition: watch::Receiver<Condition>,
}

impl Announcer {
    pub(super) async fn run(mut self) {
        if self.ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        let mut delays = self.timing.delays();
        let mut failure = None;
        loop {
            let needed = |condition: &Condition| match condition {
                Condition::Unknown => false,
                Condition::Seen(status) => status.as_deref() != Some("False"),
            };
            if self.condition.wait_for(needed).await.is_err() {
                return;
            }
            self.condition.mark_unchanged();
            match self.clear().await {
                Ok(()) => {
                    info!(node = self.own, "the condition {NETWORK_UNAVAILABLE} is cleared");
                    delays = self.timing.delays();
                    failure = None;
                    // The watch brings back what was written. If somebody else insists, this is no race.
                    tokio::time::sleep(self.timing.reassert).await;
                    if !self.condition.has_changed().unwrap_or(true) && self.condition.changed().await.is_err() {
                        return;
                    }
                }
                Err(refusal) => {
                    if failure.as_ref() != Some(&refusal.reason) {
                        warn!(reason = refusal.reason, "the condition {NETWORK_UNAVAILABLE} cannot be cleared yet");
                    }
                    failure = Some(refusal.reason);
                    let delay = delays.next().unwrap_or_default();
                    tokio::time::sleep(delay.max(refusal.retry_after.unwrap_or_default())).await;
                }
            }
        }
    }

    async fn clear(&self) -> Result<(), Refusal> {
        let client = connect(&self.config, self.timing).await;
        let client = client.map_err(|error| Refusal::without_answer(format!("{error:#}")))?;
        let now = Time::from(Timestamp::now());
        let condition = NodeCondition {
            type_: NETWORK_UNAVAILABLE.into(),
            status: "False".into(),
            reason: Some(REASON.into()),
            message: Some("podnet serves on this node".into()),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: Some(now),
        };
        // Conditions merge by their type: those of others stay.
        let patch = Patch::Strategic(serde_json::json!({ "status": { "conditions": [condition] } }));
        let request = Request::new(NODES).patch_subresource("status", &self.own, &PatchParams::default(), &patch);
        let request = request.map_err(|error| Refusal::without_answer(format!("patch nodes/status: {error}")))?;
        let answer = request_text(&client, request, self.timing.answer).await;
        answer.map(drop).map_err(|error| Refusal::new(&error, "patch", "nodes/status"))
    }
}
