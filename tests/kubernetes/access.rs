//! Who may ask, and how: tokens, client certificates, TLS, service accounts, and permissions that are missing.

use podnet::config::kubernetes::KubernetesConfig;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use crate::{
    api::FakeApi,
    follower::{Follower, api_of, inside, kubeconfig, names, timing},
    objects::FakeNode,
    tls::Authority,
};

fn tls_api(authority: &Authority, asks_clients: bool) -> FakeApi {
    let mut identity = authority.issue("127.0.0.1", ServerAuth);
    identity.asks_clients = asks_clients;
    let api = FakeApi::with("127.0.0.1:0", Some(identity));
    api.put([FakeNode::numbered(1)]);
    api
}

#[test]
fn missing_permissions_are_named() {
    inside(|| {
        let api = api_of(1);
        api.state(|state| state.allowed.clear());
        let mut follower = Follower::new(&api);
        let failure = follower.failure();
        assert!(failure.contains("the verb \"list\" on the resource \"nodes\""), "{failure}");
        assert!(failure.contains("system:serviceaccount:podnet:podnet"), "{failure}");
        api.state(|state| state.allowed.insert(("list", "nodes")));
        // The list is a snapshot already; that it cannot be followed is another failure.
        follower.snapshot();
        let failure = follower.failure();
        assert!(failure.contains("the verb \"watch\" on the resource \"nodes\""), "{failure}");
        api.state(|state| state.allowed.insert(("watch", "nodes")));
        follower.snapshot();
    });
}

#[test]
fn a_wrong_token_is_refused_and_a_new_one_is_read_from_its_file() {
    inside(|| {
        let api = api_of(1);
        api.state(|state| state.token = Some("right".into()));
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "wrong").unwrap();
        let text = kubeconfig(&api.url(), "", &format!("tokenFile: {}", token.display()));
        let mut follower = Follower::with_kubeconfig(&text, timing());
        let failure = follower.failure();
        assert!(failure.contains("credentials") && failure.contains("Unauthorized"), "{failure}");
        std::fs::write(&token, "right").unwrap();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
        assert!(follower.kubeconfig().exists());
    });
}

#[test]
fn tls_with_a_token_checks_the_server() {
    inside(|| {
        let authority = Authority::new();
        let api = tls_api(&authority, false);
        api.state(|state| state.token = Some("secret".into()));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let text = kubeconfig(&api.url(), &format!("certificate-authority: {}", file.display()), "token: secret");
        // An authority that did not sign the server's certificate.
        std::fs::write(&file, authority_of(&Authority::new())).unwrap();
        let mut follower = Follower::with_kubeconfig(&text, timing());
        let failure = follower.failure();
        assert!(failure.contains("certificate"), "{failure}");
        assert_eq!(api.state(|state| state.seen.len()), 0, "nothing is asked of a server that is not trusted");
        std::fs::write(&file, authority_of(&authority)).unwrap();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

fn authority_of(authority: &Authority) -> String {
    authority.issue("any", ClientAuth).authority
}

#[test]
fn tls_with_a_client_certificate_needs_no_token() {
    inside(|| {
        let authority = Authority::new();
        let api = tls_api(&authority, true);
        let client = authority.issue("podnet", ClientAuth);
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let cluster = format!("certificate-authority: {}", write("ca.crt", &client.authority));
        // Without a certificate the server hangs up.
        let mut stranger = Follower::with_kubeconfig(&kubeconfig(&api.url(), &cluster, "token: x"), timing());
        stranger.failure();
        assert_eq!(api.state(|state| state.seen.len()), 0);
        drop(stranger);
        let user = format!(
            "client-certificate: {}\nclient-key: {}",
            write("client.crt", &client.certificate),
            write("client.key", &client.key)
        );
        let mut follower = Follower::with_kubeconfig(&kubeconfig(&api.url(), &cluster, &user), timing());
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

#[test]
fn the_server_of_the_configuration_counts_before_that_of_the_kubeconfig() {
    inside(|| {
        let api = api_of(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig("http://127.0.0.1:1", "", "token: secret")).unwrap();
        let config =
            KubernetesConfig { kubeconfig: Some(path), api_server: Some(api.url()), context: Some("here".into()) };
        let mut follower = Follower::with_config(config, timing(), folder);
        assert_eq!(names(&follower.snapshot()), ["node1"]);
    });
}

#[test]
fn files_that_are_missing_are_named_and_waited_for() {
    inside(|| {
        let api = api_of(1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let config = KubernetesConfig { kubeconfig: Some(path.clone()), ..KubernetesConfig::default() };
        let mut follower = Follower::with_config(config, timing(), folder);
        let failure = follower.failure();
        assert!(failure.contains(path.to_str().unwrap()), "{failure}");
        std::fs::write(&path, kubeconfig(&api.url(), "", "token: secret")).unwrap();
        assert_eq!(names(&follower.snapshot()), ["node1"]);
        // Outside of a pod there is no service account.
        let mut lost = Follower::with_config(KubernetesConfig::default(), timing(), tempfile::tempdir().unwrap());
        let failure = lost.failure();
        assert!(failure.contains("service account") && failure.contains("kubeconfig"), "{failure}");
    });
}
