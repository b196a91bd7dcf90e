"""Deterministic synthetic clips, in integers only.

A test in any language can make the very same samples, so no audio has to be committed.
Two chirps (triangle waves on 32-bit phase accumulators) plus noise; the last fifth of every half
second is digital silence, so that the floor of the log-mel (segment maximum minus 8) is reached.
"""

import numpy as np

SAMPLE_RATE = 16_000
MASK = 0xFFFF_FFFF

# Each length stands for something; README.md in the output folder says what.
LENGTHS = (0, 1, 160, 320, 321, 400, 960, 1281, 12_345, 16_000, 16_001, 400_000, 480_000)


def triangle(phase: int) -> int:
    """One triangle wave sample in -16384 ..= 16384 from a 32-bit phase."""
    return abs((phase >> 16) - 32_768) - 16_384


def samples(count: int) -> np.ndarray:
    """The first `count` samples of the one endless test signal, as i16."""
    noise, low, high = 1, 0, 0
    low_step, high_step = 30_000_000, 300_000_000
    out = np.empty(count, np.int16)
    for i in range(count):
        noise = (noise * 1_664_525 + 1_013_904_223) & MASK
        low, high = (low + low_step) & MASK, (high + high_step) & MASK
        low_step, high_step = (low_step + 701) & MASK, (high_step + 12_007) & MASK
        value = triangle(low) // 2 + triangle(high) // 8 + (noise >> 22) - 512
        out[i] = 0 if i % 8_000 >= 6_400 else value
    return out


def as_float(pcm: np.ndarray) -> np.ndarray:
    """PCM16 to f32 in [-1, 1), by 1/32768."""
    return pcm.astype(np.float32) / np.float32(32_768)


def fnv1a(pcm: np.ndarray) -> str:
    """64-bit FNV-1a over the little-endian bytes: a checksum that is three lines in any language."""
    digest = 0xCBF2_9CE4_8422_2325
    for byte in pcm.astype("<i2").tobytes():
        digest = ((digest ^ byte) * 0x0000_0100_0000_01B3) & 0xFFFF_FFFF_FFFF_FFFF
    return f"{digest:016x}"
