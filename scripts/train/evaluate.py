"""Stage evaluate: word errors, truth per percept and right replies of one checkpoint on the held-out sets.

Native hearing (`transcribe`, `think`) and with the true words forced into the reasoning (`forced`), as the
runtime does when it has a word recogniser beside. Run it on the old and the new checkpoint alike.

    python -m scripts.train.evaluate --checkpoint DIR --sets known.block unseen.block --tasks transcribe think
"""

import json
import re
from collections import defaultdict

import jiwer
import soundfile
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .adaptor import Adaptor
from .dataset import Example, collate, read_features
from .decoder import Decoder, Weights, form, generate
from .measure import plain
from .tasks import BEGIN, END, REST, TRANSCRIBE, heard, named, percepts
from .whisper import FULL, Form, Whisper, log_mel

BATCH = 30


def unlooped(text: str) -> str:
    """Cuts where four words come a third time: the runtime's repetition control, roughly."""
    words, seen = text.split(), defaultdict(int)
    for end in range(4, len(words) + 1):
        seen[tuple(words[end - 4 : end])] += 1
        if seen[tuple(words[end - 4 : end])] == 3:
            return " ".join(words[: end - 4])
    return text


def real(folder, whisper: Whisper, form: Form) -> list[Example]:
    """Recordings with a txt beside each; no more is known of them than their words."""
    made = []
    for path in sorted(folder.glob("*.wav")):
        features = whisper.encode([log_mel(soundfile.read(path, dtype="float32")[0], form.peak)], form)[0]
        made.append(Example(features.half(), {"text": path.with_suffix(".txt").read_text().strip(), "file": path.name}))
    return made


class Listener:
    """A checkpoint folder (adaptor.safetensors, lora.safetensors) over the frozen decoder."""

    def __init__(self, folder, work, pause: common.Pause):
        low_rank = load_file(folder / "lora.safetensors")
        settings = folder / "train.json"
        scale = json.loads(settings.read_text())["lora"]["scale"] if settings.exists() else 2.0
        self.decoder = Decoder(Weights(work), *form(low_rank), scale)
        self.decoder.load_low_rank(low_rank)
        self.adaptor = Adaptor().load(folder / "adaptor.safetensors")
        self.tokenizer, self.pause = Tokenizer.from_file(str(work / "tokenizer.json")), pause

    def embed(self, text: str) -> torch.Tensor:
        return self.decoder.embeddings[self.tokenizer.encode(text).ids]

    @torch.no_grad()
    def hear(self, examples: list[Example], instruction: str, most: int, begun: list[str] | None = None) -> list[str]:
        """Greedy continuations; `begun` is what the assistant's turn already says."""
        out: list = [None] * len(examples)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].features))
        for start in range(0, len(order), BATCH):
            self.pause.wait()
            rows = order[start : start + BATCH]
            frames, lengths = collate([examples[i] for i in rows])
            sounds = self.adaptor(frames)
            prompts = [
                torch.cat([self.embed(BEGIN), sound[: (length + 1) // 2], self.embed(instruction + REST + (begun[i] if begun else ""))])
                for i, sound, length in zip(rows, sounds, lengths)
            ]
            for i, (ids, _) in zip(rows, generate(self.decoder, prompts, self.tokenizer.token_to_id(END), most)):
                out[i] = self.tokenizer.decode(ids, skip_special_tokens=False).removesuffix(END)
        return out


def truth(chains: list[str], facts: list[dict]) -> dict:
    """Per percept: how often the true one is named; and of all percepts named, the share that is true."""
    right, asked, good, all_named = defaultdict(int), defaultdict(int), 0, 0
    for chain, fact in zip(chains, facts):
        said, true = set(named(chain)), heard(fact)
        good, all_named = good + len(said & set(true.values())), all_named + len(said)
        for name, words in true.items():
            kind = f"{name}:{words}" if name in ("who", "pace", "volume") else name
            asked[kind] += 1
            right[kind] += words in said
    return {"true of named": round(100 * good / max(1, all_named))} | {n: f"{right[n]}/{asked[n]}" for n in sorted(asked)}


def key(reply: str) -> set[str]:
    """What a reply must contain: its numbers, else its words of weight."""
    numbers = set(re.findall(r"\d+", reply))
    return numbers or {w for w in plain(reply).split() if len(w) > 3}


def answers(replies: list[str], facts: list[dict]) -> str:
    """Replies that hold all numbers, or two thirds of the weighty words, of the reference."""
    right = 0
    for reply, fact in zip(replies, facts):
        wanted = key(fact["reply"])
        said = set(re.findall(r"\d+", reply)) | set(plain(reply).split())
        right += len(wanted & said) >= (len(wanted) if fact["reply"][:1].isdigit() else 2 / 3 * len(wanted))
    return f"{right}/{len(facts)}"


def run(listener: Listener, examples: list[Example], tasks: list[str]) -> tuple[dict, list]:
    facts, result, samples = [e.facts for e in examples], {}, []
    spoken = [i for i, f in enumerate(facts) if f["text"]]
    said = [plain(facts[i]["text"]) for i in spoken]
    if "transcribe" in tasks:
        out = listener.hear([examples[i] for i in spoken], TRANSCRIBE, 90)
        result["wer"] = round(100 * jiwer.wer(said, [plain(unlooped(t)) for t in out]), 1)
        samples += [(facts[i]["text"], t) for i, t in zip(spoken, out)]
    if "think" in tasks:
        out = listener.hear(examples, "", 130)
        words = [(re.search(r"The words:(.*?)(?:</think>|$)", t, re.S) or [None, ""])[1] for t in out]
        result["wer in thought"] = round(100 * jiwer.wer(said, [plain(unlooped(words[i])) for i in spoken]), 1)
        if "who" in facts[0]:
            result["percepts"] = truth(out, facts)
            known = [i for i in spoken if facts[i]["reply"]]
            result["answers"] = answers([out[i].split("</think>")[-1] for i in known], [facts[i] for i in known])
        samples += [(f["text"], t) for f, t in zip(facts, out)]
    if "forced" in tasks:
        known = [i for i in spoken if facts[i].get("reply")]
        for close, name in (("", "answers, words forced"), ("\n</think>\n\n", "answers, words and end of thought forced")):
            begun = [f"<think>\n{percepts(facts[i])} The words: {facts[i]['written']}{close}" for i in known]
            out = listener.hear([examples[i] for i in known], "", 45, begun)
            result[name] = answers([t.split("</think>")[-1] for t in out], [facts[i] for i in known])
            samples += [(facts[i]["text"], t) for i, t in zip(known, out)]
    return result, samples


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=common.Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["known.block", "unseen.block", "noise.block", "telephone.block", "mixed.block"])
    parser.add_argument("--tasks", nargs="*", default=["transcribe", "think", "forced"])
    parser.add_argument("--clips", type=int, default=40, help="of each set")
    parser.add_argument("--real", type=common.Path, help="folder of recordings, heard in both forms")
    parser.add_argument("--whisper", type=common.Path, help="needed with --real")
    parser.add_argument("--block", type=float, default=2.0)
    parser.add_argument("--left", type=float, default=8.0)
    parser.add_argument("--peak", type=float, default=1.5)
    args = parser.parse_args()
    common.start(args)
    listener = Listener(args.checkpoint, args.work, common.Pause(args.pause_file))
    sets = {name: read_features(args.work / "features" / f"{name}.npz")[: args.clips] for name in args.sets}
    if args.real:
        whisper = Whisper(args.whisper)
        sets["real.block"] = real(args.real, whisper, Form(args.block, args.left, args.peak))
        sets["real.full"] = real(args.real, whisper, FULL)
    for name, examples in tqdm(sets.items()):
        result, samples = run(listener, examples, [t for t in args.tasks if not (name.startswith("real") and t == "forced")])
        record = {"checkpoint": args.checkpoint.name, "set": name, "clips": len(examples)} | result
        common.append_json(args.work / "evaluate.jsonl", record)
        common.append_json(args.work / "evaluate-samples.jsonl", {"checkpoint": args.checkpoint.name, "set": name, "samples": samples})
        tqdm.write(json.dumps(record))


if __name__ == "__main__":
    main()
