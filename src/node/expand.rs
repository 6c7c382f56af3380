//! NodeExpandVolume: a staged volume takes the size that its device has now, while it is in use.

use std::path::Path;

use crate::{
    exec::Deadline,
    node::{Node, NodeFailure, filesystem, header::Layout, luks, mounted_at, shows, source::BlockSource, turns::Work},
    step::{Step, reached},
    volume::{Content, MapperName, VolumeId},
};

impl Node {
    /// Grows the mapping and the file system, and returns the volume's size in bytes.
    ///
    /// # Errors
    /// The volume is not at that path, its device is smaller than asked for, or a step failed; then the same call
    /// goes on from there.
    pub async fn expand(
        &self,
        volume_id: &VolumeId,
        volume_path: &Path,
        required_bytes: u64,
        deadline: Deadline,
    ) -> Result<u64, NodeFailure> {
        let _turn = self.turns.take(Work::Open, volume_id, deadline).await?;
        let not_there = || NodeFailure::NotThere { volume_id: volume_id.clone(), path: volume_path.to_owned() };
        let mapping = self.mapping(volume_id).await?.ok_or_else(not_there)?;
        let path = self.targets.resolve(volume_path).await.map_err(|_| not_there())?;
        let mounts = self.mounts().await?;
        let mounted = mounted_at(&mounts, &path).filter(|mount| shows(mount, &mapping));
        let stale = || NodeFailure::StaleMapping { volume_id: volume_id.clone() };
        let device = &mapping.backing.first().ok_or_else(stale)?.path;
        self.pool.grow(volume_id).await.map_err(NodeFailure::source(volume_id))?;
        reached(Step::DeviceGrown, volume_id);

        let key = self.keys.get(volume_id, deadline).await.map_err(NodeFailure::key(volume_id))?;
        let content = key.info.parameters.content;
        if mounted.is_none() && content != Content::Block {
            return Err(not_there());
        }
        let device_bytes = self.blocks.size(device).await.map_err(NodeFailure::io("measure", device))?;
        let data_bytes = device_bytes.saturating_sub(Layout::of(&key.info.parameters).overhead_bytes());
        let sector = u64::from(key.info.parameters.sector_size.bytes());
        let bytes = data_bytes - data_bytes % sector;
        if bytes < required_bytes {
            return Err(NodeFailure::NotThatLarge { volume_id: volume_id.clone(), bytes, asked: required_bytes });
        }
        if mapping.bytes != bytes {
            let header = self.header(&key, device).await?;
            let mapper = MapperName::of(volume_id);
            let resized = luks::resize(self.exec.as_ref(), &header, &mapper, &key.dek, deadline).await;
            resized.map_err(NodeFailure::luks("resize", volume_id))?;
        }
        drop(key);
        reached(Step::MappingGrown, volume_id);
        if let Content::Filesystem(fs_type) = content {
            let grown = filesystem::grow(self.exec.as_ref(), fs_type, &mapping.path, &path, deadline).await;
            grown.map_err(NodeFailure::filesystem("grow the file system", volume_id))?;
        }
        reached(Step::FilesystemGrown, volume_id);
        Ok(bytes)
    }
}
