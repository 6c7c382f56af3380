//! What a container orchestrator may send: each request as bytes, read as far as it is before a device or a mount is
//! touched. The first byte of an input names the RPC, the rest is the message.

use std::{
    collections::HashMap,
    path::{Component, PathBuf},
    sync::Arc,
};

use coffer::{
    csi::{
        DRIVER_NAME,
        identity::{Identity, Services},
        request::{self, Invalid, Range, class::Class},
    },
    node::{Capability, Form, header::Layout, source::Place},
    proto::csi::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerGetCapabilitiesRequest, CreateVolumeRequest,
        DeleteVolumeRequest, GetCapacityRequest, GetPluginCapabilitiesRequest, GetPluginInfoRequest,
        ListVolumesRequest, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
        NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
        NodeUnstageVolumeRequest, ProbeRequest, ValidateVolumeCapabilitiesRequest, VolumeCapability,
        identity_server::Identity as _,
        volume_capability::{AccessType, access_mode::Mode},
    },
    volume::{FsType, Integrity, MapperName, Parameters, VOLUME_ID_MAX_BYTES, VolumeId},
};
use prost::Message;
use tonic::Request;

use crate::fuzz::{keyservice::embedded, wait};

const TENANT: &str = "csi.storage.k8s.io/pvc/namespace";
/// Mount options that would make another kind of mount.
const FORBIDDEN: [&str; 6] = ["bind", "rbind", "move", "remount", "shared", "loop"];
/// Longer paths do not fit into a volume context together with its other keys.
const CONTEXT_PATH_BYTES: usize = 4000;

/// The requests of CSI's Node service. What is accepted is plain: paths lead straight to where they say, an id is a
/// name, options make no other kind of mount.
pub fn node(bytes: &[u8]) -> bool {
    let Some((rpc, message)) = bytes.split_first() else { return false };
    match rpc % 8 {
        0 => read(message, |request: &NodeStageVolumeRequest| {
            secrets(&request.secrets)?;
            located(&request.volume_id, "staging_target_path", &request.staging_target_path)?;
            capability(request.volume_capability.as_ref())?;
            place(&request.volume_context)
        }),
        1 => read(message, |request: &NodeUnstageVolumeRequest| {
            located(&request.volume_id, "staging_target_path", &request.staging_target_path)
        }),
        2 => read(message, |request: &NodePublishVolumeRequest| {
            secrets(&request.secrets)?;
            located(&request.volume_id, "staging_target_path", &request.staging_target_path)?;
            path("target_path", &request.target_path)?;
            capability(request.volume_capability.as_ref()).map(drop)
        }),
        3 => read(message, |request: &NodeUnpublishVolumeRequest| {
            located(&request.volume_id, "target_path", &request.target_path)
        }),
        4 => read(message, |request: &NodeGetVolumeStatsRequest| {
            located(&request.volume_id, "volume_path", &request.volume_path)
        }),
        5 => read(message, |request: &NodeExpandVolumeRequest| {
            secrets(&request.secrets)?;
            located(&request.volume_id, "volume_path", &request.volume_path)?;
            range(request.capacity_range.as_ref())?;
            request.volume_capability.as_ref().map_or(Ok(()), |asked| capability(Some(asked)).map(drop))
        }),
        6 => read(message, |_: &NodeGetCapabilitiesRequest| Ok(())),
        _ => read(message, |_: &NodeGetInfoRequest| Ok(())),
    }
}

/// The requests of CSI's Controller service. What a class asks for means the same when it is written in another way.
pub fn controller(bytes: &[u8]) -> bool {
    let Some((rpc, message)) = bytes.split_first() else { return false };
    match rpc % 7 {
        0 => read(message, |request: &CreateVolumeRequest| {
            let name = request::name(&request.name)?;
            assert!(!name.is_empty() && !name.chars().any(char::is_control), "a name is a name");
            let id = VolumeId::for_name(name);
            assert_eq!(id.file_name(), Some(id.as_str()), "an id of ours is safe as a file's name");
            secrets(&request.secrets)?;
            class(&request.parameters, &capabilities(&request.volume_capabilities)?)?;
            range(request.capacity_range.as_ref())
        }),
        1 => read(message, |request: &DeleteVolumeRequest| {
            secrets(&request.secrets)?;
            volume_id(&request.volume_id)
        }),
        2 => read(message, |request: &ValidateVolumeCapabilitiesRequest| {
            volume_id(&request.volume_id)?;
            capabilities(&request.volume_capabilities).map(drop)
        }),
        3 => read(message, |request: &GetCapacityRequest| {
            class(&request.parameters, &capabilities(&request.volume_capabilities)?)
        }),
        4 => read(message, |request: &ControllerExpandVolumeRequest| {
            secrets(&request.secrets)?;
            volume_id(&request.volume_id)?;
            range(request.capacity_range.as_ref())?;
            request.volume_capability.as_ref().map_or(Ok(()), |asked| capability(Some(asked)).map(drop))
        }),
        5 => read(message, |_: &ListVolumesRequest| Ok(())),
        _ => read(message, |_: &ControllerGetCapabilitiesRequest| Ok(())),
    }
}

/// The requests of CSI's Identity service, which have no arguments: whatever else a message holds, they are answered.
pub fn identity(bytes: &[u8]) -> bool {
    let Some((rpc, message)) = bytes.split_first() else { return false };
    let identity = Identity::new(Services::NodeAndController, Arc::new(embedded()));
    let answered = match rpc % 3 {
        0 => GetPluginInfoRequest::decode(message).map(|request| {
            let answer = wait(identity.get_plugin_info(Request::new(request))).expect("the driver says what it is");
            assert_eq!(answer.get_ref().name, DRIVER_NAME);
        }),
        1 => GetPluginCapabilitiesRequest::decode(message).map(|request| {
            let answer = wait(identity.get_plugin_capabilities(Request::new(request))).expect("it says what it can do");
            assert!(!answer.get_ref().capabilities.is_empty(), "it can do something");
        }),
        _ => ProbeRequest::decode(message).map(|request| {
            let answer = wait(identity.probe(Request::new(request))).expect("it says whether it is ready");
            assert_eq!(answer.get_ref().ready, Some(true), "its key service is there");
        }),
    };
    answered.is_ok()
}

/// Decodes a message and reads it as an RPC does. What makes no sense is refused in words.
fn read<M: Message + Default>(message: &[u8], parse: impl Fn(&M) -> Result<(), Invalid>) -> bool {
    let Ok(message) = M::decode(message) else { return false };
    match parse(&message) {
        Ok(()) => true,
        Err(invalid) => {
            assert!(!invalid.to_string().is_empty(), "a refusal has a reason");
            false
        }
    }
}

/// No secret is accepted, and what is said of one is said of every other.
fn secrets(secrets: &HashMap<String, String>) -> Result<(), Invalid> {
    let refused = request::no_secrets(secrets);
    assert_eq!(refused.is_ok(), secrets.is_empty(), "no secret is accepted");
    if refused.is_err() {
        assert_eq!(request::no_secrets(&[("other".to_owned(), "secret".to_owned())].into()), refused);
    }
    refused
}

fn located(id: &str, field: &str, text: &str) -> Result<(), Invalid> {
    volume_id(id)?;
    path(field, text).map(drop)
}

fn volume_id(text: &str) -> Result<(), Invalid> {
    let id = request::volume_id(text)?;
    assert_eq!(id.as_str(), text, "an id is kept as it is");
    assert!((1..=VOLUME_ID_MAX_BYTES).contains(&text.len()) && !text.chars().any(char::is_control));
    assert_eq!(MapperName::of(&id).as_str().len(), 39, "every mapping's name has one length");
    assert!(id.file_name().is_none_or(|name| !name.contains(['/', '.'])), "no path is a file's name");
    Ok(())
}

fn path(field: &str, text: &str) -> Result<PathBuf, Invalid> {
    let path = request::path(field, text)?;
    let shown = path.to_str().expect("it was made from text");
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(path.is_absolute() && path.file_name().is_some() && path.components().all(plain), "{shown:?}");
    assert!(shown.split('/').all(|part| part != "." && part != ".."), "{shown:?} leads elsewhere");
    assert!(!shown.contains("//") && !shown.ends_with('/') && !shown.chars().any(char::is_control), "{shown:?}");
    assert_eq!(request::path(field, shown).as_ref(), Ok(&path), "a path that was read is read again");
    Ok(path)
}

fn capability(asked: Option<&VolumeCapability>) -> Result<Capability, Invalid> {
    let read = request::capability(asked)?;
    let asked = asked.expect("what was accepted is there");
    let mode = asked.access_mode.and_then(|mode| Mode::try_from(mode.mode).ok());
    let one_node =
        [Mode::SingleNodeWriter, Mode::SingleNodeReaderOnly, Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter];
    assert!(mode.is_some_and(|mode| one_node.contains(&mode)), "a volume is on one node at a time");
    match (&read.form, &asked.access_type) {
        (Form::Block, Some(AccessType::Block(_))) => {}
        (Form::Filesystem { fs_type, group, .. }, Some(AccessType::Mount(mount))) => {
            assert_eq!(fs_type.map_or("", FsType::as_str), mount.fs_type);
            assert_eq!(group.is_none(), mount.volume_mount_group.is_empty());
            let mut flags = mount.mount_flags.iter().flat_map(|flags| flags.split(','));
            assert!(flags.all(|flag| !FORBIDDEN.contains(&flag)), "no other kind of mount is asked for");
        }
        _ => panic!("the form is not the one that was asked for"),
    }
    Ok(read)
}

fn capabilities(asked: &[VolumeCapability]) -> Result<Vec<Capability>, Invalid> {
    asked.iter().map(|asked| capability(Some(asked))).collect()
}

fn place(context: &HashMap<String, String>) -> Result<(), Invalid> {
    let place = request::place(context)?;
    if device(&place)?.is_none_or(|device| device.as_os_str().len() < CONTEXT_PATH_BYTES) {
        assert_eq!(request::place(&request::context(&place)), Ok(place), "what is written is read back");
    }
    Ok(())
}

fn device(place: &Place) -> Result<Option<PathBuf>, Invalid> {
    match place {
        Place::Local => Ok(None),
        Place::Device(device) => path("device", device.to_str().expect("it was made from text")).map(Some),
    }
}

fn range(asked: Option<&CapacityRange>) -> Result<(), Invalid> {
    let range = Range::parse(asked)?;
    assert!(range.limit.is_none_or(|limit| limit > 0 && limit >= range.required), "the limit is not below the least");
    assert!(range.allows(range.limit.unwrap_or(range.required)), "some size is what was asked for");
    assert!(range.required == 0 || !range.allows(range.required - 1), "nothing smaller is");
    Ok(())
}

fn class(parameters: &HashMap<String, String>, capabilities: &[Capability]) -> Result<(), Invalid> {
    let class = request::class::class(parameters, capabilities)?;
    device(&class.place)?;
    let again = request::class::class(&written(&class, parameters), capabilities);
    assert_eq!(again.as_ref(), Ok(&class), "a class means the same when it is written again");
    let read = &class.parameters;
    let json = serde_json::to_string(read).expect("parameters have string keys only");
    assert_eq!(serde_json::from_str::<Parameters>(&json).ok().as_ref(), Some(read), "a record keeps them");
    let layout = Layout::of(read);
    assert!(layout.header_bytes() <= layout.mark_offset() && layout.mark_offset() < layout.data_offset);
    assert_eq!(read.integrity, Integrity::None, "what cannot be given is not promised");
    Ok(())
}

/// The keys that were given with what was read for each.
fn written(class: &Class, given: &HashMap<String, String>) -> HashMap<String, String> {
    let read = &class.parameters;
    let value = |key: &str| -> Option<String> {
        Some(match key {
            "fsType" => read.content.to_string(),
            "cipher" => read.cipher.to_string(),
            "discard" => read.discard.to_string(),
            "sectorSize" => read.sector_size.bytes().to_string(),
            "integrity" => read.integrity.to_string(),
            "mkfsOptions" => read.mkfs_options.words().join(" "),
            "encryption" => "luks2".to_owned(),
            "provider" => class.provider.clone()?,
            "keyId" => class.key_id.clone()?,
            "storageClass" => class.storage_class.clone()?,
            "context" => {
                let pairs = class.context.iter().map(|(key, value)| format!("{key}={value}"));
                pairs.collect::<Vec<_>>().join(",")
            }
            "device" => match &class.place {
                Place::Local => return None,
                Place::Device(path) => path.to_str()?.to_owned(),
            },
            TENANT => class.tenant.clone()?,
            _ => return None,
        })
    };
    given.keys().filter_map(|key| Some((key.clone(), value(key)?))).collect()
}
