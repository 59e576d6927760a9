//! Programs on uplinks and on the overlay device: attached by TCX, whose links are pinned beside the maps, or by clsact.
//!
//! Links and filters stay when the daemon ends. A later load replaces the program in place, so that every packet meets the
//! old one or the new one. The calling thread is in the node's network namespace.

use std::{
    io::ErrorKind,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions, TcError},
};
use nix::net::if_::{if_indextoname, if_nametoindex};
use podnet_common::program_name;

use super::{features, loader::Datapath};
use crate::{
    config::UplinkAttach,
    netlink::{
        Socket,
        filter::{self, Direction, Filter},
    },
};

/// Where a program is attached, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceHook {
    /// Ingress of an uplink: `from_uplink`.
    FromUplink,
    /// Egress of an uplink: `to_uplink`.
    ToUplink,
    /// Ingress of the overlay device: `from_overlay`.
    FromOverlay,
    /// Egress of the overlay device: `to_uplink`, too.
    ToOverlay,
}

impl DeviceHook {
    /// Every hook.
    pub const ALL: [Self; 4] = [Self::FromUplink, Self::ToUplink, Self::FromOverlay, Self::ToOverlay];

    /// Returns whether the program sees what arrives at the interface.
    #[must_use]
    pub const fn is_ingress(self) -> bool {
        matches!(self, Self::FromUplink | Self::FromOverlay)
    }

    /// Returns the name that pins and messages have.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::FromOverlay => "from_overlay",
            Self::ToOverlay => "to_overlay",
        }
    }

    /// Returns the name of the program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::FromUplink => program_name::FROM_UPLINK,
            Self::FromOverlay => program_name::FROM_OVERLAY,
            Self::ToUplink | Self::ToOverlay => program_name::TO_UPLINK,
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::FromUplink | Self::FromOverlay => TcAttachType::Ingress,
            Self::ToUplink | Self::ToOverlay => TcAttachType::Egress,
        }
    }

    const fn filter(self, ifindex: u32) -> Filter {
        let (direction, number) = match self {
            Self::FromUplink => (Direction::Ingress, 1),
            Self::ToUplink => (Direction::Egress, 2),
            Self::FromOverlay => (Direction::Ingress, 3),
            Self::ToOverlay => (Direction::Egress, 4),
        };
        Filter { ifindex, direction, number }
    }

    fn from_filter(filter: Filter) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.filter(filter.ifindex) == filter)
    }

    fn pin(self, pin_dir: &Path, ifindex: u32) -> PathBuf {
        links_dir(pin_dir).join(format!("{}-{ifindex}", self.as_str()))
    }

    fn from_pin(name: &str) -> Option<(Self, u32)> {
        let (hook, ifindex) = name.rsplit_once('-')?;
        let hook = Self::ALL.into_iter().find(|one| one.as_str() == hook)?;
        Some((hook, ifindex.parse().ok()?))
    }
}

impl Datapath {
    /// Attaches the program of a hook to an interface, or replaces the one that podnet attached there before: atomically,
    /// if it was attached in the same way, and else the new one before the old one is taken away. Programs of others stay.
    ///
    /// # Errors
    ///
    /// The interface does not exist, or has another index by now; the kernel refuses.
    pub fn attach_device(&mut self, name: &str, ifindex: u32, hook: DeviceHook, how: UplinkAttach) -> Result<()> {
        let operation = || format!("attach {} to {name}", hook.as_str());
        let now = if_nametoindex(name).with_context(operation)?;
        ensure!(now == ifindex, "attach {} to {name}: its index is {now} by now, not {ifindex}", hook.as_str());
        let pin = hook.pin(self.maps().pin_dir(), ifindex);
        let by_tcx = match how {
            UplinkAttach::Tcx => true,
            UplinkAttach::Clsact => false,
            UplinkAttach::Auto => features::has_tcx(),
        };
        if by_tcx {
            self.attach_tcx(name, hook, &pin).with_context(operation)?;
            delete_filter(hook.filter(ifindex)).with_context(operation)
        } else {
            let program = self.program_fd(hook.program())?.as_raw_fd();
            let filter = hook.filter(ifindex);
            let requests = vec![filter::add_clsact(ifindex), filter::replace(filter, hook.program(), program)];
            Socket::open().and_then(|mut socket| socket.batch(requests)).with_context(operation)?;
            unpin(&pin).with_context(operation)
        }
    }

    /// Attaches a program by a pinned link, before all others of the interface.
    fn attach_tcx(&mut self, name: &str, hook: DeviceHook, pin: &Path) -> Result<()> {
        let program = self.program_mut(hook.program())?;
        match replace_in_link(program, pin) {
            // A link to another interface, which had this index elsewhere, takes the program as well.
            Ok(true) if is_attached(name, hook, id_of(program)?)? => return Ok(()),
            Ok(false) => {}
            Ok(true) => unpin(pin)?,
            Err(error) => {
                // ENOLINK: the interface is gone, and its link is a shell.
                tracing::debug!(error = format!("{error:#}"), pin = %pin.display(), "remove a stale link");
                unpin(pin)?;
            }
        }
        let folder = pin.parent().context("a pin lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("create folder {}", folder.display()))?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program.attach_with_options(name, hook.attach_type(), order)?;
        let link: FdLink = program.take_link(link)?.try_into().context("take the descriptor of the link")?;
        link.pin(pin).with_context(|| format!("pin the link at {}", pin.display()))?;
        Ok(())
    }
}

/// Replaces the program of a pinned link. Returns whether one is pinned.
fn replace_in_link(program: &mut SchedClassifier, pin: &Path) -> Result<bool> {
    let Some(link) = open_link(pin)? else { return Ok(false) };
    let link = SchedClassifierLink::try_from(link).context("take the link for one of TCX")?;
    let link = program.attach_to_link(link).context("replace the program of a link")?;
    // The pin keeps the link; the program's list of links would detach it with the program.
    drop(program.take_link(link)?);
    Ok(true)
}

fn id_of(program: &SchedClassifier) -> Result<u32> {
    Ok(program.info().context("examine a program")?.id())
}

/// Whether a program is attached to an interface by TCX. An interface that does not exist has none.
fn is_attached(name: &str, hook: DeviceHook, program: u32) -> Result<bool> {
    match SchedClassifier::query_tcx(name, hook.attach_type()) {
        Ok((_revision, programs)) => Ok(programs.iter().any(|one| one.id() == program)),
        Err(ProgramError::TcError(TcError::IoError(error))) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("list the programs of {name}")),
    }
}

/// Lists what podnet has attached to uplinks and overlay devices: interface, hook, number of the program. Pins whose
/// interface is gone are left out.
pub fn attached_devices(pin_dir: &Path) -> Result<Vec<(u32, DeviceHook, u32)>> {
    let mut attached = Vec::new();
    for (hook, ifindex, pin) in pins(pin_dir)? {
        let link = match open_link(&pin) {
            Ok(Some(link)) => link,
            Ok(None) => continue,
            // Whoever may not use eBPF can still take the pin away, and the program with it.
            Err(error) if is_forbidden(&error) => {
                attached.push((ifindex, hook, UNKNOWN_PROGRAM));
                continue;
            }
            Err(error) => return Err(error),
        };
        let program = link.info().with_context(|| format!("examine the link {}", pin.display()))?.program_id();
        let Some(name) = name_of(ifindex) else { continue };
        if is_attached(&name, hook, program)? {
            attached.push((ifindex, hook, program));
        }
    }
    for (filter, program) in Socket::open()?.device_filters()? {
        if let Some(hook) = DeviceHook::from_filter(filter) {
            attached.push((filter.ifindex, hook, program));
        }
    }
    attached.sort_unstable();
    Ok(attached)
}

/// Stands for the number of a program that the kernel does not tell.
const UNKNOWN_PROGRAM: u32 = 0;

/// Returns whether the kernel has no eBPF, or none for this process.
fn is_forbidden(error: &anyhow::Error) -> bool {
    let code = |error: &std::io::Error| error.raw_os_error();
    let codes = error.chain().filter_map(|cause| match cause.downcast_ref::<LinkError>() {
        Some(LinkError::SyscallError(error)) => code(&error.io_error),
        _ => None,
    });
    codes.into_iter().any(|code| [libc::EPERM, libc::EACCES, libc::ENOSYS].contains(&code))
}

/// Returns the name of an interface, if there is one with this index.
#[must_use]
pub fn name_of(ifindex: u32) -> Option<String> {
    // nix 0.31 takes libc's null pointer for a success, with an empty name.
    let name = if_indextoname(ifindex).ok().filter(|name| !name.is_empty())?;
    name.into_string().ok()
}

/// Detaches the program of a hook from an interface, however it is attached; an absent one is success.
pub fn detach_device(pin_dir: &Path, ifindex: u32, hook: DeviceHook) -> Result<()> {
    let operation = || format!("detach {} from link {ifindex}", hook.as_str());
    unpin(&hook.pin(pin_dir, ifindex)).with_context(operation)?;
    delete_filter(hook.filter(ifindex)).with_context(operation)
}

/// Detaches everything that podnet has attached to uplinks and overlay devices, stale pins included.
pub fn detach_all_devices(pin_dir: &Path) -> Result<()> {
    for (_hook, _ifindex, pin) in pins(pin_dir)? {
        unpin(&pin)?;
    }
    for (filter, _program) in Socket::open()?.device_filters()? {
        if DeviceHook::from_filter(filter).is_some() {
            Socket::open()?.request(filter::delete(filter))?;
        }
    }
    match std::fs::remove_dir(links_dir(pin_dir)) {
        // Not empty: files in it that are not podnet's.
        Err(error) if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) => {
            Err(error).with_context(|| format!("remove folder {}", links_dir(pin_dir).display()))
        }
        _ => Ok(()),
    }
}

/// Returns the folder of the pinned links.
pub(super) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

/// Makes the links that are pinned in one folder those of another, without touching what they attach. One that the other
/// folder has already is removed from the first, and its program is detached.
pub(super) fn take_over_links(from: &Path, to: &Path) -> Result<()> {
    for (hook, ifindex, pin) in pins(from)? {
        let own = hook.pin(to, ifindex);
        if own.exists() {
            unpin(&pin)?;
            continue;
        }
        let folder = links_dir(to);
        std::fs::create_dir_all(&folder).with_context(|| format!("create folder {}", folder.display()))?;
        std::fs::rename(&pin, &own).with_context(|| format!("move {} to {}", pin.display(), own.display()))?;
    }
    Ok(())
}

/// Lists the pinned links with the hook and interface that their names say; other files are not podnet's.
fn pins(pin_dir: &Path) -> Result<Vec<(DeviceHook, u32, PathBuf)>> {
    let folder = links_dir(pin_dir);
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read folder {}", folder.display()))?,
    };
    let mut pins = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read folder {}", folder.display()))?;
        if let Some((hook, ifindex)) = entry.file_name().to_str().and_then(DeviceHook::from_pin) {
            pins.push((hook, ifindex, entry.path()));
        }
    }
    Ok(pins)
}

/// Opens a pinned link; `None` if nothing is pinned there.
fn open_link(pin: &Path) -> Result<Option<FdLink>> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("open the link {}", pin.display())),
    }
}

/// Removes a pin, and with its last descriptor the link: the program is detached when this returns. An absent pin is
/// success.
fn unpin(pin: &Path) -> Result<()> {
    // Without the descriptor the kernel would detach the program some time later: it frees a link whose file is removed
    // in a work queue, and one whose descriptor is closed at once (`bpf_link_put_direct`).
    let link = open_link(pin).ok().flatten();
    match std::fs::remove_file(pin) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the link {}", pin.display()));
        }
        _ => {}
    }
    drop(link);
    Ok(())
}

/// Takes a filter away if it is there. Asked for first, because the kernel has no distinct answer for an interface without
/// clsact.
fn delete_filter(filter: Filter) -> Result<()> {
    let mut socket = Socket::open()?;
    if socket.device_filters()?.iter().any(|(one, _program)| *one == filter) {
        socket.request(filter::delete(filter))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_has_no_name() {
        assert_eq!(name_of(1).as_deref(), Some("lo"));
        assert_eq!(name_of(u32::MAX), None);
    }

    #[test]
    fn pins_and_filters_say_their_hook() {
        for hook in DeviceHook::ALL {
            let pin = hook.pin(Path::new("/bpf/v2"), 17);
            let name = pin.file_name().unwrap().to_str().unwrap();
            assert_eq!(DeviceHook::from_pin(name), Some((hook, 17)));
            assert_eq!(DeviceHook::from_filter(hook.filter(17)), Some(hook));
        }
        for foreign in ["", "from_uplink", "from_uplink-", "from_uplink-x", "from_pod-3", "other"] {
            assert_eq!(DeviceHook::from_pin(foreign), None);
        }
        assert_eq!(DeviceHook::from_filter(Filter { number: 9, ..DeviceHook::ToUplink.filter(1) }), None);
    }
}
