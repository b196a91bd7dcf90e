"""Stage mgrd: Modality-Grounded Reasoning Distillation at nano's scale (Step-Audio-R1, arXiv 2511.15848, section 4; ours where noted).

Each iteration asks questions that no transcript answers about clips whose truths are known by construction, and lets the
model that is think --samples times about each. A chain is kept when it is grounded (names what is true of this clip and nothing that is
false: by construction, which is stronger than the paper's judge), coherent, and ends in the right answer. Then
the model learns by heart one kept chain a question (distillation), and from all of them by reward, 0.8 for a right answer and 0.2 for reasoning:
advantages within the group of one question, PPO's clip at 0.2, no KL term, questions that neither all chains nor none pass.
Unlike the paper's, there is no text-only reasoning beside, as nano's decoder writes none worth keeping; what was learnt before goes on
in one pack of two beside the distillation, lest it be forgotten.

Self-cognition (section 4.3): one question in ten asks whether it hears at all. What denies it is filtered out like any other wrong answer, and after the last
iteration the model learns by preference (DPO) from pairs of a reply that hears and one that denies. Half of the pairs are of a right and a wrong
answer about the sound (ours): else Yes became a habit.

Before the first iteration, after each, and at the end it is asked about held-out clips, with and without thinking. Resumes after the last whole iteration.

    python -m scripts.train.mgrd --begin models/nano --iterations 3 --questions 200
"""

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import Adaptor
from .dataset import Example, Training, Typed, collate, read_features
from .decoder import Decoder, Weights, form, generate
from .instruct import Pack
from .tasks import BEGIN, CONTOUR, DENIALS, EMPTY, END, PACE, PITCH, PROBES, REST, SOUND, VOLUME, WHO, Branch, ask, branches, heard, named, questions

BEGUN = "<think>\n"
PHRASES = {phrase: name for name, table in (("who", WHO), ("pitch", PITCH), ("pace", PACE), ("volume", VOLUME), ("noise", SOUND), ("contour", CONTOUR)) for phrase in table.values()}
PHRASES |= {"over a telephone": "telephone", "an echoing room": "echo", "silence": "noise"}
SETTLED = {"telephone", "echo", "event", "noise"}  # these are false where they are not among a clip's truths; others may just be unknown
NO_NEWS = {"a voice", "clean sound", "medium volume", "normal pace"}  # true often enough to be named by habit


@dataclass
class Asked:
    """A question about a clip. `answer` is what the reply must say; None for a probe of self-cognition, where it must not say any of `wrong`."""

    example: Example
    kind: str
    question: str
    answer: str | None
    wrong: list[str] = field(default_factory=list)


def says(reply: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", reply, re.IGNORECASE) is not None


def right(asked: Asked, reply: str) -> bool:
    if asked.answer is None:
        return bool(reply.strip()) and not any(says(reply, words) for words in [*DENIALS, *asked.wrong])
    return asked.answer.rstrip(".").lower() in reply.lower()


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


def judge(text: str, asked: Asked) -> Verdict:
    """Of all that stands behind `<think>`: percepts it names, by their truth; whether it is whole; whether the reply is right."""
    chain, closed, reply = text.partition("</think>")
    truths, true, false = heard(asked.example.facts), 0, 0
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
    return Verdict(true, false, coherent, right(asked, reply.removesuffix(END)))


def hears(asked: Asked) -> str:
    """A reply to a probe that does not deny."""
    said = "I hear " + heard(asked.example.facts)["who"] + "."
    return {"No": "Yes. ", "Yes": "No. "}.get(asked.wrong[0] if asked.wrong else "", "") + said


class Learner:
    """The model that is sampled from and learns."""

    def __init__(self, args):
        self.args, self.tokenizer = args, Tokenizer.from_file(str(args.work / "tokenizer.json"))
        mine = args.work / "mgrd.pt"
        if args.begin and not mine.exists():
            adaptor = {n: t.float() for n, t in load_file(args.begin / "adaptor.safetensors").items()}
            low_rank = {n: t.float() for n, t in load_file(args.begin / "lora.safetensors").items()}
            state = {"aligner": {n.replace("adapter.", "adaptor."): t for n, t in adaptor.items()}, "low_rank": low_rank, "step": 0, "spent": 0.0}
        else:
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

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def answer(self, group: list[Asked], begun: str, samples: int, temperature: float) -> list[list[tuple[list[int], list[float]]]]:
        """`samples` continuations (tokens, their log-probabilities) of each."""
        asked = zip(self.sounds([a.example for a in group]), group)
        prompts = [torch.cat([self.embed(BEGIN), sound, self.embed("\n" + a.question + REST + begun)]) for sound, a in asked]
        out = generate(self.decoder, prompts, self.tokenizer.token_to_id(END), self.args.longest, temperature, samples)
        return [out[i : i + samples] for i in range(0, len(out), samples)]

    def step(self, loss: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimizer.step()
        return loss.item()

    def learn(self, batch: list, clip: float | None) -> float:
        """One step on [(asked, [(tokens, log-probabilities, weight)])]."""
        pack = Pack(self.tokenizer, self.decoder.embeddings)
        for sound, (asked, chains) in zip(self.sounds([a.example for a, _ in batch]), batch):
            pack.add(sound, "", [Branch("\n" + asked.question, [(BEGUN, 0.0), (tokens, weight)], ends=False) for tokens, _, weight in chains])
        losses, weights = pack.losses(self.decoder)
        if clip is not None:
            old = torch.tensor([p for _, chains in batch for tokens, past, _ in chains for p in [*[0.0] * len(pack.ids(BEGUN)), *past]])
            ratio = (-losses - old).exp()
            losses, weights = -torch.minimum(ratio * weights, ratio.clamp(1 - clip, 1 + clip) * weights), (weights != 0).float()
        return self.step((losses * weights).sum() / weights.sum().clamp(min=1))

    def keep(self, examples: list[Example], typed: Typed, rng: random.Random) -> float:
        """One step on what was learnt before: the tasks of `instruct`, and a typed request."""
        pack = Pack(self.tokenizer, self.decoder.embeddings)
        for sound, example in zip(self.sounds(examples), examples):
            system, tasks = branches(example.facts, rng)
            if tasks:
                pack.add(sound, system, tasks)
        if request := typed.pick(rng):
            pack.write(request, rng)
        return self.step(pack.loss(self.decoder))

    def margins(self, pairs: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Of [(asked, begun, chosen, rejected)]: how much likelier the chosen reply is, in nats, and the nats a token it costs."""
        pack, ends = Pack(self.tokenizer, self.decoder.embeddings), [0]
        for sound, (asked, begun, *replies) in zip(self.sounds([a.example for a, *_ in pairs]), pairs):
            pack.add(sound, "", [Branch("\n" + asked.question, [(begun, 0.0), (reply + END, weight)], ends=False) for reply, weight in zip(replies, (1.0, -1.0))])
            ends.append(len(pack.labels))
        losses, weights = pack.losses(self.decoder)
        chosen = (losses * (weights > 0)).sum() / (weights > 0).sum()
        return torch.stack([-(losses * weights)[start:end].sum() for start, end in zip(ends, ends[1:])]), chosen

    def save(self, iteration: int, **more) -> None:
        """The checkpoint, and a copy of each iteration's, to be measured."""
        low_rank = {n: p.detach().clone() for n, p in self.decoder.low_rank().items()}
        self.state |= {"low_rank": low_rank, "iteration": iteration} | more
        for name in (f"mgrd-{'preferred' if more else iteration}.pt", "mgrd.pt"):
            common.save_atomically(self.state, self.args.work / name)


def ask_about(examples: list[Example], rng: random.Random, count: int, longest: float, probes: float = 0.1) -> list[Asked]:
    """So many questions, all kinds alike, and a share of probes."""
    kinds: dict[str, list] = {}
    for example in examples:
        if len(example.features) <= 25 * longest:
            for kind, (answer, readily) in questions(example.facts).items():
                if rng.random() < readily:
                    kinds.setdefault(kind, []).append((example, answer))
    spoken = [e for e in examples if e.facts["who"] not in ("nobody", None) and not e.facts.get("backwards") and len(e.features) <= 25 * longest]
    made = []
    while len(made) < count:
        if rng.random() < probes:
            question, wrong = rng.choice(list(PROBES.items()))
            made.append(Asked(rng.choice(spoken), "probe", question, None, wrong))
        else:
            kind = rng.choice(list(kinds))
            example, answer = rng.choice(kinds[kind])
            made.append(Asked(example, kind, ask(kind, example.facts, rng), answer))
    return made


def measure(learner: Learner, asked: list[Asked], pause: common.Pause) -> dict:
    """Right answers with and without thinking, and what the chains name, likeliest tokens."""
    thought, direct, true, false, kinds = 0, 0, 0, 0, Counter()
    for start in range(0, len(asked), 32):
        pause.wait()
        group = asked[start : start + 32]
        for a, [chain], [reply] in zip(group, learner.answer(group, BEGUN, 1, 0.0), learner.answer(group, EMPTY, 1, 0.0)):
            verdict = judge(learner.text(chain[0]), a)
            thought, true, false = thought + verdict.right, true + (verdict.true > 0), false + (verdict.false > 0)
            direct += right(a, learner.text(reply[0]).removesuffix(END))
            kinds[a.kind] += verdict.right
    return {"held out": len(asked), "thinking": thought, "without": direct, "true": true, "false": false, "kinds": dict(kinds)}


def iterate(learner: Learner, training: Training, typed: Typed, iteration: int, pause: common.Pause) -> dict:
    """Think, judge, distil, reward."""
    args, rng = learner.args, random.Random(learner.args.seed + 1_000_003 * iteration)
    torch.manual_seed(rng.randrange(2**31))
    training.refresh()
    todo, kept, graded, verdicts = ask_about(training.examples, rng, args.questions, args.seconds), [], [], []
    denied = []
    for start in tqdm(range(0, len(todo), args.group), desc=f"iteration {iteration}: thinking", mininterval=20):
        pause.wait()
        group = todo[start : start + args.group]
        for asked, chains in zip(group, learner.answer(group, BEGUN, args.samples, args.temperature)):
            judged = [judge(learner.text(tokens), asked) for tokens, _ in chains]
            verdicts += judged
            best = max((v.true for v in judged if v.passes()), default=0)
            passing = [c for c, v in zip(chains, judged) if v.passes() and v.true == best]  # of grounded chains those that name most
            if passing:
                kept.append((asked, [(*rng.choice(passing), 1.0)]))
            if asked.answer is None:
                denied += [not v.right for v in judged]
            rewards = torch.tensor([v.reward() for v in judged])
            if 0 < sum(v.right for v in judged) < len(judged):
                advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
                graded.append((asked, [(*c, a.item()) for c, a in zip(chains, advantages)]))
    record = {"iteration": iteration, "chains": len(verdicts), "right": sum(v.right for v in verdicts), "coherent": sum(v.coherent for v in verdicts)}
    record |= {"name a true percept": sum(v.true > 0 for v in verdicts), "name a false one": sum(v.false > 0 for v in verdicts)}
    record |= {"questions": len(todo), "distilled": len(kept), "between all and none": len(graded), "of probes": len(denied), "denied": sum(denied)}
    for name, batches, clip in (("distil", kept, None), ("reward", graded, 0.2)):
        rng.shuffle(batches)
        size = 6 if clip is None else 2
        losses = []
        for start in tqdm(range(0, len(batches), size), desc=f"iteration {iteration}: {name}", mininterval=20):
            pause.wait()
            losses.append(learner.learn(batches[start : start + size], clip))
            if clip is None and start % (2 * size) == 0:
                learner.keep(rng.sample(training.examples, 3), typed, rng)
        record[name] = round(sum(losses) / max(1, len(losses)), 4)
    learner.save(iteration)
    return record


def prefer(learner: Learner, training: Training, pause: common.Pause) -> dict:
    """DPO on probes and, as many, on answers about the sound: what it says itself is a pair's one half where it is the right one or the wrong one."""
    args, rng = learner.args, random.Random(learner.args.seed + 7)
    asked = ask_about(training.examples, rng, args.pairs, args.seconds, probes=0.5)
    answers: dict[str, set] = {}
    for example in training.examples:
        for kind, (answer, _) in questions(example.facts).items():
            answers.setdefault(kind, set()).add(answer)
    pairs, denied = [], 0
    for start in tqdm(range(0, len(asked), 32), desc="preference: asking", mininterval=20):
        pause.wait()
        group = asked[start : start + 32]
        for a, [(tokens, _)] in zip(group, learner.answer(group, EMPTY, 1, 0.0)):
            said = learner.text(tokens).removesuffix(END)
            good = right(a, said)
            if a.answer is None:
                denied += not good
                chosen, rejected = hears(a), (a.wrong[0] + "." if a.wrong and rng.random() < 0.7 else f"I {rng.choice(DENIALS[:20])}.")
            else:
                wrong = sorted(answers[a.kind] - {a.answer})
                chosen, rejected = a.answer, rng.choice(wrong) if wrong else "I do not know."
            chosen, rejected = (said, rejected) if good else (chosen, said)
            begun = EMPTY if rng.random() < 0.7 else BEGUN + "I hear " + ", ".join(heard(a.example.facts).values()) + ".\n</think>\n\n"
            pairs.append((a, begun, chosen, rejected))
    batches = [pairs[i : i + 6] for i in range(0, len(pairs), 6)]
    with torch.no_grad():
        known = [learner.margins(batch)[0] for batch in tqdm(batches, desc="preference: before", mininterval=20)]
    ahead = []
    for batch, reference in tqdm(zip(batches, known), total=len(batches), desc="preference", mininterval=20):
        pause.wait()
        margins, cost = learner.margins(batch)
        learner.step(-F.logsigmoid(args.beta * (margins - reference)).mean() + 0.1 * cost)
        ahead += (margins > 0).tolist()
    learner.save(args.iterations, preferred=True)
    return {"pairs": len(pairs), "probes": sum(a.answer is None for a in asked), "denied before": denied, "chosen ahead": sum(ahead)}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--begin", type=common.Path, help="a checkpoint folder to begin from, instead of instruct.pt")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--questions", type=int, default=200, help="an iteration")
    parser.add_argument("--samples", type=int, default=8, help="chains a question")
    parser.add_argument("--group", type=int, default=8, help="questions that are thought about together")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--longest", type=int, default=60, help="tokens of a chain and its reply")
    parser.add_argument("--seconds", type=float, default=9, help="of a clip, at most")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--scale", type=float, default=2.0, help="of the low-rank product: alpha / rank")
    parser.add_argument("--pairs", type=int, default=240, help="of the preference at the end")
    parser.add_argument("--beta", type=float, default=0.2, help="of DPO")
    parser.add_argument("--held-out", type=int, default=160, help="questions about held-out clips")
    args = parser.parse_args()
    common.start(args)
    pause, learner = common.Pause(args.pause_file), Learner(args)
    training, typed = Training(args.work / "features"), Typed(args.work / "replies.jsonl")
    unheard = read_features(args.work / "features" / "mixed.block.npz")
    held_out = ask_about(unheard, random.Random(args.seed), args.held_out, args.seconds, probes=0.0)

    def note(record: dict) -> None:
        record |= measure(learner, held_out, pause)
        common.append_json(args.work / "mgrd.jsonl", record)
        tqdm.write(json.dumps(record))

    if not learner.iteration:
        note({"iteration": 0})
    for iteration in range(learner.iteration + 1, args.iterations + 1):
        note(iterate(learner, training, typed, iteration, pause))
    if args.pairs and not learner.state.get("preferred"):
        note(prefer(learner, training, pause))


if __name__ == "__main__":
    main()
