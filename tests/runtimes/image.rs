//! The image of the pods, for every runtime: a static busybox with a page to serve.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::node::output;

/// Name of the image.
pub(crate) const NAME: &str = "podnet.test/busybox:1";

/// Packs a docker archive: one layer with a static busybox.
pub(crate) fn pack(dir: &Path) -> PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.expect("busybox is missing: install the package busybox-static");
    let script = r#"set -e
mkdir -p root/bin root/www root/tmp
cp "$1" root/bin/busybox
for name in sh sleep true ping ip nc httpd; do ln -s busybox "root/bin/$name"; done
echo podnet > root/www/index.html
tar --directory root --create --file layer.tar .
digest=$(sha256sum layer.tar | cut -d' ' -f1)
architecture=$(dpkg --print-architecture 2>/dev/null || uname -m)
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","600"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$architecture" "$digest" > config.json
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" > manifest.json
tar --create --file image.tar manifest.json config.json layer.tar"#;
    let image = dir.join("image");
    std::fs::create_dir(&image).expect("make the image's folder");
    output(Command::new("sh").current_dir(&image).args(["-c", script, "sh", busybox, NAME]));
    image.join("image.tar")
}
