//! Pins of other versions of the layouts: what an upgrade finds in the bpffs, takes over and removes.
//!
//! An upgrade goes on with the links, whose programs are replaced in place, and with the maps whose layout is as it was.
//! The others are made anew and filled before a program is replaced. A version that this build does not know yet is left
//! alone.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{MapError, MapInfo},
    programs::loaded_programs,
};
use podnet_common::{LAYOUT_VERSION, map_name};

use super::{
    device,
    loader::{is_bpffs, pin_dir},
    maps,
};

/// Maps by which the programs recognise pods, nodes and flows: programs that share them can replace one another at any
/// packet.
const STATE: [&str; 6] = [
    map_name::ENDPOINTS,
    map_name::ENDPOINTS_BY_IFINDEX,
    map_name::NODES,
    map_name::NODES_LPM,
    map_name::NODE_ADDRESSES,
    map_name::KERNEL_FLOWS,
];

/// Bytes of a map's name that the kernel keeps (`BPF_OBJ_NAME_LEN`, without the final zero).
const NAME_LEN: usize = 15;

/// The pins of another version of the layouts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// The version.
    pub version: u32,
    /// Folder of the pins.
    pub folder: PathBuf,
}

/// Lists the pins of other versions, oldest first; none if the folder is not in a bpffs.
pub fn others(bpffs: &Path) -> Result<Vec<Layout>> {
    if !bpffs.exists() || !is_bpffs(bpffs)? {
        return Ok(Vec::new());
    }
    let mut layouts = Vec::new();
    for entry in fs::read_dir(bpffs).with_context(|| format!("read folder {}", bpffs.display()))? {
        let entry = entry.with_context(|| format!("read folder {}", bpffs.display()))?;
        match entry.file_name().to_str().and_then(version_of) {
            Some(version) if version != LAYOUT_VERSION => layouts.push(Layout { version, folder: entry.path() }),
            _ => {}
        }
    }
    layouts.sort_unstable();
    Ok(layouts)
}

/// Returns the layout version of a folder of pins: `v1`, `v2`, ...
#[must_use]
pub fn version_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix('v')?;
    let is_canonical = !digits.starts_with('0') && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_canonical.then(|| digits.parse().ok())?
}

/// Refuses to work on a node whose packets programs of a later version carry. `programs`: the numbers of those that are
/// attached.
///
/// # Errors
///
/// They do; or the kernel cannot be asked.
pub fn refuse_later(bpffs: &Path, programs: &BTreeSet<u32>) -> Result<()> {
    for later in others(bpffs)?.into_iter().filter(|layout| layout.version > LAYOUT_VERSION) {
        let links = device::links_dir(&later.folder);
        let has_links = fs::read_dir(&links).is_ok_and(|mut entries| entries.next().is_some());
        let pinned = map_ids(&later.folder)?;
        if has_links || maps_of(programs)?.iter().any(|map| pinned.contains(&map.id())) {
            bail!(
                "a newer podnet runs on this node: its programs are attached, with maps of layout version {} pinned in {}; \
                 this podnet knows version {LAYOUT_VERSION}. Nothing was changed, and pods stay connected. Start the newer \
                 podnet again; to go back to this one, run `podnet datapath detach` with the newer one and stop it first",
                later.version,
                later.folder.display()
            );
        }
    }
    Ok(())
}

/// Takes over what earlier versions left: their links, and the latest one's maps whose layout is unchanged, as far as this
/// version has no pins of its own. Programs stay attached, and go on. Returns the versions.
pub fn take_over(bpffs: &Path) -> Result<Vec<u32>> {
    let earlier: Vec<_> = others(bpffs)?.into_iter().filter(|layout| layout.version < LAYOUT_VERSION).collect();
    let own = pin_dir(bpffs);
    for layout in earlier.iter().rev() {
        device::take_over_links(&layout.folder, &own)
            .with_context(|| format!("take over the links in {}", layout.folder.display()))?;
    }
    if let Some(latest) = earlier.last() {
        fs::create_dir_all(&own).with_context(|| format!("create folder {}", own.display()))?;
        for (name, since) in map_name::UNCHANGED_SINCE {
            if since <= latest.version {
                share(&latest.folder.join(name), &own.join(name))?;
            }
        }
    }
    Ok(earlier.iter().map(|layout| layout.version).collect())
}

/// Pins a map of an earlier version as one of this version, too, unless there is one.
fn share(earlier: &Path, own: &Path) -> Result<()> {
    if own.exists() || !earlier.exists() || maps::check_pin(earlier).is_err() {
        return Ok(());
    }
    fs::hard_link(earlier, own).with_context(|| format!("pin {} at {}", earlier.display(), own.display()))
}

/// Removes the pins of other versions. Nothing that is attached may use them.
pub fn retire(layouts: &[Layout]) -> Result<()> {
    for layout in layouts {
        match fs::remove_dir_all(&layout.folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove folder {}", layout.folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns whether programs use the maps of pods, nodes and flows that are pinned in a folder, and no others of these
/// names.
pub fn share_maps(programs: &BTreeSet<u32>, pins: &Path) -> Result<bool> {
    let pinned = map_ids(pins)?;
    let is_state = |map: &MapInfo| {
        let name = map.name();
        STATE.iter().any(|state| &state.as_bytes()[..state.len().min(NAME_LEN)] == name)
    };
    Ok(maps_of(programs)?.iter().all(|map| pinned.contains(&map.id()) || !is_state(map)))
}

/// Returns the kernel's numbers of the pinned maps of pods, nodes and flows.
fn map_ids(pins: &Path) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for name in STATE {
        let pin = pins.join(name);
        match MapInfo::from_pin(&pin) {
            Ok(info) => ids.push(info.id()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("open pinned map {}", pin.display())),
        }
    }
    Ok(ids)
}

/// Lists the maps of programs.
fn maps_of(programs: &BTreeSet<u32>) -> Result<Vec<MapInfo>> {
    let mut maps = Vec::new();
    for program in loaded_programs() {
        let program = program.context("list the loaded programs")?;
        if !programs.contains(&program.id()) {
            continue;
        }
        // A program that is being unloaded has no maps any more.
        for map in program.map_ids().ok().flatten().unwrap_or_default() {
            let map = MapInfo::from_id(map).with_context(|| format!("examine map {map}"))?;
            maps.push(map);
        }
    }
    Ok(maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_layouts_are_recognised() {
        assert_eq!(version_of("v1"), Some(1));
        assert_eq!(version_of("v20"), Some(20));
        for foreign in ["", "v", "v01", "v0", "v-1", "v+1", "v1.5", "1", "vx", "v99999999999"] {
            assert_eq!(version_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn every_map_says_since_when_it_is_as_it_is() {
        let names = map_name::UNCHANGED_SINCE.map(|(name, _)| name);
        assert_eq!(names, map_name::ALL);
        assert!(map_name::UNCHANGED_SINCE.iter().all(|(_, since)| (1..=LAYOUT_VERSION).contains(since)));
    }
}
