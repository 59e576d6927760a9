//! Code generation options of the eBPF object, kept with the crate so that every build has them.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf") {
        // Network headers are not aligned. x86-64 and arm64 load such words in one instruction, and the verifier
        // allows it there (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS); without this, each load becomes one per byte.
        println!("cargo::rustc-link-arg-bins=--cpu-features=+alu32,+allows-misaligned-mem-access");
    }
}
