//! What tests of local volumes stand on: a key service, controllers on sockets, and nodes whose files lie in folders.
//! File systems and devices have no part in it, so no kernel is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use coffer::{
    csi::{
        Gate,
        controller::Controller,
        identity::{Identity, Services},
        node::topology,
    },
    exec::Deadline,
    key::{
        embedded::Embedded,
        kms::{Kms, local::Local as LocalKms},
        providers::{KmsProvider, Provider, Providers},
        service::{KeyInfo, KeyService},
        store::memory::Memory,
    },
    kubernetes::{keeper::keep, local_volume::LocalVolume, pools::ClusterPools},
    node::{
        block::LinuxBlocks,
        header::Layout,
        source::{
            files::{Files, Folder, NoFile},
            local::Local,
        },
    },
    proto::csi::{
        CreateVolumeRequest, TopologyRequirement, Volume, controller_server::ControllerServer,
        identity_server::IdentityServer, volume_capability::access_mode::Mode,
    },
    secret::LocalKek,
    volume::{Content, FsType, Parameters, VolumeId},
};
use kube::{Api, Client};
use testbed::{
    csi::{self, Csi},
    kube::ApiServer,
};
use tokio::{net::UnixListener, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, transport::Server};
use uuid::Uuid;

pub(crate) const MIB: u64 = 1 << 20;
/// How long something may take that needs nobody's patience.
const SOON: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(50);

/// A cluster as far as local volumes go.
pub(crate) struct House {
    pub(crate) client: Client,
    pub(crate) keys: Arc<dyn KeyService>,
    pub(crate) csi: Csi,
    pub(crate) folder: tempfile::TempDir,
    controllers: AtomicU64,
}

impl House {
    /// A key service of its own, and one controller.
    pub(crate) fn build(server: &ApiServer) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kms: Arc<dyn Kms> = Arc::new(LocalKms::new(LocalKek::born(|kek| kek.fill(7))));
        let by_name = [("main".to_owned(), Provider::Kms(KmsProvider::new(kms)))].into();
        let providers = Providers { by_name, default: "main".to_owned() };
        let keys: Arc<dyn KeyService> =
            Arc::new(Embedded::new(Uuid::from_u128(1), providers, Arc::new(Memory::default())));
        let csi = Csi::at(&folder.path().join("0.sock"));
        let house = Self { client: server.client(), keys, csi, folder, controllers: AtomicU64::new(0) };
        house.controller()?;
        Ok(house)
    }

    /// One more controller, as it runs in a pod of its own.
    pub(crate) fn controller(&self) -> Result<Csi> {
        let number = self.controllers.fetch_add(1, Ordering::Relaxed);
        let socket = self.folder.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&socket)?;
        let pools = Arc::new(ClusterPools::through(self.client.clone()));
        let controller = Controller::over(self.keys.clone(), pools, Gate::default());
        let server = Server::builder()
            .add_service(IdentityServer::new(Identity::new(Services::Controller, self.keys.clone())))
            .add_service(ControllerServer::new(controller))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        Ok(Csi::at(&socket))
    }

    /// A node that is away.
    pub(crate) fn node(&self, name: &str) -> Node {
        Node {
            name: name.to_owned(),
            folder: self.folder.path().join(name),
            client: self.client.clone(),
            keys: self.keys.clone(),
            most: None,
            running: None,
        }
    }

    pub(crate) fn volumes(&self) -> Api<LocalVolume> {
        Api::all(self.client.clone())
    }

    /// A volume's object.
    pub(crate) async fn object(&self, name: &str) -> Result<Option<LocalVolume>> {
        Ok(self.volumes().get_opt(VolumeId::for_name(name).as_str()).await?)
    }

    /// What the record of a volume says.
    pub(crate) async fn record(&self, name: &str) -> Result<Option<KeyInfo>> {
        Ok(self.keys.describe(&VolumeId::for_name(name), Deadline::within(SOON)).await?)
    }

    /// CreateVolume as external-provisioner asks for it, for pods of one node, with that much patience.
    pub(crate) async fn create(
        &self,
        name: &str,
        node: &str,
        bytes: u64,
        patience: Duration,
    ) -> Result<Volume, Status> {
        create(&self.csi, request(name, node, bytes), patience).await
    }

    /// Waits until a volume's object is as it should be.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(Option<&LocalVolume>) -> bool,
    ) -> Result<Option<LocalVolume>> {
        let id = VolumeId::for_name(name);
        let waited = tokio::time::timeout(SOON, async {
            loop {
                let found = self.volumes().get_opt(id.as_str()).await?;
                if is(found.as_ref()) {
                    return anyhow::Ok(found);
                }
                tokio::time::sleep(POLL).await;
            }
        });
        match waited.await {
            Ok(found) => found,
            Err(_) => anyhow::bail!("{name}: {what} does not come: {:?}", self.object(name).await?),
        }
    }
}

/// A request for a new volume for pods of one node.
pub(crate) fn request(name: &str, node: &str, bytes: u64) -> CreateVolumeRequest {
    let here = vec![topology(node)];
    CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement { requisite: here.clone(), preferred: here }),
        ..csi::new_volume(name, bytes, csi::filesystem("", Mode::SingleNodeWriter))
    }
}

/// CreateVolume at one controller.
pub(crate) async fn create(csi: &Csi, asked: CreateVolumeRequest, patience: Duration) -> Result<Volume, Status> {
    let mut asked = Request::new(asked);
    asked.set_timeout(patience);
    let reply = csi.controller.clone().create_volume(asked).await?.into_inner();
    reply.volume.ok_or_else(|| Status::internal("the reply lacks the volume"))
}

/// The size of a file whose volume has so many bytes.
pub(crate) fn with_header(bytes: u64) -> u64 {
    bytes + Layout::of(&Parameters::of(Content::Filesystem(FsType::Ext4))).overhead_bytes()
}

/// A node: a folder, and what keeps it while the node is there.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    client: Client,
    keys: Arc<dyn KeyService>,
    most: Option<u64>,
    running: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Node {
    /// A node that says that it has room, and has none for a file of more bytes than these: as when others have filled its
    /// disk since.
    pub(crate) fn without_room_for(mut self, most: u64) -> Self {
        self.most = Some(most);
        self
    }

    /// The node comes, or comes back.
    pub(crate) async fn start(&mut self) -> Result<()> {
        let files: Arc<dyn Files> = match self.most {
            Some(most) => Arc::new(Tight { folder: self.open().await?, most }),
            None => Arc::new(self.open().await?),
        };
        let pool = Local::of(files, Arc::new(LinuxBlocks));
        let end = CancellationToken::new();
        let task = keep(self.client.clone(), self.name.clone(), pool, self.keys.clone(), end.clone());
        self.running = Some((tokio::spawn(task), end));
        Ok(())
    }

    /// The folder, once a killed keeper has let go of it.
    async fn open(&self) -> Result<Folder> {
        let opened = tokio::time::timeout(SOON, async {
            loop {
                match Folder::open(&self.folder) {
                    Ok(folder) => return folder,
                    Err(_) => tokio::time::sleep(POLL).await,
                }
            }
        });
        opened.await.with_context(|| format!("the folder of node {} is still in use", self.name))
    }

    /// The node is told to end, and ends.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let (task, end) = self.running.take().context("the node runs")?;
        end.cancel();
        tokio::time::timeout(SOON, task).await.context("the keeper does not end")??;
        Ok(())
    }

    /// The node is gone in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        if let Some((task, _)) = self.running.take() {
            task.abort();
        }
    }

    /// The file of a volume.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(VolumeId::for_name(name).as_str())
    }

    /// The size of a volume's file; none where there is none.
    pub(crate) fn bytes(&self, name: &str) -> Option<u64> {
        fs::metadata(self.file(name)).ok().map(|metadata| metadata.len())
    }

    /// Checks that a volume has a file of this size.
    pub(crate) fn expect_file(&self, name: &str, bytes: u64) -> Result<()> {
        let found = self.bytes(name);
        ensure!(found == Some(bytes), "the file of {name} on {} has {found:?} bytes and not {bytes}", self.name);
        Ok(())
    }

    /// Checks that a volume has no file.
    pub(crate) fn expect_no_file(&self, name: &str) -> Result<()> {
        ensure!(self.bytes(name).is_none(), "{name} has a file on {}", self.name);
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder whose disk is fuller than it was when it was measured.
struct Tight {
    folder: Folder,
    most: u64,
}

impl Tight {
    fn expect_room(&self, needed: u64) -> Result<(), NoFile> {
        if needed > self.most { Err(NoFile::Full { needed, available: self.most }) } else { Ok(()) }
    }
}

#[async_trait]
impl Files for Tight {
    fn folder(&self) -> &Path {
        self.folder.folder()
    }

    async fn size(&self, name: &str) -> std::io::Result<Option<u64>> {
        self.folder.size(name).await
    }

    async fn create(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        self.expect_room(bytes)?;
        self.folder.create(name, bytes).await
    }

    async fn grow(&self, name: &str, bytes: u64) -> Result<(), NoFile> {
        self.expect_room(bytes)?;
        self.folder.grow(name, bytes).await
    }

    async fn remove(&self, name: &str) -> std::io::Result<()> {
        self.folder.remove(name).await
    }

    async fn flush(&self, name: &str) -> std::io::Result<()> {
        self.folder.flush(name).await
    }

    async fn available(&self) -> std::io::Result<u64> {
        Ok(1 << 50)
    }

    async fn names(&self) -> std::io::Result<Vec<String>> {
        self.folder.names().await
    }
}
