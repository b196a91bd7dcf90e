//! Cut, swapped and hostile checkpoint files: refused by name, with a reason, never with a panic; and a good GGUF of the official names.

use std::collections::BTreeMap;
use std::path::Path;

use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::Share;
use hearken_models::kv::KvType;
use hearken_models::{DType, Device, Tensor};
use proptest::prelude::*;
use tempfile::TempDir;

fn open(path: &Path) -> Result<Checkpoint, hearken_models::Error> {
    Checkpoint::open(path, &Options { device: Device::Cpu, words: true })
}

/// A copy of the tiny checkpoint to be damaged.
fn tiny() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(crate::tests("golden/tiny")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// Damages one file of a copy and gives the refusal.
fn refusal(file: &str, damage: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    let copy = tiny();
    let path = copy.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, damage(bytes)).unwrap();
    open(copy.path()).expect_err(file).to_string()
}

fn says(refusal: &str, words: &[&str]) {
    for word in words {
        assert!(refusal.contains(word), "{refusal:?} names {word:?}");
    }
}

const SHARD: &str = "model-00001-of-00002.safetensors";

#[test]
fn a_cut_shard() {
    says(&refusal(SHARD, |b| b[..b.len() / 2].into()), &[SHARD]);
    says(&refusal(SHARD, |_| Vec::new()), &[SHARD]);
}

#[test]
fn a_missing_shard() {
    let copy = tiny();
    std::fs::remove_file(copy.path().join(SHARD)).unwrap();
    says(&open(copy.path()).unwrap_err().to_string(), &[SHARD]);
}

#[test]
fn swapped_shards() {
    // Each file has the other's name: all tensors are there, so this is no damage, and it loads.
    let copy = tiny();
    let path = |n: usize| copy.path().join(format!("model-0000{n}-of-00002.safetensors"));
    let third = copy.path().join("third");
    for (from, to) in [(path(1), third.clone()), (path(2), path(1)), (third, path(2))] {
        std::fs::rename(from, to).unwrap();
    }
    open(copy.path()).unwrap();
    // One file twice lacks the other's tensors.
    std::fs::copy(path(1), path(2)).unwrap();
    says(&open(copy.path()).unwrap_err().to_string(), &["missing"]);
}

#[test]
fn a_huge_header() {
    says(
        &refusal(SHARD, |mut b| {
            b[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            b
        }),
        &[SHARD],
    );
    says(
        &refusal(SHARD, |mut b| {
            b[..8].copy_from_slice(&(99u64 << 20).to_le_bytes());
            b
        }),
        &[SHARD],
    );
}

#[test]
fn an_offset_past_the_end() {
    let damage = |b: Vec<u8>| {
        let header = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(b[8..8 + header].to_vec()).unwrap();
        let at = text.find("data_offsets\":[0,").unwrap() + "data_offsets\":[0,".len();
        let digits = text[at..].find(']').unwrap();
        let mut b = b;
        b[8 + at..8 + at + digits].fill(b'9');
        b
    };
    says(&refusal(SHARD, damage), &[SHARD]);
}

#[test]
fn values_that_are_no_numbers() {
    let refusal = refusal("model-00002-of-00002.safetensors", |mut b| {
        let end = b.len();
        b[end - 2..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
        b
    });
    says(&refusal, &["tensor", "not finite"]);
}

#[test]
fn a_config_that_does_not_fit_its_weights() {
    let change = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        refusal("config.json", move |b| String::from_utf8(b).unwrap().replace(&from, &to).into())
    };
    says(&change("\"intermediate_size\": 128", "\"intermediate_size\": 64"), &["mlp", "shape"]);
    says(&change("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"), &["layers.2", "missing"]);
    says(&change("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"), &["text_config"]);
    says(&change("\"hidden_size\": 64", "\"hidden_size\": 18446744073709551615"), &["text_config"]);
    says(&change("\"n_audio_head\": 4", "\"n_audio_head\": 5"), &["audio_encoder_config"]);
    says(&change("StepAudio2ForCausalLM", "SomethingElse"), &["config.json", "SomethingElse"]);
    says(&refusal("config.json", |_| b"{".into()), &["config.json"]);
    says(&refusal("config.json", |_| vec![b' '; 5 << 20]), &["config.json", "which no config has"]);
}

#[test]
fn tokenizers_that_are_none() {
    says(&refusal("tokenizer.json", |_| b"[]".into()), &["tokenizer.json"]);
    says(&refusal("tokenizer.json", |b| b[..b.len() / 2].into()), &["tokenizer.json"]);
    let nameless = |b| String::from_utf8(b).unwrap().replace("<|EOT|>", "<|xxx|>").into();
    says(&refusal("tokenizer.json", nameless), &["<|EOT|>"]);
}

#[test]
fn an_index_that_points_elsewhere() {
    let index = "model.safetensors.index.json";
    let elsewhere = |b: Vec<u8>| String::from_utf8(b).unwrap().replace("model-00001", "../../etc/model-00001").into();
    says(&refusal(index, elsewhere), &[index, "outside"]);
    says(&refusal(index, |_| br#"{"weight_map": {}}"#.into()), &[index, "no shard"]);
}

#[test]
fn what_is_no_checkpoint_at_all() {
    says(&open(Path::new("/nowhere")).unwrap_err().to_string(), &["/nowhere"]);
    let empty = tempfile::tempdir().unwrap();
    says(&open(empty.path()).unwrap_err().to_string(), &["config.json"]);
}

/// A GGUF file under construction; what it says need not be true.
#[derive(Default)]
struct Writer {
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
    count: Option<u64>,
}

impl Writer {
    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) {
        let shape = shape.iter().rev().map(|d| *d as u64).collect();
        self.tensors.push((name.into(), shape, kind, self.data.len() as u64));
        self.data.extend(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(0u64.to_le_bytes());
        for (name, shape, kind, offset) in &self.tensors {
            out.extend((name.len() as u64).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// The tiny checkpoint's tensors in a GGUF, matrices of the decoder as `kind` (0 F32, 1 F16, 8 Q8_0, 30 BF16).
fn as_gguf(kind: u32) -> Writer {
    let mut all = BTreeMap::new();
    for n in 1..=2 {
        all.extend(
            hearken_models::tensors(&crate::tests(&format!("golden/tiny/model-0000{n}-of-00002.safetensors"))).unwrap(),
        );
    }
    let mut writer = Writer::default();
    for (name, tensor) in &all {
        let matrix = tensor.dims().len() == 2 && name.starts_with("model.layers");
        let kind = if matrix { kind } else { 0 };
        writer.tensor(name, tensor.dims(), kind, &encode(tensor, kind));
    }
    writer
}

fn encode(tensor: &Tensor, kind: u32) -> Vec<u8> {
    let values = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let half = |v: f32| half::f16::from_f32(v).to_le_bytes();
    match kind {
        1 => values.iter().flat_map(|v| half(*v)).collect(),
        30 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        8 => values
            .chunks(32)
            .flat_map(|block| {
                let scale = block.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0;
                let quant = move |v: &f32| (v / scale.max(1e-9)).round() as i8 as u8;
                half(scale).into_iter().chain(block.iter().map(quant)).collect::<Vec<_>>()
            })
            .collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn gguf_checkpoint(bytes: &[u8]) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(crate::tests("golden/tiny").join(file), copy.path().join(file)).unwrap();
    }
    std::fs::write(copy.path().join("model.gguf"), bytes).unwrap();
    copy
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let ids: Vec<u32> = (0..40).map(|i| i * 11 % 470).collect();
    let mut sequence = checkpoint.decoder.pool(8192, KvType::F32).unwrap().sequence();
    let share = Share { sequence: &mut sequence, tokens: ids.len() };
    let hidden = checkpoint.decoder.forward(&checkpoint.decoder.embed(&ids).unwrap(), &mut [share]).unwrap();
    checkpoint.decoder.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_gguf_of_the_official_names_is_the_same_model() {
    let official = logits(&open(&crate::tests("golden/tiny")).unwrap());
    let size = official.iter().fold(0f32, |a, v| a.max(v.abs()));
    // bf16 is how the tiny checkpoint is stored; f16 rounds it, and Q8_0 rounds weights and activations of a narrow random network.
    for (kind, slack) in [(0, 0.0), (30, 0.0), (1, 1e-2), (8, 0.2)] {
        let copy = gguf_checkpoint(&as_gguf(kind).bytes());
        for path in [copy.path().to_owned(), copy.path().join("model.gguf")] {
            let ours = logits(&open(&path).unwrap());
            let apart = official.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart <= slack * size, "type {kind}: {apart} of {size}");
        }
    }
}

fn gguf_refusal(writer: &Writer) -> String {
    open(gguf_checkpoint(&writer.bytes()).path()).unwrap_err().to_string()
}

#[test]
fn ggufs_that_lie() {
    let mut lie = as_gguf(8);
    lie.count = Some(u64::MAX);
    says(&gguf_refusal(&lie), &["model.gguf", "claims"]);
    let mut lie = as_gguf(8);
    lie.tensors[3].3 = u64::MAX - 5;
    says(&gguf_refusal(&lie), &["model.gguf", "cannot exist"]);
    let mut lie = as_gguf(8);
    lie.tensors[3].3 = 1 << 40;
    says(&gguf_refusal(&lie), &["model.gguf", "ends at byte"]);
    let mut lie = as_gguf(8);
    lie.tensors[3].1 = vec![u64::MAX, 2];
    says(&gguf_refusal(&lie), &["model.gguf", "tensor"]);
    let mut lie = as_gguf(8);
    lie.tensors[3].2 = 999;
    says(&gguf_refusal(&lie), &["type 999"]);
    let mut lie = as_gguf(8);
    lie.tensors.pop();
    says(&gguf_refusal(&lie), &["missing"]);
    let whole = as_gguf(8).bytes();
    let cut = gguf_checkpoint(&whole[..whole.len() - 4096]);
    says(&open(cut.path()).unwrap_err().to_string(), &["model.gguf"]);
}

#[test]
fn a_gguf_scale_that_is_no_number() {
    let mut writer = as_gguf(8);
    let at = writer.tensors.iter().find(|(_, _, kind, _)| *kind == 8).unwrap().3 as usize;
    writer.data[at..at + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    says(&gguf_refusal(&writer), &["tensor model.layers", "not finite"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever byte is wrong in a header, the answer is a model or a refusal.
    #[test]
    fn damaged_headers_never_panic(at in 0usize..4000, value: u8, gguf: bool) {
        if gguf {
            let mut bytes = as_gguf(8).bytes();
            bytes[at] = value;
            drop(open(gguf_checkpoint(&bytes).path()));
        } else {
            let copy = tiny();
            let path = copy.path().join(SHARD);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] = value;
            std::fs::write(&path, bytes).unwrap();
            drop(open(copy.path()));
        }
    }
}
