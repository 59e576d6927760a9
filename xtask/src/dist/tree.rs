//! A tree of files that an archive will hold: in order, owned by root, with one time for all, so that the same input
//! makes the same bytes.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};

/// What is at a path.
#[derive(Clone, Debug)]
enum Node {
    Folder { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// Files, folders and symbolic links by their paths, which are relative to the tree's root.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds a file, and the folders above it.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        self.insert(path, Node::File { mode, content: content.into() });
    }

    /// Adds a symbolic link, and the folders above it.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link { target: target.to_owned() });
    }

    /// Adds a folder, and the folders above it.
    pub(super) fn folder(&mut self, path: &str, mode: u32) {
        self.insert(path, Node::Folder { mode });
    }

    /// Adds the files below a folder of this machine; executable ones stay so.
    ///
    /// # Errors
    ///
    /// Something cannot be read, or is neither a file nor a folder.
    pub(super) fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
            let entry = entry.with_context(|| format!("read {}", from.display()))?;
            let name = entry.file_name().into_string().ok().context("a file name is not UTF-8")?;
            let (path, to) = (entry.path(), format!("{to}/{name}"));
            let kind = entry.file_type().with_context(|| format!("examine {}", path.display()))?;
            if kind.is_dir() {
                self.copy(&path, &to)?;
            } else {
                ensure!(kind.is_file(), "{} is neither a file nor a folder", path.display());
                let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                let mode = if content.starts_with(b"#!") { 0o755 } else { 0o644 };
                self.file(&to, mode, content);
            }
        }
        Ok(())
    }

    fn insert(&mut self, path: &str, node: Node) {
        if let Some((folder, _)) = path.rsplit_once('/')
            && !self.nodes.contains_key(folder)
        {
            self.folder(folder, 0o755);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Returns the bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.files().map(|(_, content)| content.len() as u64).sum()
    }

    /// Returns the files.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::File { content, .. } => Some((path.as_str(), content.as_slice())),
            _ => None,
        })
    }

    /// Returns a tar archive of the tree.
    ///
    /// # Errors
    ///
    /// A path is longer than the plain header of a tar archive can hold.
    pub(super) fn tar(&self, root: Root, epoch: u64) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        if root == Root::Dot {
            append(&mut builder, "./", &Node::Folder { mode: 0o755 }, epoch)?;
        }
        for (path, node) in &self.nodes {
            let prefix = if root == Root::Dot { "./" } else { "" };
            let slash = if matches!(node, Node::Folder { .. }) { "/" } else { "" };
            append(&mut builder, &format!("{prefix}{path}{slash}"), node, epoch)?;
        }
        builder.into_inner().context("end the tar archive")
    }
}

/// How an archive names its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// `./` is the first entry and begins all others: as in Debian packages.
    Dot,
    /// It is not named.
    Unnamed,
}

fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, node: &Node, epoch: u64) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    // The library would drop the leading `./`.
    let field = &mut header.as_old_mut().name;
    ensure!(name.len() < field.len(), "{name}: the path is longer than {} bytes", field.len() - 1);
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root").and_then(|()| header.set_groupname("root")).context("name the owner")?;
    let (kind, mode, content): (_, _, &[u8]) = match node {
        Node::Folder { mode } => (tar::EntryType::Directory, *mode, &[]),
        Node::File { mode, content } => (tar::EntryType::Regular, *mode, content),
        Node::Link { target } => {
            header.set_link_name_literal(target).with_context(|| format!("link {name}"))?;
            (tar::EntryType::Symlink, 0o777, &[])
        }
    };
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, Cursor::new(content)).with_context(|| format!("append {name}"))
}

/// Compresses, without a name or a time in the header.
///
/// # Errors
///
/// None, as long as there is memory.
pub(super) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).context("compress")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn archives_are_ordered_complete_and_the_same_each_time() {
        let mut tree = Tree::default();
        tree.file("usr/bin/podnet", 0o755, *b"binary");
        tree.link("bin", "usr/bin");
        tree.folder("tmp", 0o1777);
        let bytes = tree.tar(Root::Dot, 1_000_000_000).unwrap();
        assert_eq!(bytes, tree.clone().tar(Root::Dot, 1_000_000_000).unwrap());
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.header().mtime().unwrap(), 1_000_000_000);
                String::from_utf8(entry.path_bytes().into_owned()).unwrap()
            })
            .collect();
        assert_eq!(names, ["./", "./bin", "./tmp/", "./usr/", "./usr/bin/", "./usr/bin/podnet"]);
    }

    #[test]
    fn gzip_can_be_read_and_has_no_time() {
        let packed = gzip(b"podnet podnet podnet").unwrap();
        assert_eq!(packed[4..8], [0; 4]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, "podnet podnet podnet");
    }
}
