"""The frozen Qwen2 decoder (written by `prepare`), with low-rank updates, over packed branches.

Frozen matrices are multiplied in the processor's own fastest type (`common.product_type`); residuals, norms and
attention stay f32, and so do the biases of the keys, which are too large for bf16.
Many clips are packed into one row of tokens, so nothing is computed for padding. Attention goes clip by clip
under a mask that keeps branches apart: the sound of a clip is computed once for all the tasks that branch from
it, as the product itself forks.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open

from .common import product_type

HEADS, KEY_HEADS, WIDTH = 14, 2, 64
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
PATHS = {n: ("self_attn." if n in "qkvo" else "mlp.") + n + "_proj" for n in NAMES}


class Weights:
    """The tensors `prepare` wrote, mapped from the file."""

    def __init__(self, work: Path):
        self.file = safe_open(work / "decoder.safetensors", "pt")
        self.names = set(self.file.keys())

    def tensor(self, name: str) -> torch.Tensor:
        return self.file.get_tensor(name)


class LowRank(nn.Module):
    """y = W x + b + scale · B (A x), W frozen. Takes and gives f32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rank: int, scale: float):
        super().__init__()
        self.weight, self.bias, self.scale, self.rank = weight.to(product_type()), bias, scale, rank
        if rank:
            self.A = nn.Parameter(torch.randn(rank, weight.shape[1]) * 0.02)
            self.B = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype)
        y = F.linear(x, self.weight).float()
        if self.rank:
            low = F.linear(x, (self.A * self.scale).to(x.dtype))
            y = y + F.linear(low, self.B.to(x.dtype)).float()
        return y if self.bias is None else y + self.bias


def form(low_rank: dict[str, torch.Tensor]) -> tuple[list[str], int]:
    """Which matrices published updates belong to (of q k v o gate up down), and their rank."""
    targets = sorted({name.split(".")[4].removesuffix("_proj") for name in low_rank})
    return targets, next(t.shape[0] for n, t in low_rank.items() if ".lora_A" in n)


class Span(NamedTuple):
    """Rows `start` to `end` attend to each other only, True in `mask` where query (row) sees key (column)."""

    start: int
    end: int
    mask: torch.Tensor


def turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding, halves layout."""
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask) -> torch.Tensor:
    """Attention under one mask, or span by span."""
    if q.shape[2] == 1:  # one token each: heads that share keys are rows of one query, and nothing is repeated
        return F.scaled_dot_product_attention(q.unflatten(1, (KEY_HEADS, -1)).squeeze(3), k, v, attn_mask=mask).flatten(1, 2)[:, :, None]
    k, v = (t.repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v))
    if isinstance(mask, torch.Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    parts = [F.scaled_dot_product_attention(*(t[:, :, s.start : s.end] for t in (q, k, v)), attn_mask=s.mask) for s in mask]
    return torch.cat(parts, 2)


class Past:
    """Keys and values of one layer so far, with room for all that is to come: appending moves nothing."""

    def __init__(self, batch: int, room: int):
        self.rows, self.filled = [torch.zeros(batch, KEY_HEADS, room, WIDTH) for _ in range(2)], 0

    def put(self, *new: torch.Tensor) -> list[torch.Tensor]:
        start, self.filled = self.filled, self.filled + new[0].shape[2]
        for rows, part in zip(self.rows, new):
            rows[:, :, start : self.filled] = part
        return [rows[:, :, : self.filled] for rows in self.rows]

    def take(self, kept: torch.Tensor) -> None:
        self.rows = [rows[kept] for rows in self.rows]


class Layer(nn.Module):
    def __init__(self, file: Weights, number: int, targets: list[str], rank: int, scale: float):
        super().__init__()
        for name, part in NAMES.items():
            stem = f"blk.{number}.{part}"
            bias = file.tensor(stem + ".bias") if stem + ".bias" in file.names else None
            setattr(self, name, LowRank(file.tensor(stem + ".weight"), bias, rank if name in targets else 0, scale))
        self.norms = [file.tensor(f"blk.{number}.attn_norm.weight"), file.tensor(f"blk.{number}.ffn_norm.weight")]

    def forward(self, x, angles, mask, past=None):
        h = F.rms_norm(x, (x.shape[-1],), self.norms[0], 1e-6)
        q = turn(self.q(h).view(*h.shape[:2], HEADS, WIDTH).transpose(1, 2), angles)
        k = turn(self.k(h).view(*h.shape[:2], KEY_HEADS, WIDTH).transpose(1, 2), angles)
        v = self.v(h).view(*h.shape[:2], KEY_HEADS, WIDTH).transpose(1, 2)
        if past is not None:
            k, v = past.put(k, v)
        x = x + self.o(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        h = F.rms_norm(x, (x.shape[-1],), self.norms[1], 1e-6)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Qwen2.5-0.5B: 24 layers, width 896."""

    def __init__(self, file: Weights, targets: list[str] = [], rank: int = 16, scale: float = 2.0, layers: int = 24):
        super().__init__()
        self.layers = nn.ModuleList(Layer(file, n, targets, rank, scale) for n in range(layers))
        self.embeddings, self.norm = file.tensor("token_embd.weight"), file.tensor("output_norm.weight")
        self.head = file.tensor("output.weight" if "output.weight" in file.names else "token_embd.weight").to(product_type())

    def forward(self, x: torch.Tensor, places: torch.Tensor, mask, past: list[Past] | None = None) -> torch.Tensor:
        """Final hidden states of embeddings [B, T, 896] at `places` [B, T]. `mask`: True where seen, or a list of `Span`."""
        speeds = 1e6 ** (-torch.arange(0, WIDTH, 2, dtype=torch.float32) / WIDTH)
        angles = (places[..., None].float() * speeds).repeat(1, 1, 2)[:, None]
        for number, layer in enumerate(self.layers):
            x = layer(x, angles, mask, past[number] if past is not None else None)
        return F.rms_norm(x, (x.shape[-1],), self.norm, 1e-6)

    def scores(self, hidden: torch.Tensor, head: torch.Tensor | None = None) -> torch.Tensor:
        """Over the vocabulary, or those rows of it that `head` holds."""
        head = self.head if head is None else head
        return F.linear(hidden.to(head.dtype), head).float()

    def low_rank(self) -> dict[str, torch.Tensor]:
        """Trained updates under the names of the published checkpoint form."""
        return {
            f"model.layers.{number}.{PATHS[name]}.lora_{part}.weight": getattr(getattr(layer, name), part)
            for number, layer in enumerate(self.layers)
            for name in NAMES
            if getattr(layer, name).rank
            for part in "AB"
        }

    def load_low_rank(self, tensors: dict[str, torch.Tensor]) -> None:
        mine = self.low_rank()
        with torch.no_grad():
            for name, tensor in tensors.items():
                mine[name].copy_(tensor)


def draw(scores: torch.Tensor) -> torch.Tensor:
    """One index of each row by its softmax; `multinomial` takes ten times as long over a whole vocabulary."""
    sums = (scores - scores.amax(-1, keepdim=True)).exp().cumsum(-1)
    return torch.searchsorted(sums, torch.rand(len(sums), 1) * sums[:, -1:], right=True)[:, 0].clamp(max=scores.shape[-1] - 1)


@torch.no_grad()
def generate(decoder: Decoder, prompts: list[torch.Tensor], end: int, most: int, temperature: float = 0.0, copies: int = 1) -> list[tuple[list[int], list[float]]]:
    """`copies` continuations of each embedded prompt [T, 896], left-padded into one batch: tokens (the end among them) and their
    log-probabilities. The likeliest tokens, or drawn at `temperature`. A prompt is computed once and its keys and values forked; who has ended leaves the batch."""
    longest = max(map(len, prompts))
    x = torch.stack([F.pad(p, (0, 0, longest - len(p), 0)) for p in prompts])
    inside = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts])
    places = (inside.cumsum(1) - 1).clamp(min=0)
    mask = (inside[:, None, :] & torch.ones(longest, longest, dtype=torch.bool).tril() | torch.eye(longest, dtype=torch.bool))[:, None]
    past = [Past(len(prompts), longest + most) for _ in decoder.layers]
    last = decoder(x, places, mask, past)[:, -1]
    rows = torch.arange(len(prompts)).repeat_interleave(copies)

    def take(kept: torch.Tensor) -> None:
        nonlocal last, inside, places
        last, inside, places = last[kept], inside[kept], places[kept]
        for layer in past:
            layer.take(kept)

    take(rows)
    rows = torch.arange(len(rows))
    out: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
    going = torch.ones(len(rows), dtype=torch.bool)
    for _ in range(most):
        scores = decoder.scores(last)
        chosen = draw(scores / temperature) if temperature else scores.argmax(-1)
        likely = scores.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        for row, token, chance, goes in zip(rows.tolist(), chosen.tolist(), likely.tolist(), going.tolist()):
            if goes:
                out[row][0].append(token)
                out[row][1].append(chance)
        going &= chosen != end
        if not going.any():
            break
        if going.sum() < 0.75 * len(going):
            take(going)
            rows, chosen, going = rows[going], chosen[going], going[going]
        places = places[:, -1:] + 1
        inside = torch.cat([inside, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
        last = decoder(decoder.embeddings[chosen][:, None], places, inside[:, None, None, :], past)[:, -1]
    return out
