//! On which node a new volume is made, and what becomes of one that was begun on another.
//!
//! What is there is kept where the request allows it. It is taken back, and the volume begun anew elsewhere, only while
//! nobody can have been told of it: its record says that nothing was written, and no PersistentVolume has its id.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt, api::ListParams};

use crate::{
    exec::Deadline,
    key::{record::State, service::KeyInfo},
    kubernetes::{
        local_pool::LocalPool,
        local_volume::{LocalVolume, unsigned},
        pools::{
            ClusterPools,
            asked::{asked, expected},
            broken,
        },
    },
    node::pool::{Placement, PoolsFailure, Wanted},
    volume::VolumeId,
};

/// How long a node's word about its room is believed: one that is there says it anew every five minutes.
const BELIEVED: SignedDuration = SignedDuration::from_mins(15);
const IN_USE: &str = "its LocalVolume is being deleted and its key is in use: delete the PersistentVolumeClaim";
const LOOK: &str = "look at PersistentVolume";
const LIST: &str = "list LocalPools";

impl ClusterPools {
    pub(super) async fn place_file(
        &self,
        volume_id: &VolumeId,
        needed: u64,
        wanted: &Wanted,
        existing: Option<&KeyInfo>,
        deadline: Deadline,
    ) -> Result<Placement, PoolsFailure> {
        let found = self.look(volume_id, deadline).await?;
        let (info, node) = match (existing, &found) {
            (None, None) => return Ok(Placement::At(self.choose(needed, wanted, deadline).await?)),
            (None, Some(volume)) if volume.is_leaving() => return Err(leaving(volume_id, volume)),
            (None, Some(_)) => return Err(PoolsFailure::NoRecord(volume_id.clone())),
            (Some(info), Some(volume)) if volume.is_leaving() => {
                let node = &volume.spec.node_name;
                // Begun and taken back again; else somebody has deleted what is in use.
                return match self.expect_untold(info, node, deadline).await {
                    Ok(()) => Ok(Placement::Nowhere(leaving(volume_id, volume))),
                    Err(PoolsFailure::OnOtherNode { .. }) => Err(broken(volume_id, node, IN_USE)),
                    Err(failure) => Err(failure),
                };
            }
            (Some(info), Some(volume)) => (info, &volume.spec.node_name),
            (Some(info), None) => match &info.node {
                Some(node) => (info, node),
                None => return Err(broken(volume_id, "(none)", "its key is bound to no node")),
            },
        };
        if info.node.as_ref() != Some(node) {
            let named = info.node.as_deref().unwrap_or("(none)");
            return Err(broken(volume_id, node, &format!("its key is bound to node {named}; delete the volume")));
        }
        let is_made = found.as_ref().is_some_and(|volume| volume.made_bytes().is_some());
        if wanted.allows(node) && (is_made || info.state != State::Prepared || wanted.preferred.is_empty()) {
            return Ok(Placement::At(node.clone()));
        }
        let choice = match self.choose(needed, wanted, deadline).await {
            Ok(choice) if choice == *node => return Ok(Placement::At(choice)),
            // Where nobody has room, the node that it is on already says so itself.
            Err(full) if full.is_full() && wanted.allows(node) => return Ok(Placement::At(node.clone())),
            Err(failure) if !failure.is_full() => return Err(failure),
            choice => choice,
        };
        self.expect_untold(info, node, deadline).await?;
        let gone = match &found {
            None => true,
            Some(volume) => {
                let taken = self.take_back(volume, deadline).await?;
                taken.ok_or_else(|| PoolsFailure::Busy(volume_id.clone()))?
            }
        };
        Ok(match choice {
            Ok(choice) if gone => Placement::Anew(choice),
            Ok(_) => Placement::Nowhere(PoolsFailure::Leaving { volume_id: volume_id.clone(), node: node.clone() }),
            // The answer is the last one that the provisioner listens to: nothing is left behind.
            Err(full) => Placement::Nowhere(full),
        })
    }

    /// The node for a new volume: the first that has room, or of which nothing is known: it may be away, or be just
    /// coming, and whoever wants the volume there may be at no other.
    async fn choose(&self, needed: u64, wanted: &Wanted, deadline: Deadline) -> Result<String, PoolsFailure> {
        let room = self.room(deadline).await?;
        let mut candidates = wanted.order();
        if wanted.allowed.is_none() {
            let mut others: Vec<_> = room.iter().filter(|(node, _)| !candidates.contains(&node.as_str())).collect();
            others.sort_by_key(|(_, available)| std::cmp::Reverse(**available));
            candidates.extend(others.into_iter().map(|(node, _)| node.as_str()));
        }
        let fits = |node: &str| room.get(node).is_none_or(|available| *available >= needed);
        let chosen = candidates.iter().find(|node| fits(node)).map(|node| (*node).to_owned());
        chosen.ok_or_else(|| PoolsFailure::NoRoom {
            needed,
            available: candidates.iter().filter_map(|node| room.get(*node)).max().copied().unwrap_or(0),
            place: match candidates.as_slice() {
                [node] => format!("the pool of node {node}"),
                _ => "any one pool of local volumes".to_owned(),
            },
        })
    }

    /// The room in each pool, by its node; without those that have not said it lately.
    pub(super) async fn room(&self, deadline: Deadline) -> Result<BTreeMap<String, u64>, PoolsFailure> {
        let all = ListParams::default();
        let listed = expected(LIST, "", asked(LIST, "", deadline, self.pools.list(&all)).await?)?;
        let room = listed.into_iter().filter_map(|pool| Some((pool.name_any(), room_in(&pool)?)));
        Ok(room.collect())
    }

    /// Refuses to take back a volume that somebody may have been told of, or that holds data.
    async fn expect_untold(&self, info: &KeyInfo, node: &str, deadline: Deadline) -> Result<(), PoolsFailure> {
        let told = || PoolsFailure::OnOtherNode { volume_id: info.volume_id.clone(), node: node.to_owned() };
        if info.state != State::Prepared {
            return Err(told());
        }
        // external-provisioner names the PersistentVolume as it names the volume. Nothing else can be one's name.
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let name = info.name.as_str();
        if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) || !name.bytes().all(plain) {
            return Ok(());
        }
        let found = expected(LOOK, name, asked(LOOK, name, deadline, self.persistent.get_opt(name)).await?)?;
        let handle = found.and_then(|found| found.spec?.csi).map(|csi| csi.volume_handle);
        if handle.is_some_and(|handle| handle == info.volume_id.as_str()) { Err(told()) } else { Ok(()) }
    }
}

fn room_in(pool: &LocalPool) -> Option<u64> {
    let status = pool.status.as_ref()?;
    let updated: Timestamp = status.updated.parse().ok()?;
    (Timestamp::now().duration_since(updated) <= BELIEVED).then(|| unsigned(status.available_bytes))
}

fn leaving(volume_id: &VolumeId, volume: &LocalVolume) -> PoolsFailure {
    PoolsFailure::Leaving { volume_id: volume_id.clone(), node: volume.spec.node_name.clone() }
}
