//! Where the key service listens.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::Value;

use crate::{
    config::file::{
        reading::Reading,
        section::Section,
        value::{Misfit, parsed},
    },
    server::tls::{Clients, ServerFiles},
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
    pub files: ServerFiles,
}

/// Where the key service listens.
#[derive(Default)]
pub(super) struct Listen {
    pub(super) unix: Option<UnixConfig>,
    pub(super) tls: Option<TlsConfig>,
    pub(super) http: Option<SocketAddr>,
}

/// What callers over TLS can show of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// A certificate.
    Certificate,
    /// A token of a Kubernetes cluster; or a certificate, where there is an authority for it.
    Token,
}

/// Reads all of it.
pub(super) fn read(top: &mut Section, proof: Proof, reading: &mut Reading<'_>) -> Listen {
    let Some(mut listen) = top.section("listen", "listen", reading) else { return Listen::default() };
    let has_tls = listen.has("tls");
    let unix = listen.section("unix", "listen.unix", reading).and_then(|section| unix(section, reading));
    let tls = listen.section("tls", "listen.tls", reading).and_then(|section| tls(section, proof, reading));
    let http = listen.ask("http", ADDRESS).optional(reading, parsed);
    if proof == Proof::Token && !has_tls {
        listen.fault("tls", "is missing; callers of Kubernetes come over TLS", reading);
    }
    listen.finish(reading);
    Listen { unix, tls, http }
}

const ADDRESS: &str = "an IP address and a port";

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

fn tls(mut section: Section, proof: Proof, reading: &mut Reading<'_>) -> Option<TlsConfig> {
    let address = section.ask("address", ADDRESS).required(reading, parsed);
    let certificate = section.ask("certificate", "a path").required_file(reading);
    let private_key = section.ask("privateKey", "a path").required_file(reading);
    let authority = section.ask("clientAuthority", "a path");
    let clients = match proof {
        Proof::Certificate => authority.required_file(reading).map(Clients::Certified),
        Proof::Token => Some(authority.optional_file(reading).map_or(Clients::Anybody, Clients::CertifiedOrNot)),
    };
    section.finish(reading);
    let files = ServerFiles { certificate: certificate?, private_key: private_key?, clients: clients? };
    Some(TlsConfig { address: address?, files })
}
