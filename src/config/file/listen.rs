//! Where the key service listens.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::Value;

use crate::{
    config::file::{
        reading::Reading,
        section::Section,
        value::{Misfit, parsed},
    },
    server::tls::Files,
};

/// A unix socket as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixConfig {
    /// The socket.
    pub path: PathBuf,
    /// The uids that are served.
    pub allowed_uids: Vec<u32>,
}

/// A TLS listener as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// Certificates.
    pub files: Files,
}

/// Reads both.
pub(super) fn read(top: &mut Section, reading: &mut Reading<'_>) -> (Option<UnixConfig>, Option<TlsConfig>) {
    let Some(mut listen) = top.section("listen", "listen", reading) else { return (None, None) };
    let unix = listen.section("unix", "listen.unix", reading).and_then(|section| unix(section, reading));
    let tls = listen.section("tls", "listen.tls", reading).and_then(|section| tls(section, reading));
    listen.finish(reading);
    (unix, tls)
}

fn unix(mut section: Section, reading: &mut Reading<'_>) -> Option<UnixConfig> {
    let path = section.ask("path", "a path").required_path(reading);
    let allowed_uids = section.ask("allowedUids", "a list of uids").required(reading, uids);
    section.finish(reading);
    Some(UnixConfig { path: path?, allowed_uids: allowed_uids? })
}

fn uids(value: &Value) -> Result<Vec<u32>, Misfit> {
    let uid = |value: &Value| value.as_u64().and_then(|uid| u32::try_from(uid).ok()).ok_or(Misfit::Other);
    value.as_array().ok_or(Misfit::Other)?.iter().map(uid).collect()
}

fn tls(mut section: Section, reading: &mut Reading<'_>) -> Option<TlsConfig> {
    let address = section.ask("address", "an IP address and a port").required(reading, parsed);
    let certificate = section.ask("certificate", "a path").required_file(reading);
    let private_key = section.ask("privateKey", "a path").required_file(reading);
    let authority = section.ask("clientAuthority", "a path").required_file(reading);
    section.finish(reading);
    let files = Files { certificate: certificate?, private_key: private_key?, authority: authority? };
    Some(TlsConfig { address: address?, files })
}
