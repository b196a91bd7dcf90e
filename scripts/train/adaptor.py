"""The trained ear: adaptor, CTC pieces out of the decoder's vocabulary, and percepts as the decoder's own words.

The adaptor is aligned to the decoder without running it. Words: CTC whose classes are the decoder's frozen
token embeddings. Percepts: the clip's mean embedding must lie nearer to the embedding of " man" than to
" woman", and so on; CTC alone would strip the voice from the sound. Beeps and knocks are CTC tokens of their
own, in their place among the words, so that they can be counted.
"""

from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from .dataset import collate
from .measure import plain


class Adaptor(nn.Module):
    """25 Hz encoder frames [B, T, 512] to 12.5 Hz decoder embeddings [B, (T+1)//2, 896]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(512, 512, 3, 2, 1)
        self.linear1 = nn.Linear(512, 2048)
        self.linear2 = nn.Linear(2048, 896)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        return self.linear2(F.relu(self.linear1(x)))

    def load(self, file: Path) -> "Adaptor":
        """Takes the published form, `adaptor.safetensors`."""
        self.load_state_dict({name.removeprefix("adapter."): tensor.float() for name, tensor in load_file(file).items()})
        return self


EVENTS = {"beep": " beep", "knock": " knock"}
PERCEPTS = {  # fact -> its values, each with the word whose embedding stands for it
    "who": {"man": " man", "woman": " woman", "two": " two", "nobody": " nobody"},
    "pace": {"slow": " slow", "normal": " normal", "fast": " fast"},
    "volume": {"quiet": " quiet", "medium": " medium", "loud": " loud"},
    "noise": {"none": " clean", "hiss": " hiss", "rumble": " rum", "wind": " wind", "music": " music"},
    "telephone": {False: " direct", True: " telephone"},
    "echo": {False: " near", True: " echo"},
    "pitch": {"low": " deep", "medium": " middle", "high": " high"},
    "contour": {"rising": " rising", "falling": " falling"},
}


def percept(facts: dict, name: str):
    """The true value of one percept, or None where the clip does not settle it."""
    if name == "noise":
        return facts.get("noise", "none")
    if name in ("telephone", "echo"):
        return facts.get(name, False)
    if name == "pitch":
        hz = facts.get("hz", 0)
        return None if facts.get("who") not in ("man", "woman") else "low" if 0 < hz < 100 else "high" if hz > 195 else "medium" if 115 < hz < 175 else None
    return facts.get(name)


class Pieces:
    """The CTC classes: blank, then the decoder tokens that lower-case English is spelled with here."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], least: int = 8):
        vocabulary = tokenizer.get_vocab()
        counts = Counter(t for text in texts for t in tokenizer.encode(" " + plain(text)).tokens)
        letters = "abcdefghijklmnopqrstuvwxyz'"
        short = [space + a + b for space in ("", "Ġ") for a in letters for b in ["", *letters]]
        chosen = {t for t, n in counts.items() if n >= least} | {t for t in short if t in vocabulary}
        events = [tokenizer.encode(word).tokens[0] for word in EVENTS.values()]
        self.tokens = sorted(chosen - set(events)) + events
        self.index = {token: number + 1 for number, token in enumerate(self.tokens)}
        self.ids = torch.tensor([vocabulary[token] for token in self.tokens])
        self.events = dict(zip(EVENTS, range(len(self.tokens) - len(events) + 1, len(self.tokens) + 1)))
        self.tokenizer, self.known = tokenizer, {}

    def word(self, word: str) -> list[int]:
        """The tokeniser's own pieces where all are classes, else the spelling in fewest pieces."""
        if word not in self.known:
            tokens = self.tokenizer.encode(" " + word).tokens
            if not all(t in self.index for t in tokens):
                spelled = "Ġ" + word
                best: list = [[]] + [None] * len(spelled)
                for start in range(len(spelled)):
                    for end in range(start + 1, min(len(spelled), start + 14) + 1):
                        if best[start] is not None and spelled[start:end] in self.index:
                            if best[end] is None or len(best[start]) + 1 < len(best[end]):
                                best[end] = best[start] + [spelled[start:end]]
                tokens = best[-1] or []
            self.known[word] = [self.index[t] for t in tokens]
        return self.known[word]

    def target(self, facts: dict) -> list[int]:
        """Pieces of a clip's words, with its events before or after them."""
        words = [piece for word in plain(facts["text"]).split() for piece in self.word(word)]
        events = [self.events[facts["event"]]] * facts["count"] if "event" in facts else []
        return events + words if facts.get("place") == "before" else words + events

    def text(self, best: list[int]) -> tuple[str, int]:
        """Words and number of events of a greedy path."""
        kept = [c for c, previous in zip(best, [0, *best]) if c and c != previous]
        events = set(self.events.values())
        words = "".join(self.tokens[c - 1] for c in kept if c not in events).replace("Ġ", " ").strip()
        return words, sum(c in events for c in kept)


class Aligner(nn.Module):
    """Adaptor with what only its alignment needs: blank, scale, and one scale per percept."""

    def __init__(self, pieces: Pieces, embeddings: torch.Tensor):
        super().__init__()
        self.adaptor = Adaptor()
        self.register_buffer("classes", embeddings[pieces.ids].clone(), persistent=False)
        self.size = (self.classes**2).sum(1).mean().item()
        self.register_buffer("bound", torch.tensor(1.5 * self.size))
        self.scale = nn.Parameter(torch.tensor(12 / self.size).log())
        self.blank = nn.Linear(896, 1)
        self.percepts = nn.ParameterDict()
        self.words: dict[str, torch.Tensor] = {}
        for name, values in PERCEPTS.items():
            ids = [pieces.tokenizer.encode(word).ids[0] for word in values.values()]
            self.words[name] = embeddings[ids].clone()
            self.percepts[name] = nn.Parameter(torch.cat([torch.tensor([12 / self.size]).log(), torch.zeros(len(ids))]))

    @torch.no_grad()
    def begin(self, file: Path, batch: list) -> None:
        """Takes over an adaptor. Scales and the bound on size are fitted to its embeddings, which may be larger than tokens."""
        self.adaptor.load(file)
        frames, lengths = collate(batch)
        heard, lengths = self.adaptor(frames), (lengths + 1) // 2
        inside = torch.arange(heard.shape[1])[None] < lengths[:, None]
        size = (heard[inside] ** 2).sum(-1).median()
        self.bound.fill_(max(self.bound.item(), 4 * size.item()))
        self.scale.copy_((12 / (size * self.size).sqrt()).log())
        for percept in self.percepts.values():  # a small share of an embedding is enough to tell percepts by
            percept[0] = (60 / (size * self.size).sqrt()).log()

    def scores(self, heard: torch.Tensor) -> torch.Tensor:
        """Log-probabilities over blank and pieces."""
        pieces = F.linear(heard, self.classes) * self.scale.exp()
        return torch.cat([self.blank(heard), pieces], -1).log_softmax(-1)

    def percept_scores(self, mean: torch.Tensor, name: str) -> torch.Tensor:
        parameters = self.percepts[name]
        return F.linear(mean, self.words[name]) * parameters[0].exp() + parameters[1:]

    @torch.no_grad()
    def felt(self, mean: torch.Tensor, facts: dict) -> dict[str, bool]:
        """Whether a clip's mean embedding lies nearest to the true word, for each percept that the clip settles."""
        right = {}
        for name, values in PERCEPTS.items():
            value = percept(facts, name)
            if value is not None:
                right[name] = int(self.percept_scores(mean, name).argmax()) == list(values).index(value)
        return right

    def losses(self, frames: torch.Tensor, lengths: torch.Tensor, facts: list[dict], targets: list[list[int]] | None, drop: float):
        """CTC (0 without targets), percepts, and a bound on the size of embeddings."""
        heard, lengths = self.adaptor(F.dropout(frames, drop, self.training)), (lengths + 1) // 2
        ctc = torch.zeros(())
        if targets is not None:
            ctc = F.ctc_loss(
                self.scores(heard).transpose(0, 1), torch.tensor([c for t in targets for c in t]), lengths,
                torch.tensor([len(t) for t in targets]), zero_infinity=True,
            )
        inside = (torch.arange(heard.shape[1])[None] < lengths[:, None])[..., None]
        mean = (heard * inside).sum(1) / lengths[:, None]
        felt = torch.zeros(())
        for name, values in PERCEPTS.items():
            rows, labels = [], []
            for row, fact in enumerate(facts):
                value = percept(fact, name)
                if value is not None:
                    rows.append(row)
                    labels.append(list(values).index(value))
            if rows:
                felt = felt + F.cross_entropy(self.percept_scores(mean[rows], name), torch.tensor(labels), reduction="sum") / len(facts)
        size = F.relu(((heard**2).sum(-1) / self.bound).clamp(min=1e-6).log())[inside[..., 0]].mean()  # a logarithm, lest few outliers rule the gradient
        return ctc, felt, size
