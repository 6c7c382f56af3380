//! A line to the API server that can be cut: then every connection over it ends, and there is no new one.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use testbed::kube::ApiServer;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The line.
pub(super) struct Line {
    address: SocketAddr,
    to: SocketAddr,
    /// Nothing where it is cut.
    at_work: JoinSet<()>,
}

impl Line {
    /// A line to a server.
    pub(super) async fn to(server: &ApiServer) -> Result<Self> {
        let url = config(server.kubeconfig()).await?.cluster_url;
        let port = url.port_u16().context("the API server has a port")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, to) = (listener.local_addr()?, SocketAddr::from(([127, 0, 0, 1], port)));
        let mut at_work = JoinSet::new();
        at_work.spawn(carry(listener, to));
        Ok(Self { address, to, at_work })
    }

    /// The administrator's client, over the line.
    pub(super) async fn client(&self, kubeconfig: &Path) -> Result<Client> {
        let mut config = config(kubeconfig).await?;
        config.cluster_url = format!("https://{}", self.address).parse()?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// Cuts it.
    pub(super) fn cut(&mut self) {
        // The connections go with the task that owns them.
        self.at_work = JoinSet::new();
    }

    /// Mends it.
    pub(super) async fn mend(&mut self) -> Result<()> {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                // The task that was ended still has it.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.at_work.spawn(carry(listener, self.to));
        Ok(())
    }
}

async fn carry(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((mut near, _)) = listener.accept() => {
                connections.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    // Either end may hang up.
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                });
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}

async fn config(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}
