//! The ways on which a secret could get out: repairs, refusals, lost keys, secrets in requests, programs that fail.

use std::{collections::HashMap, fs, os::unix::fs::FileExt, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use coffer::{
    proto::csi::{
        ControllerExpandVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest, ValidateVolumeCapabilitiesRequest,
        Volume, volume_capability::MountVolume,
    },
    secret::LocalKek,
};
use testbed::{
    csi::{filesystem, mount, new_volume, publish, ran_out, stage},
    tap::until,
};
use tonic::Code;

use super::{House, WRITER, encoded, private};
use crate::{COFFER, MIB};

impl House {
    /// A file system with errors is repaired, and one that is in use is not let go of.
    pub(super) async fn repair(&mut self, volume: &Volume) -> Result<()> {
        let (csi, staged) = (self.pair.csi.clone(), self.bed.path("staged"));
        csi.stage_filesystem(volume, &staged).await?;
        let busy = fs::File::create(staged.join("file"))?;
        let answer = csi.unstage(&volume.volume_id, &staged).await;
        drop(busy);
        self.told.push(format!("{:?}", answer.err().context("a volume in use was unstaged")?));
        let mounted = fs::read_dir("/sys/fs/ext4")?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.display().to_string().contains("/dm-"));
        fs::write(mounted.context("an ext4 on a mapping")?.join("trigger_fs_error"), "a test")?;
        csi.unstage(&volume.volume_id, &staged).await?;
        self.opens(volume).await
    }

    /// Headers, records and devices that are not what they should be.
    pub(super) async fn tamper(&mut self, volume: &Volume, other: &Volume) -> Result<()> {
        let path = self.bed.driver.file(&volume.volume_id);
        let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
        let mut header = vec![0; 1 << 20];
        file.read_exact_at(&mut header, 0)?;
        file.write_all_at(&[header[5000] ^ 1], 5000)?;
        self.not_staged(volume, Code::FailedPrecondition, "changed since").await?;
        file.write_all_at(&header[5000..5001], 5000)?;

        let path = self.bed.driver.record(&volume.volume_id);
        let whole = fs::read_to_string(&path)?;
        let edited = whole.replacen(r#""generation": 1"#, r#""generation": 2"#, 1);
        for wrong in [edited, fs::read_to_string(self.bed.driver.record(&other.volume_id))?] {
            ensure!(wrong != whole, "the record was not edited: {whole}");
            fs::write(&path, wrong)?;
            self.not_staged(volume, Code::FailedPrecondition, "refused").await?;
        }
        fs::write(&path, whole)?;

        let new = self.create("foreign", 32, filesystem("ext4", WRITER), None).await?;
        let file = fs::OpenOptions::new().write(true).open(self.bed.driver.file(&new.volume_id))?;
        file.write_all_at(&header, 0)?;
        self.not_staged(&new, Code::FailedPrecondition, "a LUKS2 header with UUID").await?;
        let mut request = new_volume("device", 32 * MIB, filesystem("ext4", WRITER));
        request.parameters.insert("device".to_owned(), "/dev/no-such-device".to_owned());
        let answer = self.pair.csi.create(request).await;
        self.refused(answer, Code::InvalidArgument, "/dev/no-such-device")?;
        let unknown = Volume { volume_id: "vol-unknown".to_owned(), ..Volume::default() };
        self.not_staged(&unknown, Code::NotFound, "vol-unknown").await
    }

    /// A KEK that is another, key files that are cut off, and a key service that is away.
    pub(super) async fn lose_keys(&mut self, volume: &Volume) -> Result<()> {
        let local = self.bed.path("local.key");
        let kek = fs::read_to_string(&local)?;
        let other = LocalKek::random();
        self.marks.add("other KEK", other.expose_secret());
        fs::write(&local, encoded(other.expose_secret()))?;
        self.pair.restart_keys().await?;
        self.not_staged(volume, Code::FailedPrecondition, "does not open with provider lab").await?;
        fs::write(&local, &kek)?;

        let cluster = fs::read_to_string(self.bed.driver.state_dir().join("cluster-key.json"))?;
        let (torn, short) = (self.bed.path("torn.json"), self.bed.path("short.key"));
        private(&torn, cluster.trim_end().trim_end_matches('}'))?;
        private(&short, &kek[..40])?;
        let words = ["--log-level", "trace", "keyservice", "--config"];
        let output =
            Command::new(COFFER).args(words).arg(self.pair.configuration("broken.yaml", &torn, &short)?).output()?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(64) && told.contains("short.key") && told.contains("torn.json"), "{told}");
        self.told.extend([told, String::from_utf8_lossy(&output.stdout).into_owned()]);
        fs::remove_file(torn)?;
        fs::remove_file(short)?;

        self.pair.keys.kill();
        self.pair.keys_tap.close();
        // The node looks for it for some time before it says that it is away: for both at once.
        let staged = self.bed.path("staged");
        let (away, answer) = tokio::join!(self.pair.ready(false), self.pair.csi.stage_without_keys(volume, &staged));
        away?;
        self.refused(answer, Code::Unavailable, "key")?;
        self.pair.keys_tap.open_again()?;
        self.pair.restart_keys().await?;
        self.opens(volume).await
    }

    /// Requests with secrets, which no request to Coffer carries, and mount flags, which can hold credentials.
    pub(super) async fn send_secrets(&mut self, volume: &Volume) -> Result<()> {
        let (volume_id, writer) = (volume.volume_id.clone(), filesystem("", WRITER));
        let (mut node, mut controller) = (self.pair.csi.node.clone(), self.pair.csi.controller.clone());
        let (staged, target) = (self.bed.path("staged"), self.bed.path("target"));
        let secrets = HashMap::from([("passphrase".to_owned(), self.passphrase.clone())]);
        let mut create = new_volume("secrets", 32 * MIB, writer.clone());
        create.secrets.clone_from(&secrets);
        let mut staging = stage(volume, &staged, writer.clone());
        staging.secrets.clone_from(&secrets);
        let mut publishing = publish(volume, &staged, &target, writer.clone());
        publishing.secrets.clone_from(&secrets);
        let delete = DeleteVolumeRequest { volume_id: volume_id.clone(), secrets: secrets.clone() };
        let grow = ControllerExpandVolumeRequest {
            volume_id: volume_id.clone(),
            capacity_range: create.capacity_range,
            secrets: secrets.clone(),
            ..Default::default()
        };
        let grow_mounted = NodeExpandVolumeRequest {
            volume_id: volume_id.clone(),
            volume_path: staging.staging_target_path.clone(),
            secrets: secrets.clone(),
            ..Default::default()
        };
        let answers = [
            controller.create_volume(create).await.map(drop),
            controller.delete_volume(delete).await.map(drop),
            controller.controller_expand_volume(grow).await.map(drop),
            node.node_stage_volume(staging).await.map(drop),
            node.node_publish_volume(publishing).await.map(drop),
            node.node_expand_volume(grow_mounted).await.map(drop),
        ];
        self.sent += answers.len();
        for answer in answers {
            self.refused(answer, Code::InvalidArgument, "secrets")?;
        }
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id,
            volume_capabilities: vec![writer],
            secrets,
            ..Default::default()
        };
        let answer = controller.validate_volume_capabilities(validate).await;
        self.told.extend(answer.err().map(|status| format!("{status:?}")));
        let flags = MountVolume { mount_flags: vec![format!("loop={}", self.passphrase)], ..MountVolume::default() };
        let answer = self.pair.csi.stage(volume, &staged, mount(flags, WRITER)).await;
        self.refused(answer, Code::InvalidArgument, "mount option")?;
        self.sent += 2;
        Ok(())
    }

    /// Programs that print what they were given, and one that never ends.
    pub(super) async fn break_programs(&mut self, volume: &Volume) -> Result<()> {
        let (csi, id, staged) = (self.pair.csi.clone(), &volume.volume_id, self.bed.path("staged"));
        for print in ["cat", "base64", "od -An -v -tx1 | tr -d ' \\n'"] {
            self.recorders.instead(&format!("{{ {print}; }} >&2; exit 1"))?;
            self.not_staged(volume, Code::Internal, "cryptsetup ended with status 1").await?;
        }
        self.recorders.instead("exec sleep 1000")?;
        let words = self.recorders.file("cryptsetup");
        let recorded = fs::metadata(&words)?.len();
        let hung = tokio::spawn({
            let (csi, volume, staged) = (csi.clone(), volume.clone(), staged.clone());
            async move { csi.stage_within(&volume, &staged, Duration::from_secs(5)).await }
        });
        // Another request must not ask for it: it would have the volume for a moment, and the stage would be turned away.
        until("the program to start", async || anyhow::Ok(fs::metadata(&words)?.len() > recorded)).await?;
        let answer = csi.expand_file(id, 1).await;
        self.refused(answer, Code::Aborted, "try again")?;
        let Err(status) = hung.await? else { bail!("a stage ended well without its program") };
        ensure!(ran_out(&status), "{status:?}");
        self.told.push(format!("{status:?}"));
        let log = self.bed.path("node.log");
        until("the program to be killed", async || {
            anyhow::Ok(fs::read_to_string(&log)?.contains("cryptsetup did not end before the deadline"))
        })
        .await?;
        self.recorders.as_usual()?;
        until("the stage to end", async || match csi.expand_file(id, 1).await {
            Err(status) if status.code() == Code::Aborted => Ok(false),
            answer => Ok(answer.map(|_| true)?),
        })
        .await?;
        self.opens(volume).await
    }
}
