//! The same through the program: words, exit status, files, standard input and output.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use coffer::{
    admin::{Place, StateDir},
    key::{embedded::Embedded, service::KeyService},
    keyservice::audit::verify,
};
use serde_json::Value;

use crate::{new, soon};

fn program(words: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_coffer"));
    program.args(words).args(["--log-level", "error"]).stdin(Stdio::null());
    program
}

fn coffer(words: &[&str]) -> Output {
    program(words).output().expect("coffer runs")
}

fn told(output: &Output) -> String {
    [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat()
}

/// It ended so, and said all of these.
fn ends(output: &Output, status: i32, texts: &[&str]) {
    let told = told(output);
    assert_eq!(output.status.code(), Some(status), "{told}");
    for text in texts {
        assert!(told.contains(text), "{text:?} is not in:\n{told}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn private(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// A state folder with a cluster key and two volumes.
async fn state(folder: &Path) -> StateDir {
    let state = StateDir::at(folder);
    ends(&coffer(&["keys", "init", "--state-dir", text(folder)]), 0, &["cluster key made"]);
    let Place { cluster_id, providers, store, .. } = Place::of_state_dir(&state).expect("a place");
    let service = Embedded::new(cluster_id, providers, store);
    for volume in ["vol-1", "vol-2"] {
        service.create(new(volume, "cluster"), soon()).await.expect("a new key");
    }
    state
}

#[tokio::test]
async fn records_are_listed_carried_to_another_folder_and_verified() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let state = state(&one).await;
    let listed = coffer(&["records", "list", "--state-dir", text(&one), "--json"]);
    ends(&listed, 0, &[]);
    let rows: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(rows.as_array().expect("rows").len(), 2);
    ends(&coffer(&["records", "list", "--state-dir", text(&one)]), 0, &["VOLUME", "vol-2", "cluster-key:v1"]);
    ends(&coffer(&["records", "show", "vol-1", "--state-dir", text(&one)]), 0, &["\"volumeId\": \"vol-1\""]);
    ends(&coffer(&["records", "show", "vol-9", "--state-dir", text(&one)]), 1, &["no volume has the id", "vol-9"]);

    let file = folder.path().join("records.jsonl");
    let export = ["records", "export", text(&file), "--state-dir", text(&one)];
    ends(&coffer(&export), 0, &["2 records", "still wrapped"]);
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    ends(&coffer(&export), 1, &["never overwritten"]);
    let piped = coffer(&["records", "export", "-", "--state-dir", text(&one)]);
    assert_eq!(piped.stdout, fs::read(&file).expect("a file"), "{}", told(&piped));

    fs::create_dir(&two).expect("a folder");
    private(&two.join("cluster-key.json"), &fs::read(state.cluster_key()).expect("a key"));
    let import = ["records", "import", text(&file), "--state-dir", text(&two)];
    ends(&coffer(&[&import[..], &["--dry-run"]].concat()), 0, &["2 of 2 would be imported"]);
    let stdin = Stdio::from(File::open(&file).expect("a file"));
    let from_stdin = program(&["records", "import", "-", "--state-dir", text(&two)]).stdin(stdin).output();
    ends(&from_stdin.expect("coffer runs"), 0, &["2 of 2 imported, 0 there already"]);
    ends(&coffer(&import), 0, &["0 of 2 imported, 2 there already"]);
    ends(&coffer(&["records", "verify", "--state-dir", text(&two)]), 0, &["2 of 2 records open"]);
    ends(&coffer(&["keys", "status", "--state-dir", text(&two)]), 0, &["cluster (default)", "2 prepared"]);

    let whole = fs::read(&file).expect("a file");
    fs::write(&file, &whole[..whole.len() / 2]).expect("torn");
    ends(&coffer(&import), 1, &["is refused, and nothing was imported", "breaks off"]);
    let unverified = coffer(&[&import[..], &["--no-verify"]].concat());
    ends(&unverified, 1, &["is refused, and nothing was imported"]);
}

#[tokio::test]
async fn what_is_no_record_fails_the_verb_and_hides_no_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state_dir = folder.path().join("state");
    let state = state(&state_dir).await;
    fs::write(state.records().join("vol-3.json"), "{\"formatVersion\":").expect("torn");
    let at = ["--state-dir", text(&state_dir)];
    let verified = coffer(&[&["records", "verify"][..], &at].concat());
    ends(&verified, 1, &["2 of 2 records open", "vol-3.json", "no record", "1 objects among them are no records"]);
    let file = folder.path().join("records.jsonl");
    let exported = coffer(&[&["records", "export", text(&file)][..], &at].concat());
    ends(&exported, 1, &["2 records of cluster", "vol-3.json is refused", "1 objects that lie where records should"]);
    assert_eq!(fs::read_to_string(&file).expect("a file").lines().count(), 4, "a header, two records, a checksum");
    // Those who only look are not stopped by it.
    ends(&coffer(&[&["records", "list"][..], &at].concat()), 0, &["vol-1", "vol-2", "vol-3.json is refused"]);
}

#[tokio::test]
async fn what_verbs_do_to_keys_is_in_the_audit_log() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state_dir = folder.path().join("state");
    state(&state_dir).await;
    private(&folder.path().join("a.key"), b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n");
    let (config, log) = (folder.path().join("coffer.yaml"), folder.path().join("audit.log"));
    let configuration = "
providers:
  cluster: {type: cluster-key, file: state/cluster-key.json}
  a: {type: local, keyFile: a.key, insecureLocalKey: true}
defaultProvider: a
store: {type: filesystem, path: RECORDS}
auditLog: audit.log
";
    let store = |records: &str| fs::write(&config, configuration.replace("RECORDS", records)).expect("written");
    let at = ["--config", text(&config)];
    let verb = |words: &[&str]| coffer(&[words, &at].concat());
    let audited = || {
        let lines = fs::read_to_string(&log).expect("a log");
        // Each verb has begun a chain of its own.
        assert_eq!(verify(lines.as_bytes()).expect("whole"), lines.lines().count() as u64);
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    store("state/records");
    ends(&verb(&["rewrap", "--to", "a", "--dry-run"]), 0, &["2 of 2 would be"]);
    assert!(!log.exists(), "a dry run was written down");
    ends(&verb(&["rewrap", "--to", "a"]), 0, &["2 of 2 rewrapped"]);
    let lines = audited();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert_eq!(
            (&line["operation"], &line["result"], &line["provider"]),
            (&"rewrap".into(), &"ok".into(), &"a".into())
        );
        assert!(line["who"].as_str().is_some_and(|who| who.starts_with("uid:")), "{line}");
    }

    let file = folder.path().join("records.jsonl");
    ends(&verb(&["records", "export", text(&file)]), 0, &["2 records"]);
    fs::create_dir(folder.path().join("other")).expect("a folder");
    store("other");
    let imported = verb(&["records", "import", text(&file)]);
    ends(&imported, 0, &["2 of 2 imported"]);
    assert!(!told(&imported).contains("chain"), "the log is among the answer: {}", told(&imported));
    let lines = audited();
    assert_eq!(lines.iter().filter(|line| line["operation"] == "import" && line["result"] == "ok").count(), 2);
    ends(&verb(&["records", "import", text(&file)]), 0, &["2 there already"]);
    assert_eq!(audited().len(), 4, "what was there already was written down");
    // A log that cannot be written keeps a verb from doing anything.
    fs::remove_file(&log).expect("removed");
    fs::create_dir(&log).expect("a folder in its place");
    ends(&verb(&["rewrap", "--from", "a", "--to", "a"]), 1, &["open audit log", "audit.log"]);
}

#[tokio::test]
async fn records_are_rewrapped_by_a_configuration() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state_dir = folder.path().join("state");
    state(&state_dir).await;
    private(&folder.path().join("a.key"), b"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n");
    let config = folder.path().join("coffer.yaml");
    let configuration = "
providers:
  cluster: {type: cluster-key, file: state/cluster-key.json}
  a: {type: local, keyFile: a.key, insecureLocalKey: true}
defaultProvider: a
store: {type: filesystem, path: state/records}
";
    fs::write(&config, configuration).expect("written");
    let at = ["--config", text(&config)];
    let rewrap = |more: &[&str]| coffer(&[&["rewrap"][..], &at, more].concat());
    ends(&rewrap(&["--to", "cluster"]), 64, &["--to cluster", "cannot take over"]);
    ends(&rewrap(&["--from", "x", "--to", "a"]), 64, &["--from x: no provider"]);
    ends(&rewrap(&["--to", "a", "--dry-run"]), 0, &["2 of 2 would be rewrapped", "cluster-key:v1 of cluster"]);
    ends(&rewrap(&["--to", "a", "--volume", "vol-1"]), 0, &["1 of 1 rewrapped"]);
    ends(&rewrap(&["--from", "cluster", "--to", "a"]), 0, &["1 of 1 rewrapped"]);
    ends(&rewrap(&["--to", "a"]), 0, &["0 of 2 rewrapped, 2 skipped"]);
    ends(&coffer(&[&["records", "verify"][..], &at].concat()), 0, &["2 of 2 records open"]);
    let orphans = coffer(&[&["keys", "list", "--orphans"][..], &at].concat());
    ends(&orphans, 0, &["provider cluster: no record needs it"]);
    let status = coffer(&[&["keys", "status", "--json"][..], &at].concat());
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["providers"][0]["type"], "local");
    assert_eq!(status["providers"][0]["records"]["prepared"], 2);

    // The state folder alone knows only its cluster key, and says so instead of passing over it.
    let bare = ["--state-dir", text(&state_dir)];
    let verify = coffer(&[&["records", "verify"][..], &bare].concat());
    ends(&verify, 1, &["provider missing", "provider a is not configured"]);
    let orphans = coffer(&[&["keys", "list", "--orphans"][..], &bare].concat());
    ends(&orphans, 0, &["provider a is not configured", "provider cluster: no record needs it"]);
}
