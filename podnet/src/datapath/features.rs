//! What the kernel can do of what the eBPF path uses: asked of the kernel itself, since distributions give old versions new
//! features.

use aya::{
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};

use crate::api::KernelStatus;

/// A feature without which the programs cannot be loaded, and the kernel version that brought it.
const NEEDED: [(&str, Need); 6] = [
    ("ring buffers (5.8)", Need::Map(MapType::RingBuf)),
    ("LRU hash maps (4.10)", Need::Map(MapType::LruHash)),
    ("bpf_redirect_peer (5.10)", Need::Helper(BpfHelper::BPF_FUNC_redirect_peer)),
    ("bpf_redirect_neigh (5.10)", Need::Helper(BpfHelper::BPF_FUNC_redirect_neigh)),
    ("bpf_ktime_get_coarse_ns (5.11)", Need::Helper(BpfHelper::BPF_FUNC_ktime_get_coarse_ns)),
    ("bpf_skb_set_tunnel_key (4.3)", Need::Helper(BpfHelper::BPF_FUNC_skb_set_tunnel_key)),
];

enum Need {
    Map(MapType),
    Helper(BpfHelper),
}

impl Need {
    /// Returns whether the kernel has it; `None`: it does not say.
    fn is_met(&self) -> Option<bool> {
        match self {
            Self::Map(kind) => is_map_supported(*kind).ok(),
            Self::Helper(helper) => is_helper_supported(ProgramType::SchedClassifier, *helper).ok(),
        }
    }
}

/// Asks the kernel.
#[must_use]
pub fn kernel() -> KernelStatus {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    let lacks = NEEDED.iter().filter(|(_, need)| need.is_met() == Some(false));
    KernelStatus {
        release: release.unwrap_or_default(),
        lacks: lacks.map(|(name, _)| (*name).to_owned()).collect(),
        tcx: has_tcx(),
    }
}

/// Returns whether the kernel has TCX: since 6.6 (kernel commit e420bed02507).
#[must_use]
pub fn has_tcx() -> bool {
    // Every network namespace has `lo`. An older kernel knows no such hook.
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}
