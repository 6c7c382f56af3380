//! A real Kubernetes for tests: an API server on loopback for what needs no more, and a whole cluster with kubelets in
//! guests ([`cluster`]).
//!
//! The programs are built from their Go modules (`tests/kube`) by `tests/install kubernetes`, once for all clones.

pub mod account;
pub mod cluster;
mod identity;
pub mod keys;
pub mod network;
pub mod node;

use std::{
    fmt,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use axum::http::Request;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::wait::{await_condition, conditions::is_crd_established},
};
use tokio::time::{sleep, timeout};

use crate::cloud::server::{Server, free_port};
use identity::{Identity, User};

/// Who signs ServiceAccount tokens, as they say it (`iss`).
pub const ISSUER: &str = "https://kubernetes.default.svc";

const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A program of Kubernetes, or one beside it, as `tests/install kubernetes` built it.
///
/// # Errors
/// It is not built.
pub fn program(folder: &str, name: &str) -> Result<PathBuf> {
    let program = crate::project().join("target/tools").join(folder).join(name);
    ensure!(program.is_file(), "there is no {name}; `make test` builds it, and so does: tests/install kubernetes");
    Ok(program)
}

/// etcd and kube-apiserver, with nothing in them but what a new cluster has. They end when this is dropped.
pub struct ApiServer {
    identity: Identity,
    kubeconfig: PathBuf,
    signing_key: PathBuf,
    client: Client,
    controllers: Vec<Server>,
    server: Server,
    _etcd: Server,
}

impl ApiServer {
    /// Starts them on free ports of loopback and waits until the API server is ready. The folder is theirs alone.
    ///
    /// # Errors
    /// They are not built, or do not become ready.
    pub async fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let url = format!("https://127.0.0.1:{port}");
        let users = [User::new(ADMIN, "admin", "system:masters")];
        let identity = Identity::make(&folder.join("pki"), &url, &[Ipv4Addr::LOCALHOST], &users)?;
        Self::with(folder, identity, Ipv4Addr::LOCALHOST, port).await
    }

    /// Starts them with the controller manager and the scheduler, reachable at an address by this many nodes, whose
    /// kubeconfigs are the folder's `pki/node-N.kubeconfig`.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub(crate) async fn start_whole(folder: &Path, address: Ipv4Addr, nodes: u8) -> Result<Self> {
        let port = free_port()?;
        let mut users = vec![
            User::new(ADMIN, "admin", "system:masters"),
            User::new("controllers", "system:kube-controller-manager", ""),
            User::new("scheduler", "system:kube-scheduler", ""),
            User::new("kube-proxy", "system:kube-proxy", ""),
        ];
        users.extend((1..=nodes).map(|n| User::new(format!("node-{n}"), format!("system:node:n{n}"), "system:nodes")));
        // The first address of all Services is the API server's own.
        let addresses = [Ipv4Addr::LOCALHOST, address, FIRST_SERVICE];
        let identity = Identity::make(&folder.join("pki"), &format!("https://{address}:{port}"), &addresses, &users)?;
        let mut started = Self::with(folder, identity, address, port).await?;
        let controllers = [
            format!("--service-account-private-key-file={}", started.signing_key.display()),
            format!("--root-ca-file={}", started.identity.file("authority.crt").display()),
            // Each controller with the rights of its own role, without which the manager has none.
            "--use-service-account-credentials=true".to_owned(),
            "--attach-detach-reconcile-sync-period=2s".to_owned(),
            format!("--flex-volume-plugin-dir={}", folder.join("flex").display()),
        ];
        started.control(folder, "kube-controller-manager", "controllers", &controllers).await?;
        started.control(folder, "kube-scheduler", "scheduler", &[]).await?;
        Ok(started)
    }

    async fn control(&mut self, folder: &Path, name: &str, user: &str, words: &[String]) -> Result<()> {
        let port = free_port()?;
        let mut command = Command::new(program("kubernetes", name)?);
        command
            .arg(format!("--kubeconfig={}", self.identity.file(&format!("{user}.kubeconfig")).display()))
            .args(["--authentication-skip-lookup", "--bind-address=127.0.0.1", "--leader-elect=false"])
            .arg(format!("--secure-port={port}"))
            .args(words);
        self.controllers.push(Server::start(name, command, port, folder).await?);
        Ok(())
    }

    async fn with(folder: &Path, identity: Identity, address: Ipv4Addr, port: u16) -> Result<Self> {
        // Two ports: clients', and other members', of which there are none.
        let etcd_port = free_port()?;
        let (clients, peers) = (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{}", etcd_port + 1));
        let mut command = Command::new(program("kubernetes", "etcd")?);
        command
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            // What it keeps is thrown away with the test.
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        let etcd = Server::start("etcd", command, etcd_port, folder).await?;

        let local = address == Ipv4Addr::LOCALHOST;
        let bind = if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        // An endpoint on loopback is none that the reconciler takes.
        let reconciler = if local { "none" } else { "master-count" };
        let file = |name: &str| identity.file(name).display().to_string();
        let mut command = Command::new(program("kubernetes", "kube-apiserver")?);
        command
            .args([format!("--etcd-servers={clients}"), format!("--secure-port={port}")])
            .args([format!("--bind-address={bind}"), format!("--advertise-address={address}")])
            .arg(format!("--endpoint-reconciler-type={reconciler}"))
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg(format!("--service-account-issuer={ISSUER}"))
            .arg(format!("--service-account-key-file={}", file("accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
            .args(["--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.0.0.0/24"])
            .args(["--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true", "--profiling=false"]);
        let server = Server::start("kube-apiserver", command, port, folder).await?;
        let client = identity.user(ADMIN).await?;
        let kubeconfig = identity.file(&format!("{ADMIN}.kubeconfig"));
        let signing_key = identity.file("accounts.key");
        let started = Self { identity, kubeconfig, signing_key, client, controllers: Vec::new(), server, _etcd: etcd };
        started.ready().await?;
        Ok(started)
    }

    /// A client of the cluster's administrator.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The administrator's kubeconfig, for programs.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The private key, in PEM (PKCS#8, P-256), that signs ServiceAccount tokens: a test signs with it what the API
    /// server would not, such as a token that has expired.
    #[must_use]
    pub fn signing_key(&self) -> &Path {
        &self.signing_key
    }

    /// Applies the custom resources of Coffer and waits until the API server serves them.
    ///
    /// # Errors
    /// The API server refuses one.
    pub async fn install_resources(&self) -> Result<()> {
        for resource in coffer::kubernetes::custom_resources() {
            self.define(&resource).await?;
        }
        Ok(())
    }

    /// Applies the definition of a kind and waits until the API server serves it.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn define(&self, resource: &CustomResourceDefinition) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client());
        let (name, how) = (resource.name_any(), PatchParams::apply("testbed").force());
        api.patch(&name, &how, &Patch::Apply(resource)).await.with_context(|| format!("apply {name}"))?;
        timeout(READY, await_condition(api, &name, is_crd_established()))
            .await
            .with_context(|| format!("{name} is not served in time"))??;
        Ok(())
    }

    /// Ends the API server, as by a power cut. What it kept stays.
    pub async fn stop(&mut self) {
        self.server.stop();
    }

    /// Starts the API server again at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.server.start_again().await?;
        self.ready().await
    }

    /// Waits until what a new cluster has is there, roles for one.
    async fn ready(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let request = Request::get("/readyz").body(Vec::new())?;
            match self.client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > READY => bail!("the API server does not become ready: {error}"),
                Err(_) => sleep(POLL).await,
            }
        }
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer").field("address", &self.server.address()).finish_non_exhaustive()
    }
}

const ADMIN: &str = "admin";
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
