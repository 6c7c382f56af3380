//! The program from outside: what it prints, what it refuses, and its exit status.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn coffer(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_coffer")).args(words).output().expect("coffer runs")
}

/// The program failed because of its configuration, and said all of these.
fn faults(output: &Output, texts: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    for text in texts {
        assert!(told.contains(text), "{text:?} is not in:\n{told}");
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Keys are read only where nobody else can read them.
fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_cluster_key_is_made_once_and_never_overwritten() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = folder.path().join("new/state");
    let told = succeeded(&coffer(&["keys", "init", "--state-dir", text(&state)]));
    assert!(told.contains("cluster key made") && told.contains("Back this file up"), "{told}");
    let key = fs::read(state.join("cluster-key.json")).expect("a key");
    faults(&coffer(&["keys", "init", "--state-dir", text(&state)]), &["never overwritten"]);
    assert_eq!(fs::read(state.join("cluster-key.json")).expect("a key"), key);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&state.join("cluster-key.json"))), (0o700, 0o600));
}

#[test]
fn a_lost_cluster_key_is_told_and_never_made_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = text(folder.path());
    faults(&coffer(&["dev", "--state-dir", state]), &["there is no cluster key", "coffer keys init --state-dir"]);
    fs::create_dir(folder.path().join("records")).expect("a folder");
    fs::write(folder.path().join("records/vol-1.json"), "{}").expect("a record");
    for words in [["dev", "--state-dir", state].as_slice(), &["keys", "init", "--state-dir", state]] {
        faults(&coffer(words), &["cluster key is gone", "Restore the file from its backup"]);
    }
    assert!(!folder.path().join("cluster-key.json").exists());
}

#[test]
fn a_key_file_that_is_broken_or_open_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (state, key) = (text(folder.path()), folder.path().join("cluster-key.json"));
    fs::write(&key, "{}").expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    faults(&coffer(&["dev", "--state-dir", state]), &["no cluster key file"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
    faults(&coffer(&["dev", "--state-dir", state]), &["chmod 600"]);
}

#[test]
fn wrong_words_end_with_64_and_help_does_not() {
    faults(&coffer(&["dev"]), &["--state-dir"]);
    faults(&coffer(&["dev", "--state-dir", "/x", "--listen", "/y"]), &["unix:// and an absolute path"]);
    faults(&coffer(&["no-such-verb"]), &["no-such-verb"]);
    faults(&coffer(&[]), &["Usage"]);
    let node = |more: &[&str]| coffer(&[&["node", "--listen", "unix:///x/csi.sock", "--node-id", "n1"], more].concat());
    faults(&node(&["--key-service", "tcp://x"]), &["unix://PATH or https://HOST:PORT"]);
    faults(&node(&["--key-service", "https://x:1"]), &["--tls-certificate"]);
    faults(&node(&["--key-service", "https://x"]), &["HOST:PORT"]);
    faults(&node(&["--key-service", "unix:///k", "--tls-authority", "/ca"]), &["no TLS"]);
    faults(&node(&["--key-service", "unix:///k", "--token-file", "/t"]), &["--token-file"]);
    let tls = |more: &[&str]| node(&[&["--key-service", "https://x:1", "--tls-authority", "/no/ca"], more].concat());
    faults(&tls(&[]), &["--token-file or both"]);
    faults(&tls(&["--token-file", "/t", "--tls-certificate", "/c"]), &["both of --tls-certificate"]);
    faults(&tls(&["--token-file", "/t"]), &["/no/ca"]);
    let unregistered = node(&["--key-service", "unix:///k", "--registration-socket", "/x"]);
    faults(&unregistered, &["--registration-dir"]);
    let bad = coffer(&["node", "--listen", "unix:///x", "--key-service", "unix:///k", "--node-id", "a b"]);
    faults(&bad, &["--node-id"]);
    for words in [["--help"].as_slice(), &["--version"], &["dev", "--help"]] {
        assert!(succeeded(&coffer(words)).contains("coffer"));
    }
}

#[test]
fn an_environment_variable_that_no_flag_has_is_a_fault() {
    let output = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["volumes", "list"])
        .env("COFFER_STATEDIR", "/x")
        .output()
        .expect("coffer runs");
    faults(&output, &["COFFER_STATEDIR is not known; did you mean COFFER_STATE_DIR?", "--state-dir"]);
}

#[test]
fn all_faults_of_a_key_service_are_told_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("coffer.yaml");
    fs::write(folder.path().join("short.key"), "c2hvcnQ=").expect("written");
    private(&folder.path().join("short.key"));
    fs::write(
        &config,
        "clusterId: 00000000-0000-0000-0000-000000000001
listen:
  tls: {address: '127.0.0.1:0', certificate: no.crt, privateKey: no.key, clientAuthority: no.ca}
providers:
  lab: {type: local, keyFile: short.key, insecureLocalKey: true}
  main: {type: cluster-key, file: missing.json}
defaultProvider: main
",
    )
    .expect("written");
    let output = coffer(&["keyservice", "--config", text(&config)]);
    faults(&output, &["provider lab", "5 bytes", "provider main", "missing.json", "store: is missing", "no.ca"]);
    fs::write(&config, "providers: {}\nnonsense: 1\n").expect("written");
    faults(&coffer(&["keyservice", "--config", text(&config)]), &["holds no provider", "nonsense: is not known"]);
    faults(&coffer(&["keyservice", "--config", "/no/such/file"]), &["/no/such/file"]);
}

#[test]
fn an_empty_state_folder_lists_nothing_and_shows_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = text(folder.path());
    assert_eq!(succeeded(&coffer(&["volumes", "list", "--state-dir", state, "--json"])).trim(), "[]");
    assert!(succeeded(&coffer(&["volumes", "list", "--state-dir", state])).starts_with("VOLUME"));
    let missing = coffer(&["records", "show", "pvc-1", "--state-dir", state]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("pvc-1"));
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0, "looking has left something behind");
}
