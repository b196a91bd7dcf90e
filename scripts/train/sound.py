"""Signal work for the training clips: what is added to a voice, and what can truly be said of it afterwards."""

import re

import numpy as np
from scipy.signal import butter, fftconvolve, resample_poly, sosfilt

from .common import RATE


def to_rate(samples: np.ndarray, rate: int, pitch: float = 1.0) -> np.ndarray:
    """16 kHz samples; `pitch` > 1 plays them faster and so higher, formants included."""
    played = int(round(rate * pitch / 100)) * 100
    return resample_poly(np.asarray(samples, np.float32), RATE // 100, played // 100).astype(np.float32)


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts the silence around an utterance, leaving 50 ms before and 80 ms after."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max() + 1e-6)
    return samples[max(0, loud[0] - 800) : loud[-1] + 1280]


def bend(samples: np.ndarray, end: float) -> np.ndarray:
    """Glides the pitch of the last 0.7 s towards `end` times itself: a rising or a falling tone."""
    tail = min(len(samples) // 2, int(0.7 * RATE))
    step = np.ones(len(samples))
    step[-tail:] = np.geomspace(1, end, tail)
    where = np.cumsum(step)
    where = where[where < len(samples) - 1]
    return np.interp(where, np.arange(len(samples)), samples).astype(np.float32)


def level_db(samples: np.ndarray) -> float:
    """RMS level of the active part (frames within 25 dB of the loudest), dB of full scale."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    power = (frames**2).mean(1) + 1e-12
    return float(10 * np.log10(power[power > power.max() / 316].mean()))


def pitch_hz(samples: np.ndarray) -> float:
    """Median fundamental frequency of the voiced frames by autocorrelation; 0 when none is voiced."""
    low = samples[::2]
    size, hop = 320, 240
    count = (len(low) - size) // hop
    if count < 3:
        return 0.0
    frames = np.stack([low[i * hop : i * hop + size] for i in range(count)]) * np.hanning(size)
    frames = frames[(frames**2).sum(1) > 0.1 * (frames**2).sum(1).max()]
    spectrum = np.abs(np.fft.rfft(frames, 1024)) ** 2
    auto = np.fft.irfft(spectrum)[:, :size]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 1024)) ** 2)[:size]
    auto /= window / window[0] + 1e-3
    auto /= auto[:, :1] + 1e-9
    span = auto[:, 8000 // 400 : 8000 // 65]
    best, voiced = span.argmax(1), span.max(1) > 0.5
    return float(np.median(8000 / (best[voiced] + 20))) if voiced.sum() >= 3 else 0.0


def syllables(text: str) -> int:
    """A count good enough to measure pace with: groups of vowels, silent final e left out."""
    total = 0
    for word in re.findall(r"[a-z']+", text.lower()):
        total += max(1, len(re.findall(r"[aeiouy]+", word)) - (word.endswith("e") and not word.endswith("le")))
    return total


def noise(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of one kind at RMS 1."""
    if kind == "music":
        made = music(length, rng)
    else:
        slope = {"hiss": rng.uniform(-0.2, 0.3), "rumble": rng.uniform(0.9, 1.3), "wind": rng.uniform(0.5, 0.7)}[kind]
        spectrum = np.fft.rfft(rng.standard_normal(length))
        spectrum *= np.maximum(np.fft.rfftfreq(length, 1 / RATE), 40) ** -slope
        made = np.fft.irfft(spectrum, length)
        if kind == "wind":
            swell = np.interp(np.arange(length), np.arange(0, length + 8000, 8000), rng.uniform(0.3, 1.6, length // 8000 + 2))
            made = made * swell[:length]
    return (made / (np.sqrt((made**2).mean()) + 1e-9)).astype(np.float32)


def music(length: int, rng: np.random.Generator) -> np.ndarray:
    """Broken chords with a few harmonics over a bass."""
    out = np.zeros(length)
    beat = int(rng.uniform(0.2, 0.5) * RATE)
    root = rng.uniform(110, 260)
    for start in range(0, length, beat):
        note = root * 2 ** (rng.choice([0, 3, 4, 5, 7, 9, 12]) / 12)
        size = min(2 * beat, length - start)
        time = np.arange(size) / RATE
        tone = sum(np.sin(2 * np.pi * note * k * time) / k for k in (1, 2, 3)) + np.sin(np.pi * root * time)
        out[start : start + size] += tone * np.exp(-3 * time)
    return out


def event(kind: str, rng: np.random.Generator) -> np.ndarray:
    """One beep or one knock, peak 1."""
    if kind == "beep":
        time = np.arange(int(rng.uniform(0.08, 0.25) * RATE)) / RATE
        tone = np.sin(2 * np.pi * rng.uniform(500, 2500) * time)
        return (tone * np.minimum(1, np.minimum(time, time[::-1]) / 0.005)).astype(np.float32)
    time = np.arange(int(0.12 * RATE)) / RATE
    body = np.sin(2 * np.pi * rng.uniform(120, 350) * time) + 0.5 * rng.standard_normal(len(time))
    thump = body * np.exp(-time * rng.uniform(40, 90))
    return (thump / np.abs(thump).max()).astype(np.float32)


def events(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` events at an even pace with silence around."""
    gap = np.zeros(int(rng.uniform(0.25, 0.6) * RATE), np.float32)
    one = event(kind, rng)
    pieces = [gap]
    for _ in range(count):
        pieces += [one if kind == "beep" else event(kind, rng), gap]
    return np.concatenate(pieces)


def telephone(samples: np.ndarray) -> np.ndarray:
    """300 to 3400 Hz and 8-bit mu-law."""
    band = sosfilt(butter(4, [300, 3400], "bandpass", fs=RATE, output="sos"), samples)
    peak = np.abs(band).max() + 1e-9
    coded = np.round(np.sign(band) * np.log1p(255 * np.abs(band) / peak) / np.log(256) * 127) / 127
    return (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * peak).astype(np.float32)


def echo(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A large hard room: an exponential tail of 0.5 to 0.9 s."""
    length = int(rng.uniform(0.5, 0.9) * RATE)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail *= rng.uniform(0.5, 0.9) / np.sqrt((tail**2).sum())
    tail[0] = 1
    return fftconvolve(samples, tail)[: len(samples)].astype(np.float32)
