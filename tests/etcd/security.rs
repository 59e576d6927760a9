//! TLS with certificates of both sides, users with passwords, and what is said when they are wrong.

use std::path::Path;

use harness::wait_for;
use podnet::config::etcd::EtcdConfig;
use tempfile::TempDir;

use crate::{
    server::{Etcd, Options},
    store::Node,
};

/// An authority, a server's certificate and a client's, made by openssl.
struct Certificates {
    folder: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let certificates = Self { folder: tempfile::tempdir().unwrap() };
        certificates.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
        certificates.issue("server", "subjectAltName=IP:127.0.0.1,DNS:etcd.example");
        certificates.issue("client", "extendedKeyUsage=clientAuth");
        certificates
    }

    fn issue(&self, name: &str, extension: &str) {
        std::fs::write(self.folder.path().join(format!("{name}.ext")), extension).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile {name}.ext -out {name}.pem"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let output = std::process::Command::new("openssl")
            .args(arguments.split_ascii_whitespace())
            .current_dir(self.folder.path())
            .output()
            .unwrap_or_else(|error| panic!("openssl: {error}; install the package openssl"));
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn server(&self) -> Etcd {
        let option = |option: &str, file: &str| format!("--{option}={}", self.path(file));
        let tls = vec![
            option("cert-file", "server.pem"),
            option("key-file", "server.key"),
            option("trusted-ca-file", "ca.pem"),
            "--client-cert-auth".into(),
        ];
        let credentials = vec![option("cacert", "ca.pem"), option("cert", "client.pem"), option("key", "client.key")];
        Etcd::with(Options { members: 1, tls, credentials, ..Options::default() })
    }

    fn fill(&self, store: &mut EtcdConfig) {
        store.ca = Some(self.path("ca.pem").into());
        store.certificate = Some(self.path("client.pem").into());
        store.key = Some(self.path("client.key").into());
    }
}

#[test]
fn certificates_are_checked_on_both_sides() {
    let certificates = Certificates::new();
    let etcd = certificates.server();
    let node = |number, change: &dyn Fn(&mut EtcdConfig)| {
        Node::with(number, &etcd.urls(), |_, store| {
            certificates.fill(store);
            change(store);
        })
    };
    let good = node(1, &|_| {}).start(etcd.netns());
    good.pod_cidrs();
    let by_name = node(2, &|store| store.server_name = Some("etcd.example".into())).start(etcd.netns());
    by_name.pod_cidrs();
    good.wait_for_node("node2");

    let nameless = node(3, &|store| (store.certificate, store.key) = (None, None)).start(etcd.netns());
    println!("without a certificate: {}", nameless.wait_for_failure("does etcd want a certificate?"));
    let stranger = Certificates::new();
    let foreign = node(4, &|store| store.ca = Some(stranger.path("ca.pem").into())).start(etcd.netns());
    println!("of another authority: {}", foreign.wait_for_failure("certificate"));
    let misnamed = node(5, &|store| store.server_name = Some("other.example".into())).start(etcd.netns());
    println!("of another name: {}", misnamed.wait_for_failure("certificate"));
    let missing = node(6, &|store| store.ca = Some("/nonexistent/ca.pem".into())).start(etcd.netns());
    missing.wait_for_failure("store.ca: read /nonexistent/ca.pem: No such file");
    assert_eq!(good.told(|told| told.failures), 0);
}

#[test]
fn a_user_needs_its_password_and_its_own_keys_alone() {
    let certificates = Certificates::new();
    let mut etcd = certificates.server();
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["role", "add", "nodes"]);
    etcd.ctl(&["role", "grant-permission", "nodes", "--prefix=true", "readwrite", "/podnet/"]);
    etcd.ctl(&["user", "add", "podnet:password"]);
    etcd.ctl(&["user", "grant-role", "podnet", "nodes"]);
    etcd.ctl(&["role", "add", "readers"]);
    etcd.ctl(&["role", "grant-permission", "readers", "--prefix=true", "read", "/podnet/"]);
    etcd.ctl(&["user", "add", "reader:password"]);
    etcd.ctl(&["user", "grant-role", "reader", "readers"]);
    etcd.ctl(&["auth", "enable"]);
    etcd.authenticate(&["--user=root:secret"]);
    let password = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(password.path(), "password\n").unwrap();
    let node = |number, file: &Path, prefix: &str| {
        Node::with(number, &etcd.urls(), |_, store| {
            certificates.fill(store);
            store.user = Some("podnet".into());
            store.password_file = Some(file.into());
            store.prefix = prefix.into();
        })
    };
    let node1 = node(1, password.path(), "/podnet");
    let one = node1.start(etcd.netns());
    let cidrs = one.pod_cidrs();
    let wrong = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(wrong.path(), "guess").unwrap();
    node(2, wrong.path(), "/podnet")
        .start(etcd.netns())
        .wait_for_failure("authentication failed, invalid user ID or password");
    node(3, password.path(), "/other").start(etcd.netns()).wait_for_failure("permission denied");

    let reader = Node::with(5, &etcd.urls(), |_, store| {
        certificates.fill(store);
        (store.user, store.password_file) = (Some("reader".into()), Some(password.path().into()));
    });
    reader.start(etcd.netns()).wait_for_failure("register the node: etcdserver: permission denied");

    // A restart makes every token void.
    etcd.kill(0);
    one.wait_for_failure("https://127.0.0.1:2379");
    etcd.start(0);
    one.wait_until_well();
    let node4 = node(4, password.path(), "/podnet");
    let four = node4.start(etcd.netns());
    four.pod_cidrs();
    one.wait_for_node("node4");
    assert_eq!(one.pod_cidrs(), cidrs);
    drop(four);
    node4.leave(etcd.netns());
    wait_for("node4 to be gone", || etcd.get("/podnet/nodes/node4").is_empty().then_some(()));
}
