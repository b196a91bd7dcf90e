"""Stage align: the adaptor alone, by CTC and percepts against the decoder's frozen token embeddings.

The decoder does not run, so this is the cheapest hour of training there is. Takes in new shards as
`encode` writes them. Resumes from its checkpoint.

    python -m scripts.train.align --steps 4000 [--from adaptor.safetensors]

With --rate 0 only blank, scales and percepts are learnt, for `instruct` to go on from an adaptor that came without them.
"""

import json
import random

import jiwer
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import Aligner, Pieces
from .dataset import Training, collate, read_features
from .decoder import Weights
from .measure import plain


@torch.no_grad()
def evaluate(aligner: Aligner, pieces: Pieces, paths: list) -> dict:
    """Greedy word errors, and accuracy per percept, of each held-out set."""
    aligner.eval()
    result = {}
    for path in paths:
        examples = read_features(path)
        said, heard, right, asked = [], [], {}, {}
        for start in range(0, len(examples), 8):
            batch = examples[start : start + 8]
            frames, lengths = collate(batch)
            out, lengths = aligner.adaptor(frames), (lengths + 1) // 2
            for row, example in enumerate(batch):
                mine = out[row, : lengths[row]]
                if example.facts["text"]:
                    said.append(plain(example.facts["text"]))
                    heard.append(pieces.text(aligner.scores(mine).argmax(-1).tolist())[0])
                for name, is_right in aligner.felt(mine.mean(0), example.facts).items():
                    asked[name] = asked.get(name, 0) + 1
                    right[name] = right.get(name, 0) + is_right
        result[path.stem] = {"wer": round(100 * jiwer.wer(said, heard), 1)} | {n: round(100 * right[n] / asked[n]) for n in asked}
    aligner.train()
    return result


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000, help="length of the learning rate's schedule")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--head-rate", type=float, default=2.4e-3, help="the same of blank, scales and percepts, which begin from nothing")
    parser.add_argument("--frames", type=int, default=2400, help="25 Hz frames a batch")
    parser.add_argument("--drop", type=float, default=0.1, help="share of the encoder's values left out")
    parser.add_argument("--percepts", type=float, default=0.25, help="weight of the percept loss")
    parser.add_argument("--from", dest="begin", type=common.Path, help="adaptor.safetensors to start from")
    parser.add_argument("--sets", nargs="*", default=["known.block", "unseen.block", "mixed.block"])
    parser.add_argument("--every", type=float, default=6, help="minutes between checkpoints")
    args = parser.parse_args()
    common.start(args)
    checkpoint, log = args.work / "align.pt", args.work / "align.jsonl"
    file, pause = Weights(args.work), common.Pause(args.pause_file)
    training = Training(args.work / "features")
    state = torch.load(checkpoint) if checkpoint.exists() else None
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    pieces = Pieces(tokenizer, state["texts"] if state else [e.facts["text"] for e in training.examples])
    texts = state["texts"] if state else [e.facts["text"] for e in training.examples]
    aligner = Aligner(pieces, file.tensor("token_embd.weight"))
    if args.begin:
        aligner.begin(args.begin, training.batches(args.frames, random.Random(args.seed))[0])
    alone = [p for n, p in aligner.named_parameters() if not n.startswith("adaptor")]
    optimizer = torch.optim.AdamW(
        [{"params": aligner.adaptor.parameters(), "top": args.rate}, {"params": alone, "top": args.head_rate}],
        lr=args.rate, betas=(0.9, 0.98), weight_decay=0.01,
    )
    step, spent, rng = 0, 0.0, random.Random(args.seed)
    if state:
        aligner.load_state_dict(state["aligner"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    clock, mean = common.Clock(pause, spent), None
    due = clock.seconds() + 60 * args.every

    def save() -> None:
        common.save_atomically(
            {"aligner": aligner.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": clock.seconds(), "texts": texts},
            checkpoint,
        )
        paths = [args.work / "features" / f"{name}.npz" for name in args.sets]
        record = {"step": step, "minutes": round(clock.seconds() / 60, 1), "hours": round(training.hours(), 1), "losses": mean}
        record |= evaluate(aligner, pieces, [p for p in paths if p.exists()])
        common.append_json(log, record)
        tqdm.write(json.dumps(record))

    bar = tqdm(total=args.steps, initial=step)
    while step < args.steps:
        training.refresh()
        for batch in training.batches(args.frames, rng)[: args.steps - step]:
            pause.wait()
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * common.schedule(step, args.steps, warm=100)
            frames, lengths = collate(batch)
            facts = [e.facts for e in batch]
            ctc, felt, size = aligner.losses(frames, lengths, facts, [pieces.target(f) for f in facts], args.drop)
            optimizer.zero_grad()
            (ctc + args.percepts * felt + 0.02 * size).backward()
            torch.nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
            optimizer.step()
            step += 1
            now = [round(v.item(), 3) for v in (ctc, felt, size)]
            mean = [round(0.97 * a + 0.03 * b, 3) for a, b in zip(mean, now)] if mean else now
            bar.set_postfix(ctc=mean[0], percepts=mean[1], hours=f"{training.hours():.1f}", refresh=False)
            bar.update()
            if clock.seconds() > due:
                save()
                due = clock.seconds() + 60 * args.every
    save()


if __name__ == "__main__":
    main()
