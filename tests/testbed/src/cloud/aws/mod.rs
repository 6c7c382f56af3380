//! AWS KMS by moto and by MiniStack, emulators both: the one checks ciphertext and context, the other the states of
//! keys. S3 by versitygw, a real server that checks signatures, and by moto. Keys and buckets are managed at the server
//! itself; Coffer goes through the weather. STS is imitated where it is to refuse, or to give what ends soon.

mod buckets;
mod keys;
mod sts;

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Result;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kms::config::Credentials;
use serde_json::{Value, json};

use super::server::{Server, free_port, tool};

pub use buckets::{MotoS3, Versity};
pub use keys::{MiniStackKms, MotoKms};
pub use sts::Sts;

const REGION: &str = "us-east-1";
const ID: &str = "testbed";
const SECRET: &str = "testbed-secret-access-key";

async fn moto(name: &str, folder: &Path) -> Result<(String, Server)> {
    let (program, port) = (tool("moto_server")?, free_port()?);
    let mut command = Command::new(&program);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    Ok((versioned(&program, "moto", "moto"), Server::start(name, command, port, folder).await?))
}

/// A Python program's name with its version, which the folder of its package's metadata has in its name.
fn versioned(program: &Path, package: &str, name: &str) -> String {
    let version = || {
        let pythons = fs::read_dir(program.parent()?.parent()?.join("lib")).ok()?;
        let packages = pythons.flatten().filter_map(|python| fs::read_dir(python.path().join("site-packages")).ok());
        packages.flatten().flatten().find_map(|entry| {
            let folder = entry.file_name().into_string().ok()?;
            let version = folder.strip_prefix(package)?.strip_prefix('-')?.strip_suffix(".dist-info")?;
            Some(format!("{name} {version}"))
        })
    };
    version().unwrap_or_else(|| name.to_owned())
}

/// The files of a key pair, and the configuration that names them.
fn identity(folder: &Path, name: &str, id: &str, secret: &str) -> Result<Value> {
    let (id_file, secret_file) = (folder.join(format!("{name}.id")), folder.join(format!("{name}.secret")));
    fs::write(&id_file, id)?;
    fs::write(&secret_file, secret)?;
    Ok(json!({ "type": "static", "accessKeyIdFile": id_file, "secretAccessKeyFile": secret_file }))
}

/// The server itself, past the weather.
async fn sdk(address: SocketAddr, region: &'static str) -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(region));
    let credentials = Credentials::new(ID, SECRET, None, None, "testbed");
    loader.endpoint_url(format!("http://{address}")).credentials_provider(credentials).load().await
}
