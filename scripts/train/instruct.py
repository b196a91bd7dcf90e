"""Stage instruct: adaptor and low-rank updates together, the decoder in the loop, all tasks from the first step.

Each clip's sound stands once in the packed row and every task on it is a branch. The alignment losses go on
beside, on a batch of other clips that costs little as the decoder does not run on it: the adaptor keeps the words,
and the percepts that the decoder does not yet ask for. Resumes from its checkpoint, which SIGTERM writes too.

    python -m scripts.train.instruct --steps 2000 [--from adaptor.safetensors --from-lora lora.safetensors]

With --workers N, N such processes average their gradients: on a shared machine single threads of one process would
wait for one another at every product, whole processes only once a step.
"""

import json
import random
import signal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import Aligner, Pieces
from .dataset import Example, Training, Typed, collate
from .decoder import Decoder, Span, Weights
from .tasks import EMPTY, END, REST, TYPED, Branch, branches, opening

COMMON, SPECIAL = 40_000, torch.arange(151_643, 151_665)


class Pack:
    """Builds one row out of clips and their branches, with the masks that keep them apart."""

    def __init__(self, tokenizer: Tokenizer, embeddings: torch.Tensor):
        self.tokenizer, self.embeddings = tokenizer, embeddings
        self.parts, self.branch, self.place, self.ends = [], [], [], []
        self.rows, self.labels, self.weights = [], [], []

    def ids(self, text: str | list[int]) -> list[int]:
        """Of a text, or of what is in tokens already."""
        return self.tokenizer.encode(text).ids if isinstance(text, str) else text

    def _put(self, part: torch.Tensor, branch: int, start: int) -> int:
        self.parts.append(part)
        self.branch += [branch] * len(part)
        self.place += range(start, start + len(part))
        return start + len(part)

    def add(self, sound: torch.Tensor, system: str, tasks: list) -> None:
        head = self.ids(opening(system))
        trunk = self._put(self.embeddings[head], 0, 0)
        trunk = self._put(sound, 0, trunk)
        for number, task in enumerate(tasks, 1):
            after = self._put(self.embeddings[self.ids(task.instruction + REST)], number, trunk)
            ids, weights = [], []
            for text, weight in [*task.target, *([(END, 1.0)] if task.ends else [])]:
                piece = self.ids(text)
                ids += piece
                weights += [weight] * len(piece)
            first = len(self.place) - 1
            self._put(self.embeddings[ids[:-1]], number, after)
            self.rows += range(first, first + len(ids))
            self.labels += ids
            self.weights += weights
        self.ends.append(len(self.place))

    def write(self, request: dict, rng: random.Random) -> None:
        """What the decoder alone answers to a typed request (`replies`), with and without a thought before it: there is no voice in it."""
        think = EMPTY if rng.random() < 0.5 else TYPED
        self.add(self.embeddings[self.ids(request["text"])], request["system"], [Branch("", [(think, 0.5), (request["reply"], 1.0)], ends=request["whole"])])

    def spans(self) -> list[Span]:
        """One a clip: each token sees what stands before it on the trunk and on its own branch."""
        place, branch = torch.tensor(self.place), torch.tensor(self.branch)
        made = []
        for start, end in zip([0, *self.ends], self.ends):
            p, b = place[start:end], branch[start:end]
            made.append(Span(start, end, (p[None] <= p[:, None]) & ((b[None] == 0) | (b[None] == b[:, None]))))
        return made

    def losses(self, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy and weight of each target token, against the commonest tokens (lowest ids in byte-pair order), the
        special ones, and every other that this pack wants: a fifth of the output matrix."""
        hidden = decoder(torch.cat(self.parts)[None], torch.tensor(self.place)[None], self.spans())[0]
        wanted = torch.tensor(self.labels)
        kept = torch.cat([torch.arange(COMMON), SPECIAL, wanted]).unique()
        losses = F.cross_entropy(decoder.scores(hidden[self.rows], decoder.head[kept]), torch.searchsorted(kept, wanted), reduction="none")
        return losses, torch.tensor(self.weights)

    def loss(self, decoder: Decoder) -> torch.Tensor:
        losses, weights = self.losses(decoder)
        return (losses * weights).sum() / weights.sum()


def packs(training: Training, rng: random.Random, tokens: int, shortest: float, longest: float):
    """Endless packs of (examples, their systems and branches), at most about `tokens` long, of clips up to `longest` seconds; of those
    under `shortest` one in four."""
    while True:
        training.refresh()
        order = list(training.examples)
        rng.shuffle(order)
        batch, size = [], 0
        for example in order:
            if len(example.features) < 25 * shortest and rng.random() < 0.75:
                continue
            system, tasks = branches(example.facts, rng)
            if len(example.features) > 25 * longest or not tasks:
                continue
            length = len(example.features) // 2 + sum(20 + sum(len(t) for t, _ in task.target) // 4 for task in tasks)
            if batch and size + length > tokens:
                yield batch
                batch, size = [], 0
            batch.append((example, system, tasks))
            size += length


def beside(training: Training, rng: random.Random, frames: int):
    """Endless batches for the alignment losses."""
    while True:
        yield from training.batches(frames, rng)


def average(tensors: list) -> None:
    """Averages over all workers, in place."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, (flat / dist.get_world_size()).split([t.numel() for t in tensors])):
        tensor.copy_(part.view_as(tensor))


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="length of the learning rate's schedule")
    parser.add_argument("--minutes", type=float, help="end by this clock, if it is earlier")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scale", type=float, default=2.0, help="of the low-rank product: alpha / rank")
    parser.add_argument("--targets", nargs="*", default=list("qkvo"), help="of q k v o gate up down")
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate of the low-rank updates")
    parser.add_argument("--adaptor-rate", type=float, default=1e-4)
    parser.add_argument("--head-rate", type=float, default=1e-3, help="the same of blank, scales and percepts, which may begin from nothing")
    parser.add_argument("--tokens", type=int, default=600, help="length of a packed row")
    parser.add_argument("--ctc", type=float, default=0.2, help="weight of the words among the alignment losses; 0 for an adaptor that came without classes")
    parser.add_argument("--percepts", type=float, default=0.1, help="weight of the percepts among them")
    parser.add_argument("--typed", type=float, default=0.5, help="typed requests a packed row, of replies.jsonl")
    parser.add_argument("--shortest", type=float, default=0, help="seconds of a clip; of shorter ones one in four is taken")
    parser.add_argument("--longest", type=float, default=20, help="seconds of a clip")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--port", type=int, default=29_500, help="where workers meet")
    parser.add_argument("--beside", type=int, default=1600, help="25 Hz frames a batch that the alignment losses are taken on")
    parser.add_argument("--from", dest="begin", type=common.Path, help="adaptor.safetensors to start from, instead of align.pt")
    parser.add_argument("--from-lora", type=common.Path, help="lora.safetensors to start from")
    parser.add_argument("--every", type=float, default=6, help="minutes between checkpoints")
    args = parser.parse_args()
    common.start(args)
    if args.workers > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{args.port}", rank=args.worker, world_size=args.workers)
    checkpoint, log = args.work / "instruct.pt", args.work / "instruct.jsonl"
    pause, weights = common.Pause(args.pause_file), Weights(args.work)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    training = Training(args.work / "features")
    state = torch.load(checkpoint) if checkpoint.exists() else None
    begin = state or (None if args.begin else torch.load(args.work / "align.pt"))
    texts = begin["texts"] if begin else [e.facts["text"] for e in training.examples]
    pieces = Pieces(tokenizer, texts)
    typed = Typed(args.work / "replies.jsonl")
    decoder = Decoder(weights, args.targets, args.rank, args.scale)
    aligner = Aligner(pieces, decoder.embeddings)
    if begin:
        aligner.load_state_dict(begin["aligner"])
    else:
        aligner.begin(args.begin, training.batches(args.beside, random.Random(args.seed))[0])
    if state or args.from_lora:
        decoder.load_low_rank(state["low_rank"] if state else load_file(args.from_lora))
    updates, heads = list(decoder.parameters()), [p for n, p in aligner.named_parameters() if not n.startswith("adaptor")]
    rates = args.rate, args.adaptor_rate, args.head_rate
    optimizer = torch.optim.AdamW(
        [{"params": p, "top": top} for p, top in zip((updates, aligner.adaptor.parameters(), heads), rates)], betas=(0.9, 0.98), weight_decay=0.0
    )
    step, clips, spent = 0, 0, 0.0
    if state:
        optimizer.load_state_dict(state["optimizer"])
        for group, top in zip(optimizer.param_groups, rates):
            group["top"] = top
        step, clips, spent = state["step"], state["clips"], state["spent"]
    rng = random.Random(args.seed + step + 1_000_003 * args.worker)
    torch.manual_seed(rng.randrange(2**31))
    side = beside(training, rng, args.beside)
    clock, mean = common.Clock(pause, spent), None
    due = clock.seconds() + 60 * args.every
    learnt = [*updates, *aligner.parameters()]
    stopped, late = [], 0.0
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

    def save() -> None:
        if args.worker:
            return
        state = {"aligner": aligner.state_dict(), "low_rank": {n: p.detach().clone() for n, p in decoder.low_rank().items()}}
        state |= {"optimizer": optimizer.state_dict(), "step": step, "clips": clips, "spent": clock.seconds(), "texts": texts}
        common.save_atomically(state, checkpoint)
        common.append_json(log, {"step": step, "clips": clips, "minutes": round(clock.seconds() / 60, 1), "hours": round(training.hours(), 1), "losses": mean})

    bar = tqdm(total=args.steps, initial=step)
    for batch in packs(training, rng, args.tokens, args.shortest, args.longest):
        done = max(step, late * args.steps)
        if done >= args.steps:
            break
        pause.wait()
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * common.schedule(done, args.steps, warm=10)
        examples: list[Example] = [example for example, _, _ in batch]
        frames, lengths = collate(examples)
        sounds, lengths = aligner.adaptor(F.dropout(frames, 0.05)), (lengths + 1) // 2
        pack = Pack(tokenizer, decoder.embeddings)
        for sound, length, (_, system, tasks) in zip(sounds, lengths, batch):
            pack.add(sound[:length], system, tasks)
        if rng.random() < args.typed and (request := typed.pick(rng)):
            pack.write(request, rng)
        said = pack.loss(decoder)
        others = next(side)
        facts = [e.facts for e in others]
        targets = [pieces.target(f) for f in facts] if args.ctc else None
        ctc, felt, size = aligner.losses(*collate(others), facts, targets, drop=0.05)
        for parameter in learnt:  # all of them in every worker, whatever its clips could teach
            parameter.grad = torch.zeros_like(parameter)
        (said + args.ctc * ctc + args.percepts * felt + 0.02 * size).backward()
        end = torch.tensor([float(bool(stopped)), clock.seconds() / 60 / args.minutes if args.minutes else 0.0])
        if args.workers > 1:
            average([p.grad for p in learnt] + [end])
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        step, clips = step + 1, clips + len(batch) * args.workers
        now = [round(v.item(), 3) for v in (said, ctc, felt)]
        mean = [round(0.95 * a + 0.05 * b, 3) for a, b in zip(mean, now)] if mean else now
        bar.set_postfix(clips=clips, said=mean[0], ctc=mean[1], percepts=mean[2], refresh=False)
        bar.update()
        if clock.seconds() > due:
            save()
            due = clock.seconds() + 60 * args.every
        late = end[1].item()
        if end[0] > 0:
            break
    save()
    print(json.dumps({"step": step, "clips": clips, "losses": mean}))


if __name__ == "__main__":
    main()
