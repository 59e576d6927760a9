//! The eBPF object that `build.rs` embedded.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use sha2::{Digest as _, Sha256};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podnet-ebpf.o"));

/// Returns the object.
///
/// # Errors
///
/// This binary was built without one.
pub fn bytes() -> Result<&'static [u8]> {
    ensure!(
        !OBJECT.is_empty(),
        "this binary was built without the eBPF programs; run `cargo xtask build-ebpf` and build it again"
    );
    Ok(OBJECT)
}

/// Returns the first 8 hexadecimal digits of the object's SHA-256, which tell one build of the programs from another;
/// `None` if there is none.
#[must_use]
pub fn hash() -> Option<String> {
    (!OBJECT.is_empty()).then(|| short_hash(OBJECT))
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..4].iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hash_is_the_start_of_sha256() {
        assert_eq!(super::short_hash(b"abc"), "ba7816bf");
    }
}
