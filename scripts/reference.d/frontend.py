"""The published Step-Audio 2 front end (PyPI step-audio2 1.0.0, utils.py), out of independent parts.

Two implementations that share no code for the transform, transformers' WhisperFeatureExtractor
(NumPy, f64) and torch.stft (f32), must agree before a vector is written.
"""

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

TAIL = 479  # zeros after the last sample: two frames more than ceil(samples / 160)
PAD_FRAMES = 2  # those two; seen by the convolutions, hidden from attention, never a token
AGREE = 1e-4


def stft_log_mel(audio: np.ndarray, extractor: WhisperFeatureExtractor) -> np.ndarray:
    """Log-mel by torch.stft in f32, as the published code computes it."""
    wave = torch.from_numpy(audio)
    spectrum = torch.stft(wave, 400, 160, window=torch.hann_window(400), return_complex=True)
    power = spectrum[:, :-1].abs().square()
    filters = torch.from_numpy(extractor.mel_filters).float().T
    log = (filters @ power).clamp(min=1e-10).log10()
    log = torch.maximum(log, log.max() - 8.0)
    return ((log + 4.0) / 4.0).numpy()


def log_mel(audio: np.ndarray, n_mels: int) -> tuple[np.ndarray, float]:
    """Log-mel [n_mels, frames] of one segment, and how far the implementations are apart."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    padded = np.pad(audio, (0, TAIL))
    exact = extractor._np_extract_fbank_features(padded[None], "cpu")[0].astype(np.float32)
    public = extractor(padded, sampling_rate=16_000, padding="longest", truncation=False)
    apart = max(
        float(np.abs(exact - other).max())
        for other in (np.asarray(public["input_features"])[0], stft_log_mel(padded, extractor))
    )
    if apart > AGREE:
        raise SystemExit(f"the two mel implementations are {apart} apart on {len(audio)} samples")
    return exact, apart


def counts(sample_count: int) -> dict[str, int]:
    """Lengths at every stage for one segment.

    The published formula in words: with F = ceil(samples / 160) real frames, of F + 2 in the mel,
    (F + 1) // 2 are valid at 50 Hz, half of those (floor) at 25 Hz, half of those (ceil) are tokens.
    """
    mel = (sample_count + TAIL) // 160
    real = mel - PAD_FRAMES
    at_50 = (real + 1) // 2
    at_25 = at_50 // 2
    return {"mel": mel, "real": real, "at_50hz": at_50, "at_25hz": at_25, "tokens": (at_25 - 1) // 2 + 1}
