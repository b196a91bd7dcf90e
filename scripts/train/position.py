"""Stage position: takes the place in time out of an adaptor that was trained on short clips only.

Whisper's frames carry where they stand in the clip. An adaptor that never heard anything past 9 s makes embeddings
a thousand times too large of what comes later, and the decoder loops. The mean frame at each time, less the mean frame
of the first seconds, spans where the place is written; --rank directions of it are projected out of what the adaptor reads
(folded into its convolution, so nothing is added to the runtime), and a short training holds the result to what the
adaptor made of the first seconds before. No text and no decoder is needed.

    python -m scripts.train.position --from adaptor.safetensors --lora lora.safetensors --out DIR
"""

import json
import random
import shutil

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from . import common
from .adaptor import Adaptor
from .dataset import Example, Training, collate

STEP = 12  # frames a mean is taken over


def directions(examples: list[Example], early: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean frame from 1 s to `early`, and orthonormal directions in which the mean frame moves with time."""
    longest = max(len(e.features) for e in examples)
    sums, counts = torch.zeros(longest, 512), torch.zeros(longest)
    for example in examples:
        sums[: len(example.features)] += example.features.float()
        counts[: len(example.features)] += 1
    mean = sums[25:early].sum(0) / counts[25:early].sum()
    moved = []
    for start in range(24, longest, STEP):
        count = counts[start : start + STEP].sum()
        if count > 60:
            moved.append((sums[start : start + STEP].sum(0) / count - mean) * count.sqrt())
    return mean, torch.linalg.svd(torch.stack(moved), full_matrices=False).Vh[:rank]


def without(frames: torch.Tensor, mean: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """Frames with those directions at their mean; padding stays zero."""
    inside = (frames != 0).any(-1, keepdim=True)
    return frames - (frames - mean) @ away.T @ away * inside


def fold(adaptor: Adaptor, mean: torch.Tensor, away: torch.Tensor) -> Adaptor:
    """The adaptor that makes of frames what `adaptor` makes of the same `without` those directions."""
    folded = Adaptor()
    folded.load_state_dict(adaptor.state_dict())
    with torch.no_grad():
        weight = adaptor.conv.weight
        folded.conv.weight -= torch.einsum("ojk,rj,ri->oik", weight, away, away)
        folded.conv.bias += torch.einsum("oik,ri,r->o", weight, away, away @ mean)
    return folded


@torch.no_grad()
def compare(adaptor: Adaptor, before: Adaptor, examples: list[Example], early: int) -> dict:
    """Distance from the adaptor before in the first seconds, as a share of its embeddings; size of embeddings after them."""
    apart, size, late = 0.0, 0.0, []
    for example in examples:
        frames, place = example.features.float()[None], early // 2 - 2
        new, old = adaptor(frames)[0], before(frames)[0]
        apart, size = apart + ((new - old)[:place] ** 2).sum().item(), size + (old[:place] ** 2).sum().item()
        late.append((new[early // 2 + 6 :] ** 2).sum(1))
    sizes = torch.cat(late)
    return {"apart": round(apart / size, 4), "late size": round(sizes.median().item(), 2), "late largest": round(sizes.max().item())}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--from", dest="begin", type=common.Path, required=True, help="adaptor.safetensors")
    parser.add_argument("--lora", type=common.Path, required=True, help="lora.safetensors, copied beside it")
    parser.add_argument("--out", type=common.Path, required=True)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--early", type=float, default=8.0, help="seconds that the adaptor was trained on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-4)
    args = parser.parse_args()
    common.start(args)
    early, rng, pause = round(25 * args.early), random.Random(args.seed), common.Pause(args.pause_file)
    examples = [e for e in Training(args.work / "features").examples if e.facts["text"]]
    held, rest = examples[::4], [Example(e.features[:early], e.facts) for i, e in enumerate(examples) if i % 4]
    mean, away = directions(examples, early, args.rank)
    before, inner = Adaptor().load(args.begin), Adaptor().load(args.begin)
    log = args.work / "position.jsonl"
    common.append_json(log, {"form": "before"} | compare(before, before, held, early))
    common.append_json(log, {"form": "projected"} | compare(fold(inner, mean, away), before, held, early))
    optimizer = torch.optim.AdamW(inner.parameters(), betas=(0.9, 0.98), weight_decay=0)
    for step in tqdm(range(args.steps)):
        pause.wait()
        frames, lengths = collate(rng.sample(rest, 8))
        inside = torch.arange((frames.shape[1] + 1) // 2)[None] < (lengths[:, None] + 1) // 2
        with torch.no_grad():
            wanted = before(frames)
        loss = ((inner(without(frames, mean, away)) - wanted)[inside] ** 2).sum() / (wanted[inside] ** 2).sum()
        for group in optimizer.param_groups:
            group["lr"] = args.rate * common.schedule(step, args.steps, warm=20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folded = fold(inner, mean, away)
    record = {"form": "trained", "rank": args.rank, "steps": args.steps, "clips": len(examples)} | compare(folded, before, held, early)
    common.append_json(log, record)
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {f"adapter.{n}": t.half().contiguous() for n, t in folded.state_dict().items()}
    save_file(tensors, args.out / "adaptor.safetensors")
    shutil.copyfile(args.lora, args.out / "lora.safetensors")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
