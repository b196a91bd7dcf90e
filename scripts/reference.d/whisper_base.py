"""Whisper base on real clips: CTranslate2 as the independent runtime, transformers for nano's own path."""

import wave
from pathlib import Path

import ctranslate2
import numpy as np
import torch
from faster_whisper import WhisperModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

import clips
import ct2
import encoder
import frontend
from tiny import compact

SHAPE = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6}
EVERY_50HZ, EVERY_25HZ, EVERY_DIM = 25, 10, 8
PROMPT = [50_258, 50_259, 50_359, 50_363]  # <|startoftranscript|><|en|><|transcribe|><|notimestamps|>
# CTranslate2 and PyTorch sum in different orders; on these clips they stay under 2e-3.
RUNTIMES_AGREE = 5e-3


def read_wav(path: Path) -> np.ndarray:
    """Mono 16 kHz PCM16 as f32."""
    with wave.open(str(path)) as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 16_000):
            raise SystemExit(f"{path.name} is not 16 kHz mono PCM16")
        return clips.as_float(np.frombuffer(file.readframes(file.getnframes()), "<i2"))


class Ears:
    """The same weights in every runtime."""

    def __init__(self, nano: Path):
        self.ct2 = ctranslate2.models.Whisper(str(nano), device="cpu", compute_type="float32", intra_threads=2)
        self.fast = WhisperModel(str(nano), device="cpu", compute_type="float32", cpu_threads=2)
        self.tokenizer = Tokenizer.from_file(str(nano / "tokenizer.json"))
        self.padded_mel = WhisperFeatureExtractor(feature_size=80)
        self.torch = encoder.transformers_encoder(SHAPE, ct2.encoder_weights(nano / "model.bin"))

    def padded(self, mel: np.ndarray) -> np.ndarray:
        """CTranslate2's encoder output [1500, 512] on mel padded to 30 s."""
        return np.array(self.ct2.encode(ctranslate2.StorageView.from_array(mel)))[0]

    @torch.no_grad()
    def padded_torch(self, mel: np.ndarray) -> np.ndarray:
        """The same by transformers: the pooling taken out, the spare last position masked and cut."""
        pool, self.torch.avg_pooler = self.torch.avg_pooler, torch.nn.Identity()
        full = torch.nn.functional.pad(torch.from_numpy(mel), (0, 2))
        mask = encoder.key_mask(torch.tensor([1500]), 1501)
        out = self.torch(full, attention_mask=mask).last_hidden_state[0, :1500].numpy()
        self.torch.avg_pooler = pool
        return out

    def unpadded(self, audio: np.ndarray) -> torch.Tensor:
        """nano's own input: the published front end without padding to 30 s, at 25 Hz."""
        mel, _ = frontend.log_mel(audio, 80)
        return encoder.run_transformers(self.torch, [torch.from_numpy(mel)], [frontend.counts(len(audio))["at_50hz"]])[0]

    def greedy(self, mel: np.ndarray, **settings) -> list[int]:
        """Token ids of CTranslate2's greedy transcript, prompt and end left out."""
        features = ctranslate2.StorageView.from_array(mel)
        return self.ct2.generate(features, [PROMPT], beam_size=1, **settings)[0].sequences_ids[0]

    def transcript(self, audio: np.ndarray) -> str:
        """faster-whisper's words: greedy, no voice activity detection, no timestamps."""
        parts, _ = self.fast.transcribe(
            audio,
            language="en",
            beam_size=1,
            best_of=1,
            temperature=0.0,
            vad_filter=False,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return "".join(part.text for part in parts).strip()


def run_clip(ears: Ears, path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Stored frames and facts of one clip."""
    audio = read_wav(path)
    mel = np.ascontiguousarray(ears.padded_mel(audio, sampling_rate=16_000, return_tensors="np")["input_features"], np.float32)
    padded = ears.padded(mel)
    apart = float(np.abs(padded - ears.padded_torch(mel)).max())
    if apart > RUNTIMES_AGREE:
        raise SystemExit(f"CTranslate2 and PyTorch are {apart} apart on {path.name}")
    unpadded = ears.unpadded(audio)
    ids = ears.greedy(mel)
    raw = ears.greedy(mel, suppress_blank=False, suppress_tokens=[])
    tensors = {
        f"{path.stem}.padded": torch.from_numpy(padded)[::EVERY_50HZ, ::EVERY_DIM].half().contiguous(),
        f"{path.stem}.unpadded": unpadded[::EVERY_25HZ, ::EVERY_DIM].half().contiguous(),
    }
    facts = {
        "file": path.name,
        "samples": len(audio),
        "frames": frontend.counts(len(audio)),
        "ids": ids,
        "ids_same_without_suppression": ids == raw,
        "text": ears.tokenizer.decode(ids, skip_special_tokens=True).strip(),
        "faster_whisper": ears.transcript(audio),
        "runtimes_apart": float(f"{apart:.1e}"),
        "padded_max_abs": float(f"{np.abs(padded).max():.4g}"),
    }
    return tensors, facts


def run(nano: Path, audio: Path, out: Path) -> None:
    """whisper_base.safetensors and whisper_base.json over every wav of a folder."""
    torch.set_num_threads(2)
    ears, tensors, facts = Ears(nano), {}, []
    for path in sorted(audio.glob("*.wav")):
        found, fact = run_clip(ears, path)
        tensors |= found
        facts.append(fact)
        print(f"{path.name}: {fact['faster_whisper']} (runtimes {fact['runtimes_apart']} apart)")
    save_file(tensors, out / "whisper_base.safetensors")
    (out / "whisper_base.json").write_text(compact({"prompt": PROMPT, "clips": facts}), encoding="utf-8")
