//! Mel, encoder, adaptor, decoder and tokenizer against code nobody here wrote: vectors of `scripts/reference` (tests/golden).

use std::collections::HashMap;
use std::path::PathBuf;

use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::Share;
use hearken_models::kv::KvType;
use hearken_models::mel::{Lengths, LogMel};
use hearken_models::{Device, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    clips: Vec<Clip>,
    batch: Vec<usize>,
    audio_clip: usize,
    prompts: HashMap<String, Prompt>,
    tokenizer: Vec<Text>,
}

#[derive(Deserialize)]
struct Clip {
    samples: usize,
    fnv1a: String,
    frames: Frames,
}

#[derive(Deserialize)]
struct Frames {
    mel: usize,
    at_50hz: usize,
    at_25hz: usize,
    tokens: usize,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    #[serde(default)]
    greedy: Vec<u32>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    decoded_without_special: String,
}

struct Case {
    checkpoint: Checkpoint,
    golden: Golden,
    vectors: HashMap<String, Tensor>,
    n_mels: usize,
}

fn directory(name: &str) -> PathBuf {
    crate::tests("golden").join(name)
}

fn cases() -> Vec<Case> {
    let case = |(name, n_mels): (&str, usize)| {
        let directory = directory(name);
        let options = Options { device: Device::Cpu, words: false };
        Case {
            checkpoint: Checkpoint::open(&directory, &options).unwrap(),
            golden: serde_json::from_slice(&std::fs::read(directory.join("golden.json")).unwrap()).unwrap(),
            vectors: hearken_models::tensors(&directory.join("golden.safetensors")).unwrap(),
            n_mels,
        }
    };
    [("tiny", 128), ("tiny80", 80)].map(case).into()
}

/// The test signal of tests/golden/README.md.
fn signal(count: usize) -> Vec<f32> {
    let (mut noise, mut low, mut high) = (1u32, 0u32, 0u32);
    let (mut low_step, mut high_step) = (30_000_000u32, 300_000_000u32);
    let triangle = |phase: u32| ((phase >> 16) as i32 - 32_768).abs() - 16_384;
    let mut sample = |i: usize| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (low, high) = (low.wrapping_add(low_step), high.wrapping_add(high_step));
        (low_step, high_step) = (low_step.wrapping_add(701), high_step.wrapping_add(12_007));
        let value = (triangle(low) >> 1) + (triangle(high) >> 3) + (noise >> 22) as i32 - 512;
        if i % 8_000 >= 6_400 { 0 } else { value as i16 }
    };
    (0..count).map(|i| f32::from(sample(i)) / 32_768.0).collect()
}

fn fnv1a(samples: &[f32]) -> String {
    let bytes = samples.iter().flat_map(|s| ((s * 32_768.0) as i16).to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// The largest distance between the stored frames and the same rows of `ours`, and the largest stored value.
fn compare(case: &Case, name: &str, ours: &[Vec<f32>]) -> (f32, f32) {
    let stored = case.vectors[name].to_vec2::<f32>().unwrap();
    let frames = case.vectors[&format!("{name}.frames")].to_dtype(hearken_models::DType::F32).unwrap().to_vec1::<f32>();
    let mut worst = (0f32, 0f32);
    for (frame, row) in frames.unwrap().iter().zip(stored) {
        for (a, b) in row.iter().zip(&ours[*frame as usize]) {
            worst = (worst.0.max((a - b).abs()), worst.1.max(a.abs()));
        }
    }
    assert!(worst.1 > 0.0, "{name} compares something");
    worst
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2::<f32>().unwrap()
}

#[test]
fn the_test_signal_is_the_reference_s() {
    for clip in &cases()[0].golden.clips {
        assert_eq!(fnv1a(&signal(clip.samples)), clip.fnv1a, "{} samples", clip.samples);
    }
}

#[test]
fn lengths_at_every_stage() {
    for clip in &cases()[0].golden.clips {
        let Frames { mel, at_50hz, at_25hz, tokens } = clip.frames;
        assert_eq!(Lengths::of(clip.samples), Lengths { mel, at_50hz, at_25hz, tokens }, "{} samples", clip.samples);
    }
}

#[test]
fn mel_within_1e_4() {
    for case in cases() {
        for clip in &case.golden.clips {
            let mel = LogMel::new(case.n_mels).segment(&signal(clip.samples));
            assert_eq!(mel.frames, clip.frames.mel);
            let frame = |t: usize| (0..mel.n_mels).map(|m| mel.data[m * mel.frames + t]).collect();
            let ours: Vec<Vec<f32>> = (0..mel.frames).map(frame).collect();
            let (apart, _) = compare(&case, &format!("{}.mel", clip.samples), &ours);
            assert!(apart < 1e-4, "{} mels, {} samples: {apart}", case.n_mels, clip.samples);
        }
    }
}

#[test]
fn encoder_and_adaptor_within_1e_3_relative() {
    for case in cases() {
        for clip in &case.golden.clips {
            let samples = signal(clip.samples);
            let heard = case.checkpoint.hear_batch(&[&samples]).unwrap().remove(0);
            assert_eq!(heard.embeddings.dims(), [clip.frames.tokens, 64]);
            let frames = case.checkpoint.ear.frames(&heard).unwrap();
            assert_eq!(frames.dims(), [clip.frames.at_25hz, 32]);
            if clip.frames.at_25hz == 0 {
                continue;
            }
            for (stage, ours) in [("encoder", &frames), ("adaptor", &heard.embeddings)] {
                let (apart, size) = compare(&case, &format!("{}.{stage}", clip.samples), &rows(ours));
                assert!(apart < 1e-3 * size, "{stage} of {} samples: {apart} of {size}", clip.samples);
            }
        }
    }
}

#[test]
fn a_padded_batch_gives_what_each_gives_alone() {
    for case in cases() {
        let clips: Vec<Vec<f32>> = case.golden.batch.iter().map(|n| signal(*n)).collect();
        let together = case.checkpoint.hear_batch(&clips.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        for (clip, batched) in clips.iter().zip(together) {
            let alone = case.checkpoint.hear_batch(&[clip]).unwrap().remove(0);
            let (a, b) = (rows(&alone.embeddings), rows(&batched.embeddings));
            assert_eq!(a.len(), b.len());
            let pairs = || a.iter().flatten().zip(b.iter().flatten());
            let apart = pairs().map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let size = pairs().map(|(a, _)| a.abs()).fold(0f32, f32::max);
            assert!(apart <= 1e-5 * size, "{} samples: {apart} of {size}", clip.len());
        }
    }
}

/// Embeddings of a prompt, with the golden audio clip's sound over the `<audio_patch>` ids.
fn embed(case: &Case, ids: &[u32]) -> Tensor {
    let patch = case.checkpoint.tokenizer.id("<audio_patch>").unwrap();
    let text = case.checkpoint.decoder.embed(ids).unwrap();
    let Some(first) = ids.iter().position(|id| *id == patch) else { return text };
    let sound = case.checkpoint.hear(&signal(case.golden.audio_clip)).unwrap().remove(0).embeddings;
    let (count, after) = (sound.dim(0).unwrap(), first + sound.dim(0).unwrap());
    assert!(ids[first..first + count].iter().all(|id| *id == patch), "the sound fills the patches");
    let parts = [text.narrow(0, 0, first).unwrap(), sound, text.narrow(0, after, ids.len() - after).unwrap()];
    Tensor::cat(&parts, 0).unwrap()
}

#[test]
fn logits_within_1e_3_relative() {
    for case in cases() {
        for (name, prompt) in &case.golden.prompts {
            let stored = rows(&case.vectors[&format!("logits.{name}")]);
            let mut sequence = case.checkpoint.decoder.pool(8192, KvType::F32).unwrap().sequence();
            let x = embed(&case, &prompt.ids);
            let share = Share { sequence: &mut sequence, tokens: prompt.ids.len() };
            let hidden = case.checkpoint.decoder.forward(&x, &mut [share]).unwrap();
            let ours = rows(&case.checkpoint.decoder.logits(&hidden).unwrap());
            let ours = &ours[ours.len() - stored.len()..];
            let pairs = || stored.iter().flatten().zip(ours.iter().flatten());
            let apart = pairs().map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let size = pairs().map(|(a, _)| a.abs()).fold(0f32, f32::max);
            assert!(apart < 1e-3 * size, "{name}: {apart} of {size}");
        }
    }
}

/// Greedy tokens after a prompt that is put in `chunk` tokens at a time.
fn greedy(case: &Case, prompt: &Prompt, chunk: usize) -> Vec<u32> {
    let decoder = &case.checkpoint.decoder;
    let mut sequence = decoder.pool(8192, KvType::F32).unwrap().sequence();
    let x = embed(case, &prompt.ids);
    let mut logits = None;
    for at in (0..prompt.ids.len()).step_by(chunk) {
        let tokens = chunk.min(prompt.ids.len() - at);
        let hidden = decoder
            .forward(&x.narrow(0, at, tokens).unwrap(), &mut [Share { sequence: &mut sequence, tokens }])
            .unwrap();
        logits = Some(decoder.logits(&hidden.narrow(0, tokens - 1, 1).unwrap()).unwrap());
    }
    let mut out = Vec::new();
    while out.len() < prompt.greedy.len() {
        let next = logits.unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap()[0];
        out.push(next);
        let hidden =
            decoder.forward(&decoder.embed(&[next]).unwrap(), &mut [Share { sequence: &mut sequence, tokens: 1 }]);
        logits = Some(decoder.logits(&hidden.unwrap()).unwrap());
    }
    out
}

#[test]
fn sixty_four_greedy_tokens_are_equal_however_the_prompt_is_cut() {
    for case in cases() {
        for name in ["text", "audio"] {
            let prompt = &case.golden.prompts[name];
            assert_eq!(prompt.greedy.len(), 64);
            for chunk in [1, 7, 1000] {
                assert_eq!(greedy(&case, prompt, chunk), prompt.greedy, "{name} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn the_tokenizer_reads_and_writes_as_the_reference() {
    for case in cases() {
        for text in &case.golden.tokenizer {
            assert_eq!(case.checkpoint.tokenizer.control(&text.text).unwrap(), text.ids, "{:?}", text.text);
            assert_eq!(case.checkpoint.tokenizer.decode(&text.ids).unwrap(), text.decoded_without_special);
        }
        let typed = case.checkpoint.tokenizer.text("<|EOT|><think>").unwrap();
        assert!(typed.iter().all(|id| *id < 474), "typed markers stay text: {typed:?}");
    }
}
