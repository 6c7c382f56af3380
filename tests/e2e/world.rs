//! The cluster that the steps are taken in, and what a person does with one: apply, wait, execute, look.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{cloud::plan::Running, kube::cluster::Cluster};
use tokio::time::sleep;

use crate::install::{self, Providers};

/// Where the Pods of a tenant are.
pub(crate) const TENANT: &str = "tenant";
/// Where Coffer is.
pub(crate) const SYSTEM: &str = "coffer-system";
/// The key service's Pods.
pub(crate) const KEY_SERVICE: &str = "deployment/coffer-keyservice";
/// The chart's StorageClass.
pub(crate) const CLASS: &str = "coffer-local";

const NODES: u8 = 2;
const KUBECTL: Duration = Duration::from_secs(90);
const WAIT: &str = "--timeout=150s";
const WAITING: Duration = Duration::from_secs(160);
const POLL: Duration = Duration::from_millis(500);

/// What there is.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) values: PathBuf,
    pub(crate) providers: Providers,
    helm: PathBuf,
    // A KMS and a store of this machine. They end last.
    _servers: Vec<Running>,
}

/// A volume, as Kubernetes knows it.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) pv: String,
    pub(crate) id: String,
    pub(crate) node: String,
}

impl World {
    /// Starts nodes and servers, and prepares what Helm is to install.
    pub(crate) async fn start(providers: Providers, work: &Path) -> Result<Self> {
        let helm = testbed::project().join("target/tools/helm");
        ensure!(helm.is_file(), "there is no helm; `make e2e` builds it, and so does: tests/install helm");
        install::images(work)?;
        let cluster = Cluster::start(work, NODES).await?;
        for name in [TENANT, SYSTEM] {
            cluster.apply(&namespace(name).to_string()).await?;
        }
        let (values, servers) = install::values(&cluster, providers).await?;
        Ok(Self { cluster, values, providers, helm, _servers: servers })
    }

    pub(crate) async fn helm(&self, words: &[&str]) -> Result<String> {
        self.cluster.said(&self.helm, words, None, Duration::from_secs(280)).await
    }

    pub(crate) async fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.cluster.kubectl(words, KUBECTL).await
    }

    /// What kubectl says in the tenant's namespace.
    pub(crate) async fn of_tenant(&self, words: &[&str]) -> Result<String> {
        self.kubectl(&[&["--namespace", TENANT][..], words].concat()).await
    }

    /// Makes a namespace, in which Pods can be made.
    pub(crate) async fn make_namespace(&self, name: &str) -> Result<()> {
        self.cluster.apply(&namespace(name).to_string()).await?;
        let has_account = async |world: &Self| -> Result<bool> {
            world.get(&["--namespace", name, "serviceaccount", "default"]).await.map(|_| true)
        };
        self.until("the namespace has a ServiceAccount", WAITING, has_account).await
    }

    /// Applies objects in the tenant's namespace.
    pub(crate) async fn apply(&self, objects: &[Value]) -> Result<()> {
        self.apply_in(TENANT, objects).await
    }

    /// Applies objects in a namespace.
    pub(crate) async fn apply_in(&self, namespace: &str, objects: &[Value]) -> Result<()> {
        for object in objects {
            let mut object = object.clone();
            object["metadata"]["namespace"] = namespace.into();
            self.cluster.apply(&object.to_string()).await?;
        }
        Ok(())
    }

    /// Waits for something of an object in the tenant's namespace, as `kubectl wait` has it.
    pub(crate) async fn wait(&self, object: &str, what: &str) -> Result<()> {
        self.wait_in(TENANT, object, what).await
    }

    /// Waits for something of an object in a namespace, as `kubectl wait` has it.
    pub(crate) async fn wait_in(&self, namespace: &str, object: &str, what: &str) -> Result<()> {
        let what = format!("--for={what}");
        let words = ["wait", "--namespace", namespace, &what, WAIT, object];
        self.cluster.kubectl(&words, WAITING).await.map(drop)
    }

    /// Waits until an object of no namespace is gone.
    pub(crate) async fn gone(&self, object: &str) -> Result<()> {
        self.cluster.kubectl(&["wait", "--for=delete", WAIT, object], WAITING).await.map(drop)
    }

    /// Waits until a Pod of the tenant has done what it was to do.
    pub(crate) async fn completes(&self, pod: &str) -> Result<()> {
        self.completes_in(TENANT, pod).await
    }

    /// Waits until a Pod of a namespace has done what it was to do.
    pub(crate) async fn completes_in(&self, namespace: &str, pod: &str) -> Result<()> {
        self.wait_in(namespace, &format!("pod/{pod}"), "jsonpath={.status.phase}=Succeeded").await
    }

    /// Waits until all Pods of a workload of Coffer are new and ready.
    pub(crate) async fn rolled_out(&self, workload: &str) -> Result<()> {
        let words = ["rollout", "status", "--namespace", SYSTEM, WAIT, workload];
        self.cluster.kubectl(&words, WAITING).await.map(drop)
    }

    /// What a shell says in a Pod of the tenant.
    pub(crate) async fn execute(&self, pod: &str, script: &str) -> Result<String> {
        self.of_tenant(&["exec", pod, "--", "sh", "-ec", script]).await
    }

    /// An object in JSON. The words name it, and its namespace where it has one.
    pub(crate) async fn get(&self, words: &[&str]) -> Result<Value> {
        let said = self.kubectl(&[&["get", "--output=json"][..], words].concat()).await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// A Pod of the tenant.
    pub(crate) async fn pod(&self, name: &str) -> Result<Value> {
        self.get(&["--namespace", TENANT, "pod", name]).await
    }

    /// The volume of a claim of the tenant.
    pub(crate) async fn volume(&self, claim: &str) -> Result<Volume> {
        self.volume_in(TENANT, claim).await
    }

    /// The volume of a claim of a namespace.
    pub(crate) async fn volume_in(&self, namespace: &str, claim: &str) -> Result<Volume> {
        let claim = self.get(&["--namespace", namespace, "pvc", claim]).await?;
        let pv = text(&claim["spec"]["volumeName"])?;
        let object = self.get(&["pv", &pv]).await?;
        let id = text(&object["spec"]["csi"]["volumeHandle"])?;
        let term = &object["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
        ensure!(term["key"] == "coffer.csi/node", "{pv} is of no node: {term}");
        let node = text(&term["values"][0])?;
        Ok(Volume { pv, id, node })
    }

    /// Asks again and again until it is so.
    pub(crate) async fn until(
        &self,
        what: &str,
        time: Duration,
        is_so: impl AsyncFn(&Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            // While a node or an API server comes back, a question may fail.
            let said = is_so(self).await;
            if matches!(said, Ok(true)) {
                return Ok(());
            }
            if start.elapsed() > time {
                let why = said.err().map(|error| format!(": {error:#}")).unwrap_or_default();
                anyhow::bail!("not within {} s: {what}{why}", time.as_secs());
            }
            sleep(POLL).await;
        }
    }

    /// Tells what Kubernetes says: what is not as it should be, and the ends of logs.
    pub(crate) async fn tell_why(&self) {
        let coffer = "app.kubernetes.io/instance=coffer";
        let questions: [(&[&str], usize); 6] = [
            (&["get", "nodes,pods,pvc,pv", "--all-namespaces", "--output=wide"], 60),
            (&["get", "localvolumes,localpools,volumekeys", "--output=wide"], 40),
            (&["describe", "pods", "--namespace", TENANT], 80),
            (&["describe", "pods", "--namespace", SYSTEM], 120),
            (&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"], 40),
            (&["logs", "--namespace", SYSTEM, "--selector", coffer, "--all-containers", "--prefix", "--tail=25"], 200),
        ];
        for (words, lines) in questions {
            println!("--- kubectl {}", words.join(" "));
            let said = self.kubectl(words).await.unwrap_or_else(|error| format!("{error:#}"));
            let said: Vec<_> = said.lines().collect();
            said[said.len().saturating_sub(lines)..].iter().for_each(|line| println!("    {line}"));
        }
    }
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A text that must be there.
pub(crate) fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"))
}
