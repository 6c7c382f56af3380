//! Deliberately broken variants of the flows. Each must be caught, which proves that the invariants are looked at.
//!
//! The sources are copied, every variant is patched into the copy behind a switch, and the simulation is compiled there
//! once. The program itself knows nothing of this.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::invariant;

/// A broken variant: what it does, and the change of one file, in which `mutant("NAME")` is its switch.
struct Mutant {
    name: &'static str,
    file: &'static str,
    sound: &'static str,
    broken: &'static str,
}

const MUTANTS: &[Mutant] = &[
    // The bug that destroyed volumes elsewhere: a finished volume whose disk reads zeros is formatted.
    Mutant {
        name: "blank-means-new",
        file: "src/node/stage.rs",
        sound: "            (State::Ready, None) => self.unlock(&key, &attached.path, access, deadline).await?,\n",
        broken: "            (State::Ready, None) => match self.unlock(&key, &attached.path, access, deadline).await {
                Err(NodeFailure::Header { .. }) if crate::mutant(\"blank-means-new\") => {
                    let header = self.write_header(&key, &attached.path, deadline).await?;
                    self.open(&key, &attached.path, &header, access, deadline).await?
                }
                opened => opened?,
            },\n",
    },
    Mutant {
        name: "a-finished-volume-is-formatted",
        file: "src/node/stage.rs",
        sound: "        let device = match (key.info.state, mapping) {\n",
        broken: "        let state = if crate::mutant(\"a-finished-volume-is-formatted\") && key.info.state == State::Ready {
            State::Formatting
        } else {
            key.info.state
        };
        let device = match (state, mapping) {\n",
    },
    Mutant {
        name: "the-mark-overtakes-the-file-system",
        file: "src/node/format.rs",
        sound: "            self.blocks.flush(&mapping).await.map_err(NodeFailure::io(\"flush\", &mapping))?;\n",
        broken: "            if !crate::mutant(\"the-mark-overtakes-the-file-system\") {
                self.blocks.flush(&mapping).await.map_err(NodeFailure::io(\"flush\", &mapping))?;
            }\n",
    },
    Mutant {
        name: "any-header-is-a-finished-volume",
        file: "src/node/format.rs",
        sound: "header.is_finished(&mark, dek));\n",
        broken: "header.is_finished(&mark, dek))
            || (written.is_some() && crate::mutant(\"any-header-is-a-finished-volume\"));\n",
    },
    Mutant {
        name: "the-mark-is-not-looked-at",
        file: "src/node/format.rs",
        sound: "        if finished {\n            tracing::warn!",
        broken: "        let finished = finished && !crate::mutant(\"the-mark-is-not-looked-at\");
        let mark = if crate::mutant(\"the-mark-is-not-looked-at\") { Mark::Absent } else { mark };
        if finished {\n            tracing::warn!",
    },
    Mutant {
        name: "ready-before-the-file-system",
        file: "src/node/format.rs",
        sound: "        if !finished {\n            if let Content",
        broken: "        if crate::mutant(\"ready-before-the-file-system\") {
            let early = self.keys.mark_ready(volume_id, attempt, header.tag(), deadline).await;
            early.map_err(NodeFailure::key(volume_id))?;
        }
        if !finished {\n            if let Content",
    },
    Mutant {
        name: "the-mapping-stays-open",
        file: "src/node/unstage.rs",
        sound: "            self.close(volume_id, deadline).await?;\n",
        broken: "            if !crate::mutant(\"the-mapping-stays-open\") {
                self.close(volume_id, deadline).await?;
            }\n",
    },
    Mutant {
        name: "an-old-mapping-is-used",
        file: "src/node/stage.rs",
        sound: "            (State::Prepared | State::Formatting, mapping) => {\n                if mapping.is_some() {\n",
        broken: "            (State::Prepared | State::Formatting, Some(mapping)) if crate::mutant(\"an-old-mapping-is-used\") => {
                Path::new(\"/dev\").join(mapping.kernel_name)
            }
            (State::Prepared | State::Formatting, mapping) => {\n                if mapping.is_some() {\n",
    },
    Mutant {
        name: "the-mapping-does-not-grow",
        file: "src/node/expand.rs",
        sound: "        if mapping.bytes != bytes {\n",
        broken: "        if mapping.bytes != bytes && !crate::mutant(\"the-mapping-does-not-grow\") {\n",
    },
    Mutant {
        name: "a-second-key-for-a-volume",
        file: "src/key/embedded.rs",
        sound: "                Some(Stored { record, .. }) => return same(&new, record),\n",
        broken: "                Some(Stored { record, version }) if crate::mutant(\"a-second-key-for-a-volume\") => {
                    let other = self.prepare(&new, record.generation, deadline).await?;
                    (self.store.replace(&other, *version, deadline).await, other)
                }
                Some(Stored { record, .. }) => return same(&new, record),\n",
    },
    Mutant {
        name: "a-generation-comes-twice",
        file: "src/key/embedded.rs",
        sound: "record.generation.checked_add(1)",
        broken: "record.generation.checked_add(u32::from(!crate::mutant(\"a-generation-comes-twice\")))",
    },
    Mutant {
        name: "the-key-is-used-before-it-is-stored",
        file: "src/key/embedded.rs",
        sound: "                (Ok(()), record) => return Ok(KeyInfo::from(&record)),\n",
        broken: "                (_, record) if crate::mutant(\"the-key-is-used-before-it-is-stored\") => {
                    return Ok(KeyInfo::from(&record));
                }
                (Ok(()), record) => return Ok(KeyInfo::from(&record)),\n",
    },
    Mutant {
        name: "a-destroyed-key-stays",
        file: "src/csi/controller/volumes.rs",
        sound: "        if let Some(info) = &info {\n",
        broken: "        if let Some(info) = &info
            && !crate::mutant(\"a-destroyed-key-stays\")
        {\n",
    },
    Mutant {
        name: "a-late-destroy-hits-the-next-key",
        file: "src/key/embedded.rs",
        sound: "|| stored.record.generation > generation {\n",
        broken: "|| (stored.record.generation > generation && !crate::mutant(\"a-late-destroy-hits-the-next-key\"))
            {\n",
    },
    Mutant {
        name: "a-ready-record-is-taken-back",
        file: "src/key/embedded.rs",
        sound: "                State::Prepared | State::Formatting => {\n                    record.state = State::Formatting;\n",
        broken: "                State::Ready if crate::mutant(\"a-ready-record-is-taken-back\") => {
                    (record.state, record.header_mac) = (State::Formatting, None);
                    Ok(Change::Made)
                }
                State::Prepared | State::Formatting => {\n                    record.state = State::Formatting;\n",
    },
    Mutant {
        name: "the-key-is-a-word-of-the-program",
        file: "src/node/luks.rs",
        sound: "    program\n        .arg(\"--header\")\n",
        broken: "    let program = if crate::mutant(\"the-key-is-a-word-of-the-program\") {
        program.arg(crate::volume::hex(dek.expose_secret()))
    } else {
        program
    };
    program\n        .arg(\"--header\")\n",
    },
];

const SWITCH: &str = "
/// Whether a deliberately broken variant is switched on.
pub fn mutant(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var(\"MUTANT\").ok());
    ON.as_deref() == Some(name)
}
";

/// Breaks the flows in each way, and expects each to be caught.
pub(crate) fn all_are_caught() -> Result<()> {
    let program = compile().context("compile the mutants")?;
    let hunt = |mutant: &str| Command::new(&program).arg("--hunt").env("MUTANT", mutant).output();
    let sound = hunt("none")?;
    ensure!(sound.status.success(), "the sound flows are caught:\n{}", String::from_utf8_lossy(&sound.stdout));
    let (mut caught, mut missed) = (Vec::new(), Vec::new());
    for mutant in MUTANTS {
        let output = hunt(mutant.name)?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        // Nothing but a violation counts: a mutant that does not run was not caught.
        match invariant::ALL.iter().find(|invariant| told.lines().any(|line| line.starts_with(**invariant))) {
            Some(invariant) if !output.status.success() => caught.push(format!("{}: {invariant}", mutant.name)),
            _ => missed.push(format!("{}\n{told}{}", mutant.name, String::from_utf8_lossy(&output.stderr))),
        }
    }
    for line in &caught {
        println!("simulation: mutant {line}");
    }
    println!("simulation: {} of {} mutants caught", caught.len(), MUTANTS.len());
    ensure!(missed.is_empty(), "not caught: {}", missed.join("\n"));
    Ok(())
}

/// Compiles the simulation of the patched sources, into a folder of its own: cargo would take the copy for the project
/// itself, and overwrite the programs of other tests. Crates that do not differ are linked from the project's folder.
fn compile() -> Result<PathBuf> {
    let project = testbed::project();
    let (tree, compiled) = (project.join("target/mutants/tree"), project.join("target/mutants/target"));
    for old in [&tree, &compiled] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    for folder in ["deps", ".fingerprint", "build"] {
        link(&project.join("target/debug").join(folder), &compiled.join("debug").join(folder))?;
    }
    for part in ["Cargo.toml", "Cargo.lock", "build.rs", "README.md", "src", "proto", "tests", "benches"] {
        copy(&project.join(part), &tree.join(part))?;
    }
    for Mutant { name, file, sound, broken } in MUTANTS {
        let path = tree.join(file);
        let source = fs::read_to_string(&path)?;
        let places = source.matches(sound).count();
        ensure!(places == 1, "{name}: {file} has {places} times\n{sound}");
        fs::write(&path, source.replacen(sound, broken, 1))?;
    }
    let library = tree.join("src/lib.rs");
    fs::write(&library, fs::read_to_string(&library)? + SWITCH)?;
    // One function of the copy is called from another file than its own.
    let format = tree.join("src/node/format.rs");
    let source = fs::read_to_string(&format)?;
    fs::write(&format, source.replace("    async fn write_header(", "    pub(super) async fn write_header("))?;
    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--locked", "--test", "simulation", "--no-run", "--message-format=json"])
        .arg("--target-dir")
        .arg(&compiled)
        .current_dir(&tree)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout)?;
    let program = told.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["target"]["name"] == "simulation";
        message["executable"].as_str().filter(|_| is_test).map(PathBuf::from)
    });
    match program {
        Some(program) => Ok(program),
        None => bail!("cargo told of no program:\n{told}"),
    }
}

/// What is made in the copy, of the sources there: both packages, and this program. Nothing else is, so that what the
/// project's other programs are called, `metrics` like a crate that it uses, does not matter.
const OWN: [&str; 3] = [env!("CARGO_PKG_NAME"), "testbed", env!("CARGO_CRATE_NAME")];

/// Gives compiled crates a second name each; nobody changes them.
fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let made_of = text.strip_prefix("lib").unwrap_or(&text);
        if OWN.iter().any(|own| made_of.strip_prefix(own).is_some_and(|rest| rest.starts_with('-'))) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            link(&entry.path(), &to.join(name))?;
        } else {
            fs::hard_link(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
