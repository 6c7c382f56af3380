//! A whole cluster: the control plane and the name service as processes of this machine, nodes as guests, and the
//! network between them. The program must be in a network of its own ([`network`]).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::AsyncWriteExt,
    process::Command,
    time::{sleep, timeout},
};

use super::{
    ApiServer,
    network::{self, MACHINE},
    node::{self, Node},
    program,
};
use crate::cloud::server::Server;

const NODES_READY: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);
/// Where the nodes' kubelets send Pods with a name (`tests/kube/node/kubelet.yaml`).
const DNS_PORT: u16 = 53;

/// A running cluster. All of it ends when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Node>,
    server: ApiServer,
    _names: Server,
    work: PathBuf,
}

impl Cluster {
    /// Starts a cluster of this many nodes, which have the images of the work folder's `images`, and waits until they
    /// are ready. Logs stay in the work folder.
    ///
    /// # Errors
    /// A program is missing, or something does not become ready.
    pub async fn start(work: &Path, nodes: u8) -> Result<Self> {
        network::make(nodes)?;
        node::make_disk(work, nodes).await.context("make the nodes' disk")?;
        let server = ApiServer::start_whole(work, MACHINE, nodes).await?;
        let names = names(work, server.kubeconfig()).await?;
        let guests = (1..=nodes).map(|number| Node::new(work, number, nodes)).collect::<Result<_>>()?;
        let cluster = Self { nodes: guests, server, _names: names, work: work.to_owned() };
        cluster.ready().await?;
        Ok(cluster)
    }

    /// The API server.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// The folder of its files.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// A node by its name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    /// What kubectl says as the administrator.
    ///
    /// # Errors
    /// It fails, with what it said, or does not end in time.
    pub async fn kubectl(&self, words: &[&str], time: Duration) -> Result<String> {
        self.said(&program("kubernetes", "kubectl")?, words, None, time).await
    }

    /// Applies objects in YAML.
    ///
    /// # Errors
    /// As for [`Self::kubectl`].
    pub async fn apply(&self, objects: &str) -> Result<String> {
        let words = ["apply", "--server-side", "-f", "-"];
        self.said(&program("kubernetes", "kubectl")?, &words, Some(objects), Duration::from_secs(30)).await
    }

    /// What a program says that finds the cluster by its kubeconfig, Helm for one.
    ///
    /// # Errors
    /// As for [`Self::kubectl`].
    pub async fn said(&self, program: &Path, words: &[&str], input: Option<&str>, time: Duration) -> Result<String> {
        let name = program.file_name().unwrap_or_default().display().to_string();
        let what = format!("{name} {}", words.join(" "));
        let mut child = Command::new(program)
            .args(words)
            .env("KUBECONFIG", self.server.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let mut stdin = child.stdin.take().context("its input is a pipe")?;
        let talk = async {
            if let Some(input) = input {
                stdin.write_all(input.as_bytes()).await?;
            }
            drop(stdin);
            child.wait_with_output().await
        };
        let Ok(output) = timeout(time, talk).await else { bail!("{what} did not end within {} s", time.as_secs()) };
        let output = output.with_context(|| format!("run {what}"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{what}: {}{}", said, error.trim());
        Ok(said)
    }

    /// Waits until kubelets of all nodes say that they are ready, and Pods may be made.
    async fn ready(&self) -> Result<()> {
        let start = Instant::now();
        for node in &self.nodes {
            let ready = ["wait", "--for=condition=Ready", "--timeout=5s", &format!("node/{}", node.name())];
            while self.kubectl(&ready, NODES_READY).await.is_err() {
                ensure!(start.elapsed() < NODES_READY, "{} is not ready: see {}", node.name(), node.folder().display());
                sleep(POLL).await;
            }
        }
        while self.kubectl(&["get", "serviceaccount", "default"], NODES_READY).await.is_err() {
            ensure!(start.elapsed() < NODES_READY, "the controller manager makes no ServiceAccount");
            sleep(POLL).await;
        }
        Ok(())
    }
}

/// The cluster's name service: a process here, so that it outlives each node.
async fn names(work: &Path, kubeconfig: &Path) -> Result<Server> {
    let file = work.join("Corefile");
    let zone = format!("kubernetes cluster.local {{\n        kubeconfig {}\n    }}", kubeconfig.display());
    fs::write(&file, format!(".:{DNS_PORT} {{\n    errors\n    {zone}\n}}\n"))?;
    let mut command = std::process::Command::new(program("coredns", "coredns")?);
    command.arg("-conf").arg(file);
    Server::start("coredns", command, DNS_PORT, work).await
}
