"""Stage position: takes the place in time out of an adaptor that was trained on short clips only, and writes percepts into it.

Whisper's frames carry where they stand in the clip. An adaptor that never heard anything past 9 s makes embeddings
a thousand times too large of what comes later, and the decoder loops. The mean frame at each time, less the mean frame
of the first seconds, spans where the place is written; --rank directions of it are projected out of what the adaptor reads
(folded into its convolution, so nothing is added to the runtime), and a short training holds the result to what the
adaptor made of the first seconds before. Beside that the clip's mean embedding learns to lie nearest to the decoder's own word for what is
true of it (--percepts), so that who speaks, how and over which noise is there to be read when the decoder comes into the loop. The decoder does not run.
Writes align.pt too, for `instruct` to go on from.

    python -m scripts.train.position --from adaptor.safetensors --lora lora.safetensors --out DIR
"""

import json
import random
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import PERCEPTS, Adaptor, Aligner, Pieces
from .dataset import Example, Training, collate
from .decoder import Weights

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


@torch.no_grad()
def felt(aligner: Aligner, examples: list[Example], prepare) -> dict:
    """Share of the clips whose mean embedding lies nearest to the true word, per percept, in percent."""
    heard = [aligner.felt(aligner.adaptor(prepare(e.features.float()[None]))[0].mean(0), e.facts) for e in examples]
    asked = {name: [felt[name] for felt in heard if name in felt] for name in PERCEPTS}
    return {name: round(100 * sum(right) / max(1, len(right))) for name, right in asked.items()}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--from", dest="begin", type=common.Path, required=True, help="adaptor.safetensors")
    parser.add_argument("--lora", type=common.Path, required=True, help="lora.safetensors, copied beside it")
    parser.add_argument("--out", type=common.Path, required=True)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--early", type=float, default=8.0, help="seconds that the adaptor was trained on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--percepts", type=float, default=0.0, help="weight of the percepts beside the distance")
    args = parser.parse_args()
    common.start(args)
    early, rng, pause = round(25 * args.early), random.Random(args.seed), common.Pause(args.pause_file)
    training = Training(args.work / "features")
    examples = training.examples
    held, training.examples = examples[::10], [e for i, e in enumerate(examples) if i % 10]
    spoken = [e for e in held if e.facts["text"]]
    mean, away = directions([e for e in examples if e.facts["text"]], early, args.rank)
    before = Adaptor().load(args.begin)
    aligner = Aligner(Pieces(Tokenizer.from_file(str(args.work / "tokenizer.json")), []), Weights(args.work).tensor("token_embd.weight"))
    aligner.begin(args.begin, training.examples[:16])
    log, inner = args.work / "position.jsonl", aligner.adaptor
    common.append_json(log, {"form": "before"} | compare(before, before, spoken, early))
    common.append_json(log, {"form": "projected"} | compare(fold(inner, mean, away), before, spoken, early))
    heads = [p for n, p in aligner.named_parameters() if not n.startswith("adaptor")]
    groups = [{"params": inner.parameters(), "top": args.rate}, {"params": heads, "top": 10 * args.rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0)
    queue: list = []
    for step in tqdm(range(args.steps)):
        pause.wait()
        queue = queue or training.batches(1600, rng)
        batch = queue.pop()
        frames, lengths = collate(batch)
        with torch.no_grad():
            wanted = before(frames[:, :early])
        seen = without(frames, mean, away)
        place = torch.arange(wanted.shape[1])[None]
        inside = place < (lengths[:, None].clamp(max=early) + 1) // 2 - (lengths[:, None] > early).long()
        loss = ((inner(seen)[:, : wanted.shape[1]] - wanted)[inside] ** 2).sum() / (wanted[inside] ** 2).sum()
        if args.percepts:
            loss = loss + args.percepts * aligner.losses(seen, lengths, [e.facts for e in batch], None, drop=0.1)[1]
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * common.schedule(step, args.steps, warm=20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folded = fold(inner, mean, away)
    record = {"form": "trained", "rank": args.rank, "steps": args.steps, "clips": len(examples)} | compare(folded, before, spoken, early)
    record |= {"percepts": felt(aligner, held, lambda frames: without(frames, mean, away))} if args.percepts else {}
    common.append_json(log, record)
    args.out.mkdir(parents=True, exist_ok=True)
    inner.load_state_dict(folded.state_dict())
    common.save_atomically({"aligner": aligner.state_dict(), "texts": []}, args.work / "align.pt")
    tensors = {f"adapter.{n}": t.half().contiguous() for n, t in folded.state_dict().items()}
    save_file(tensors, args.out / "adaptor.safetensors")
    shutil.copyfile(args.lora, args.out / "lora.safetensors")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
