"""The frozen Whisper base encoder, whole or in blocks, and its text decoder, from the CTranslate2 file.

A *form* says how the encoder attends. `FULL` is Whisper's own. A block form is what a live stream can
compute: frames see their own block and `left` seconds before it, never a later block, and the log-mel
floor hangs on a constant instead of the loudest frame of the segment.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FRAMES = 50  # encoder frames a second, before pooling
HEADS, LAYERS = 8, 6


@dataclass(frozen=True)
class Form:
    """`block` and `left` in seconds, None for unbounded; `peak` replaces the segment's log10-mel maximum."""

    block: float | None = None
    left: float | None = None
    peak: float | None = None

    def mask(self, length: int) -> torch.Tensor | None:
        """Which key (column) each query (row) may see; None when all."""
        if self.block is None:
            return None
        size = round(self.block * FRAMES)
        place = torch.arange(length) // size
        seen = place[None, :] <= place[:, None]
        if self.left is not None:
            first = place[:, None] * size - round(self.left * FRAMES)
            seen &= torch.arange(length)[None, :] >= first
        return seen


FULL = Form()


def read_ctranslate2(path: Path) -> dict[str, torch.Tensor]:
    """All f16 tensors of a CTranslate2 model file, as f32."""
    weights = {}
    with open(path, "rb") as file:

        def u32() -> int:
            return struct.unpack("<I", file.read(4))[0]

        def text() -> str:
            return file.read(struct.unpack("<H", file.read(2))[0])[:-1].decode()

        u32(), text(), u32()
        for _ in range(u32()):
            name, rank = text(), file.read(1)[0]
            shape = [u32() for _ in range(rank)]
            kind, size = file.read(1)[0], u32()
            data = file.read(size)
            if kind == 4:
                weights[name] = torch.from_numpy(np.frombuffer(data, np.float16).reshape(shape).astype(np.float32))
    return weights


def mel_filters() -> torch.Tensor:
    """The slaney filterbank, 80 bands over 201 bins."""

    def mel(hz):
        return np.where(hz >= 1000, 15 + np.log(np.maximum(hz, 1e-9) / 1000) / (np.log(6.4) / 27), hz * 3 / 200)

    def hertz(mels):
        return np.where(mels >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)), mels * 200 / 3)

    bins = np.linspace(0, 8000, 201)
    points = hertz(np.linspace(mel(np.float64(0)), mel(np.float64(8000)), 82))
    width, slope = np.diff(points), points[:, None] - bins[None]
    bank = np.maximum(0, np.minimum(-slope[:-2] / width[:-1, None], slope[2:] / width[1:, None]))
    return torch.tensor(bank * (2 / (points[2:] - points[:-2]))[:, None], dtype=torch.float32)


FILTERS, WINDOW = mel_filters(), torch.hann_window(400)


def log_mel(samples: np.ndarray, peak: float | None = None) -> torch.Tensor:
    """[80, frames] at 100 Hz; the number of frames is a multiple of 8, one adaptor frame."""
    wave = torch.as_tensor(samples[: len(samples) // 1280 * 1280], dtype=torch.float32)
    power = torch.stft(wave, 400, 160, window=WINDOW, return_complex=True)[..., :-1].abs() ** 2
    bands = torch.clamp(FILTERS @ power, min=1e-10).log10()
    top = bands.max() if peak is None else torch.tensor(peak)
    return (torch.maximum(bands, top - 8.0) + 4) / 4


class Whisper:
    """Encoder and text decoder, no gradients. `product` is the type that matrices are multiplied in; all else is f32."""

    def __init__(self, path: Path, product: torch.dtype = torch.float32):
        self.weights, self.product = read_ctranslate2(path), product
        self.matrices = {n: w.to(product) for n, w in self.weights.items() if n.startswith("encoder/") and n.endswith("/weight")}

    def _linear(self, x, name):
        matrix = self.matrices.get(name + "/weight")
        if matrix is None:
            return F.linear(x, self.weights[name + "/weight"], self.weights[name + "/bias"])
        return F.linear(x.to(self.product), matrix).float() + self.weights[name + "/bias"]

    def _convolution(self, x, name, stride):
        y = F.conv1d(x.to(self.product), self.matrices[name + "/weight"], stride=stride, padding=1)
        return F.gelu(y.float() + self.weights[name + "/bias"][:, None])

    def _norm(self, x, name):
        return F.layer_norm(x, (x.shape[-1],), self.weights[name + "/gamma"], self.weights[name + "/beta"])

    @staticmethod
    def _heads(x):
        return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)

    @staticmethod
    def _attend(q, k, v, mask=None, causal=False):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return out.transpose(1, 2).flatten(2)

    def _feed_forward(self, x, layer):
        hidden = F.gelu(self._linear(self._norm(x, layer + "ffn/layer_norm"), layer + "ffn/linear_0"))
        return x + self._linear(hidden, layer + "ffn/linear_1")

    @torch.no_grad()
    def encode(self, mels: list[torch.Tensor], form: Form = FULL, pool: bool = True) -> list[torch.Tensor]:
        """Clips of any length in one batch. `pool` averages pairs (25 Hz) before the final norm, as the
        adaptor expects; without it the frames are what Whisper's decoder reads (50 Hz)."""
        lengths = [m.shape[1] // 2 for m in mels]
        batch = torch.zeros(len(mels), 80, 2 * max(lengths))
        for row, mel in zip(batch, mels):
            row[:, : mel.shape[1]] = mel
        inside = torch.arange(batch.shape[2])[None] < 2 * torch.tensor(lengths)[:, None]
        x = self._convolution(batch, "encoder/conv1", 1) * inside[:, None]
        x = self._convolution(x, "encoder/conv2", 2)
        x = x.transpose(1, 2) + self.weights["encoder/position_encodings/encodings"][: max(lengths)]
        seen = inside[:, None, None, ::2].expand(-1, 1, max(lengths), -1)
        blocks = form.mask(max(lengths))
        if blocks is not None:
            seen = seen & blocks  # padded queries may see nothing valid; their rows are dropped below
            seen = seen | torch.eye(max(lengths), dtype=torch.bool)
        mask = None if form.block is None and min(lengths) == max(lengths) else torch.zeros(seen.shape).masked_fill(~seen, -1e4)
        for number in range(LAYERS):
            layer = f"encoder/layer_{number}/"
            normed = self._norm(x, layer + "self_attention/layer_norm")
            q, k, v = map(self._heads, self._linear(normed, layer + "self_attention/linear_0").chunk(3, -1))
            x = x + self._linear(self._attend(q, k, v, mask), layer + "self_attention/linear_1")
            x = self._feed_forward(x, layer)
        if pool:
            x, lengths = (x[:, 0::2] + x[:, 1::2]) / 2, [n // 2 for n in lengths]
        x = self._norm(x, "encoder/layer_norm")
        return [x[row, :n] for row, n in enumerate(lengths)]

    def _decode(self, tokens: list[int], memory: list, past: list) -> torch.Tensor:
        """Final hidden states of `tokens`, which follow what `past` holds; `past` grows by them."""
        place = past[0][0].shape[2] if past[0] is not None else 0
        embeddings = self.weights["decoder/embeddings/weight"]
        x = embeddings[tokens][None] + self.weights["decoder/position_encodings/encodings"][place : place + len(tokens)]
        for number in range(LAYERS):
            layer = f"decoder/layer_{number}/"
            normed = self._norm(x, layer + "self_attention/layer_norm")
            q, k, v = map(self._heads, self._linear(normed, layer + "self_attention/linear_0").chunk(3, -1))
            if past[number] is not None:
                k, v = (torch.cat(pair, 2) for pair in zip(past[number], (k, v)))
            past[number] = (k, v)
            x = x + self._linear(self._attend(q, k, v, causal=len(tokens) > 1), layer + "self_attention/linear_1")
            q = self._heads(self._linear(self._norm(x, layer + "attention/layer_norm"), layer + "attention/linear_0"))
            x = x + self._linear(self._attend(q, *memory[number]), layer + "attention/linear_2")
            x = self._feed_forward(x, layer)
        return self._norm(x[0], "decoder/layer_norm")

    def _memory(self, encoded: torch.Tensor) -> list:
        pairs = [self._linear(encoded[None], f"decoder/layer_{n}/attention/linear_1").chunk(2, -1) for n in range(LAYERS)]
        return [[self._heads(part) for part in pair] for pair in pairs]

    @torch.no_grad()
    def surprise(self, encoded: torch.Tensor, prompt: list[int], tokens: list[int]) -> float:
        """Mean negative log-likelihood of the true text, given one clip's unpooled encoding."""
        hidden = self._decode(prompt + tokens[:-1], self._memory(encoded), [None] * LAYERS)
        scores = hidden[len(prompt) - 1 :] @ self.weights["decoder/embeddings/weight"].T
        return F.cross_entropy(scores, torch.tensor(tokens)).item()

    @torch.no_grad()
    def words(self, encoded: torch.Tensor, prompt: list[int], end: int, most: int = 80) -> list[int]:
        """Greedy text tokens of one clip's unpooled encoding; timestamp tokens are never chosen."""
        memory, past = self._memory(encoded), [None] * LAYERS
        tokens, fresh = [], list(prompt)
        while len(tokens) < most:
            scores = self._decode(fresh, memory, past)[-1] @ self.weights["decoder/embeddings/weight"].T
            scores[end + 1 :] = -torch.inf
            chosen = int(scores.argmax())
            if chosen == end:
                break
            tokens.append(chosen)
            fresh = [chosen]
        return tokens
