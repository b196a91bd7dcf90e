//! nano's real weights against independent runtimes of the same files (tests/golden: CTranslate2, transformers, llama.cpp).

use std::path::PathBuf;

use hearken::audio::file;
use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::Share;
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
        let frames = nano.frames(&nano.hear(&samples).unwrap()[0]).unwrap();
        let padded = nano.whisper_hidden(&samples, 480_000).unwrap();
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
        let mut cache = base.decoder.cache().unwrap();
        let mut ids = prompt.ids.clone();
        for (at, theirs) in prompt.llama_cpp.greedy.iter().take(24).enumerate() {
            let share = Share { cache: &mut cache, tokens: ids.len() };
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
    let mut nano = open(crate::nano_directory(), true);
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
