//! The licences of what podnet contains: every library that is linked in, with the texts that it brings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::workspace;

/// Packages whose dependencies are in the binary.
const ROOTS: [&str; 2] = ["podnet", "podnet-ebpf"];

/// A file with one of these beginnings is a licence text.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// The C library that the binary is linked with, where Debian keeps its terms.
const LIBC: &str = "/usr/share/doc/libc6/copyright";

/// Returns the list of libraries with their licences, and each text once.
///
/// # Errors
///
/// cargo cannot say what the dependencies are, or a text cannot be read.
pub(super) fn gather(target: &str) -> Result<String> {
    let metadata = workspace::cargo()
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target])
        .capture()?;
    let metadata: Value = serde_json::from_str(&metadata).context("parse the output of cargo metadata")?;
    let mut out = String::from(
        "podnet is licensed under Apache-2.0 or MIT, as you choose. Its binary contains these libraries:\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(&metadata)? {
        let field = |name: &str| package[name].as_str().unwrap_or("unknown");
        let name = format!("{} {}", field("name"), field("version"));
        writeln!(out, "  {name}: {}", field("license"))?;
        let folder = Path::new(field("manifest_path")).parent().unwrap_or(Path::new("."));
        for text in texts_of(folder)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    if let Ok(text) = fs::read_to_string(LIBC) {
        out.push_str("  the GNU C library: LGPL-2.1-or-later and others\n");
        texts.entry(text).or_default().push("the GNU C library".into());
    }
    for (text, names) in texts {
        write!(out, "\n{}\n{}\n\n{}\n", "=".repeat(80), names.join(", "), text.trim_end())?;
    }
    Ok(out)
}

/// Returns the packages of others that are linked in, by name and version.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo metadata resolves nothing")?;
    let members: BTreeSet<&str> =
        metadata["workspace_members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut found: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = packages
        .iter()
        .filter(|package| ROOTS.iter().any(|root| package["name"] == *root))
        .filter_map(|package| package["id"].as_str().map(str::to_owned))
        .collect();
    while let Some(id) = open.pop() {
        let node = nodes.iter().find(|node| node["id"] == *id);
        for dependency in node.map(|node| list(&node["deps"])).unwrap_or_default() {
            // Those of build scripts and tests have a kind of their own.
            let is_linked = list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
            if let Some(id) = dependency["pkg"].as_str().filter(|_| is_linked)
                && found.insert(id.to_owned())
            {
                open.push(id.to_owned());
            }
        }
    }
    let mut linked: Vec<&Value> = packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| found.contains(id) && !members.contains(id)))
        .collect();
    linked.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    Ok(linked)
}

/// Returns the licence texts that a package brings.
fn texts_of(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && TEXTS.iter().any(|text| name.starts_with(text)) {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&text).replace("\r\n", "\n"));
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_linked_is_listed() {
        let package = |name: &str| json!({ "name": name, "version": "1.0.0", "id": name });
        let depends = |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("podnet"), package("podnet-common"), package("z"), package("a"), package("cc")],
            "workspace_members": ["podnet", "podnet-common"],
            "resolve": { "nodes": [
                { "id": "podnet", "deps": [depends("podnet-common", Value::Null), depends("z", Value::Null)] },
                { "id": "z", "deps": [depends("a", Value::Null), depends("cc", "build".into())] },
            ] },
        });
        let names: Vec<_> = linked(&metadata).unwrap().iter().map(|package| package["name"].clone()).collect();
        assert_eq!(names, ["a", "z"]);
    }
}
