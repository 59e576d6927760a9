//! Loads the programs with their maps pinned, so that both outlive the daemon.

use std::{
    borrow::Cow,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError, SchedClassifier},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use podnet_common::{map_name, program_name, settings::Settings};

use super::{
    logs::{LogLevel, Logs},
    maps::{self, Maps},
    object,
};

/// Lines of the verifier's log that an error shows: the last ones say what it refused.
const VERIFIER_LOG_LINES: usize = 24;

/// One load of the programs. Dropping it unloads them, except where they are attached; the maps stay pinned.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    maps: Maps,
    logs: Option<Logs>,
    settings: Settings,
    log_level: LogLevel,
}

impl Datapath {
    /// Loads the programs. Maps that are pinned in `pin_dir` are used as they are, the others are made and pinned
    /// there; so programs of several loads share them.
    ///
    /// # Errors
    ///
    /// This build has no object; the folder is not in a bpffs; a pinned map has another layout; or the kernel refuses
    /// a program, in which case the error ends with the last lines of the verifier's log.
    pub fn load(pin_dir: &Path, settings: Settings, log_level: LogLevel) -> Result<Self> {
        let object = object::bytes()?;
        std::fs::create_dir_all(pin_dir).with_context(|| format!("create folder {}", pin_dir.display()))?;
        ensure!(is_bpffs(pin_dir)?, "{} is not in a bpffs; mount one there first", pin_dir.display());
        maps::check_pins(pin_dir)?;

        let settings_bytes = settings_bytes(settings);
        let level = log_level as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(Settings::NAME, settings_bytes.as_slice(), true);
        loader.override_global(aya_log::LEVEL, &level, true);
        for name in map_name::ALL {
            loader.map_pin_path(name, Cow::from(pin_dir.join(name)));
        }
        let mut ebpf = loader.load(object).map_err(|error| load_error(error, pin_dir))?;
        for name in program_name::ALL {
            load_program(classifier_mut(&mut ebpf, name)?).map_err(|error| program_error(name, error))?;
        }
        let maps = Maps::from_pins(pin_dir)?;
        let logs = if log_level == LogLevel::Off { None } else { Some(Logs::take(&mut ebpf)?) };
        Ok(Self { ebpf, maps, logs, settings, log_level })
    }

    /// Returns the maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Returns the maps, to write to.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Returns the settings that the programs were loaded with.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Returns the level of the programs' log statements. Another one needs another load.
    #[must_use]
    pub fn log_level(&self) -> LogLevel {
        self.log_level
    }

    /// Returns the reader of the programs' log lines, once; `None` if their level is [`LogLevel::Off`].
    pub fn take_logs(&mut self) -> Option<Logs> {
        self.logs.take()
    }

    /// Returns the descriptor of `from_pod`, to attach it to the ingress of host-side veths.
    pub fn from_pod_fd(&self) -> Result<BorrowedFd<'_>> {
        self.program_fd(program_name::FROM_POD)
    }

    /// Returns the descriptor of `to_pod`, to attach it to the egress of host-side veths.
    pub fn to_pod_fd(&self) -> Result<BorrowedFd<'_>> {
        self.program_fd(program_name::TO_POD)
    }

    /// Returns the kernel's number of `from_pod`, by which an attached filter is recognised (`TCA_BPF_ID`).
    pub fn from_pod_id(&self) -> Result<u32> {
        self.program_id(program_name::FROM_POD)
    }

    /// Returns the kernel's number of `to_pod`.
    pub fn to_pod_id(&self) -> Result<u32> {
        self.program_id(program_name::TO_POD)
    }

    /// Returns a program: for `BPF_PROG_TEST_RUN`.
    pub fn program(&self, name: &str) -> Result<&SchedClassifier> {
        let program = self.ebpf.program(name).with_context(|| format!("find program {name} in the eBPF object"))?;
        program.try_into().with_context(|| format!("find program {name} in the eBPF object"))
    }

    /// Returns a program, to attach it.
    pub(super) fn program_mut(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        classifier_mut(&mut self.ebpf, name)
    }

    /// Returns the descriptor of a program.
    pub fn program_fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        Ok(self.program(name)?.fd().with_context(|| format!("find the descriptor of program {name}"))?.as_fd())
    }

    /// Returns the kernel's number of a program.
    pub fn program_id(&self, name: &str) -> Result<u32> {
        Ok(self.program(name)?.info().with_context(|| format!("examine program {name}"))?.id())
    }
}

/// The settings as they stand in `.rodata`.
fn settings_bytes(settings: Settings) -> Vec<u8> {
    let Settings { events_per_tick, count_verdicts, node_mask_v4, node_mask_v6, nodes_lpm, bridge_ifindex, vni } =
        settings;
    let mut bytes: Vec<u8> = [events_per_tick, count_verdicts].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend(node_mask_v4);
    bytes.extend(node_mask_v6);
    bytes.extend([nodes_lpm, bridge_ifindex, vni].into_iter().flat_map(u32::to_ne_bytes));
    bytes
}

fn classifier_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program: &mut Program =
        ebpf.program_mut(name).with_context(|| format!("find program {name} in the eBPF object"))?;
    program.try_into().with_context(|| format!("find program {name} in the eBPF object"))
}

/// The kernel gives up the verification of a program when anything interrupts it, such as a cgroup that is frozen, and
/// says "try again" (`bpf_check` in kernel/bpf/verifier.c).
const LOAD_ATTEMPTS: usize = 10;

fn load_program(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    let mut outcome = program.load();
    for _ in 1..LOAD_ATTEMPTS {
        match &outcome {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
                outcome = program.load();
            }
            _ => break,
        }
    }
    outcome
}

fn load_error(error: EbpfError, pin_dir: &Path) -> anyhow::Error {
    anyhow!(error).context(format!("load the eBPF object with maps pinned in {}", pin_dir.display()))
}

fn program_error(name: &str, error: ProgramError) -> anyhow::Error {
    let operation = format!("load program {name}");
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            anyhow!("{io_error}{}", verifier_tail(&verifier_log.to_string())).context(operation)
        }
        error => anyhow!(error).context(operation),
    }
}

/// Returns the end of a verifier's log, to be appended to an error.
fn verifier_tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return String::new();
    }
    let tail = &lines[lines.len().saturating_sub(VERIFIER_LOG_LINES)..];
    format!("; the verifier's log ends with:\n{}", tail.join("\n"))
}

/// Returns whether a path lies in a bpffs.
///
/// # Errors
///
/// The path does not exist, or cannot be examined.
pub fn is_bpffs(path: &Path) -> Result<bool> {
    let filesystem = statfs(path).with_context(|| format!("examine the file system of {}", path.display()))?;
    Ok(filesystem.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes a folder a mount point of a bpffs, unless it lies in one already. Returns whether it mounted one.
pub fn ensure_bpffs(path: &Path) -> Result<bool> {
    std::fs::create_dir_all(path).with_context(|| format!("create folder {}", path.display()))?;
    if is_bpffs(path)? {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("mount a bpffs on {}", path.display()))?;
    Ok(true)
}

/// Unmounts the bpffs that is mounted on a folder, if it is empty by now; others' pins stay.
pub fn unmount_bpffs(path: &Path) -> Result<()> {
    let empty = std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?.next().is_none();
    if empty && is_bpffs(path)? {
        match umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: the folder lies in a bpffs that is mounted further up.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("unmount {}", path.display())),
        }
    }
    Ok(())
}

/// Returns the folder of a node's pins within its bpffs: one per version of the layouts.
#[must_use]
pub fn pin_dir(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{}", podnet_common::LAYOUT_VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifier_log_is_shown() {
        assert_eq!(verifier_tail(""), "");
        let log: String = (0..100).fold(String::new(), |log, line| format!("{log}line {line}\n\n"));
        let tail = verifier_tail(&log);
        assert!(
            tail.starts_with("; the verifier's log ends with:\nline 76\n") && tail.ends_with("\nline 99"),
            "{tail}"
        );
    }

    #[test]
    fn settings_have_the_layout_of_the_object() {
        assert_eq!(settings_bytes(Settings::DEFAULT).len(), size_of::<Settings>());
    }

    #[test]
    fn an_ordinary_folder_is_no_bpffs() {
        assert!(!is_bpffs(Path::new("/")).unwrap());
        let error = format!("{:#}", is_bpffs(Path::new("/nonexistent/podnet")).unwrap_err());
        assert!(error.contains("/nonexistent/podnet"), "{error}");
    }
}
