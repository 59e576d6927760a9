//! containerd's CRI plugin, driven as kubelet drives it: by gRPC over its socket.
//!
//! What containerd 1.6.20 sends to plugins: ADD with `K8S_POD_*` in `CNI_ARGS`, the netns `/var/run/netns/cni-UUID`, and
//! `portMappings` for ports with a host port; DEL at `StopPodSandbox`, and again, with an empty CNI_NETNS, at
//! `RemovePodSandbox` if the sandbox was not stopped before. It asks for the plugin `loopback`, too.

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PodSandboxStatusRequest, PortMapping, Protocol, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::{Runtime, containerd::Containerd, image};

/// A client of containerd's CRI.
pub(crate) struct Cri {
    executor: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
    cgroup: String,
}

/// A pod: its sandbox, with one container.
pub(crate) struct Pod {
    config: PodSandboxConfig,
    /// ID of the sandbox: the container ID that plugins see.
    pub(crate) sandbox: String,
    container: String,
}

impl Cri {
    /// Connects to containerd.
    pub(crate) fn connect(containerd: &Containerd<'_>) -> Self {
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
        let endpoint = Endpoint::from_shared(format!("unix://{}", containerd.socket().display()));
        let channel = executor.block_on(endpoint.expect("a socket's path").connect()).expect("connect to containerd");
        let cgroup = format!("/{}", containerd.cgroup());
        Self { executor, client: RuntimeServiceClient::new(channel), cgroup }
    }

    /// Makes a call and waits for its answer.
    fn call<T>(
        &self,
        what: &str,
        call: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> T {
        let answer = self.executor.block_on(call(self.client.clone()));
        answer.unwrap_or_else(|error| panic!("CRI {what}: {error}")).into_inner()
    }

    /// Returns whether the runtime's network is ready, and what it says about it.
    pub(crate) fn network_ready(&self) -> (bool, String) {
        let status = self.call("Status", async |mut client| client.status(StatusRequest { verbose: false }).await);
        let conditions = status.status.expect("a status").conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
        let network = network.expect("a condition NetworkReady");
        (network.status, format!("{}: {}", network.reason, network.message))
    }

    /// Runs a pod whose container serves a page; its port 8080 is published at the host port.
    pub(crate) fn run(&self, name: &str, attempt: u32, host_port: Option<i32>) -> Pod {
        let port = |host_port| PortMapping {
            protocol: Protocol::Tcp.into(),
            container_port: 8080,
            host_port,
            host_ip: String::new(),
        };
        let options = NamespaceOption {
            network: NamespaceMode::Pod.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..NamespaceOption::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt,
            }),
            hostname: name.into(),
            port_mappings: host_port.map(port).into_iter().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let sandbox = self.call("RunPodSandbox", async |mut client| client.run_pod_sandbox(request).await);
        let mut pod = Pod { config, sandbox: sandbox.pod_sandbox_id, container: String::new() };
        self.start_container(&mut pod, 0);
        pod
    }

    fn start_container(&self, pod: &mut Pod, attempt: u32) {
        let words = ["httpd", "-f", "-p", "8080", "-h", "/www"];
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.sandbox.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: "main".into(), attempt }),
                image: Some(ImageSpec { image: image::NAME.into(), ..ImageSpec::default() }),
                command: words.map(str::to_owned).into(),
                ..ContainerConfig::default()
            }),
            sandbox_config: Some(pod.config.clone()),
        };
        let container = self.call("CreateContainer", async |mut client| client.create_container(request).await);
        pod.container.clone_from(&container.container_id);
        let request = StartContainerRequest { container_id: container.container_id };
        self.call("StartContainer", async |mut client| client.start_container(request).await);
    }

    /// Restarts the pod's container, as kubelet does when it crashed: the sandbox, and so the network, stays.
    pub(crate) fn restart_container(&self, pod: &mut Pod) {
        let container_id = pod.container.clone();
        let request = StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        self.call("StopContainer", async |mut client| client.stop_container(request).await);
        let request = RemoveContainerRequest { container_id };
        self.call("RemoveContainer", async |mut client| client.remove_container(request).await);
        self.start_container(pod, 1);
    }

    /// Stops and removes a pod.
    pub(crate) fn remove(&self, pod: Pod) {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        self.call("StopPodSandbox", async |mut client| client.stop_pod_sandbox(request).await);
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.sandbox };
        self.call("RemovePodSandbox", async |mut client| client.remove_pod_sandbox(request).await);
    }
}

impl Runtime<Pod> for Cri {
    fn exec(&self, pod: &Pod, command: &[&str]) -> String {
        let request = ExecSyncRequest {
            container_id: pod.container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 30,
        };
        let answer = self.call("ExecSync", async |mut client| client.exec_sync(request).await);
        let (stdout, stderr) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "{command:?}: {stdout}{stderr}");
        stdout.into_owned()
    }

    /// As `PodSandboxStatus` says: that is what kubelet reports as `podIPs`.
    fn addresses(&self, pod: &Pod) -> Vec<String> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), verbose: false };
        let answer = self.call("PodSandboxStatus", async |mut client| client.pod_sandbox_status(request).await);
        let network = answer.status.and_then(|status| status.network).expect("the sandbox has a network");
        std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
    }
}
