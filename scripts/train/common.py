"""What every stage shares: seeds, threads, the pause file, progress, checkpoints."""

import argparse
import json
import os
import random
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

RATE = 16_000


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options common to all stages."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for data, features and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause-file", type=Path, help="sleep for as long as this file exists")
    return parser


def start(args: argparse.Namespace) -> None:
    """Seeds every generator and bounds the threads."""
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)


class Pause:
    """Sleeps while a file exists, so that a long run can give way to a measurement beside it."""

    def __init__(self, path: Path | None):
        self.path = path
        self.slept = 0.0

    def wait(self) -> None:
        while self.path is not None and self.path.exists():
            time.sleep(1)
            self.slept += 1


class Clock:
    """Time spent working, pauses left out, carried across restarts by `spent`."""

    def __init__(self, pause: Pause, spent: float = 0.0):
        self.pause, self.spent, self.begun = pause, spent, time.time()

    def seconds(self) -> float:
        return self.spent + time.time() - self.begun - self.pause.slept


def schedule(step: float, steps: int, warm: int) -> float:
    """Share of the peak learning rate: a linear start, then constant, then a straight line to zero over the last third.
    Counted in steps, so that a slow or shared machine trains the same model; while it is constant, a run that
    is resumed may be given another end."""
    return max(0.0, min(1, (step + 1) / warm, (steps - step) / (steps / 3)))


@lru_cache
def product_type() -> torch.dtype:
    """What frozen matrices are multiplied in, by which is faster here: bf16 is four times as fast on Zen 5, a third slower than f32 on
    Emerald Rapids, which has instructions for it too, and six times as slow where there are none. Sums are f32 in all."""
    if not torch.cpu._is_avx512_bf16_supported():
        return torch.float32

    def seconds(kind: torch.dtype) -> float:
        x, weight = torch.randn(256, 896).to(kind), torch.randn(4864, 896).to(kind)
        taken = []
        for _ in range(5):
            begun = time.perf_counter()
            F.linear(x, weight)
            taken.append(time.perf_counter() - begun)
        return min(taken)

    return min((torch.float32, torch.bfloat16), key=seconds)


def save_atomically(state: dict, path: Path) -> None:
    """A checkpoint is whole or absent: a killed run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def append_json(path: Path, record: dict) -> None:
    """One line of a stage's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
