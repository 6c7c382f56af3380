//! A line to the API server that can be cut, so that every connection over it ends and there is no new one; or fall silent,
//! so that connections stay, and nothing comes over them any more.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use testbed::kube::{
    ApiServer,
    keys::{WATCH_EXPIRY, settings},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// The line.
pub(super) struct Line {
    address: SocketAddr,
    to: SocketAddr,
    /// Nothing where it is cut.
    at_work: JoinSet<()>,
    is_silent: watch::Sender<bool>,
}

impl Line {
    /// A line to a server.
    pub(super) async fn to(server: &ApiServer) -> Result<Self> {
        let url = config(server.kubeconfig()).await?.cluster_url;
        let port = url.port_u16().context("the API server has a port")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, to) = (listener.local_addr()?, SocketAddr::from(([127, 0, 0, 1], port)));
        let (mut at_work, is_silent) = (JoinSet::new(), watch::Sender::new(false));
        at_work.spawn(carry(listener, to, is_silent.subscribe()));
        Ok(Self { address, to, at_work, is_silent })
    }

    /// The administrator's client, over the line. It gives up what is silent as the key service's own does.
    pub(super) async fn client(&self, kubeconfig: &Path) -> Result<Client> {
        let mut config = config(kubeconfig).await?;
        config.cluster_url = format!("https://{}", self.address).parse()?;
        config.default_retry = false;
        config.read_timeout = Some(settings("any", WATCH_EXPIRY, 1).silence_time());
        Ok(Client::try_from(config)?)
    }

    /// Cuts it.
    pub(super) fn cut(&mut self) {
        // The connections go with the task that owns them.
        self.at_work = JoinSet::new();
    }

    /// Lets it fall silent, for good.
    pub(super) fn silence(&self) {
        self.is_silent.send_replace(true);
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
        self.at_work.spawn(carry(listener, self.to, self.is_silent.subscribe()));
        Ok(())
    }
}

async fn carry(listener: TcpListener, to: SocketAddr, is_silent: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((near, _)) = listener.accept() => {
                connections.spawn(lead(near, to, is_silent.clone()));
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}

async fn lead(mut near: TcpStream, to: SocketAddr, mut is_silent: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let fell_silent = async { is_silent.wait_for(|silent| *silent).await.map(drop) };
    let is_silent = tokio::select! {
        biased;
        fell = fell_silent => fell.is_ok(),
        // Either end may hang up.
        _ = copy_bidirectional(&mut near, &mut far) => false,
    };
    if is_silent {
        // The connections stay open.
        std::future::pending().await
    }
}

async fn config(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}
