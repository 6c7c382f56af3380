//! CSI's Identity service: what the driver is, what it can do, and whether it is ready.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic::{Request, Response, Status, async_trait};

use crate::{
    csi::DRIVER_NAME,
    exec::Deadline,
    key::service::{KeyService, Refusal},
    proto::csi::{
        GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
        PluginCapability, ProbeRequest, ProbeResponse, identity_server,
        plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion},
    },
    volume::VolumeId,
};

/// How long the key service may take to show that it is there.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// Which services the driver serves on this socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Services {
    /// Identity and Node.
    Node,
    /// Identity, Node, and Controller for local volumes.
    NodeAndController,
    /// Identity and Controller.
    Controller,
}

/// The Identity service.
pub struct Identity {
    services: Services,
    keys: Arc<dyn KeyService>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.services).finish()
    }
}

impl Identity {
    /// A driver that is ready when its key service is.
    #[must_use]
    pub fn new(services: Services, keys: Arc<dyn KeyService>) -> Self {
        Self { services, keys }
    }
}

#[async_trait]
impl identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        let mut types = vec![service(service::Type::VolumeAccessibilityConstraints), Type::VolumeExpansion(online)];
        match self.services {
            Services::Node => {}
            Services::NodeAndController | Services::Controller => {
                types.insert(0, service(service::Type::ControllerService));
            }
        }
        let capabilities = types.into_iter().map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready when the key service answers. What it answers does not matter: nobody asks for a key.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(is_there(self.keys.as_ref()).await) }))
    }
}

/// Whether a key service answers, whatever it answers: it is asked about a volume that nobody has.
pub async fn is_there(keys: &dyn KeyService) -> bool {
    let asked = keys.describe(&VolumeId::for_name("probe"), Deadline::within(PROBE_TIME)).await;
    let silent = |refusal| matches!(refusal, Refusal::Unavailable | Refusal::Deadline | Refusal::Fault);
    !asked.is_err_and(|failure| silent(failure.refusal()))
}
