//! A running `coffer keyservice` over mutual TLS on loopback, and what a node needs to ask it.

use std::{
    ffi::OsString,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};

use crate::driver::NODE;

/// A key service on the cluster key and the records of a state folder. It is killed when this is dropped.
#[derive(Debug)]
pub struct KeyService {
    program: PathBuf,
    folder: PathBuf,
    words: Vec<OsString>,
    child: Option<Child>,
}

impl KeyService {
    /// Makes certificates and a configuration in a folder, and starts the service.
    ///
    /// # Errors
    /// A file cannot be written, or the program cannot be started.
    pub fn start(program: &str, folder: &Path, state_dir: &Path) -> Result<Self> {
        certify(folder)?;
        fs::create_dir_all(state_dir.join("records"))?;
        // A port that is free now; nobody else takes ports here.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let state = state_dir.display();
        fs::write(
            folder.join("coffer.yaml"),
            format!(
                "listen: {{tls: {{address: '127.0.0.1:{port}', certificate: server.crt, privateKey: server.key, \
                 clientAuthority: ca.pem}}}}\n\
                 providers: {{cluster: {{type: cluster-key, file: {state}/cluster-key.json}}}}\n\
                 store: {{type: filesystem, path: {state}/records}}\nauditLog: keyservice-audit.log\n"
            ),
        )?;
        let mut words: Vec<OsString> = ["node", "--provision-local"].map(Into::into).into();
        let mut flag = |name: &str, value: String| words.extend([name.into(), value.into()]);
        flag("--listen", format!("unix://{}", state_dir.join("csi.sock").display()));
        flag("--pool-dir", state_dir.join("volumes").display().to_string());
        flag("--key-service", format!("https://localhost:{port}"));
        flag("--tls-certificate", folder.join("node.crt").display().to_string());
        flag("--tls-private-key", folder.join("node.key").display().to_string());
        flag("--tls-authority", folder.join("ca.pem").display().to_string());
        let mut service = Self { program: program.into(), folder: folder.to_owned(), words, child: None };
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

/// An authority, a server `localhost`, and the node.
fn certify(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    let node = format!("coffer://node/{NODE}");
    let names =
        [("server", SanType::DnsName("localhost".try_into()?)), ("node", SanType::URI(node.as_str().try_into()?))];
    for (name, san) in names {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names.push(san);
        let key = KeyPair::generate()?;
        fs::write(folder.join(format!("{name}.crt")), params.signed_by(&key, &authority)?.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
