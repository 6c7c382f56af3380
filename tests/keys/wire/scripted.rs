//! What the golden messages mean, in the key service's own types, and a key service that hears and says that.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use coffer::{
    exec::Deadline,
    key::{
        derive::Tag,
        record::State,
        service::{Attempt, KeyFailure, KeyInfo, KeyService, NewKey, Page, VolumeKey},
    },
    secret::Dek,
    volume::{Content, Discard, FsType, Integrity, MkfsOptions, Parameters, SectorSize, VolumeId},
};
use uuid::Uuid;

use super::bytes;
use crate::{id, soon, vectors};

pub(super) const VOLUME: &str = "golden-wire";
const FREE: &str = "golden/free";
const GENERATION: u32 = 3;
const ATTEMPT: u32 = 300;

/// What a key service is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    Create(NewKey),
    Get(VolumeId),
    Describe(VolumeId),
    BeginFormat(VolumeId, u32),
    MarkReady(VolumeId, Attempt, Tag),
    Destroy(VolumeId, u32),
    List(Option<VolumeId>, usize),
}

/// What it says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    Info(KeyInfo),
    Key(KeyInfo, Vec<u8>),
    Described(Option<KeyInfo>),
    Destroyed,
    Listed(Page),
}

impl Asked {
    pub(super) async fn of(self, service: &dyn KeyService) -> Result<Said, KeyFailure> {
        Ok(match self {
            Self::Create(new) => Said::Info(service.create(new, soon()).await?),
            Self::Get(volume_id) => {
                let key = service.get(&volume_id, soon()).await?;
                Said::Key(key.info, key.dek.expose_secret().to_vec())
            }
            Self::Describe(volume_id) => Said::Described(service.describe(&volume_id, soon()).await?),
            Self::BeginFormat(volume_id, generation) => {
                Said::Info(service.begin_format(&volume_id, generation, soon()).await?)
            }
            Self::MarkReady(volume_id, attempt, header) => {
                Said::Info(service.mark_ready(&volume_id, attempt, header, soon()).await?)
            }
            Self::Destroy(volume_id, generation) => {
                service.destroy(&volume_id, generation, soon()).await?;
                Said::Destroyed
            }
            Self::List(after, limit) => Said::Listed(service.list(after.as_ref(), limit, soon()).await?),
        })
    }
}

/// A key service that says what it is told to say, and remembers what it was asked.
pub(super) struct Scripted {
    pub(super) says: Said,
    pub(super) heard: Mutex<Vec<Asked>>,
}

impl Scripted {
    fn hear(&self, asked: Asked) -> Said {
        self.heard.lock().expect("no panic while it is held").push(asked);
        self.says.clone()
    }

    fn info(&self, asked: Asked) -> Result<KeyInfo, KeyFailure> {
        let Said::Info(info) = self.hear(asked) else { return Err(KeyFailure::Broken) };
        Ok(info)
    }
}

#[async_trait]
impl KeyService for Scripted {
    async fn create(&self, new: NewKey, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.info(Asked::Create(new))
    }

    async fn get(&self, volume_id: &VolumeId, _: Deadline) -> Result<VolumeKey, KeyFailure> {
        let Said::Key(info, dek) = self.hear(Asked::Get(volume_id.clone())) else { return Err(KeyFailure::Broken) };
        Ok(VolumeKey { info, dek: Dek::take(dek).expect("32 bytes") })
    }

    async fn describe(&self, volume_id: &VolumeId, _: Deadline) -> Result<Option<KeyInfo>, KeyFailure> {
        let Said::Described(info) = self.hear(Asked::Describe(volume_id.clone())) else {
            return Err(KeyFailure::Broken);
        };
        Ok(info)
    }

    async fn begin_format(&self, volume_id: &VolumeId, generation: u32, _: Deadline) -> Result<KeyInfo, KeyFailure> {
        self.info(Asked::BeginFormat(volume_id.clone(), generation))
    }

    async fn mark_ready(
        &self,
        volume_id: &VolumeId,
        attempt: Attempt,
        header: Tag,
        _: Deadline,
    ) -> Result<KeyInfo, KeyFailure> {
        self.info(Asked::MarkReady(volume_id.clone(), attempt, header))
    }

    async fn destroy(&self, volume_id: &VolumeId, generation: u32, _: Deadline) -> Result<(), KeyFailure> {
        self.hear(Asked::Destroy(volume_id.clone(), generation));
        Ok(())
    }

    async fn list(&self, after: Option<&VolumeId>, limit: usize, _: Deadline) -> Result<Page, KeyFailure> {
        let Said::Listed(page) = self.hear(Asked::List(after.cloned(), limit)) else {
            return Err(KeyFailure::Broken);
        };
        Ok(page)
    }
}

/// What a golden request asks.
pub(super) fn asked(request: &str) -> Asked {
    let (volume_id, text) = (id(VOLUME), |text: &str| Some(text.to_owned()));
    match request {
        "create-request" => Asked::Create(NewKey {
            volume_id,
            name: "pvc-golden".to_owned(),
            parameters: parameters(),
            node: text("n1"),
            tenant: text("blue"),
            storage_class: text("gold"),
            claim: text("data"),
            provider: text("main"),
            key_id: text("alias/gold"),
            context: [("team".to_owned(), "blue".to_owned())].into(),
        }),
        "create-request-least" => Asked::Create(NewKey {
            volume_id: id(FREE),
            name: "Größe".to_owned(),
            parameters: block(),
            node: None,
            tenant: None,
            storage_class: None,
            claim: None,
            provider: None,
            key_id: None,
            context: BTreeMap::new(),
        }),
        "get-request" => Asked::Get(volume_id),
        "describe-request" => Asked::Describe(volume_id),
        "begin-format-request" => Asked::BeginFormat(volume_id, GENERATION),
        "mark-ready-request" => {
            Asked::MarkReady(volume_id, Attempt { generation: GENERATION, number: ATTEMPT }, header_tag())
        }
        "destroy-request" => Asked::Destroy(volume_id, GENERATION),
        "list-request-first" => Asked::List(None, 2),
        "list-request-last" => Asked::List(Some(volume_id), 2),
        other => panic!("there is no golden {other}"),
    }
}

/// What a golden answer says.
pub(super) fn said(answer: &str) -> Said {
    match answer {
        "create-response" => Said::Info(info(State::Prepared)),
        "create-response-least" => Said::Info(free()),
        "get-response" => Said::Key(info(State::Ready), hpke_golden("dek")),
        "describe-response" => Said::Described(Some(info(State::Ready))),
        "describe-response-none" => Said::Described(None),
        "describe-response-destroyed" => Said::Described(Some(info(State::Destroyed))),
        "begin-format-response" => Said::Info(info(State::Formatting)),
        "mark-ready-response" => Said::Info(info(State::Ready)),
        "destroy-response" => Said::Destroyed,
        "list-response-first" => Said::Listed(Page { infos: vec![free(), info(State::Ready)], next: Some(id(VOLUME)) }),
        "list-response-last" => Said::Listed(Page { infos: Vec::new(), next: None }),
        other => panic!("there is no golden {other}"),
    }
}

fn parameters() -> Parameters {
    let words = ["-i", "8192"].map(str::to_owned).to_vec();
    let mkfs_options = MkfsOptions::try_from(words).expect("they shape a file system");
    Parameters { discard: Discard::On, mkfs_options, ..Parameters::of(Content::Filesystem(FsType::Ext4)) }
}

fn block() -> Parameters {
    let sector_size = SectorSize::try_from(512).expect("a size");
    Parameters { sector_size, integrity: Integrity::HmacSha256, ..Parameters::of(Content::Block) }
}

fn header_tag() -> Tag {
    Tag::from_bytes(std::array::from_fn(|at| u8::try_from(at + 1).expect("at most 32")))
}

/// What the record of the same volume says in each state.
fn info(state: State) -> KeyInfo {
    let (format_attempt, header_tag) = match state {
        State::Prepared => (0, None),
        State::Formatting => (ATTEMPT, None),
        State::Ready | State::Destroyed => (ATTEMPT, Some(header_tag())),
    };
    let kek_id = if state == State::Destroyed { "" } else { "arn:aws:kms:eu-central-1:111122223333:key/1" };
    KeyInfo {
        volume_id: id(VOLUME),
        name: "pvc-golden".to_owned(),
        node: Some("n1".to_owned()),
        generation: GENERATION,
        state,
        luks_uuid: "2f6e7c1a-9a3b-4c5d-8e6f-0123456789ab".parse().expect("a UUID"),
        parameters: parameters(),
        format_attempt,
        header_tag,
        provider: "main".to_owned(),
        kek_id: kek_id.to_owned(),
    }
}

/// What the record of a volume that any node may have says.
fn free() -> KeyInfo {
    KeyInfo {
        volume_id: id(FREE),
        name: "Größe".to_owned(),
        node: None,
        generation: 1,
        state: State::Prepared,
        luks_uuid: Uuid::from_u128(7),
        parameters: block(),
        format_attempt: 0,
        header_tag: None,
        provider: "cluster".to_owned(),
        kek_id: "cluster-key:v1".to_owned(),
    }
}

/// A field of the golden key pair, and of what was sealed to it.
pub(super) fn hpke_golden(field: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(vectors().join("wire-hpke.json")).expect("the golden key pair");
    let golden: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    bytes(golden[field].as_str().expect("hexadecimal digits"))
}
