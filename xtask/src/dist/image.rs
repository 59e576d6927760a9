//! The container image: an OCI image layout (image-spec 1.1) in one tar archive, made without a container engine.
//!
//! Its documents are few and small, and written as JSON with sorted keys here: the libraries for them keep labels in
//! hash maps, whose order is another one each time.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    Release,
    tree::{Root, Tree, gzip},
};

/// What the image runs.
const ENTRY_POINT: &str = "/usr/bin/podnet";
/// Where commands are looked up in the image.
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer of the image, and what it holds in a word.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its files.
    pub(super) tree: Tree,
    /// What it holds, for the image's history.
    pub(super) holds: String,
}

/// Returns an archive with the image under a name such as `ghcr.io/podnet/podnet:0.1.0`.
///
/// # Errors
///
/// A path in a layer is too long.
pub(super) fn archive(release: &Release, layers: &[Layer], name: &str) -> Result<Vec<u8>> {
    let created = release.date()?.to_string();
    let labels = labels(release, &created);
    let mut files = Tree::default();
    let (mut descriptors, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for layer in layers {
        let tar = layer.tree.tar(Root::Unnamed, release.epoch)?;
        diff_ids.push(format!("sha256:{}", super::sha256(&tar)));
        descriptors.push(blob(&mut files, LAYER, gzip(&tar)?));
        history.push(json!({ "created": created, "created_by": layer.holds }));
    }
    let config = json!({
        "created": created,
        "author": release.maintainer,
        "architecture": release.arch.debian,
        "os": "linux",
        "config": { "Entrypoint": [ENTRY_POINT], "Env": [PATH], "WorkingDir": "/", "User": "0:0", "Labels": labels },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = blob(&mut files, CONFIG, document(&config)?);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors, "annotations": labels,
    });
    let mut descriptor = blob(&mut files, MANIFEST, document(&manifest)?);
    descriptor["platform"] = json!({ "architecture": release.arch.debian, "os": "linux" });
    // containerd takes the name from the first, podman and others from the second.
    descriptor["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor] });
    files.file("index.json", 0o644, document(&index)?);
    files.file("oci-layout", 0o644, document(&json!({ "imageLayoutVersion": "1.0.0" }))?);
    // The same blobs as an archive of Docker's older format, for `docker load` of engines without containerd's store.
    let path = |descriptor: &Value| descriptor["digest"].as_str().map(blob_path);
    let docker = json!([{
        "Config": path(&config), "RepoTags": [name], "Layers": descriptors.iter().map(path).collect::<Vec<_>>(),
    }]);
    files.file("manifest.json", 0o644, document(&docker)?);
    files.tar(Root::Unnamed, release.epoch)
}

/// The annotations of the image-spec that say what an image is.
fn labels(release: &Release, created: &str) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": "podnet",
        "org.opencontainers.image.description": release.description,
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.source": release.repository,
        "org.opencontainers.image.url": release.repository,
        "org.opencontainers.image.documentation": format!("{}#readme", release.repository),
        "org.opencontainers.image.vendor": release.maintainer,
        // The binary's own; those of all that it contains lie in /usr/share/doc.
        "org.opencontainers.image.licenses": release.license,
    });
    if let Some(revision) = &release.revision {
        labels["org.opencontainers.image.revision"] = json!(revision);
    }
    labels
}

/// Adds a blob, and returns its descriptor.
fn blob(files: &mut Tree, media_type: &str, content: Vec<u8>) -> Value {
    let digest = format!("sha256:{}", super::sha256(&content));
    let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": content.len() });
    files.file(&blob_path(&digest), 0o644, content);
    descriptor
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn document(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("format JSON")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use super::*;

    #[test]
    fn every_digest_is_that_of_its_blob() {
        let mut tree = Tree::default();
        tree.file("usr/bin/podnet", 0o755, *b"binary");
        let release = Release::test();
        let layers = [Layer { tree, holds: "podnet".into() }];
        let bytes = archive(&release, &layers, "podnet.test/podnet:1").unwrap();
        assert_eq!(bytes, archive(&release, &layers, "podnet.test/podnet:1").unwrap(), "it is reproducible");
        let files: BTreeMap<String, Vec<u8>> = tar::Archive::new(&bytes[..])
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), content)
            })
            .collect();
        for (path, content) in
            files.iter().filter(|(path, _)| path.starts_with("blobs/sha256/") && !path.ends_with('/'))
        {
            assert_eq!(path.rsplit('/').next().unwrap(), crate::dist::sha256(content));
        }
        let read = |path: &str| -> Value { serde_json::from_slice(&files[path]).unwrap() };
        let index = read("index.json");
        let manifest = read(&blob_path(index["manifests"][0]["digest"].as_str().unwrap()));
        let config = read(&blob_path(manifest["config"]["digest"].as_str().unwrap()));
        assert_eq!(config["architecture"], "amd64");
        let layer = &files[&blob_path(manifest["layers"][0]["digest"].as_str().unwrap())];
        assert_eq!(manifest["layers"][0]["size"], layer.len());
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", crate::dist::sha256(&tar)));
        assert_eq!(read("manifest.json")[0]["RepoTags"][0], "podnet.test/podnet:1");
    }
}
