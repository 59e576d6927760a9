//! The initramfs of the machine: busybox, the modules that podnet and its tests may need, the binaries and their
//! libraries, and the script that runs them.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::process::{Cmd, find_command};

/// Folders below `kernel/` whose modules the machine has.
const MODULES: [&str; 8] =
    ["net/bridge", "net/802", "net/8021q", "net/llc", "net/ipv4", "net/ipv6", "net/netfilter", "net/sched"];

/// Single modules, and those that they need.
const MORE_MODULES: [&str; 7] = [
    "drivers/net/veth.ko",
    "drivers/net/dummy.ko",
    "drivers/net/vxlan/vxlan.ko",
    "lib/libcrc32c.ko",
    "crypto/crc32c_generic.ko",
    "arch/x86/crypto/crc32c-intel.ko",
    "net/core/failover.ko",
];

/// Commands that podnet and the program tests start, besides those of busybox.
const COMMANDS: [&str; 3] = ["nft", "ip", "tc"];

const INIT: &str = include_str!("init.sh");

/// Makes the initramfs, and returns where it lies.
pub(crate) fn make(folder: &Path, kernel: &Kernel, podnet: &Path, tests: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("create {name} in {}", root.display()))?;
    }
    let busybox = found("busybox")?;
    place(&root, &busybox, Path::new("bin/busybox"))?;
    for name in Cmd::new("busybox").arg("--list").capture()?.split_whitespace() {
        let link = root.join("bin").join(name);
        if name != "busybox" {
            symlink("busybox", &link).with_context(|| format!("link {}", link.display()))?;
        }
    }
    // /bin comes first: these take the place of busybox's.
    place(&root, podnet, Path::new("bin/podnet"))?;
    place_with_libraries(&root, tests, Path::new("bin/programs"))?;
    for name in COMMANDS {
        place_with_libraries(&root, &found(name)?, &Path::new("bin").join(name))?;
    }
    fs::write(root.join("init"), INIT).context("write the init script")?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).context("make init executable")?;
    place_modules(&root, kernel)?;
    let image = folder.join("initramfs.gz");
    Cmd::new("sh")
        .args(["-c", "find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > \"$0\""])
        .arg(&image)
        .dir(&root)
        .run()?;
    Ok(image)
}

fn found(name: &str) -> Result<PathBuf> {
    find_command(name).with_context(|| format!("find the command {name}"))
}

/// Copies a file to a place below the root, instead of what is there.
fn place(root: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = root.join(to);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    if to.symlink_metadata().is_ok() {
        fs::remove_file(&to).with_context(|| format!("remove {}", to.display()))?;
    }
    fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display())).map(drop)
}

/// Copies a program, and the libraries that it is linked with to where the loader looks for them.
fn place_with_libraries(root: &Path, from: &Path, to: &Path) -> Result<()> {
    place(root, from, to)?;
    for library in libraries_of(&Cmd::new("ldd").arg(from).capture()?) {
        let relative = library.strip_prefix("/").with_context(|| format!("{} is no path", library.display()))?;
        if !root.join(relative).exists() {
            place(root, &library, relative)?;
        }
    }
    Ok(())
}

/// Returns the files that `ldd` names.
fn libraries_of(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.trim_end_matches(':').into()).collect()
}

fn place_modules(root: &Path, kernel: &Kernel) -> Result<()> {
    let target = Path::new("lib/modules").join(&kernel.release);
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        place(root, &kernel.modules.join(name), &target.join(name))?;
    }
    let mut wanted: BTreeSet<PathBuf> = MORE_MODULES.iter().map(PathBuf::from).collect();
    for folder in MODULES {
        collect(&kernel.modules.join("kernel"), Path::new(folder), &mut wanted)?;
    }
    // Modules need others that may lie anywhere: those, too, until there are no more.
    let all = {
        let mut all = BTreeSet::new();
        collect(&kernel.modules.join("kernel"), Path::new(""), &mut all)?;
        all
    };
    let mut open: Vec<PathBuf> = wanted.iter().cloned().collect();
    while let Some(module) = open.pop() {
        let path = kernel.modules.join("kernel").join(&module);
        // What another release does not have is built into it, or not needed.
        let Ok(content) = fs::read(&path) else {
            wanted.remove(&module);
            continue;
        };
        for name in needs_of(&content) {
            if let Some(needed) = all.iter().find(|path| is_module(path, &name))
                && wanted.insert(needed.clone())
            {
                open.push(needed.clone());
            }
        }
    }
    for module in &wanted {
        let path = Path::new("kernel").join(module);
        place(root, &kernel.modules.join(&path), &target.join(&path))?;
    }
    Cmd::new("busybox").arg("depmod").arg("-b").arg(root).arg(&kernel.release).run()
}

/// Adds the modules below a folder.
fn collect(root: &Path, folder: &Path, modules: &mut BTreeSet<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("read {}", path.display()))?,
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        let name = folder.join(entry.file_name());
        if entry.path().is_dir() {
            collect(root, &name, modules)?;
        } else if name.extension().is_some_and(|extension| extension == "ko") {
            modules.insert(name);
        } else {
            bail!("{} is no module that busybox can load", entry.path().display());
        }
    }
    Ok(())
}

/// Returns whether a path is that of the module with this name. In names of modules `-` and `_` are the same.
fn is_module(path: &Path, name: &str) -> bool {
    path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name.replace('-', "_"))
}

/// Returns the modules that a module needs: `depends=a,b` in its section `.modinfo`.
fn needs_of(module: &[u8]) -> Vec<String> {
    let entries = module.split(|byte| *byte == 0);
    let depends = entries.filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="));
    depends.flat_map(|names| names.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_their_loader_are_found() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected: [&Path; 2] =
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")];
        assert_eq!(libraries_of(ldd), expected);
        assert_eq!(libraries_of("\tstatically linked\n"), <[PathBuf; 0]>::default());
    }

    #[test]
    fn modules_say_what_they_need() {
        assert_eq!(needs_of(b"\0license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert_eq!(needs_of(b"\0depends=\0"), <[String; 0]>::default());
        assert!(is_module(Path::new("drivers/net/udp-tunnel.ko"), "udp_tunnel"));
    }
}
