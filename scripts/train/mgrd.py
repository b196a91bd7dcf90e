"""Stage mgrd: Modality-Grounded Reasoning Distillation at nano's scale (Step-Audio-R1, arXiv 2511.15848, section 4; ours where noted).

Each iteration asks questions that no transcript answers about clips whose truths are known by construction, and lets the
model that is think --samples times about each. A chain is kept when it is grounded (names what is true of this clip and nothing that is
false: by construction, which is stronger than the paper's judge), coherent, and ends in the right answer. Then
the model learns by heart one kept chain a question (distillation), and from all of them by reward, 0.8 for a right answer and 0.2 for reasoning:
advantages within the group of one question, PPO's clip at 0.2, no KL term, questions that neither all chains nor none pass.
Unlike the paper's, there is no text-only reasoning beside, as nano's decoder writes none worth keeping. Resumes after the last whole iteration.

    python -m scripts.train.mgrd --iterations 3 --questions 200
"""

import json
import random
import re
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import Adaptor
from .dataset import Example, Training, collate
from .decoder import Decoder, Weights, form, generate
from .instruct import Pack
from .tasks import BEGIN, CONTOUR, END, PACE, PITCH, REST, SOUND, VOLUME, WHO, Branch, ask, heard, named, questions

BEGUN = "<think>\n"
PHRASES = {phrase: name for name, table in (("who", WHO), ("pitch", PITCH), ("pace", PACE), ("volume", VOLUME), ("noise", SOUND), ("contour", CONTOUR)) for phrase in table.values()}
PHRASES |= {"over a telephone": "telephone", "an echoing room": "echo", "silence": "noise"}
SETTLED = {"telephone", "echo", "event", "noise"}  # these are false where they are not among a clip's truths; others may just be unknown
NO_NEWS = {"a voice", "clean sound", "medium volume", "normal pace"}  # true often enough to be named by habit


@dataclass
class Verdict:
    """What is to be said of one chain and the reply behind it."""

    true: int
    false: int
    coherent: bool
    right: bool

    def passes(self) -> bool:
        return self.true > 0 and not self.false and self.coherent and self.right

    def reward(self) -> float:
        return 0.8 * self.right + 0.2 * (self.coherent and self.true + self.false > 0)


def judge(text: str, facts: dict, answer: str) -> Verdict:
    """Of all that stands behind `<think>`: percepts it names, by their truth; whether it is whole; whether the reply is right."""
    chain, closed, reply = text.partition("</think>")
    truths, true, false = heard(facts), 0, 0
    listed = named(chain)
    for phrase in listed:
        event = re.search(r"\b(beep|knock)s?\b", phrase)
        name = "event" if event else PHRASES.get(phrase)
        if name is None:
            continue
        if phrase in truths.values():
            true += phrase not in NO_NEWS
        elif name in truths or name in SETTLED:
            false += 1
    words = chain.split()
    coherent = bool(closed) and bool(listed) and 2 < len(words) < 70 and len(set(words)) > len(words) / 3
    right = answer.rstrip(".").lower() in reply.lower()
    return Verdict(true, false, coherent, right)


class Learner:
    """The model that is sampled from and learns."""

    def __init__(self, args):
        self.args, self.tokenizer = args, Tokenizer.from_file(str(args.work / "tokenizer.json"))
        mine = args.work / "mgrd.pt"
        state = torch.load(mine if mine.exists() else args.work / "instruct.pt")
        self.decoder = Decoder(Weights(args.work), *form(state["low_rank"]), args.scale)
        self.decoder.load_low_rank(state["low_rank"])
        self.adaptor = Adaptor()
        self.adaptor.load_state_dict({n.removeprefix("adaptor."): t for n, t in state["aligner"].items() if n.startswith("adaptor.")})
        self.state, self.iteration = state, state.get("iteration", 0)
        self.learnt = list(self.decoder.parameters())  # the adaptor stays: what is to be learnt here is thinking, not hearing
        self.optimizer = torch.optim.AdamW(self.learnt, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def sounds(self, examples: list[Example]) -> list[torch.Tensor]:
        frames, lengths = collate(examples)
        return [s[: (n + 1) // 2] for s, n in zip(self.adaptor(frames), lengths)]

    def embed(self, text: str) -> torch.Tensor:
        return self.decoder.embeddings[self.tokenizer.encode(text).ids]

    def sample(self, group: list, temperature: float) -> list[list[tuple[list[int], list[float]]]]:
        """`--samples` continuations (tokens, their log-probabilities) of each (example, question, answer)."""
        prompts = []
        for sound, (_, question, _) in zip(self.sounds([e for e, _, _ in group]), group):
            prompt = torch.cat([self.embed(BEGIN), sound, self.embed("\n" + question + REST + BEGUN)])
            prompts += [prompt] * self.args.samples
        out = generate(self.decoder, prompts, self.tokenizer.token_to_id(END), self.args.longest, temperature)
        return [out[i : i + self.args.samples] for i in range(0, len(out), self.args.samples)]

    def learn(self, batch: list, clip: float | None) -> float:
        """One step on [(example, question, [(tokens, log-probabilities, weight)])]."""
        pack = Pack(self.tokenizer, self.decoder.embeddings)
        for sound, (_, question, chains) in zip(self.sounds([e for e, _, _ in batch]), batch):
            pack.add(sound, "", [Branch("\n" + question, [(BEGUN, 0.0), (tokens, weight)], ends=False) for tokens, _, weight in chains])
        losses, weights = pack.losses(self.decoder)
        if clip is not None:
            old = torch.tensor([p for _, _, chains in batch for tokens, past, _ in chains for p in [*[0.0] * len(pack.ids(BEGUN)), *past]])
            ratio = (-losses - old).exp()
            losses, weights = -torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights), (weights != 0).float()
        loss = (losses * weights).sum() / weights.sum().clamp(min=1)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimizer.step()
        return loss.item()

    def save(self, iteration: int) -> None:
        low_rank = {n: p.detach().clone() for n, p in self.decoder.low_rank().items()}
        common.save_atomically(self.state | {"low_rank": low_rank, "iteration": iteration}, self.args.work / "mgrd.pt")


def asked(training: Training, rng: random.Random, count: int, longest: float) -> list:
    """`count` of (example, question, answer), all kinds alike."""
    kinds: dict[str, list] = {}
    for example in training.examples:
        if len(example.features) <= 25 * longest:
            for kind, (answer, readily) in questions(example.facts).items():
                if rng.random() < readily:
                    kinds.setdefault(kind, []).append((example, answer))
    made = []
    while len(made) < count:
        kind = rng.choice(list(kinds))
        example, answer = rng.choice(kinds[kind])
        made.append((example, ask(kind, example.facts, rng), answer))
    return made


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--questions", type=int, default=200, help="an iteration")
    parser.add_argument("--samples", type=int, default=8, help="chains a question")
    parser.add_argument("--group", type=int, default=8, help="questions that are thought about together")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--longest", type=int, default=60, help="tokens of a chain and its reply")
    parser.add_argument("--seconds", type=float, default=9, help="of a clip, at most")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--scale", type=float, default=2.0, help="of the low-rank product: alpha / rank")
    args = parser.parse_args()
    common.start(args)
    pause, learner = common.Pause(args.pause_file), Learner(args)
    training = Training(args.work / "features")
    for iteration in range(learner.iteration + 1, args.iterations + 1):
        rng = random.Random(args.seed + 1_000_003 * iteration)
        torch.manual_seed(rng.randrange(2**31))
        todo, kept, graded, verdicts = asked(training, rng, args.questions, args.seconds), [], [], []
        for start in tqdm(range(0, len(todo), args.group), desc=f"iteration {iteration}: thinking"):
            pause.wait()
            group = todo[start : start + args.group]
            for (example, question, answer), chains in zip(group, learner.sample(group, args.temperature)):
                judged = [judge(learner.tokenizer.decode(tokens, skip_special_tokens=False), example.facts, answer) for tokens, _ in chains]
                verdicts += judged
                passing = [c for c, v in zip(chains, judged) if v.passes()]
                if passing:
                    kept.append((example, question, [(*rng.choice(passing), 1.0)]))
                rewards = torch.tensor([v.reward() for v in judged])
                if 0 < sum(v.right for v in judged) < len(judged):
                    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
                    graded.append((example, question, [(*c, a.item()) for c, a in zip(chains, advantages)]))
        record = {"iteration": iteration, "chains": len(verdicts), "right": sum(v.right for v in verdicts), "coherent": sum(v.coherent for v in verdicts)}
        record |= {"name a true percept": sum(v.true > 0 for v in verdicts), "name a false one": sum(v.false > 0 for v in verdicts)}
        record |= {"questions": len(todo), "distilled": len(kept), "between all and none": len(graded)}
        for name, batches, clip in (("distil", kept, None), ("reward", graded, 0.2)):
            rng.shuffle(batches)
            size = 6 if clip is None else 2
            losses = []
            for start in tqdm(range(0, len(batches), size), desc=f"iteration {iteration}: {name}"):
                pause.wait()
                losses.append(learner.learn(batches[start : start + size], clip))
            record[name] = round(sum(losses) / max(1, len(losses)), 4)
        learner.save(iteration)
        common.append_json(args.work / "mgrd.jsonl", record)
        tqdm.write(json.dumps(record))


if __name__ == "__main__":
    main()
