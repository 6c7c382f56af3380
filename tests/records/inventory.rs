//! `coffer inventory` through the program, on a store of files and a pool: what does not fit is told with what to do,
//! what fits is counted, and what cannot be looked at is never passed over in silence.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use coffer::{
    admin::{Place, StateDir},
    config::file::{Environment, FileConfig},
    key::{
        derive,
        embedded::Embedded,
        service::{Attempt, KeyService},
        store::DekStore,
    },
    node::header::{Layout, used_bytes},
    volume::{Content, FsType, Parameters},
};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{id, new, soon, tamper};

/// Metadata as cryptsetup writes it, which is JSON in a copy of 16 KiB behind 4 KiB of binary fields (LUKS2 On-Disk Format
/// Specification 1.1.3, chapter 2).
const METADATA: &[u8] = include_bytes!("../fuzz/corpus/header/good-json");
const BINARY_BYTES: usize = 4096;

/// A configuration, its records, and a pool.
struct House {
    folder: tempfile::TempDir,
    keys: Embedded,
    store: Arc<dyn DekStore>,
}

impl House {
    /// With providers a, b and c, of which a is the default.
    async fn build() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, kek) in [("a", "BwcH"), ("b", "CAgI"), ("c", "CQkJ")] {
            write_key(folder.path(), name, kek);
        }
        fs::create_dir(folder.path().join("records")).expect("a folder");
        fs::create_dir(folder.path().join("pool")).expect("a folder");
        let file = configure(folder.path(), &["a", "b", "c"]);
        let config = FileConfig::load(&file, &Environment::default()).expect("a configuration");
        let Place { cluster_id, providers, store, .. } = Place::of_config(&config, None).await.expect("a place");
        Self { folder, keys: Embedded::new(cluster_id, providers, store.clone()), store }
    }

    fn pool(&self) -> PathBuf {
        self.folder.path().join("pool")
    }

    async fn prepare(&self, volume: &str, provider: &str) {
        self.keys.create(new(volume, provider), soon()).await.expect("a new key");
    }

    fn write(&self, volume: &str, bytes: &[u8]) {
        fs::write(self.pool().join(volume), bytes).expect("a file");
    }

    /// A volume of provider a whose header is the one that its record knows; returns the file's bytes.
    async fn finish(&self, volume: &str) -> Vec<u8> {
        self.prepare(volume, "a").await;
        self.keys.begin_format(&id(volume), 1, soon()).await.expect("begun");
        let key = self.keys.get(&id(volume), soon()).await.expect("a key");
        let area = header(key.info.luks_uuid);
        let used = &area[..used_bytes(&area, &key.info.parameters)];
        let tag = derive::mac(&derive::header_mac_key(&key.dek), used);
        let attempt = Attempt { generation: 1, number: 1 };
        self.keys.mark_ready(&id(volume), attempt, tag, soon()).await.expect("ready");
        self.write(volume, &area);
        area
    }

    fn inventory(&self, more: &[&str]) -> Output {
        let (config, pool) = (self.folder.path().join("coffer.yaml"), self.pool());
        let at = ["inventory", "--config", text(&config), "--pool-dir", text(&pool)];
        coffer(&[&at[..], more].concat())
    }
}

fn write_key(folder: &Path, name: &str, kek: &str) {
    let file = folder.join(format!("{name}.key"));
    // 32 bytes in base64: ten times three, and two.
    fs::write(&file, format!("{}{}=\n", kek.repeat(10), &kek[..3])).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn configure(folder: &Path, providers: &[&str]) -> PathBuf {
    let provider = |name: &&str| format!("  {name}: {{type: local, keyFile: {name}.key, insecureLocalKey: true}}\n");
    let providers: String = providers.iter().map(provider).collect();
    let file = folder.join("coffer.yaml");
    let text = format!(
        "providers:\n{providers}defaultProvider: a\nclusterId: {}\nstore: {{type: filesystem, path: records}}\n",
        Uuid::from_u128(1)
    );
    fs::write(&file, text).expect("written");
    file
}

/// The start of a device with a whole header of this UUID.
fn header(luks_uuid: Uuid) -> Vec<u8> {
    let layout = Layout::of(&Parameters::of(Content::Filesystem(FsType::Ext4)));
    let mut area = vec![0; layout.data_offset];
    for (magic, offset) in [(b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", layout.metadata_bytes)] {
        let copy = &mut area[offset..offset + layout.metadata_bytes];
        copy[..6].copy_from_slice(magic);
        copy[6..8].copy_from_slice(&[0, 2]);
        copy[8..16].copy_from_slice(&(layout.metadata_bytes as u64).to_be_bytes());
        copy[72..78].copy_from_slice(b"sha256");
        copy[168..204].copy_from_slice(luks_uuid.to_string().as_bytes());
        copy[256..264].copy_from_slice(&(offset as u64).to_be_bytes());
        copy[BINARY_BYTES..BINARY_BYTES + METADATA.len()].copy_from_slice(METADATA);
    }
    area
}

fn coffer(words: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_coffer"));
    // There is no cluster here, whoever runs the test.
    program.args(words).args(["--log-level", "error"]).env("KUBECONFIG", "/nonexistent").stdin(Stdio::null());
    program.output().expect("coffer runs")
}

/// It ended so, and said all of these.
fn ends(output: &Output, status: i32, texts: &[&str]) {
    let told = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert_eq!(output.status.code(), Some(status), "{told}");
    for text in texts {
        assert!(told.contains(text), "{text:?} is not in:\n{told}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test]
async fn what_fits_is_counted_and_ends_well() {
    let house = House::build().await;
    house.finish("vol-own").await;
    // One that is being made has no file yet, and one that is being formatted has no header.
    house.prepare("vol-new", "a").await;
    house.prepare("vol-empty", "a").await;
    house.write("vol-empty", &[0; 8192]);
    let told = house.inventory(&["--json"]);
    ends(&told, 0, &[]);
    let told = parsed(&told);
    assert_eq!(told["findings"], json!([]), "{told}");
    let counts = json!({
        "records": 3, "tombstones": 0, "persistentVolumes": null, "localVolumes": null, "files": 2,
        "authenticatedHeaders": 1,
    });
    assert_eq!(told["counts"], counts);
    let not_looked_at = told["notLookedAt"].as_array().expect("a list");
    assert!(not_looked_at.iter().all(|unseen| unseen["isFailure"] == false), "{told}");
    let remark = told["remarks"][0].as_str().expect("a remark");
    assert!(remark.contains("1 records are younger than 10 minutes") && remark.contains("vol-new"), "{remark}");
    ends(
        &house.inventory(&[]),
        0,
        &["authenticated headers", "not looked at: PersistentVolumes: ", "--kubernetes asks"],
    );
}

#[tokio::test]
async fn each_finding_is_told_with_what_to_do() {
    let house = House::build().await;
    for volume in ["vol-own", "vol-foreign", "vol-blank"] {
        house.finish(volume).await;
    }
    house.write("vol-foreign", &header(Uuid::from_u128(5)));
    house.write("vol-blank", &[0; 8192]);
    let mut changed = house.finish("vol-changed").await;
    // A bit of a keyslot.
    changed[40_000] ^= 1;
    house.write("vol-changed", &changed);
    for (volume, provider) in [("vol-b", "b"), ("vol-c", "c"), ("vol-orphan", "a")] {
        house.prepare(volume, provider).await;
    }
    for volume in ["vol-b", "vol-c", "vol-stray", "eph-0123456789abcdef"] {
        house.write(volume, &[0; 8192]);
    }
    fs::create_dir(house.pool().join("folder")).expect("a folder");
    tamper(house.store.as_ref(), "vol-orphan", |record| record.created_at = Timestamp::now() - 1.hour()).await;
    fs::write(house.folder.path().join("records/vol-torn.json"), "{\"formatVersion\":").expect("torn");
    configure(house.folder.path(), &["a", "c"]);

    let told = house.inventory(&["--json"]);
    ends(&told, 1, &["7 findings, and 0 things that could not be looked at"]);
    let told = parsed(&told);
    let findings = told["findings"].as_array().expect("a list");
    let found: Vec<_> = findings.iter().map(|one| (one["kind"].as_str(), one["volumeId"].as_str())).collect();
    let wanted = [
        (Some("record-without-volume"), Some("vol-orphan")),
        (Some("record-unreadable"), None),
        (Some("file-without-record"), Some("vol-stray")),
        (Some("other-header"), Some("vol-blank")),
        (Some("other-header"), Some("vol-changed")),
        (Some("other-header"), Some("vol-foreign")),
        (Some("provider-missing"), Some("vol-b")),
        (Some("provider-not-default"), Some("vol-c")),
    ];
    assert_eq!(found, wanted, "{told}");
    assert_eq!((&told["counts"]["files"], &told["counts"]["authenticatedHeaders"]), (&json!(8), &json!(1)), "{told}");
    for finding in findings {
        assert!(finding["what"].as_str().is_some_and(|what| !what.is_empty()), "{finding}");
        assert!(finding["next"].as_str().is_some_and(|next| !next.is_empty()), "{finding}");
    }
    let table = [
        "no file in the pool",
        "vol-torn.json is refused",
        "the header was changed since Coffer wrote it",
        "it holds a LUKS2 header with UUID 00000000-0000-0000-0000-000000000005",
        "it holds nothing but zeros",
        "coffer rewrap --from b --to a",
        "coffer rewrap --volume vol-c --to a",
        "1 files are those of ephemeral volumes",
    ];
    ends(&house.inventory(&[]), 1, &table);
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_told_and_does_not_end_well() {
    let house = House::build().await;
    house.finish("vol-own").await;
    let config = house.folder.path().join("coffer.yaml");
    let no_pool = coffer(&["inventory", "--config", text(&config), "--pool-dir", "/nonexistent/pool"]);
    ends(&no_pool, 1, &["not looked at: headers of files: list /nonexistent/pool", "0 findings, and 1 things"]);
    let no_cluster = house.inventory(&["--kubernetes"]);
    let away = "not looked at: LocalVolumes: find the Kubernetes API server by KUBECONFIG";
    ends(&no_cluster, 1, &[away, "whether each record has its volume was not looked at", "0 findings, and 2 things"]);

    // A KEK that opens nothing leaves the UUID, and says so.
    write_key(house.folder.path(), "a", "CQkJ");
    let alone = "not looked at: the MAC of the header, whose UUID is the record's, of vol-own: ";
    ends(&house.inventory(&[]), 1, &[alone, "old key", "coffer rewrap --from a", "1 findings, and 1 things"]);
}

#[tokio::test]
async fn a_state_folder_has_its_pool_in_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = ["--state-dir", text(folder.path())];
    ends(&coffer(&[&["keys", "init"][..], &at].concat()), 0, &[]);
    let state = StateDir::at(folder.path());
    let Place { cluster_id, providers, store, .. } = Place::of_state_dir(&state).expect("a place");
    Embedded::new(cluster_id, providers, store).create(new("vol-1", "cluster"), soon()).await.expect("a new key");
    fs::create_dir(state.volumes()).expect("a folder");
    fs::write(state.volumes().join("vol-1"), [0; 8192]).expect("a file");
    let told = coffer(&[&["inventory", "--json"][..], &at].concat());
    ends(&told, 0, &[]);
    assert_eq!(parsed(&told)["counts"]["files"], 1);
    fs::write(state.volumes().join("vol-2"), [0; 8192]).expect("a file");
    let stray = coffer(&[&["inventory"][..], &at].concat());
    ends(&stray, 1, &["file without record", "vol-2", "if nobody needs it, delete the volume, or remove the file"]);
}
