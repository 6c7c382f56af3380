//! The configuration file of a key service: providers, the store, listeners, the audit log. YAML.
//!
//! ```yaml
//! listen:
//!   unix: { path: /run/coffer/keyservice.sock, allowedUids: [0] }
//!   tls: { address: "127.0.0.1:7443", certificate: tls.crt, privateKey: tls.key, clientAuthority: ca.crt }
//! providers:
//!   main: { type: cluster-key, file: cluster-key.json }
//!   lab: { type: local, keyFile: local.key, insecureLocalKey: true }
//! defaultProvider: main
//! clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11   # where no provider is a cluster key, which brings its own
//! store: { type: filesystem, path: /var/lib/coffer/records }
//! auditLog: /var/log/coffer/audit.log               # standard output where it is left out
//! ```
//! Paths that are not absolute begin at the folder of the file.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    config::{Faults, did_you_mean},
    server::tls::Files,
};

/// A provider as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// A cluster key file.
    ClusterKey {
        /// The file.
        file: PathBuf,
    },
    /// A KEK in a file.
    Local {
        /// The file.
        key_file: PathBuf,
        /// A salt, where the KEK is to be derived.
        salt: Option<String>,
    },
}

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

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// A unix socket, where there is to be one.
    pub unix: Option<UnixConfig>,
    /// A TLS listener, where there is to be one.
    pub tls: Option<TlsConfig>,
    /// Providers by name; at least one.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// The provider of new volumes: one of them.
    pub default_provider: String,
    /// The installation, where no provider brings it.
    pub cluster_id: Option<Uuid>,
    /// The folder of records.
    pub store: Option<PathBuf>,
    /// The audit log.
    pub audit_log: Option<PathBuf>,
}

impl FileConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its key and what was expected.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let text = fs::read_to_string(path).map_err(|error| Faults::one(format!("{}: {error}", path.display())))?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Faults> {
        let value: Value = serde_saphyr::from_str(text)
            .map_err(|error| Faults::one(format!("{}: it is not YAML: {error}", path.display())))?;
        let Value::Object(map) = value else {
            return Err(Faults::one(format!("{}: expected keys and values", path.display())));
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut faults = Faults::default();
        let mut top = Section { at: format!("{}: ", path.display()), map, asked: Vec::new() };
        let listen = top.section("listen", &mut faults);
        let (unix, tls) = listen.map_or((None, None), |listen| read_listen(listen, &folder, &mut faults));
        let providers = read_providers(&mut top, &folder, &mut faults);
        let default: Option<String> = top.optional("defaultProvider", "a provider's name", &mut faults);
        let default_provider = match (default, providers.keys().next()) {
            (Some(name), _) if !providers.contains_key(&name) && !providers.is_empty() => {
                let hint = did_you_mean(&name, providers.keys().map(String::as_str));
                top.fault("defaultProvider", &format!("there is no provider {name}{hint}"), &mut faults);
                name
            }
            (Some(name), _) => name,
            (None, Some(only)) if providers.len() == 1 => only.clone(),
            (None, Some(_)) => {
                top.fault("defaultProvider", "is missing; with several providers one must be named", &mut faults);
                String::new()
            }
            (None, None) => String::new(),
        };
        let cluster_id = top.optional("clusterId", "a UUID", &mut faults);
        let cluster_keys = providers.values().filter(|p| matches!(p, ProviderConfig::ClusterKey { .. })).count();
        match (cluster_keys, cluster_id) {
            (0, None) if !providers.is_empty() => {
                top.fault(
                    "clusterId",
                    "is missing, and no provider is a cluster key, which would bring it",
                    &mut faults,
                );
            }
            (2.., _) => top.fault("providers", "at most one can be of type cluster-key", &mut faults),
            _ => {}
        }
        let store = top.section("store", &mut faults).and_then(|store| read_store(store, &folder, &mut faults));
        let audit_log: Option<PathBuf> = top.optional("auditLog", "a path", &mut faults);
        top.finish(&mut faults);
        let audit_log = audit_log.map(|path| folder.join(path));
        faults.or(Self { unix, tls, providers, default_provider, cluster_id, store, audit_log })
    }
}

fn read_listen(mut listen: Section, folder: &Path, faults: &mut Faults) -> (Option<UnixConfig>, Option<TlsConfig>) {
    let unix = listen.section("unix", faults).and_then(|mut unix| {
        let path: Option<PathBuf> = unix.required("path", "a path", faults);
        let allowed: Option<Vec<u32>> = unix.required("allowedUids", "a list of uids", faults);
        unix.finish(faults);
        Some(UnixConfig { path: folder.join(path?), allowed_uids: allowed? })
    });
    let tls = listen.section("tls", faults).and_then(|mut tls| {
        let address = tls.required("address", "an IP address and a port", faults);
        let mut path = |key: &str| tls.required::<PathBuf>(key, "a path", faults).map(|path| folder.join(path));
        let (certificate, private_key, authority) = (path("certificate"), path("privateKey"), path("clientAuthority"));
        tls.finish(faults);
        let files = Files { certificate: certificate?, private_key: private_key?, authority: authority? };
        Some(TlsConfig { address: address?, files })
    });
    listen.finish(faults);
    (unix, tls)
}

fn read_providers(top: &mut Section, folder: &Path, faults: &mut Faults) -> BTreeMap<String, ProviderConfig> {
    let mut providers = BTreeMap::new();
    let Some(mut section) = top.section("providers", faults) else {
        top.fault("providers", "is missing; without a provider nothing could be encrypted", faults);
        return providers;
    };
    let names: Vec<String> = section.map.keys().cloned().collect();
    if names.is_empty() {
        section.fault("", "holds no provider; without one nothing could be encrypted", faults);
    }
    for name in names {
        if section.map.get(&name).is_some_and(Value::is_null) {
            section.fault(&name, "is empty; expected keys and values", faults);
        }
        let Some(mut provider) = section.section(&name, faults) else { continue };
        if let Some(config) = read_provider(&mut provider, folder, faults) {
            providers.insert(name, config);
        }
        provider.finish(faults);
    }
    providers
}

fn read_provider(provider: &mut Section, folder: &Path, faults: &mut Faults) -> Option<ProviderConfig> {
    let Some(kind) = provider.required::<String>("type", "cluster-key or local", faults) else {
        provider.map.clear();
        return None;
    };
    match kind.as_str() {
        "cluster-key" => {
            let file: PathBuf = provider.required("file", "a path", faults)?;
            Some(ProviderConfig::ClusterKey { file: folder.join(file) })
        }
        "local" => {
            let key_file: Option<PathBuf> = provider.required("keyFile", "a path", faults);
            let salt = provider.optional("salt", "text", faults);
            let insecure: Option<bool> = provider.optional("insecureLocalKey", "true", faults);
            if insecure != Some(true) {
                let expected = "must be true: whoever reads keyFile reads every volume of this provider";
                provider.fault("insecureLocalKey", expected, faults);
            }
            Some(ProviderConfig::Local { key_file: folder.join(key_file?), salt })
        }
        other => {
            let hint = did_you_mean(other, ["cluster-key", "local"]);
            provider.fault("type", &format!("{other:?} is not cluster-key or local{hint}"), faults);
            // What else belongs to it is known only when its type is.
            provider.map.clear();
            None
        }
    }
}

fn read_store(mut store: Section, folder: &Path, faults: &mut Faults) -> Option<PathBuf> {
    let kind: Option<String> = store.required("type", "filesystem", faults);
    let path: Option<PathBuf> = store.required("path", "a path", faults);
    if let Some(other) = kind.filter(|kind| kind != "filesystem") {
        store.fault("type", &format!("{other:?} is not filesystem"), faults);
    }
    store.finish(faults);
    path.map(|path| folder.join(path))
}

/// One level of the file: its keys are taken one by one, and what is left over is not known.
struct Section {
    at: String,
    map: Map<String, Value>,
    asked: Vec<String>,
}

impl Section {
    fn optional<T: DeserializeOwned>(&mut self, key: &str, expected: &str, faults: &mut Faults) -> Option<T> {
        self.asked.push(key.to_owned());
        match self.map.remove(key)? {
            Value::Null => None,
            value => match serde_json::from_value(value) {
                Ok(value) => Some(value),
                Err(_) => {
                    self.fault(key, &format!("expected {expected}"), faults);
                    None
                }
            },
        }
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str, expected: &str, faults: &mut Faults) -> Option<T> {
        if self.map.get(key).is_none_or(Value::is_null) {
            self.asked.push(key.to_owned());
            self.map.remove(key);
            self.fault(key, &format!("is missing; expected {expected}"), faults);
            return None;
        }
        self.optional(key, expected, faults)
    }

    fn section(&mut self, key: &str, faults: &mut Faults) -> Option<Self> {
        let map = self.optional(key, "keys and values", faults)?;
        Some(Self { at: format!("{}{key}.", self.at), map, asked: Vec::new() })
    }

    fn fault(&self, key: &str, what: &str, faults: &mut Faults) {
        faults.add(format!("{}{key}: {what}", self.at));
    }

    fn finish(self, faults: &mut Faults) {
        for key in self.map.keys() {
            let hint = did_you_mean(key, self.asked.iter().map(String::as_str));
            self.fault(key, &format!("is not known{hint}"), faults);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        FileConfig::parse(text, Path::new("/etc/coffer.yaml")).expect_err("faults").to_string()
    }

    #[test]
    fn a_whole_file_is_read_with_paths_from_its_own_folder() {
        let text = "
            listen: {unix: {path: /run/k.sock, allowedUids: [0, 7]}}
            providers: {main: {type: cluster-key, file: cluster-key.json}}
            store: {type: filesystem, path: records}";
        let config = FileConfig::parse(text, Path::new("/etc/coffer.yaml")).expect("valid");
        assert_eq!(config.default_provider, "main");
        assert_eq!(config.store, Some("/etc/records".into()));
        assert_eq!(config.unix, Some(UnixConfig { path: "/run/k.sock".into(), allowed_uids: vec![0, 7] }));
        let file = "/etc/cluster-key.json".into();
        assert_eq!(config.providers.get("main"), Some(&ProviderConfig::ClusterKey { file }));
    }

    #[test]
    fn all_faults_are_told_at_once_each_with_its_key() {
        let told = faults(
            "
            lissten: {}
            providers:
              a: {type: local, keyFile: k, insecureLocalKey: false}
              b: {type: locl}
              c: {type: cluster-key, file: f, fiel: g}
            defaultProvider: d
            store: {type: s3, path: 7}",
        );
        for expected in [
            "/etc/coffer.yaml: lissten: is not known; did you mean listen?",
            "providers.a.insecureLocalKey: must be true",
            r#"providers.b.type: "locl" is not cluster-key or local; did you mean local?"#,
            "providers.c.fiel: is not known; did you mean file?",
            "defaultProvider: there is no provider d",
            r#"store.type: "s3" is not filesystem"#,
            "store.path: expected a path",
        ] {
            assert!(told.contains(expected), "{expected}\nis not in\n{told}");
        }
    }

    #[test]
    fn nothing_runs_without_a_provider() {
        assert!(faults("store: {type: filesystem, path: r}").contains("providers: is missing"));
        assert!(faults("providers: {}").contains("holds no provider"));
        assert!(faults("providers:\n  a:\n").contains("providers.a: is empty"));
        assert!(faults("[1]").contains("expected keys and values"));
        assert!(faults("a: [").contains("not YAML"));
        assert!(
            faults("providers: {a: {type: local, keyFile: k, insecureLocalKey: true}}")
                .contains("clusterId: is missing")
        );
    }
}
