"""Reading what the earlier stages wrote."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass
class Example:
    """One clip as the adaptor sees it: 25 Hz features (f16) and what is true of it."""

    features: torch.Tensor
    facts: dict


def read_clips(path: Path) -> list[tuple[np.ndarray, dict]]:
    """Clips of one shard: samples (int16) and facts."""
    with np.load(path) as shard:
        ends = np.cumsum(shard["lengths"])
        pieces = np.split(shard["samples"], ends[:-1])
        return list(zip(pieces, json.loads(str(shard["facts"]))))


def read_features(path: Path) -> list[Example]:
    with np.load(path) as shard:
        features, facts = torch.from_numpy(shard["features"]), json.loads(str(shard["facts"]))
        return [Example(f, fact) for f, fact in zip(features.split(shard["lengths"].tolist()), facts)]


class Training:
    """All training shards encoded so far; `refresh` takes in those that have come since."""

    def __init__(self, folder: Path):
        self.folder, self.seen, self.examples = folder, set(), []
        self.refresh()

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("train-*.block.npz")):
            if path not in self.seen:
                self.seen.add(path)
                self.examples += read_features(path)

    def hours(self) -> float:
        return sum(len(e.features) for e in self.examples) / 25 / 3600

    def batches(self, frames: int, rng: random.Random) -> list[list[Example]]:
        """One pass in batches of at most `frames` padded frames, like lengths together."""
        order = sorted(self.examples, key=lambda e: len(e.features) + rng.randint(-12, 12))
        batches, batch = [], []
        for example in order:
            longest = max(len(e.features) for e in [*batch, example])
            if batch and longest * (len(batch) + 1) > frames:
                batches.append(batch)
                batch = []
            batch.append(example)
        batches.append(batch)
        rng.shuffle(batches)
        return batches


class Typed:
    """Typed requests and their replies, as many as `replies` has written so far."""

    def __init__(self, path: Path):
        self.path, self.size, self.requests = path, 0, []

    def pick(self, rng: random.Random) -> dict | None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self.size:
            self.size, self.requests = size, [r for line in self.path.read_text().splitlines() for r in json.loads(line)]
        return rng.choice(self.requests) if self.requests else None


def collate(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero-padded f32 frames and lengths. Zeros past the end keep a clip independent of its neighbours."""
    lengths = torch.tensor([len(e.features) for e in examples])
    frames = torch.zeros(len(examples), int(lengths.max()), 512)
    for row, example in zip(frames, examples):
        row[: len(example.features)] = example.features
    return frames, lengths
