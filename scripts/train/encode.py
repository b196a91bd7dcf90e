"""Stage encode: clips to the frozen encoder's 25 Hz features, once.

Every clip is encoded in blocks, as a live stream must be heard. Runs beside `data`: with --follow it waits for shards still to come.

    python -m scripts.train.encode --whisper model.bin --block 2 --left 8
"""

import json
import time
from zlib import crc32

import numpy as np
import torch
from tqdm import tqdm

from . import common
from .dataset import read_clips
from .whisper import Form, Whisper, log_mel

BATCH_SECONDS = 40


def encode_clips(whisper: Whisper, clips: list, form: Form) -> list[np.ndarray]:
    """Features of each clip; clips of like length share a batch."""
    out: list = [None] * len(clips)
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    while order:
        batch = [order.pop()]
        longest = len(clips[batch[0]]) / common.RATE
        while order and (len(batch) + 1) * longest <= BATCH_SECONDS:
            batch.append(order.pop())
        mels = [log_mel(clips[i].astype(np.float32) / 32768, form.peak) for i in batch]
        for i, features in zip(batch, whisper.encode(mels, form)):
            out[i] = features.to(torch.float16).numpy()
    return out


def encode_shard(whisper: Whisper, source, target, form: Form) -> None:
    clips, facts = zip(*read_clips(source))
    features = encode_clips(whisper, clips, form)
    temporary = target.with_suffix(".tmp.npz")
    np.savez(temporary, features=np.concatenate(features), lengths=[len(f) for f in features], facts=json.dumps(facts))
    temporary.rename(target)


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--whisper", type=common.Path, required=True)
    parser.add_argument("--block", type=float, default=2.0, help="seconds")
    parser.add_argument("--left", type=float, default=8.0, help="seconds of left context, negative for all")
    parser.add_argument("--peak", type=float, default=1.5, help="constant log10-mel maximum")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--follow", type=float, default=0, help="minutes to go on waiting for new shards")
    args = parser.parse_args()
    common.start(args)
    pause, whisper = common.Pause(args.pause_file), Whisper(args.whisper, common.product_type())
    block = Form(args.block, None if args.left < 0 else args.left, args.peak)
    folder, until = args.work / "features", time.time() + 60 * args.follow
    folder.mkdir(exist_ok=True)
    while True:
        waiting = []
        for source in sorted((args.work / "clips").glob("*-[0-9]*[0-9].npz"), key=lambda p: p.stem.startswith("train")):
            stem = source.stem if source.stem.startswith("train") else source.stem[:-5]
            waiting.append((source, folder / f"{stem}.block.npz"))
        waiting = [w for w in waiting if crc32(w[0].name.encode()) % args.workers == args.worker and not w[1].exists()]
        for source, target in tqdm(waiting, desc="shards", disable=not waiting):
            pause.wait()
            encode_shard(whisper, source, target, block)
        if time.time() > until:
            return
        time.sleep(10)


if __name__ == "__main__":
    main()
