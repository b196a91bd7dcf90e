//! nano's real weights against independent runtimes of the same files (tests/golden: CTranslate2, transformers, llama.cpp).

use std::path::PathBuf;

use hearken::audio::file;
use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::Share;
use hearken_models::kv::KvType;
use hearken_models::words::Words;
use hearken_models::{Device, Tensor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Whisper {
    clips: Vec<Clip>,
}

#[derive(Deserialize)]
struct Clip {
    file: String,
    text: String,
}

fn clips() -> Vec<Clip> {
    let text = std::fs::read(crate::tests("golden/whisper_base.json")).unwrap();
    serde_json::from_slice::<Whisper>(&text).unwrap().clips
}

fn samples(clip: &Clip) -> Vec<f32> {
    file::read(&crate::tests("audio").join(&clip.file), 60.0).unwrap()
}

fn open(path: PathBuf, words: bool) -> Checkpoint {
    Checkpoint::open(&path, &Options { device: Device::Cpu, words }).unwrap()
}

/// Every `step`-th row and every 8th column.
fn thinned(tensor: &Tensor, step: usize) -> Vec<Vec<f32>> {
    let rows = tensor.to_vec2::<f32>().unwrap();
    rows.into_iter().step_by(step).map(|row| row.into_iter().step_by(8).collect()).collect()
}

#[test]
fn whisper_s_encoder_agrees_with_ctranslate2_and_transformers() {
    let nano = open(crate::nano_directory(), false);
    let golden = hearken_models::tensors(&crate::tests("golden/whisper_base.safetensors")).unwrap();
    for clip in clips() {
        let samples = samples(&clip);
        let stem = clip.file.trim_end_matches(".wav");
        let frames = nano.ear.frames(&nano.hear_batch(&[&samples]).unwrap()[0]).unwrap();
        let padded = nano.ear.whisper_hidden(&samples, 480_000).unwrap();
        for (name, ours) in [("unpadded", thinned(&frames, 10)), ("padded", thinned(&padded, 25))] {
            let stored = golden[&format!("{stem}.{name}")].to_dtype(hearken_models::DType::F32).unwrap();
            let stored = stored.to_vec2::<f32>().unwrap();
            assert_eq!(ours.len(), stored.len(), "{stem} {name}");
            for (ours, stored) in ours.iter().flatten().zip(stored.iter().flatten()) {
                // The runtimes are 2e-3 apart among themselves; the vectors are stored in f16.
                let slack = 4e-3 + stored.abs() / 1024.0;
                assert!((ours - stored).abs() < slack, "{stem} {name}: {ours} for {stored}");
            }
        }
    }
}

#[derive(Deserialize)]
struct Llama {
    prompts: std::collections::BTreeMap<String, Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    prompt: String,
    ids: Vec<u32>,
    llama_cpp: Continuation,
    f32: Exact,
}

#[derive(Deserialize)]
struct Continuation {
    greedy: Vec<u32>,
    gaps: Vec<f32>,
}

/// The dequantised weights in f32 along llama.cpp's continuation.
#[derive(Deserialize)]
struct Exact {
    gaps: Vec<f32>,
}

/// The base decoder without our low-rank updates: nano's directory with a config that names none.
fn base_decoder(scratch: &tempfile::TempDir) -> Checkpoint {
    for entry in std::fs::read_dir(crate::nano_directory()).unwrap() {
        let path = entry.unwrap().path();
        let target = scratch.path().join(path.file_name().unwrap());
        // A link where links are to be had, else a copy.
        #[cfg(unix)]
        std::os::unix::fs::symlink(&path, target).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(&path, target).unwrap();
    }
    let trained = crate::tests("../models/nano");
    std::fs::copy(trained.join("adaptor.safetensors"), scratch.path().join("adaptor.safetensors")).unwrap();
    let config = std::fs::read(trained.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config.as_object_mut().unwrap().remove("lora");
    std::fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
    open(scratch.path().to_owned(), false)
}

#[test]
fn qwen_goes_on_as_llama_cpp_does() {
    let scratch = tempfile::tempdir().unwrap();
    let base = base_decoder(&scratch);
    let text = std::fs::read(crate::tests("golden/llama_greedy.json")).unwrap();
    let golden: Llama = serde_json::from_slice(&text).unwrap();
    assert_eq!(golden.prompts.len(), 10);
    for (name, prompt) in &golden.prompts {
        assert_eq!(base.tokenizer.control(&prompt.prompt).unwrap(), prompt.ids, "{name}: tokenizer");
        let mut sequence = base.decoder.pool(8192, KvType::F32).unwrap().sequence();
        let mut ids = prompt.ids.clone();
        for (at, theirs) in prompt.llama_cpp.greedy.iter().take(24).enumerate() {
            let share = Share { sequence: &mut sequence, tokens: ids.len() };
            let hidden = base.decoder.forward(&base.decoder.embed(&ids).unwrap(), &mut [share]).unwrap();
            let last = hidden.narrow(0, ids.len() - 1, 1).unwrap();
            let logits = base.decoder.logits(&last).unwrap().to_vec2::<f32>().unwrap().remove(0);
            let ours = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            if ours as u32 != *theirs {
                // 8-bit activations round differently in each runtime, so a tie may fall either way; from there on the texts differ.
                // It counts as one where any of the three sees it: we, llama.cpp, or the same weights in f32.
                let gap =
                    (logits[ours] - logits[*theirs as usize]).min(prompt.llama_cpp.gaps[at]).min(prompt.f32.gaps[at]);
                assert!(gap < 0.05, "{name}: token {at} is {ours}, llama.cpp's is {theirs}, {gap} apart");
                println!("{name}: parts from llama.cpp at token {at}, where the two best are {gap} apart");
                break;
            }
            ids = vec![*theirs];
        }
    }
}

fn normal(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    plain.split_whitespace().map(str::to_owned).collect()
}

/// Words to change, put in or leave out to come from one text to the other.
fn word_errors(reference: &str, heard: &str) -> (usize, usize) {
    let (reference, heard) = (normal(reference), normal(heard));
    let mut row: Vec<usize> = (0..=heard.len()).collect();
    for (i, word) in reference.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in heard.iter().enumerate() {
            let change = diagonal + usize::from(word != other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    (row[heard.len()], reference.len())
}

#[test]
fn the_word_ear_hears_what_faster_whisper_hears() {
    let nano = open(crate::nano_directory(), true);
    let (mut errors, mut words) = (0, 0);
    for clip in clips() {
        let heard = nano.words(&samples(&clip), || true).unwrap().unwrap();
        let (wrong, all) = word_errors(&clip.text, &heard);
        println!("{wrong} of {all}: {heard}");
        (errors, words) = (errors + wrong, words + all);
    }
    assert!(words > 80 && errors * 20 <= words, "{errors} of {words} words differ");
    assert_eq!(nano.words(&vec![0.0; 32_000], || true).unwrap().unwrap(), "", "nobody speaks in silence");
}

/// A turn as it is spoken: a guess each second at what was said, and the last one at its end.
fn streamed_words(nano: &Checkpoint, samples: &[f32]) -> (String, usize) {
    let ear = nano.words.as_ref().unwrap();
    let (mut hearing, mut words) = (nano.ear.hearing(), Words::default());
    let mut told = String::new();
    let seconds: Vec<_> = samples.chunks(16_000).collect();
    let mut early = 0;
    for (n, second) in seconds.iter().enumerate() {
        ear.hear(&mut words, &nano.ear.norm(&hearing.step(second).unwrap().hidden).unwrap()).unwrap();
        let mut guess = ear.guess(&words, &nano.ear_tail(hearing.as_ref()).unwrap()).unwrap();
        while ear.step(&mut guess).unwrap() {}
        let ended = n + 1 == seconds.len();
        if ended {
            early = told.len();
        }
        told.push_str(&ear.settle(&mut words, &guess, ended).unwrap().committed);
    }
    (told, early)
}

#[test]
fn i7_words_committed_while_they_are_spoken_are_those_of_the_whole() {
    let nano = open(crate::nano_directory(), true);
    let (mut errors, mut words, mut early, mut all) = (0, 0, 0, 0);
    for clip in clips() {
        let (heard, before_the_end) = streamed_words(&nano, &samples(&clip));
        let (wrong, count) = word_errors(&clip.text, &heard);
        println!("{wrong} of {count}: {} | {}", &heard[..before_the_end], &heard[before_the_end..]);
        (errors, words) = (errors + wrong, words + count);
        (early, all) = (early + before_the_end, all + heard.len());
    }
    assert!(words > 80 && errors * 20 <= words, "{errors} of {words} words differ");
    assert!(early * 2 > all, "most words are committed before their turn ends: {early} of {all} letters");
}
