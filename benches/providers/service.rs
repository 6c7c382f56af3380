//! A key service as a process of its own.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use coffer::{
    key::service::KeyService,
    keyservice::client::{Address, Remote},
    volume::VolumeId,
};
use serde_json::{Value, json};
use testbed::{cloud::plan, figures::Process};

use crate::{COFFER, Way, records, soon};

/// How long a service may take to start.
const START_TIME: Duration = Duration::from_secs(20);

/// A running `coffer keyservice` on a unix socket. It is killed when this is dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) remote: Arc<dyn KeyService>,
}

impl Service {
    /// Starts one with a provider on the records of a folder, and waits until it answers.
    pub(crate) async fn start(folder: &Path, name: &str, provider: &Value) -> Result<Self> {
        let file = |ending: &str| folder.join(format!("{name}{ending}"));
        let uid = rustix::process::getuid().as_raw();
        let config = json!({
            "clusterId": plan::CLUSTER,
            "providers": { "main": provider },
            "store": { "type": "filesystem", "path": records(folder) },
            "listen": { "unix": { "path": file(".sock"), "allowedUids": [uid] } },
            "auditLog": file("-audit.log"),
        });
        fs::write(file(".yaml"), config.to_string())?;
        let child = Command::new(COFFER)
            .args(["keyservice", "--config"])
            .arg(file(".yaml"))
            .stdin(Stdio::null())
            // The audit log goes there as well.
            .stdout(Stdio::null())
            .stderr(File::create(file(".log"))?)
            .spawn()
            .context("start the key service")?;
        let mut service = Self { child, remote: Arc::new(Remote::at(Address::Unix(file(".sock")))) };
        service.ready(&file(".log")).await.with_context(|| format!("the key service {name}"))?;
        Ok(service)
    }

    async fn ready(&mut self, log: &Path) -> Result<()> {
        let (start, nobody) = (Instant::now(), VolumeId::for_name("nobody"));
        while let Err(failure) = self.remote.describe(&nobody, soon()).await {
            if self.child.try_wait()?.is_some() || start.elapsed() > START_TIME {
                bail!("it does not answer: {failure}; it wrote:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) fn way(&self) -> Arc<Way> {
        Arc::new(Way::Service(self.remote.clone()))
    }

    pub(crate) fn process(&self) -> Result<Process> {
        Process::of(self.child.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
