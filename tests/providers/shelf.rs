//! A server of objects, and stores on it as the configuration file makes them.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use coffer::{
    exec::Deadline,
    key::store::{
        self, DekStore, Settings, StoreFailure,
        object::{Bucket, Objects},
        settings::ObjectPlace,
    },
    volume::VolumeId,
};
use serde_json::{Value, json};
use testbed::{
    cloud::{StoreBed, StoreVariant},
    conformance::soon,
};
use uuid::Uuid;

use crate::{
    house::{CLUSTER, read_config},
    servers::StoreServer,
    table::Notes,
};

/// A server of objects.
pub(crate) struct Shelf {
    pub(crate) bed: Arc<dyn StoreBed>,
    pub(crate) notes: Notes,
    pub(crate) folder: tempfile::TempDir,
}

impl Shelf {
    pub(crate) async fn start(server: StoreServer) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let bed = server.start(folder.path()).await.with_context(|| format!("start {}", server.name()))?;
        let notes = Notes::store(bed.store(), bed.server(), bed.standing());
        Ok(Self { bed, notes, folder })
    }

    /// The store of a variant, in a bucket of its own; none, which is noted, where the server has no such thing.
    pub(crate) async fn variant(&self, variant: StoreVariant, what: &str) -> Result<Option<Place>> {
        let config = self.bed.config(variant).await.with_context(|| format!("{variant:?}"))?;
        match config {
            Some(config) => open(self.folder.path(), config).await.map(Some),
            None => {
                self.notes.not_shown(what);
                Ok(None)
            }
        }
    }

    /// A store that works, in a bucket of its own.
    pub(crate) async fn good(&self) -> Result<Place> {
        let config = self.bed.config(StoreVariant::Good).await?.context("a server without a good configuration")?;
        open(self.folder.path(), config).await
    }

    /// Puts bytes in place of a volume's record, as a stranger would.
    pub(crate) async fn overwrite(&self, place: &Place, volume_id: &str, bytes: &[u8]) -> Result<()> {
        let name = place.name(volume_id)?;
        self.bed.overwrite(&place.config, &name, bytes.to_vec()).await.with_context(|| format!("overwrite {name}"))
    }
}

/// A bucket with a prefix, as it is configured.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) config: Value,
    bucket: Arc<dyn Bucket>,
    place: ObjectPlace,
}

/// Opens what is configured.
pub(crate) async fn open(folder: &Path, config: Value) -> Result<Place> {
    let provider = json!({ "type": "local", "keyFile": folder.join("local.key"), "insecureLocalKey": true });
    let file = read_config(folder, &provider, &config)?;
    let settings = file.store.context("a configuration with a store")?;
    let place = match &settings {
        Settings::S3(s3) => s3.place.clone(),
        Settings::Gcs(gcs) => gcs.place.clone(),
        Settings::AzureBlob(blob) => blob.place.clone(),
        Settings::Kubernetes => anyhow::bail!("custom resources are in no bucket"),
        Settings::Filesystem(folder) => anyhow::bail!("{} is no bucket", folder.display()),
    };
    Ok(Place { config, bucket: store::open_bucket(settings).await?, place })
}

impl Place {
    /// The records of an installation here, as a process that was just started has them.
    pub(crate) fn records_of(&self, cluster_id: Uuid) -> Arc<dyn DekStore> {
        Arc::new(Objects::new(self.bucket.clone(), self.place.clone(), cluster_id))
    }

    /// The records of the tests' installation.
    pub(crate) fn records(&self) -> Arc<dyn DekStore> {
        self.records_of(CLUSTER)
    }

    /// The same, called in another way.
    pub(crate) fn called(&self, change: impl FnOnce(&mut ObjectPlace)) -> Self {
        let mut place = self.place.clone();
        change(&mut place);
        Self { place, ..self.clone() }
    }

    /// What the bucket or container is called.
    pub(crate) fn bucket_name(&self) -> Result<&str> {
        let name = ["bucket", "container"].iter().find_map(|key| self.config.get(key)?.as_str());
        name.with_context(|| format!("a bucket's name in {}", self.config))
    }

    /// The whole name of the object that holds a volume's record. Only ids that are safe in names are asked for.
    pub(crate) fn name(&self, volume_id: &str) -> Result<String> {
        let id: VolumeId = volume_id.parse()?;
        let file = id.file_name().with_context(|| format!("{volume_id} is not its own file's name"))?;
        Ok(format!("{}{file}.json", self.folder()))
    }

    /// What the names of all records begin with.
    pub(crate) fn folder(&self) -> String {
        format!("{}v1/{CLUSTER}/", self.place.prefix)
    }

    /// Makes sure that the bucket can be used, so that what follows are single requests.
    pub(crate) async fn ready(&self) -> Result<Objects, StoreFailure> {
        let objects = Objects::new(self.bucket.clone(), self.place.clone(), CLUSTER);
        objects.check(soon()).await?;
        Ok(objects)
    }
}

/// The store's failure, where there is one.
pub(crate) async fn failure_of_get(store: &dyn DekStore, volume_id: &str, deadline: Deadline) -> Option<StoreFailure> {
    let id: VolumeId = volume_id.parse().expect("a volume id");
    store.get(&id, deadline).await.err()
}
