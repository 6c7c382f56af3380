//! Keys and their records: every store and every KMS against one list each, the state machine, what tampering does,
//! records that earlier versions wrote, and the wire that they spoke.

mod configured;
mod golden;
mod kms;
mod roles;
mod service;
mod store;
mod tampering;
mod wire;

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use coffer::{
    exec::Deadline,
    key::{
        cluster::ClusterKeys,
        embedded::Embedded,
        kms::{Kms, local::Local},
        providers::{KmsProvider, Provider, Providers},
        record::Record,
        service::{KeyService, NewKey},
        store::{DekStore, memory::Memory},
    },
    secret::LocalKek,
    volume::{Content, FsType, Parameters, VolumeId},
};
use uuid::Uuid;

fn soon() -> Deadline {
    Deadline::within(Duration::from_secs(30))
}

fn id(text: &str) -> VolumeId {
    text.parse().expect("a volume id")
}

fn new(volume_id: &str) -> NewKey {
    NewKey {
        volume_id: id(volume_id),
        name: format!("name of {volume_id}"),
        parameters: Parameters::of(Content::Filesystem(FsType::Ext4)),
        node: Some("n1".to_owned()),
        tenant: None,
        storage_class: None,
        claim: None,
        key_id: None,
        provider: None,
        context: BTreeMap::new(),
    }
}

fn local(byte: u8) -> Arc<dyn Kms> {
    Arc::new(Local::new(LocalKek::born(|kek| kek.fill(byte))))
}

/// A key service over a store: by a cluster key, or by a KMS.
fn services(store: &Arc<dyn DekStore>) -> [(&'static str, Embedded); 2] {
    let service = |provider: Provider| {
        let providers = Providers { by_name: [("main".to_owned(), provider)].into(), default: "main".to_owned() };
        Embedded::new(Uuid::from_u128(1), providers, store.clone())
    };
    [
        ("derived", service(Provider::Cluster(cluster_keys()))),
        ("wrapped", service(Provider::Kms(KmsProvider::new(local(7))))),
    ]
}

/// The same cluster key each time.
fn cluster_keys() -> ClusterKeys {
    ClusterKeys::load(&vectors().join("cluster-key.json")).expect("the vector is a cluster key")
}

fn vectors() -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    // A checkout makes files that the world can read, which a cluster key must not be.
    fs::set_permissions(folder.join("cluster-key.json"), fs::Permissions::from_mode(0o600)).expect("chmod");
    folder
}

/// A record as a key service makes it.
async fn record(volume_id: &str) -> Record {
    let store: Arc<dyn DekStore> = Arc::new(Memory::default());
    let [(_, service), _] = services(&store);
    service.create(new(volume_id), soon()).await.expect("a new key");
    store.get(&id(volume_id), soon()).await.expect("it answers").expect("it is there").record
}
