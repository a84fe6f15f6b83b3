//! The direction of imports between modules of the daemon and of dependencies between crates of
//! the workspace, and the Rust version that the dependencies require.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Modules from top to bottom. A module imports modules of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["daemon"],
    &["error"],
    &["cli"],
    &["endpoint"],
    &["status"],
    &["metrics"],
    &["service"],
    &["vhost"],
    &["viommu"],
    &["host"],
    &["iopf"],
    &["socket"],
    &["sandbox", "heartbeat"],
    &["trace", "counter", "notifier"],
    &["address"],
];

/// Directories of the workspace's crates, and the crates on which they may depend.
const CRATES: &[(&str, &[&str])] = &[
    ("examples/guest-dma", &["accelerator"]),
    ("", &["accelerator", "testing"]),
    ("testing", &["accelerator"]),
    ("accelerator", &[]),
];

#[test]
fn modules_import_lower_layers_only() {
    let mut upward = Vec::new();
    for file in sources(&root().join("src")) {
        let Some(module) = module_of(&file) else { continue };
        let layer = layer_of(&module);
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            if import != module && layer_of(&import) <= layer {
                upward.push(format!("{}: {module} imports {import}", file.display()));
            }
        }
    }
    assert!(upward.is_empty(), "imports of an upper or the same layer:\n{}", upward.join("\n"));
}

#[test]
fn crates_depend_on_lower_crates_only() {
    for package in packages().iter().filter(|package| package["source"].is_null()) {
        let directory = directory_of(package["manifest_path"].as_str().unwrap());
        let (_, allowed) = CRATES
            .iter()
            .find(|(name, _)| *name == directory)
            .unwrap_or_else(|| panic!("crate {directory} is not in CRATES"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let Some(path) = dependency["path"].as_str() else { continue };
            let other = directory_of(&format!("{path}/Cargo.toml"));
            assert!(allowed.contains(&&*other), "crate '{directory}' depends on '{other}'");
        }
    }
}

#[test]
fn dependencies_support_our_rust_version() {
    let ours = version(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages() {
        let Some(theirs) = package["rust_version"].as_str() else { continue };
        assert!(version(theirs) <= ours, "{} requires Rust {theirs}", package["id"]);
    }
}

/// The packages of the dependency graph, as `cargo metadata` describes them.
fn packages() -> Vec<Value> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--quiet"]);
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = cargo.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The directory of a manifest, relative to the root of the workspace.
fn directory_of(manifest: &str) -> String {
    let directory = Path::new(manifest).parent().unwrap();
    directory.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').take(2).map(|number| number.parse().unwrap()).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The top-level module that contains a file; `None` for `main.rs` and `lib.rs`, above all layers.
fn module_of(file: &Path) -> Option<String> {
    let file = file.strip_prefix(root().join("src")).unwrap();
    let first = Path::new(file.components().next().unwrap().as_os_str());
    let module = first.file_stem().unwrap().to_str().unwrap().to_owned();
    (module != "main" && module != "lib").then_some(module)
}

fn layer_of(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer; add it to LAYERS"))
}

/// The top-level modules that a source file names with `crate::`, in imports and in paths.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut modules = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group_members(group)),
            None => modules.extend(identifier(rest)),
        }
    }
    // Macros of the crate, such as `crate::point!`, are not modules.
    modules.retain(|name| {
        root().join("src").join(name).is_dir() || root().join(format!("src/{name}.rs")).is_file()
    });
    modules
}

/// The first identifiers of `a::b, c::{d, e}, f}`.
fn group_members(group: &str) -> Vec<String> {
    let mut members = Vec::new();
    let (mut depth, mut start) = (0, true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            character if start && !character.is_whitespace() => {
                members.extend(identifier(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    members
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn imports_are_found_in_groups_and_paths() {
    let text =
        "use crate::{host::{self, Mapping}, iopf, address::Iova};\nfn f() { crate::trace::x() }";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["address", "host", "iopf", "trace"]);
}
