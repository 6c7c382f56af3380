//! NodeUnstageVolume: from a mounted file system back to nothing. No key is asked for.

use std::path::Path;

use crate::{
    exec::Deadline,
    node::{Node, NodeFailure, mounted_at, shows, source::BlockSource, turns::Work},
    step::{Step, reached},
    volume::VolumeId,
};

impl Node {
    /// Unstages a volume. Not staged, not open, not attached: each is a success.
    ///
    /// # Errors
    /// The volume is still published or otherwise in use, or a step failed; then the same call goes on from there.
    pub async fn unstage(
        &self,
        volume_id: &VolumeId,
        staging_target_path: &Path,
        deadline: Deadline,
    ) -> Result<(), NodeFailure> {
        let _turn = self.turns.take(Work::Close, volume_id, deadline).await?;
        // A path that is gone is not mounted on.
        let path = self.targets.resolve(staging_target_path).await.unwrap_or(staging_target_path.to_owned());
        let mapping = self.mapping(volume_id).await?;
        let mounts = self.mounts().await?;
        if let Some(mapping) = &mapping {
            if let Some(other) = mounts.iter().find(|mount| shows(mount, mapping) && mount.target != path) {
                let what = format!("on {}: unpublish it there first", other.target.display());
                return Err(NodeFailure::InUse { volume_id: volume_id.clone(), what });
            }
            // Mounted more than once at one place only by a crash between two stages; each mount goes.
            for _ in mounts.iter().filter(|mount| shows(mount, mapping)) {
                self.mounts.unmount(&path).await.map_err(NodeFailure::io("unmount", &path))?;
            }
            reached(Step::Unmounted, volume_id);
            self.close(volume_id, deadline).await?;
            reached(Step::Closed, volume_id);
        } else if mounted_at(&mounts, &path).is_some() {
            return Err(NodeFailure::Occupied { path, what: "something else than this volume is mounted there" });
        }
        self.pool.detach(volume_id).await.map_err(NodeFailure::source(volume_id))?;
        reached(Step::Detached, volume_id);
        Ok(())
    }
}
