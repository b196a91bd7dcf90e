//! Names of models, settings from the environment, and what counts as a checkpoint.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::super::hub::Id;
use super::super::{FetchError, FetchOptions, Model, checkpoint, locate};
use super::put;

fn hub(name: &str, revision: &str) -> Model {
    Model::Hub(Id { name: name.into(), revision: revision.into() })
}

#[test]
fn a_model_is_a_name_an_id_or_a_path() {
    let parse = |text| Model::parse(text).expect("a good name");
    assert_eq!(parse("nano"), Model::Nano);
    assert_eq!(parse("step-audio-r1.1"), hub("stepfun-ai/Step-Audio-R1.1", "main"));
    assert_eq!(parse("stepfun-ai/Step-Audio-2-mini"), hub("stepfun-ai/Step-Audio-2-mini", "main"));
    assert_eq!(parse("a/b@v2"), hub("a/b", "v2"));
    assert_eq!(parse("./a/b"), Model::Path("./a/b".into()));
    assert_eq!(parse("/x.gguf"), Model::Path("/x.gguf".into()));
    for bad in ["", "gpt", "a/b/c", "a/..", "a/b@", "a/b@../c", "a b/c", "/", "a/b?x"] {
        assert!(!matches!(Model::parse(bad), Ok(Model::Hub(_) | Model::Nano)), "{bad}");
    }
    assert!(matches!(Model::parse("gpt"), Err(FetchError::UnknownModel(_))));
}

#[test]
fn what_is_not_here_comes_with_the_command_that_brings_it() {
    let root = TempDir::new().expect("a temporary directory");
    let options = super::options(root.path(), None);
    for (model, command) in [
        ("nano", "run: hearken fetch nano"),
        ("step-audio-r1", "run: hearken fetch stepfun-ai/Step-Audio-R1"),
        ("a/b@v2", "run: hearken fetch a/b@v2"),
    ] {
        let error = locate(model, &options).expect_err("nothing is here").to_string();
        assert!(error.ends_with(command), "{error}");
    }
}

#[test]
fn the_environment_decides_the_places() {
    let from = |vars: &[(&str, &str)]| {
        FetchOptions::from_lookup(|key| vars.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string()))
    };
    let bare = from(&[("XDG_CACHE_HOME", "/c")]);
    assert_eq!((bare.home, bare.hub_cache), (PathBuf::from("/c/hearken"), PathBuf::from("/c/huggingface/hub")));
    assert!(!bare.offline && bare.token.is_none() && bare.endpoint.is_none());
    let set = from(&[
        ("HEARKEN_HOME", "/h"),
        ("HF_HOME", "/f"),
        ("HF_TOKEN", "t\n"),
        ("HF_HUB_OFFLINE", "1"),
        ("HF_ENDPOINT", "http://mirror/"),
    ]);
    assert_eq!((set.home.as_path(), set.hub_cache.as_path()), (Path::new("/h"), Path::new("/f/hub")));
    assert_eq!((set.token.as_deref(), set.endpoint.as_deref()), (Some("t"), Some("http://mirror")));
    assert!(set.offline);
    assert!(!from(&[("HF_HUB_OFFLINE", "0")]).offline);
}

#[test]
fn the_token_file_serves_where_the_variable_is_unset() {
    let root = TempDir::new().expect("a temporary directory");
    put(&root.path().join("token"), b"from-file\n");
    let home = root.path().display().to_string();
    let options = FetchOptions::from_lookup(|key| (key == "HF_HOME").then(|| home.clone()));
    assert_eq!(options.token.as_deref(), Some("from-file"));
}

#[test]
fn a_checkpoint_with_something_amiss_is_named() {
    let good: &[(&str, &[u8])] =
        &[("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")];
    let cases: &[(&str, &[u8], &str)] = &[
        ("config.json", b"{\"a\":", "config.json is cut"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{", "no valid header"),
        ("model.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "no valid header"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0{}!", "11 bytes where its header says 10"),
        ("model.safetensors.index.json", b"{}", "no weight_map"),
        ("model.safetensors.index.json", b"{\"weight_map\":{\"a\":\"x.safetensors\"}}", "missing: x.safetensors"),
        ("x.gguf", b"GGU", "x.gguf is no GGUF"),
    ];
    let build = |extra: Option<(&str, &[u8])>| {
        let root = TempDir::new().expect("a temporary directory");
        good.iter().copied().chain(extra).for_each(|(name, bytes)| put(&root.path().join(name), bytes));
        root
    };
    checkpoint::check(build(None).path()).expect("a small but whole checkpoint");
    for &(name, bytes, reason) in cases {
        let error = checkpoint::check(build(Some((name, bytes))).path()).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    }
}
