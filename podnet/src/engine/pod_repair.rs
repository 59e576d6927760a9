//! Repairs inside pods: an address that podnet gave a pod, and that is not there any more, is given again.
//!
//! Everything else inside is the pod's: routes, further addresses, rules. Nobody tells of what happens there, so some pods
//! are looked at with each resync, in turn.

use std::ops::Bound;

use anyhow::Result;
use tracing::warn;

use super::{Engine, Why};
use crate::{api::AttachmentKey, netns::Netns};

/// How many pods are looked at with one resync.
const PODS_AT_A_TIME: usize = 64;

impl Engine {
    /// Looks at the pods whose turn it is.
    pub(super) fn mend_pod_sides(&mut self, why: Why<'_>) {
        let after = self.mended.take().map_or(Bound::Unbounded, Bound::Excluded);
        let turn = self.pods.range((after, Bound::Unbounded)).take(PODS_AT_A_TIME);
        let keys: Vec<AttachmentKey> = turn.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            match self.mend_pod_side(key) {
                Ok(true) => self.count_repair(why, &format!("pod {} had lost an address", key.container_id)),
                Ok(false) => {}
                Err(error) => {
                    warn!(container = key.container_id, error = format!("{error:#}"), "look at the pod's interface");
                }
            }
        }
        // After the last one, the first one's turn comes.
        self.mended = keys.into_iter().nth(PODS_AT_A_TIME - 1);
    }

    /// Returns whether there was something to mend.
    fn mend_pod_side(&self, key: &AttachmentKey) -> Result<bool> {
        let Some(record) = self.pods.get(key) else { return Ok(false) };
        // A pod that is gone, or going, is reconciliation's business.
        let Ok(netns) = Netns::open(&record.netns) else { return Ok(false) };
        if netns.id()? != record.netns_id {
            return Ok(false);
        }
        let side = self.pod_side(record);
        let is_broken = side.lacks_address(&netns, &self.home)?;
        if is_broken {
            side.configure(&netns, &self.home)?;
        }
        Ok(is_broken)
    }
}
