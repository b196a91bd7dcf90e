"""Qwen2.5-Coder-0.5B-Instruct Q4_K_M: token ids, greedy continuations, perplexity.

By llama.cpp, the independent runtime; and along its continuations once more in f32 from the
dequantised weights (dequantised.py), in one pass, which is how a test is quickest too.
"""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import torch

import dequantised
from tiny import compact

MODEL = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
STEPS = 48
F32 = 0  # ggml's number for the type of keys and values: no rounding there, to have one difference less

SYSTEM = "You are a helpful assistant."
QUESTIONS = {
    "question": "Why is the sky blue during the day and red at sunset?",
    "arithmetic": "A train leaves at 9:40 and arrives at 13:05. How long does the journey take? Show each step.",
    "code": "Write a Rust function that returns the n-th Fibonacci number without recursion, with a short explanation.",
    "story": "Continue this story in three sentences: The lighthouse had been dark for eleven years when, one night in November,",
    "list": "List seven things to pack for a week of walking in the mountains, one per line, each with its reason.",
    "chinese": "请用三句话介绍一下长城。",
    "russian": "Объясни простыми словами, почему летом теплее, чем зимой.",
    "json": 'Return only JSON: an object with the keys "name", "sound" and "legs" for each of: dog, duck, ant.',
    "symbols": "What does `x = (a ^ b) & ~c;` do in C? 🤔 Explain with a = 0b1100, b = 0b1010, c = 0b0001.",
}
# Public domain: Jane Austen, Sense and Sensibility (1811), the opening of chapter 1.
AUSTEN = (
    "The family of Dashwood had long been settled in Sussex. Their estate was large, and their residence was at "
    "Norland Park, in the centre of their property, where, for many generations, they had lived in so respectable "
    "a manner as to engage the general good opinion of their surrounding acquaintance. The late owner of this "
    "estate was a single man, who lived to a very advanced age, and who for many years of his life, had a constant "
    "companion and housekeeper in his sister. But her death, which happened ten years before his own, produced a "
    "great alteration in his home; for to supply her loss, he invited and received into his house the family of "
    "his nephew Mr. Henry Dashwood, the legal inheritor of the Norland estate, and the person to whom he intended "
    "to bequeath it. In the society of his nephew and niece, and their children, the old Gentleman's days were "
    "comfortably spent. His attachment to them all increased. The constant attention of Mr. and Mrs. Henry "
    "Dashwood to his wishes, which proceeded not merely from interest, but from goodness of heart, gave him every "
    "degree of solid comfort which his age could receive; and the cheerfulness of the children added a relish to "
    "his existence.\n\n"
    "By a former marriage, Mr. Henry Dashwood had one son: by his present lady, three daughters. The son, a steady "
    "respectable young man, was amply provided for by the fortune of his mother, which had been large, and half of "
    "which devolved on him on his coming of age. By his own marriage, likewise, which happened soon afterwards, he "
    "added to his wealth. To him therefore the succession to the Norland estate was not so really important as to "
    "his sisters; for their fortune, independent of what might arise to them from their father's inheriting that "
    "property, could be but small. Their mother had nothing, and their father only seven thousand pounds in his "
    "own disposal; for the remaining moiety of his first wife's fortune was also secured to her child, and he had "
    "only a life-interest in it.\n\n"
    "The old gentleman died: his will was read, and like almost every other will, gave as much disappointment as "
    "pleasure."
)


def prompts() -> dict[str, str]:
    """Every prompt in ChatML; the last is about 300 tokens long."""
    long = "Summarise the following in two sentences.\n\n" + AUSTEN[: AUSTEN.index("\n\n")]
    asked = QUESTIONS | {"long": long}
    turns = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return {name: turns.format(SYSTEM, text) for name, text in asked.items()}


class Model:
    """The few calls of llama.cpp that are needed, with the raw logits in hand."""

    def __init__(self, path: Path):
        self.inner = llama_cpp.Llama(
            str(path), n_ctx=1024, n_batch=1024, n_threads=2, n_threads_batch=2, type_k=F32, type_v=F32, verbose=False
        )
        self.batch = llama_cpp.llama_batch_init(1024, 0, 1)

    def tokens(self, text: str) -> list[int]:
        """Ids with special tokens parsed and nothing added in front."""
        return self.inner.tokenize(text.encode(), add_bos=False, special=True)

    def reset(self) -> None:
        """Forget everything."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.inner.ctx), True)

    def feed(self, ids: list[int], start: int, every: bool = False) -> np.ndarray:
        """Logits after the last of `ids`, or after every one of them."""
        for i, token in enumerate(ids):
            self.batch.token[i], self.batch.pos[i] = token, start + i
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
            self.batch.logits[i] = every or i == len(ids) - 1
        self.batch.n_tokens = len(ids)
        if llama_cpp.llama_decode(self.inner.ctx, self.batch):
            raise SystemExit("llama.cpp refused a batch")
        picked = range(len(ids)) if every else [len(ids) - 1]
        return np.stack([self.row(i) for i in picked])

    def row(self, i: int) -> np.ndarray:
        """A copy of the logits of the i-th token of the last batch."""
        pointer = llama_cpp.llama_get_logits_ith(self.inner.ctx, i)
        width = self.inner.n_vocab()
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (width,)).copy()


def best_two(logits: np.ndarray) -> tuple[int, int, float]:
    """The best id, the second, and the gap between their logits."""
    second, first = np.argpartition(logits, -2)[-2:]
    if logits[second] > logits[first]:
        first, second = second, first
    return int(first), int(second), round(float(logits[first] - logits[second]), 4)


def top(logits: np.ndarray, count: int = 8) -> tuple[list[int], list[float]]:
    """The best ids and their logits, best first."""
    ids = np.argsort(-logits)[:count]
    return ids.tolist(), [round(float(logits[i]), 4) for i in ids]


def greedy(model: Model, ids: list[int]) -> dict:
    """A continuation (past any stop token), with the runner-up and the gap at each step."""
    model.reset()
    logits = model.feed(ids, 0)[0]
    first_ids, first_logits = top(logits)
    chosen, seconds, gaps = [], [], []
    for step in range(STEPS):
        token, second, gap = best_two(logits)
        chosen.append(token), seconds.append(second), gaps.append(gap)
        if step + 1 < STEPS:
            logits = model.feed([token], len(ids) + step)[0]
    return {"top_ids": first_ids, "top_logits": first_logits, "greedy": chosen, "second": seconds, "gaps": gaps}


def follow(exact: dequantised.Model, ids: list[int], given: list[int]) -> dict:
    """What f32 would say at each step, had it written what llama.cpp wrote."""
    rows = exact.feed(ids + given[:-1])[len(ids) - 1 :]
    first_ids, first_logits = top(rows[0])
    best, seconds, gaps = zip(*map(best_two, rows))
    return {"top_ids": first_ids, "top_logits": first_logits, "best": best, "second": seconds, "gaps": gaps}


def perplexity(logits: np.ndarray, ids: list[int]) -> dict:
    """Negative log-likelihood of every token but the first, in one context, nothing in front."""
    logits = logits[:-1].astype(np.float64)
    top_logit = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top_logit).sum(-1)) + top_logit[:, 0]
    losses = log_sum - logits[np.arange(len(logits)), ids[1:]]
    mean = float(losses.mean())
    return {
        "nll": [round(float(x), 4) for x in losses],
        "mean_nll": round(mean, 6),
        "perplexity": round(float(np.exp(mean)), 5),
    }


def written(model: Model, name: str, prompt: str) -> dict:
    """One prompt, its ids and llama.cpp's continuation."""
    ids = model.tokens(prompt)
    made = greedy(model, ids)
    text = model.inner.detokenize(made["greedy"], special=True).decode(errors="replace")
    print(f"{name}: {len(ids)} ids, {text!r}", flush=True)
    return {"prompt": prompt, "ids": ids, "text": text, "llama_cpp": made}


def differences(row: dict) -> list[tuple[int, float]]:
    """The steps at which f32 would write something else, with llama.cpp's gap there."""
    quick, exact = row["llama_cpp"], row["f32"]
    steps = zip(quick["greedy"], exact["best"], quick["gaps"])
    return [(i, gap) for i, (ours, theirs, gap) in enumerate(steps) if ours != theirs]


def run(nano: Path, out: Path) -> None:
    """llama_greedy.json. The runtimes take turns, so that only one model is in memory."""
    torch.set_num_threads(2)
    model = Model(nano / MODEL)
    made = {name: written(model, name, text) for name, text in prompts().items()}
    ids = model.tokens(AUSTEN)
    model.reset()
    measured = {"text": AUSTEN, "ids": ids, "llama_cpp": perplexity(model.feed(ids, 0, every=True), ids)}
    del model
    exact = dequantised.Model(nano / MODEL)
    measured["f32"] = perplexity(exact.feed(ids), ids)
    for name, row in made.items():
        row["f32"] = follow(exact, row["ids"], row["llama_cpp"]["greedy"])
        print(f"{name}: f32 differs at (step, gap) {differences(row)}", flush=True)
    print("perplexity:", measured["llama_cpp"]["perplexity"], "by llama.cpp,", measured["f32"]["perplexity"], "in f32")
    facts = {"model": MODEL, "llama_cpp_python": llama_cpp.__version__, "prompts": made, "perplexity": measured}
    (out / "llama_greedy.json").write_text(compact(facts), encoding="utf-8")
