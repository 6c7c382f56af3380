//! Who gets a key, in the eyes of the API server: a token is believed only when it confirms it, and a volume's key goes
//! only to the node that holds the volume. Every refusal has its code and its line in the audit log.

mod callers;
mod line;
mod objects;
mod refusals;
mod table;
mod watches;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use coffer::{
    key::service::{KeyService, NewKey},
    keyservice::bearer::Settings,
    proto::keyservice::{DescribeKeyRequest, GetKeyRequest},
    volume::VolumeId,
};
use libtest_mimic::Trial;
use tempfile::TempDir;
use testbed::{
    conformance::{soon, store::new_key},
    kube::{
        ApiServer,
        keys::{Bearer, Callers, KeyServer, settings},
    },
};
use tonic::Status;

use crate::Bed;
use objects::Objects;

/// How long a token is believed that the API server has confirmed.
const BELIEVED: Duration = Duration::from_secs(3);
/// The ten seconds for which the API server itself remembers a good token, and some time for a slow machine.
const FORGOTTEN: Duration = Duration::from_secs(30);

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    vec![
        bed.trial("every_refusal_has_its_code_and_its_line_in_the_audit_log", refusals::all),
        bed.trial("a_fresh_attachment_is_had_at_once", watches::fresh),
        bed.trial("a_nodes_token_is_not_enough_to_look_around", callers::nodes),
        bed.trial("a_controllers_token_makes_and_destroys_and_gets_no_key", callers::controllers),
        bed.trial("a_node_that_asks_too_often_is_told_when_to_come_again", callers::rates),
        bed.trial("unknown_tokens_of_one_address_are_limited_and_known_ones_are_not", callers::strangers),
        bed.trial("a_token_is_believed_no_longer_than_configured", callers::expiry),
        bed.trial("without_the_api_server_nobody_gets_a_key", watches::away),
        bed.trial("an_api_server_that_fell_silent_is_not_believed_for_longer_than_configured", watches::silent),
    ]
}

/// A key service on the API server, and a namespace with what callers need.
struct Place {
    server: Arc<ApiServer>,
    service: KeyServer,
    objects: Objects,
    namespace: &'static str,
    _folder: TempDir,
}

impl Place {
    async fn new(server: Arc<ApiServer>, namespace: &'static str) -> Result<Self> {
        let client = server.client();
        Self::with(server, namespace, client, 10_000).await
    }

    async fn with(
        server: Arc<ApiServer>,
        namespace: &'static str,
        client: kube::Client,
        per_second: u32,
    ) -> Result<Self> {
        Self::under(server, namespace, client, settings(namespace, BELIEVED, per_second)).await
    }

    /// One that believes a token for so long.
    async fn believing(
        server: Arc<ApiServer>,
        namespace: &'static str,
        client: kube::Client,
        time: Duration,
    ) -> Result<Self> {
        Self::under(server, namespace, client, settings(namespace, time, 10_000)).await
    }

    async fn under(
        server: Arc<ApiServer>,
        namespace: &'static str,
        client: kube::Client,
        settings: Settings,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        server.account(namespace, "coffer-node").await?;
        let callers = Callers::Bearers(Box::new((client, settings)));
        let service = KeyServer::start(folder.path(), callers)?;
        service.synced().await?;
        let objects = Objects { client: server.client() };
        Ok(Self { server, service, objects, namespace, _folder: folder })
    }

    /// The token of a pod of an account on a node.
    async fn token(&self, account: &str, pod: &str, node: &str) -> Result<String> {
        self.server.pod(self.namespace, account, pod, node).await?;
        self.server.token(self.namespace, account, "coffer", Some(pod)).await
    }

    /// A node's pod, which asks.
    async fn node(&self, node: &str) -> Result<Bearer> {
        self.service.bearer(Some(&self.token("coffer-node", &format!("pod-{node}"), node).await?))
    }

    /// A volume's key, made past everybody, and the name of its PersistentVolume, which is to be.
    async fn key(&self, name: &str, node: Option<&str>) -> Result<Volume> {
        let volume =
            Volume { name: format!("{}-{name}", self.namespace), handle: format!("{}.{name}", self.namespace) };
        let (name, node) = (volume.name.clone(), node.map(str::to_owned));
        let new = NewKey { name, node, ..new_key(&volume.handle) };
        self.service.keys().create(new, soon()).await?;
        Ok(volume)
    }

    /// A volume of a driver that attaches, with its key and its PersistentVolume.
    async fn attachable(&self, name: &str) -> Result<Volume> {
        let volume = self.key(name, None).await?;
        self.objects.volume(&volume.name, "attached.csi", &volume.handle, &[]).await?;
        Ok(volume)
    }
}

/// A volume: its PersistentVolume is not called as its driver calls it.
struct Volume {
    name: String,
    handle: String,
}

impl Volume {
    fn id(&self) -> VolumeId {
        self.handle.parse().expect("a volume id")
    }
}

async fn get(bearer: &Bearer, volume: &Volume) -> Result<(), Status> {
    // Any point of the curve does; what is sealed to it nobody opens.
    let request = GetKeyRequest { volume_id: volume.handle.clone(), public_key: vec![9; 32] };
    bearer.client().get_key(bearer.request(request)).await.map(drop)
}

async fn describe(bearer: &Bearer, volume: &Volume) -> Result<bool, Status> {
    let request = DescribeKeyRequest { volume_id: volume.handle.clone() };
    Ok(bearer.client().describe_key(bearer.request(request)).await?.into_inner().info.is_some())
}
