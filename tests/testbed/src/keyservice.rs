//! Key services for tests: a running `coffer keyservice` over mutual TLS on loopback, and what a node needs to ask it; and
//! what others are put together from that live in a test's own process.

pub mod authority;
pub mod log;
pub mod served;

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use coffer::{
    keyservice::client::Remote,
    server::tls::{ClientTls, Clients, Files},
};

use crate::{driver::NODE, keyservice::authority::Authority};

/// A key service on the cluster key and the records of a state folder. It is killed when this is dropped.
#[derive(Debug)]
pub struct KeyService {
    program: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
    /// The certificate with which the node asks.
    node: Files,
    words: Vec<OsString>,
    child: Option<Child>,
}

impl KeyService {
    /// Makes certificates and a configuration in a folder, and starts the service.
    ///
    /// # Errors
    /// A file cannot be written, or the program cannot be started.
    pub fn start(program: &str, folder: &Path, state_dir: &Path) -> Result<Self> {
        let authority = Authority::new(folder)?;
        authority.server(Clients::Certified(authority.certificate()))?;
        let node = authority.client(&format!("coffer://node/{NODE}"))?;
        fs::create_dir_all(state_dir.join("records"))?;
        // A port that is free now; nobody else takes ports here.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let state = state_dir.display();
        fs::write(
            folder.join("coffer.yaml"),
            format!(
                "listen: {{tls: {{address: '{address}', certificate: server.crt, privateKey: server.key, \
                 clientAuthority: ca.pem}}}}\n\
                 providers: {{cluster: {{type: cluster-key, file: {state}/cluster-key.json}}}}\n\
                 store: {{type: filesystem, path: {state}/records}}\nauditLog: keyservice-audit.log\n"
            ),
        )?;
        let mut words: Vec<OsString> = ["node", "--provision-local"].map(Into::into).into();
        let mut flag = |name: &str, value: String| words.extend([name.into(), value.into()]);
        flag("--listen", format!("unix://{}", state_dir.join("csi.sock").display()));
        flag("--pool-dir", state_dir.join("volumes").display().to_string());
        flag("--key-service", format!("https://localhost:{}", address.port()));
        flag("--tls-certificate", node.certificate.display().to_string());
        flag("--tls-private-key", node.private_key.display().to_string());
        flag("--tls-authority", node.authority.display().to_string());
        let mut service =
            Self { program: program.into(), folder: folder.to_owned(), address, node, words, child: None };
        service.start_again()?;
        Ok(service)
    }

    /// Starts it again where it was killed.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        let child = Command::new(&self.program)
            .args(["keyservice", "--config"])
            .arg(self.folder.join("coffer.yaml"))
            .stdin(Stdio::null())
            // The audit log goes there as well.
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("keyservice.log"))?)
            .spawn()
            .context("start the key service")?;
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The words of a `coffer node` that asks it.
    #[must_use]
    pub fn words(&self) -> Vec<OsString> {
        self.words.clone()
    }

    /// Coffer's own client, with the certificate of the node.
    ///
    /// # Errors
    /// The certificates do not fit together.
    pub fn client(&self) -> Result<Remote> {
        Ok(served::client(self.address, ClientTls::client(self.node.clone())?, None))
    }

    /// What was written to its audit log.
    #[must_use]
    pub fn audit(&self) -> String {
        fs::read_to_string(self.folder.join("keyservice-audit.log")).unwrap_or_default()
    }
}

impl Drop for KeyService {
    fn drop(&mut self) {
        self.kill();
    }
}
