//! Fetching a sharded checkpoint: the happy path and every way it has of going wrong.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;

use super::super::{FetchError, FetchOptions, Silent, fetch, locate};
use super::server::{COMMIT, Faults, Hub, Remote, git_blob, sha256};
use super::{Heard, options};

const MODEL: &str = "some/model";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn shard(fill: u8) -> Vec<u8> {
    let header = json!({"w": {"dtype": "U8", "shape": [100_000], "data_offsets": [0, 100_000]}}).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![fill; 100_000]].concat()
}

fn files() -> Vec<Remote> {
    let small = |name, text: &str| Remote { name, bytes: text.into(), large: false };
    let large = |name, bytes| Remote { name, bytes, large: true };
    let index = json!({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}).to_string();
    vec![
        small("config.json", r#"{"architectures": ["StepAudio2ForCausalLM"]}"#),
        small("model.safetensors.index.json", &index),
        small("merges.txt", "#version: 0.2\n"),
        small("README.md", "not needed"),
        small("modeling_step_audio_2.py", "not needed"),
        large("vocab.json", b"{\"a\": 0}".to_vec()),
        large(SHARDS[0], shard(1)),
        large(SHARDS[1], shard(2)),
        large("other.safetensors", shard(3)),
        large("token2wav/flow.safetensors", shard(4)),
    ]
}

struct World {
    hub: Hub,
    root: TempDir,
    options: FetchOptions,
}

impl World {
    fn new(faults: Faults) -> Self {
        Self::with(files(), faults)
    }

    fn with(files: Vec<Remote>, faults: Faults) -> Self {
        let hub = Hub::start(files, faults);
        let root = TempDir::new().expect("a temporary directory");
        let options = options(root.path(), Some(&hub.url));
        Self { hub, root, options }
    }

    fn fetch(&self) -> Result<PathBuf, FetchError> {
        fetch(MODEL, &self.options, &mut Silent)
    }

    fn repo(&self) -> PathBuf {
        self.root.path().join("hf/hub/models--some--model")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.repo().join("blobs").join(sha256(bytes))
    }

    fn assert_whole(&self, dir: &Path) {
        for file in files().iter().filter(|f| dir.join(f.name).exists()) {
            assert_eq!(fs::read(dir.join(file.name)).expect("readable"), file.bytes, "{}", file.name);
        }
        for name in ["config.json", "vocab.json", "merges.txt", SHARDS[0], SHARDS[1]] {
            assert!(dir.join(name).exists(), "{name}");
        }
        assert_eq!(locate(MODEL, &self.options).expect("what was fetched is found"), dir);
    }
}

#[test]
fn brings_a_sharded_checkpoint_and_only_what_belongs_to_it() {
    let world = World::new(Faults::default());
    let dir = world.fetch().expect("all is well");
    assert_eq!(dir, world.repo().join("snapshots").join(COMMIT));
    world.assert_whole(&dir);
    for name in ["README.md", "modeling_step_audio_2.py", "other.safetensors", "token2wav"] {
        assert!(!dir.join(name).exists(), "{name}");
    }
    // The layout of the Python tools, which share it.
    assert_eq!(fs::read_to_string(world.repo().join("refs/main")).expect("a reference"), COMMIT);
    assert!(world.blob(&shard(1)).exists());
    assert!(world.repo().join("blobs").join(git_blob(b"#version: 0.2\n")).exists());
    let asked = world.hub.asked().len();
    world.fetch().expect("again");
    assert_eq!(world.hub.asked().len(), asked + 1, "the second time asks for the listing alone");
}

#[test]
fn a_mirror_that_lists_names_only_is_asked_for_each_files_headers() {
    let world = World::new(Faults { bare_listing: true, ..Faults::default() });
    world.assert_whole(&world.fetch().expect("headers do as well"));
}

#[test]
fn a_cut_transfer_goes_on_where_it_stopped() {
    let world = World::new(Faults { cuts: 3, busy: 2, ..Faults::default() });
    let mut heard = Heard::default();
    let dir = fetch(MODEL, &world.options, &mut heard).expect("it goes on");
    world.assert_whole(&dir);
    assert!(world.hub.asked().iter().any(|a| a.range.as_deref().is_some_and(|r| r != "bytes=0-")), "a range was asked");
    assert!(heard.notes.iter().any(|n| n.contains("early; going on") || n.contains("going on")), "{:?}", heard.notes);
    assert!(heard.starts.iter().any(|(_, have)| *have > 0));
}

#[test]
fn a_fetch_that_was_stopped_is_resumed_by_the_next() {
    let world = World::new(Faults::default());
    let part = world.blob(&shard(1)).with_extension("incomplete");
    super::put(&part, &shard(1)[..60_000]);
    let mut heard = Heard::default();
    world.assert_whole(&fetch(MODEL, &world.options, &mut heard).expect("it goes on"));
    assert!(heard.starts.contains(&(SHARDS[0].into(), 60_000)), "{:?}", heard.starts);
    assert!(!part.exists());
}

#[test]
fn a_partial_file_that_is_whole_too_long_or_of_other_bytes_is_no_trap() {
    for stale in [shard(1), [shard(1), vec![0]].concat(), vec![9; 60_000], vec![9; shard(1).len()]] {
        let world = World::new(Faults::default());
        super::put(&world.blob(&shard(1)).with_extension("incomplete"), &stale);
        world.assert_whole(&world.fetch().expect("a stale part is used or thrown away"));
    }
}

#[test]
fn a_server_without_ranges_sends_it_again() {
    let world = World::new(Faults { cuts: 1, no_ranges: true, ..Faults::default() });
    world.assert_whole(&world.fetch().expect("from the start"));
}

#[test]
fn wrong_bytes_are_refused_by_name_and_never_used() {
    let world = World::new(Faults { corrupt: 99, ..Faults::default() });
    let error = world.fetch().expect_err("wrong bytes").to_string();
    assert!(error.contains("vocab.json") && error.contains("sha256") && error.contains("refused"), "{error}");
    assert!(!world.repo().join("refs/main").exists());
    assert!(locate(MODEL, &world.options).is_err());
    let left: Vec<_> = fs::read_dir(world.repo().join("blobs")).expect("listable").flatten().collect();
    assert!(left.iter().all(|e| !e.file_name().to_string_lossy().contains("incomplete")), "nothing of it is kept");
    world.hub.faults(|f| f.corrupt = 0);
    world.assert_whole(&world.fetch().expect("a better day"));
}

#[test]
fn a_file_that_was_cut_on_disk_is_found_out_and_brought_again() {
    let world = World::new(Faults::default());
    let dir = world.fetch().expect("all is well");
    let blob = world.blob(&shard(2));
    fs::write(&blob, &shard(2)[..5000]).expect("writable");
    let error = locate(MODEL, &world.options).expect_err("cut").to_string();
    assert!(error.contains(SHARDS[1]) && error.contains("hearken fetch some/model"), "{error}");
    // The length alone does not save it.
    fs::write(&blob, shard(7)).expect("writable");
    let mut heard = Heard::default();
    assert_eq!(fetch(MODEL, &world.options, &mut heard).expect("brought again"), dir);
    assert!(heard.notes.iter().any(|n| n.contains(SHARDS[1]) && n.contains("again")), "{:?}", heard.notes);
    world.assert_whole(&dir);
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_storage() {
    let mut world = World::new(Faults { token: Some("secret"), ..Faults::default() });
    let error = world.fetch().expect_err("no token");
    assert!(matches!(error, FetchError::Unauthorized { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN") && error.to_string().contains(MODEL), "{error}");
    world.options.token = Some("secret".into());
    world.assert_whole(&world.fetch().expect("the token opens"));
    let leaked: Vec<_> = world.hub.asked().into_iter().filter(|a| a.path.starts_with("/storage") && a.token).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[test]
fn an_unknown_repository_is_a_spelling_mistake() {
    let world = World::new(Faults::default());
    let error = fetch("some/modle", &world.options, &mut Silent).expect_err("404");
    assert!(matches!(&error, FetchError::NotFound(name) if name == "some/modle"), "{error}");
}

#[test]
fn offline_uses_what_is_here_and_asks_nobody() {
    let mut world = World::new(Faults::default());
    world.options.offline = true;
    assert!(matches!(world.fetch(), Err(FetchError::Offline(_))));
    assert!(world.hub.asked().is_empty());
    world.options.offline = false;
    world.fetch().expect("online");
    let asked = world.hub.asked().len();
    world.options.offline = true;
    world.assert_whole(&world.fetch().expect("it is here"));
    assert_eq!(world.hub.asked().len(), asked);
    // Offline too, every byte is looked at.
    fs::write(world.blob(&shard(1)), shard(9)).expect("writable");
    assert!(matches!(world.fetch(), Err(FetchError::WrongFile { file, .. }) if file == SHARDS[0]));
}

#[test]
fn a_hub_that_is_gone_is_noticed_fast_and_the_copy_here_serves() {
    let mut world = World::new(Faults::default());
    let dir = world.fetch().expect("all is well");
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    world.options.endpoint = Some(format!("http://127.0.0.1:{port}"));
    assert_eq!(world.fetch().expect("the copy serves"), dir);
    let error = fetch("some/other", &world.options, &mut Silent).expect_err("nobody there");
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
}

#[test]
fn a_repository_that_lacks_a_part_of_a_checkpoint_is_not_taken() {
    for (gone, named) in [("config.json", "config.json"), ("merges.txt", "merges.txt"), (SHARDS[1], SHARDS[1])] {
        let world = World::with(files().into_iter().filter(|f| f.name != gone).collect(), Faults::default());
        let error = world.fetch().expect_err("incomplete");
        assert!(matches!(error, FetchError::Incomplete { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
        assert!(locate(MODEL, &world.options).is_err());
    }
}

#[test]
fn an_index_cannot_lead_out_of_the_directory() {
    let mut files = files();
    let index = files.iter_mut().find(|f| f.name.ends_with("index.json")).expect("there is an index");
    index.bytes = json!({"weight_map": {"a": "../../../escape.safetensors"}}).to_string().into();
    let error = World::with(files, Faults::default()).fetch().expect_err("hostile").to_string();
    assert!(error.contains("no shard"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_says_so() {
    let world = World::new(Faults::default());
    let part = world.blob(b"{\"a\": 0}").with_extension("incomplete");
    fs::create_dir_all(part.parent().expect("not the root")).expect("writable");
    std::os::unix::fs::symlink("/dev/full", &part).expect("a link");
    assert!(matches!(world.fetch(), Err(FetchError::DiskFull { .. })));
    assert!(locate(MODEL, &world.options).is_err());
}

#[test]
fn two_at_once_do_not_clash() {
    let world = World::new(Faults::default());
    let paths = std::thread::scope(|scope| {
        let both = [scope.spawn(|| world.fetch()), scope.spawn(|| world.fetch())];
        both.map(|thread| thread.join().expect("no panic").expect("both succeed"))
    });
    assert_eq!(paths[0], paths[1]);
    let times = |name: &str| world.hub.asked().iter().filter(|a| a.path == format!("/storage/{name}")).count();
    assert_eq!(times(SHARDS[0]), 1, "the second waits and finds it");
}
