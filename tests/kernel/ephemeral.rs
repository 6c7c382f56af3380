//! Ephemeral volumes: made when they are published, unmade when they are not, under a key that nobody keeps.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use coffer::{
    proto::csi::{
        NodePublishVolumeRequest, VolumeCapability,
        volume_capability::{MountVolume, access_mode::Mode},
    },
    step::Step,
    volume::{MapperName, VolumeId, hex},
};
use libtest_mimic::Trial;
use testbed::{
    csi::{Csi, block, filesystem, mount},
    driver::Driver,
};
use tonic::{Code, Status};

use crate::{
    Bed, MIB, expect_status, loops, mappings, run,
    steps::{nothing_is_open, repeated},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("an_ephemeral_ext4_is_there_for_its_pod_and_gone_with_it", |bed| lives(bed, "ext4", 64)),
        trial("an_ephemeral_xfs_is_there_for_its_pod_and_gone_with_it", |bed| lives(bed, "xfs", 300)),
        trial("an_ephemeral_btrfs_is_there_for_its_pod_and_gone_with_it", |bed| lives(bed, "btrfs", 128)),
        trial("what_a_pod_asks_of_an_ephemeral_volume_it_gets", as_asked),
        trial("an_ephemeral_volume_that_cannot_be_had_leaves_nothing", refused),
        trial("a_publish_of_an_ephemeral_volume_killed_at_any_step_is_put_right", killed_in_publish),
        trial("an_unpublish_of_an_ephemeral_volume_killed_at_any_step_is_put_right", killed_in_unpublish),
        trial("a_driver_that_starts_unmakes_an_ephemeral_volume_that_was_never_mounted", left_unmounted),
        trial("a_driver_that_starts_leaves_an_ephemeral_volume_to_whoever_has_it", left_in_use),
        trial("an_ephemeral_volume_stays_while_its_driver_is_another", taken_over),
        trial("after_a_power_cut_an_ephemeral_volume_is_made_anew", power_cut),
        trial("a_volume_with_a_record_is_not_taken_for_an_ephemeral_one", persistent),
    ]
}

const MARK: &[u8] = b"a text that is gone with its pod";

/// The steps of a publish, and of an unpublish.
const PUBLISH: [Step; 5] = [Step::FileCreated, Step::Attached, Step::Opened, Step::FilesystemMade, Step::Mounted];
const UNPUBLISH: [Step; 4] = [Step::Unmounted, Step::Closed, Step::Detached, Step::FileRemoved];

/// A pod's volume, with the id that a kubelet makes up for it.
struct Pod {
    volume_id: String,
    target: PathBuf,
}

impl Pod {
    fn new(bed: &Bed, number: u8) -> Self {
        Self { volume_id: format!("csi-{}", hex(&[number; 32])), target: bed.path(&format!("pod-{number}")) }
    }

    /// The id under which the volume has its file and its mapping.
    fn own(&self) -> Result<VolumeId> {
        self.volume_id.parse::<VolumeId>()?.ephemeral().context("the id is a kubelet's")
    }

    fn image(&self, driver: &Driver) -> Result<PathBuf> {
        Ok(driver.file(self.own()?.as_str()))
    }

    fn file(&self) -> PathBuf {
        self.target.join("file")
    }

    fn request(&self, attributes: &[(&str, &str)], capability: VolumeCapability) -> NodePublishVolumeRequest {
        let kubelet = [("csi.storage.k8s.io/ephemeral", "true"), ("csi.storage.k8s.io/pod.name", "p")];
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        NodePublishVolumeRequest {
            volume_id: self.volume_id.clone(),
            target_path: self.target.display().to_string(),
            volume_capability: Some(capability),
            volume_context: kubelet.iter().chain(attributes).map(pair).collect::<HashMap<_, _>>(),
            ..NodePublishVolumeRequest::default()
        }
    }

    async fn publish(&self, csi: &Csi) -> Result<(), Status> {
        self.publish_as(csi, &[("size", "16Mi")], filesystem("", Mode::SingleNodeWriter)).await
    }

    async fn publish_as(
        &self,
        csi: &Csi,
        attributes: &[(&str, &str)],
        capability: VolumeCapability,
    ) -> Result<(), Status> {
        csi.node.clone().node_publish_volume(self.request(attributes, capability)).await.map(drop)
    }

    async fn unpublish(&self, csi: &Csi) -> Result<(), Status> {
        csi.unpublish(&self.volume_id, &self.target).await
    }

    /// Nothing of the volume is there.
    fn is_gone(&self, driver: &Driver) -> Result<()> {
        ensure!(!self.target.exists(), "the target stays");
        ensure!(!self.image(driver)?.exists(), "the file stays");
        nothing_is_open()
    }
}

fn holds(path: &Path, text: &[u8]) -> Result<bool> {
    Ok(fs::read(path)?.windows(text.len()).any(|window| window == text))
}

async fn lives(bed: Bed, fs_type: &str, mib: u64) -> Result<()> {
    let (csi, pod) = (&bed.driver.csi, Pod::new(&bed, 1));
    let size = format!("{mib}Mi");
    let attributes = [("size", size.as_str()), ("fsType", fs_type)];
    let publish = async || pod.publish_as(csi, &attributes, filesystem("", Mode::SingleNodeWriter)).await;
    for round in 0..2 {
        publish().await?;
        publish().await.context("publish again")?;
        ensure!(!pod.file().exists(), "round {round}: the file of another pod's life is there");
        fs::write(pod.file(), MARK)?;
        publish().await.context("publish again")?;
        ensure!(fs::read(pod.file())? == MARK, "a second publish made the volume anew");
        let stats = csi.stats(&pod.volume_id, &pod.target).await?;
        ensure!(stats.usage.len() == 2 && stats.usage[0].total > 0, "{stats:?}");
        ensure!(stats.volume_condition.is_some_and(|condition| !condition.abnormal));
        run("sync", &[])?;
        let image = pod.image(&bed.driver)?;
        ensure!(fs::metadata(&image)?.len() == mib * MIB, "{} bytes", fs::metadata(&image)?.len());
        ensure!(!holds(&image, MARK)?, "the text is readable below");
        pod.unpublish(csi).await?;
        pod.is_gone(&bed.driver)?;
        pod.unpublish(csi).await.context("unpublish again")?;
    }
    ensure!(!bed.driver.audit().contains("release"), "a key was asked for: {}", bed.driver.audit());
    let records = bed.driver.state_dir().join("records");
    let records = fs::read_dir(records).map_or(0, Iterator::count);
    ensure!(records == 0, "{records} records were made");
    Ok(())
}

async fn as_asked(bed: Bed) -> Result<()> {
    let (csi, pod) = (&bed.driver.csi, Pod::new(&bed, 1));
    let grouped = MountVolume {
        fs_type: "ext4".to_owned(),
        mount_flags: vec!["noatime,nodev".to_owned()],
        volume_mount_group: "4321".to_owned(),
    };
    let capability = mount(grouped, Mode::SingleNodeMultiWriter);
    pod.publish_as(csi, &[], capability.clone()).await?;
    let folder = fs::metadata(&pod.target)?;
    ensure!(folder.gid() == 4321 && folder.permissions().mode() & 0o2070 == 0o2070, "{folder:?}");
    let options = run("findmnt", &["-n", "-o", "OPTIONS", &pod.target.display().to_string()])?;
    ensure!(options.contains("noatime") && options.contains("nodev"), "{options}");
    ensure!(fs::metadata(pod.image(&bed.driver)?)?.len() == 1 << 30, "the size that nobody asked for is another");
    let image = fs::metadata(pod.image(&bed.driver)?)?;
    ensure!(512 * image.blocks() < 128 * MIB, "the file is not sparse: {} blocks", image.blocks());
    ensure!(image.permissions().mode() & 0o077 == 0, "others may read the file");
    let mut request = pod.request(&[], capability.clone());
    request.readonly = true;
    let answer = csi.node.clone().node_publish_volume(request).await;
    expect_status(answer, Code::AlreadyExists, &["to be written"])?;
    let other = pod.publish_as(csi, &[("fsType", "xfs")], filesystem("", Mode::SingleNodeWriter)).await;
    expect_status(other, Code::AlreadyExists, &["another file system"])?;

    // The same volume at a second place is the same volume.
    fs::write(pod.file(), MARK)?;
    let second = Pod { volume_id: pod.volume_id.clone(), target: bed.path("second") };
    let mut request = second.request(&[], capability);
    request.readonly = true;
    csi.node.clone().node_publish_volume(request).await?;
    ensure!(fs::read(second.file())? == MARK && fs::write(second.file(), "").is_err(), "it is not read-only");
    expect_status(pod.unpublish(csi).await, Code::FailedPrecondition, &["second"])?;
    second.unpublish(csi).await?;
    pod.unpublish(csi).await?;
    second.is_gone(&bed.driver)?;
    pod.is_gone(&bed.driver)
}

async fn refused(bed: Bed) -> Result<()> {
    let (csi, pod) = (&bed.driver.csi, Pod::new(&bed, 1));
    let ask = async |attributes: &[(&str, &str)], capability: VolumeCapability| {
        pod.publish_as(csi, attributes, capability).await
    };
    let ext4 = || filesystem("ext4", Mode::SingleNodeWriter);
    expect_status(ask(&[("sise", "1Gi")], ext4()).await, Code::InvalidArgument, &["did you mean size"])?;
    expect_status(ask(&[("size", "lots")], ext4()).await, Code::InvalidArgument, &["lots", "1Gi"])?;
    expect_status(ask(&[("fsType", "xfs")], ext4()).await, Code::InvalidArgument, &["xfs", "ext4"])?;
    expect_status(ask(&[], block(Mode::SingleNodeWriter)).await, Code::InvalidArgument, &["file system"])?;
    expect_status(ask(&[("size", "4Pi")], ext4()).await, Code::ResourceExhausted, &["available"])?;
    let flags = MountVolume { mount_flags: vec!["no_such_option".to_owned()], ..MountVolume::default() };
    let wrong = mount(flags, Mode::SingleNodeWriter);
    expect_status(ask(&[("size", "16Mi")], wrong).await, Code::Internal, &["mount volume"])?;
    let other = Pod { volume_id: "vol-1".to_owned(), target: bed.path("other") };
    let answer = other.publish_as(csi, &[], ext4()).await;
    expect_status(answer, Code::InvalidArgument, &["csi- and 64 hexadecimal digits"])?;
    let mut secret = pod.request(&[], ext4());
    secret.secrets.insert("passphrase".to_owned(), "marked".to_owned());
    expect_status(csi.node.clone().node_publish_volume(secret).await, Code::InvalidArgument, &["secrets"])?;
    pod.is_gone(&bed.driver)?;
    let left = fs::read_dir(bed.driver.state_dir().join("volumes"))?.count();
    ensure!(left == 0 && !other.target.exists(), "{left} files are left");
    Ok(())
}

/// Has the driver stop at a step of what is asked of it, kills it there, and starts another.
async fn killed(bed: &mut Bed, step: Step, ask: impl AsyncFn(&Csi) -> Result<(), Status>) -> Result<()> {
    bed.driver.kill();
    bed.driver.stop_at(Some(step));
    bed.driver.start_again().await?;
    let csi = bed.driver.csi.clone();
    tokio::select! {
        answer = ask(&csi) => anyhow::bail!("it was answered before it came to {step}: {answer:?}"),
        stopped = bed.driver.stopped() => stopped?,
    }
    bed.driver.kill();
    bed.driver.stop_at(None);
    bed.driver.start_again().await
}

async fn killed_in_publish(mut bed: Bed) -> Result<()> {
    for (number, step) in (1..).zip(PUBLISH) {
        let pod = Pod::new(&bed, number);
        killed(&mut bed, step, async |csi: &Csi| pod.publish(csi).await).await.with_context(|| step.to_string())?;
        let csi = &bed.driver.csi;
        repeated(async || pod.publish(csi).await).await.with_context(|| step.to_string())?;
        ensure!(!pod.file().exists() && mappings().len() == 1 && loops() == 1, "{step}: {:?}", mappings());
        fs::write(pod.file(), MARK)?;
        repeated(async || pod.unpublish(csi).await).await.with_context(|| step.to_string())?;
        pod.is_gone(&bed.driver).with_context(|| step.to_string())?;

        // And a pod that is deleted meanwhile: it is unpublished at once.
        killed(&mut bed, step, async |csi: &Csi| pod.publish(csi).await).await.with_context(|| step.to_string())?;
        let csi = &bed.driver.csi;
        repeated(async || pod.unpublish(csi).await).await.with_context(|| step.to_string())?;
        pod.is_gone(&bed.driver).with_context(|| step.to_string())?;
    }
    Ok(())
}

async fn killed_in_unpublish(mut bed: Bed) -> Result<()> {
    for (number, step) in (1..).zip(UNPUBLISH) {
        let pod = Pod::new(&bed, number);
        pod.publish(&bed.driver.csi).await?;
        killed(&mut bed, step, async |csi: &Csi| pod.unpublish(csi).await).await.with_context(|| step.to_string())?;
        let csi = &bed.driver.csi;
        repeated(async || pod.unpublish(csi).await).await.with_context(|| step.to_string())?;
        pod.is_gone(&bed.driver).with_context(|| step.to_string())?;
    }
    Ok(())
}

/// The kubelet may never ask for the volume again: its pod may be gone, and it never heard of a success.
async fn left_unmounted(mut bed: Bed) -> Result<()> {
    for (number, step) in (1..).zip(PUBLISH.into_iter().filter(|step| *step != Step::Mounted)) {
        let pod = Pod::new(&bed, number);
        killed(&mut bed, step, async |csi: &Csi| pod.publish(csi).await).await.with_context(|| step.to_string())?;
        let image = pod.image(&bed.driver)?;
        ensure!(!image.exists(), "{step}: {} stays\n{}", image.display(), bed.driver.log());
        nothing_is_open().with_context(|| step.to_string())?;
        // Who asks all the same finds nothing in the way.
        repeated(async || pod.unpublish(&bed.driver.csi).await).await.with_context(|| step.to_string())?;
        pod.is_gone(&bed.driver).with_context(|| step.to_string())?;
    }
    Ok(())
}

async fn left_in_use(mut bed: Bed) -> Result<()> {
    // One that is mounted is its pod's, also where the answer to the publish was lost.
    let pod = Pod::new(&bed, 1);
    killed(&mut bed, Step::Mounted, async |csi: &Csi| pod.publish(csi).await).await?;
    fs::write(pod.file(), MARK)?;
    bed.driver.kill();
    bed.driver.start_again().await?;
    ensure!(fs::read(pod.file())? == MARK && pod.image(&bed.driver)?.exists(), "a mounted volume is gone");

    // One that is mounted nowhere and that somebody has open is his until he lets go of it.
    run("umount", &[&pod.target.display().to_string()])?;
    let path = Path::new("/dev/mapper").join(MapperName::of(&pod.own()?).as_str());
    let opened = fs::File::open(&path).with_context(|| path.display().to_string())?;
    bed.driver.kill();
    bed.driver.start_again().await?;
    ensure!(mappings().len() == 1 && loops() == 1 && pod.image(&bed.driver)?.exists(), "an open volume is gone");
    let log = bed.driver.log();
    ensure!(log.contains("something of an ephemeral volume stays"), "that it stays is not told:\n{log}");
    drop(opened);
    bed.driver.kill();
    bed.driver.start_again().await?;
    ensure!(!pod.image(&bed.driver)?.exists(), "a volume that nobody has stays");
    nothing_is_open()?;
    pod.unpublish(&bed.driver.csi).await?;
    pod.is_gone(&bed.driver)
}

async fn taken_over(mut bed: Bed) -> Result<()> {
    let pod = Pod::new(&bed, 1);
    pod.publish(&bed.driver.csi).await?;
    fs::write(pod.file(), MARK)?;
    bed.driver.terminate()?;
    ensure!(bed.driver.ended()? == Some(0), "it ended badly");
    ensure!(fs::read(pod.file())? == MARK, "the mount did not outlast the driver");
    bed.driver.start_again().await?;
    pod.publish(&bed.driver.csi).await?;
    ensure!(fs::read(pod.file())? == MARK, "the next driver made it anew");
    pod.unpublish(&bed.driver.csi).await?;
    pod.is_gone(&bed.driver)
}

async fn power_cut(mut bed: Bed) -> Result<()> {
    let pod = Pod::new(&bed, 1);
    pod.publish(&bed.driver.csi).await?;
    fs::write(pod.file(), MARK)?;
    lose_kernel(&pod, &bed.driver).await?;
    nothing_is_open()?;
    ensure!(pod.image(&bed.driver)?.exists(), "the file is gone already");
    pod.publish(&bed.driver.csi).await?;
    ensure!(!pod.file().exists(), "what nobody has the key of is there again");

    // A driver that starts removes what is left, and nothing that is in use.
    let other = Pod::new(&bed, 2);
    other.publish(&bed.driver.csi).await?;
    fs::write(other.file(), MARK)?;
    lose_kernel(&pod, &bed.driver).await?;
    bed.driver.kill();
    bed.driver.start_again().await?;
    ensure!(!pod.image(&bed.driver)?.exists(), "the file of a volume that is gone stays");
    ensure!(fs::read(other.file())? == MARK, "a volume in use is gone");
    pod.unpublish(&bed.driver.csi).await.context("nothing is there of it")?;
    other.unpublish(&bed.driver.csi).await?;
    other.is_gone(&bed.driver)?;
    pod.is_gone(&bed.driver)
}

/// What is left of a volume when the kernel is another: its file alone.
async fn lose_kernel(pod: &Pod, driver: &Driver) -> Result<()> {
    run("umount", &[&pod.target.display().to_string()])?;
    run("dmsetup", &["remove", MapperName::of(&pod.own()?).as_str()])?;
    let image = pod.image(driver)?.display().to_string();
    for _ in 0..200 {
        if run("losetup", &["--associated", &image])?.is_empty() {
            return Ok(());
        }
        // The loop device goes with its last user, in the kernel's own time.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the loop device of {image} stays")
}

async fn persistent(mut bed: Bed) -> Result<()> {
    let (staged, target) = (bed.path("staged"), bed.path("target"));
    let csi = bed.driver.csi.clone();
    let volume = csi.create_filesystem("persistent", 32 * MIB, "ext4").await?;
    csi.stage_filesystem(&volume, &staged).await?;
    // Kubernetes says of a volume with a record that it is not ephemeral.
    let mut request = testbed::csi::publish(&volume, &staged, &target, filesystem("", Mode::SingleNodeWriter));
    request.volume_context.insert("csi.storage.k8s.io/ephemeral".to_owned(), "false".to_owned());
    csi.node.clone().node_publish_volume(request.clone()).await?;
    fs::write(target.join("file"), MARK)?;
    csi.unpublish(&volume.volume_id, &target).await?;
    csi.unpublish(&volume.volume_id, &target).await.context("unpublish again")?;
    // Whoever says that it is gets nothing of it.
    request.volume_context = HashMap::from([("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())]);
    let answer = csi.node.clone().node_publish_volume(request).await;
    expect_status(answer, Code::InvalidArgument, &["csi- and 64 hexadecimal digits"])?;
    ensure!(fs::read(staged.join("file"))? == MARK);
    csi.unstage(&volume.volume_id, &staged).await?;
    bed.driver.kill();
    bed.driver.start_again().await?;
    ensure!(bed.driver.file(&volume.volume_id).exists(), "the file of a volume with a record is gone");
    csi.stage_filesystem(&volume, &staged).await?;
    ensure!(fs::read(staged.join("file"))? == MARK);
    Ok(csi.unstage(&volume.volume_id, &staged).await?)
}
