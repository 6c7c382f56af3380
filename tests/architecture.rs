//! The fences of the house: which room may use what. Every file's imports, paths and calls are really read, so that a
//! fence that somebody climbs over is a failed test.

use std::{collections::BTreeSet, fs, path::Path};

use syn::{
    Attribute, ExprMethodCall, File, ItemMod, ItemUse, UseTree,
    visit::{self, Visit},
};

/// What a file uses: the first two parts of every path (`tonic::Status`, `crate::node`), and the methods it calls.
#[derive(Default)]
struct Used {
    paths: BTreeSet<String>,
    methods: BTreeSet<String>,
    has_unsafe: bool,
}

impl<'ast> Visit<'ast> for Used {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // Tests may use what the code around them may not.
        if !module.attrs.iter().any(is_cfg_test) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.walk(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.add(&parts);
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        self.methods.insert(call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        self.has_unsafe = true;
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.has_unsafe |= item.unsafety.is_some();
        visit::visit_item_impl(self, item);
    }
}

impl Used {
    fn of(source: &str) -> Self {
        let file: File = syn::parse_file(source).expect("a source file is Rust");
        let mut used = Self::default();
        used.visit_file(&file);
        used
    }

    fn walk(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.walk(&path.tree, &with(path.ident.to_string())),
            UseTree::Name(name) => self.add(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.add(&with(name.ident.to_string())),
            UseTree::Glob(_) => self.add(&with("*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.walk(tree, before)),
        }
    }

    /// Every beginning of a path, so that a fence can name any of them.
    fn add(&mut self, parts: &[String]) {
        for length in 1..=parts.len() {
            self.paths.insert(parts[..length].join("::"));
        }
    }
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|word| word == "test")
}

/// A fence: what only some files may use.
enum Fence {
    /// A path, by its beginning, in the files whose paths begin so.
    Path(&'static str, &'static [&'static str]),
    /// A method, in the files whose paths begin so.
    Method(&'static str, &'static [&'static str]),
    /// Unsafe code.
    Unsafe(&'static [&'static str]),
    /// What a room must not know: files whose paths begin so, and what they must not use.
    Below(&'static str, &'static [&'static str]),
}

const FENCES: &[Fence] = &[
    Fence::Path("tonic", &["csi/", "keyservice/", "server/", "proto.rs", "node/source/upstream", "role/"]),
    Fence::Path("prost", &["proto.rs"]),
    Fence::Path(
        "kube",
        &["kubernetes/", "keyservice/kubernetes/", "key/store/kubernetes", "admin/keys/", "admin/inventory/", "role/"],
    ),
    Fence::Path(
        "k8s_openapi",
        &["kubernetes/", "keyservice/kubernetes/", "key/store/kubernetes", "admin/keys/", "admin/inventory/"],
    ),
    Fence::Path("schemars", &["kubernetes/"]),
    Fence::Path("rcgen", &["admin/keys/"]),
    Fence::Path("aws_config", &["key/access/", "key/kms/", "key/store/"]),
    Fence::Path("aws_sdk_kms", &["key/kms/"]),
    Fence::Path("aws_sdk_s3", &["key/store/"]),
    Fence::Path("aws_sdk_sts", &["key/access/"]),
    Fence::Path("azure_identity", &["key/access/"]),
    Fence::Path("azure_security_keyvault_keys", &["key/kms/"]),
    Fence::Path("azure_storage_blob", &["key/store/"]),
    Fence::Path("google_cloud_kms_v1", &["key/kms/"]),
    Fence::Path("google_cloud_storage", &["key/store/"]),
    Fence::Path("reqwest", &["key/access/", "key/kms/"]),
    Fence::Path("moka", &["key/kms/guarded.rs", "keyservice/kubernetes/"]),
    Fence::Path("backon", &["key/calls.rs", "keyservice/client.rs"]),
    Fence::Path("governor", &["keyservice/limit.rs"]),
    Fence::Path("axum", &["server/http.rs"]),
    Fence::Path("metrics_exporter_prometheus", &["telemetry"]),
    Fence::Path("indicatif", &["admin/"]),
    Fence::Path("tokio::process", &["exec.rs"]),
    Fence::Path("std::process::Command", &["exec.rs"]),
    // What a build for tests stops at is no configuration.
    Fence::Path("std::env", &["main.rs", "step.rs"]),
    Fence::Path("anyhow", &["main.rs", "operator.rs", "role/"]),
    Fence::Path("linux_raw_sys", &["node/loopdev.rs"]),
    Fence::Path("rustix::mount", &["node/mount.rs"]),
    Fence::Path("getrandom", &["secret.rs", "key/"]),
    Fence::Method(
        "expose_secret",
        &[
            "secret.rs",
            "key/derive.rs",
            "key/envelope.rs",
            "key/cluster.rs",
            "key/providers.rs",
            "key/kms/",
            "keyservice/hpke.rs",
            "node/luks.rs",
        ],
    ),
    Fence::Unsafe(&["node/loopdev.rs"]),
    Fence::Below("secret.rs", &["crate::key", "crate::node", "crate::csi", "crate::exec", "crate::volume"]),
    Fence::Below("volume/", &["crate::key", "crate::node", "crate::csi", "crate::exec"]),
    Fence::Below("exec.rs", &["crate::key", "crate::node", "crate::csi"]),
    Fence::Below(
        "key/",
        &[
            "crate::node",
            "crate::csi",
            "crate::keyservice",
            "crate::server",
            "crate::proto",
            "crate::config",
            "crate::admin",
        ],
    ),
    Fence::Below(
        "node/",
        &["crate::csi", "crate::keyservice", "crate::server", "crate::proto", "crate::config", "crate::admin"],
    ),
    Fence::Below("csi/", &["crate::keyservice", "crate::config", "crate::admin"]),
    Fence::Below("keyservice/", &["crate::csi", "crate::node", "crate::config", "crate::admin"]),
    Fence::Below("server/", &["crate::csi", "crate::keyservice", "crate::node", "crate::config", "crate::admin"]),
    Fence::Below("admin/", &["crate::csi", "crate::keyservice"]),
];

/// What is wrong with a file.
fn broken(file: &str, source: &str) -> Vec<String> {
    let used = Used::of(source);
    let inside = |places: &[&str]| places.iter().any(|place| file.starts_with(place));
    let mut broken = Vec::new();
    for fence in FENCES {
        match fence {
            Fence::Path(path, places) if used.paths.contains(*path) && !inside(places) => {
                broken.push(format!("{file} uses {path}, which is for {places:?}"));
            }
            Fence::Method(method, places) if used.methods.contains(*method) && !inside(places) => {
                broken.push(format!("{file} calls {method}, which is for {places:?}"));
            }
            Fence::Unsafe(places) if used.has_unsafe && !inside(places) => {
                broken.push(format!("{file} has unsafe code, which is for {places:?}"));
            }
            Fence::Below(room, above) if file.starts_with(room) => {
                broken.extend(
                    above
                        .iter()
                        .filter(|path| used.paths.contains(**path))
                        .map(|path| format!("{file} uses {path}, and imports run down only")),
                );
            }
            _ => {}
        }
    }
    broken
}

fn sources(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let name = |path: &Path| path.strip_prefix(&root).expect("below the root").display().to_string();
    files.iter().map(|path| (name(path), fs::read_to_string(path).expect("a source file"))).collect()
}

#[test]
fn no_fence_is_broken() {
    let all = all();
    assert!(all.len() > 40, "only {} files were read", all.len());
    let broken: Vec<_> = all.iter().flat_map(|(file, source)| broken(file, source)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_begins_by_saying_what_it_is_for() {
    for (file, source) in all() {
        assert!(source.starts_with("//! "), "{file} does not");
    }
}

#[test]
fn every_file_is_one_noun() {
    for (file, source) in all() {
        let lines = source.lines().count();
        assert!(lines <= 410, "{file} has {lines} lines: split it");
        let name = Path::new(&file).file_stem().expect("a name").to_string_lossy().into_owned();
        let drawers = ["utils", "util", "common", "helpers", "types", "manager", "misc"];
        assert!(!drawers.contains(&name.as_str()), "{file} is a drawer");
    }
}

#[test]
fn every_relaxed_lint_has_its_reason() {
    for (file, source) in all() {
        for (number, line) in source.lines().enumerate() {
            let relaxed = line.trim_start();
            if relaxed.starts_with("#[allow(") || relaxed.starts_with("#[expect(") || relaxed.starts_with("#![allow(") {
                let rest: String = source.lines().skip(number).take(12).collect();
                let attribute = rest.split(']').next().unwrap_or_default();
                assert!(attribute.contains("reason ="), "{file}:{} has none", number + 1);
            }
        }
    }
}

/// The crates that a build with these features is made of.
fn crates(features: &[&str]) -> BTreeSet<String> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names of crates are text");
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn a_node_has_no_cloud_sdk_and_nobody_has_a_second_cryptography() {
    let is_cloud = |name: &&String| {
        ["aws-config", "aws-sdk", "aws-smithy", "azure_", "google-cloud", "reqwest", "moka"]
            .iter()
            .any(|cloud| name.starts_with(cloud))
    };
    let node = crates(&["--no-default-features", "--features", "node"]);
    assert!(node.contains("tonic"), "{node:?}");
    assert_eq!(node.iter().find(is_cloud), None);
    let keyservice = crates(&["--no-default-features", "--features", "keyservice"]);
    let sdks = ["aws-config", "azure_core", "google-cloud-gax", "reqwest"];
    assert!(sdks.iter().all(|sdk| !keyservice.contains(*sdk)), "each provider brings its own SDK");
    let all = crates(&[]);
    assert!(sdks.iter().all(|sdk| all.contains(*sdk)), "a default build has them all");
    for other in ["openssl", "openssl-sys", "native-tls", "ring"] {
        assert!(!all.contains(other), "{other} came in");
    }
}

#[test]
fn the_fences_see_what_they_are_for() {
    let sees = |file: &str, source: &str| !broken(file, source).is_empty();
    assert!(sees("key/derive.rs", "use tonic::Status;"));
    assert!(sees("key/derive.rs", "use {std::fmt, tonic::{Code, Status as S}};"));
    assert!(sees("key/derive.rs", "fn f() -> tonic::Status { todo!() }"));
    assert!(sees("key/derive.rs", "mod inner { use tonic as t; }"));
    assert!(sees("node/luks.rs", "fn f() { std::process::Command::new(\"sh\"); }"));
    assert!(sees("node/luks.rs", "use crate::csi::Gate;"));
    assert!(sees("csi/node.rs", "fn f(k: K) { k.expose_secret(); }"));
    assert!(sees("csi/node.rs", "fn f() { unsafe { g() } }"));
    assert!(!sees("csi/node.rs", "use tonic::Status;"));
    assert!(!sees("key/derive.rs", "#[cfg(test)] mod tests { use tonic::Status; }"));
}
