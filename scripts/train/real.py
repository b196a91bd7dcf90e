"""Stage real: recordings of people reading, as clips for `data`.

Takes a folder laid out as LibriSpeech is (SPEAKER-CHAPTER-NUMBER.flac anywhere in it, SPEAKERS.TXT for who is a man and who a woman), cuts each recording
at its pauses, and has Whisper's own decoder, whole file, padded to its 30 s, write down the words of each piece: the ear that the product reads words with
teaches the one that hears by itself. A piece that it is unsure of is left out. Writes shards as `data` does, `<work>/clips/train-real-NNNN.npz`:
these pieces one by one, in a row, two people in turn, with the same noises, rooms, telephones and events. Nothing of tests/audio may be in the folder.

    python -m scripts.train.real --recordings DIR --whisper model.bin --tokenizer tokenizer.json
"""

import json
import random

import numpy as np
import soundfile
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common, sound
from .common import RATE
from .data import LONGEST, SHARD, Maker, pace, write_shard
from .whisper import Whisper, log_mel

SHORTEST, ENOUGH = 1.5, 8.0


def pieces(samples: np.ndarray) -> list[np.ndarray]:
    """Cuts in the middle of pauses of at least 0.24 s; pieces of SHORTEST to about ENOUGH seconds."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    power = 10 * np.log10((frames**2).mean(1) + 1e-10)
    quiet = power < np.percentile(power, 95) - 28
    ends, run = [], 0
    for at, silent in enumerate([*quiet, False]):
        if not silent and run >= 12:
            ends.append((at - run // 2) * 320)
        run = run + 1 if silent else 0
    cut, start = [], 0
    for at, after in zip(ends, [*ends[1:], len(samples)]):
        if at - start >= SHORTEST * RATE and after - start > ENOUGH * RATE:
            cut.append(samples[start:at])
            start = at
    return [*cut, samples[start:]]


def listen(whisper: Whisper, samples: np.ndarray, prompt: list[int], end: int) -> tuple[list[int], float]:
    """What Whisper's decoder writes, and the mean log-probability of it."""
    encoded = whisper.encode([log_mel(np.pad(samples, (0, 30 * RATE - len(samples))))], pool=False)[0]
    tokens = whisper.words(encoded, prompt, end, most=120)
    return tokens, -whisper.surprise(encoded, prompt, [*tokens, end])


class Reader(Maker):
    """Makes clips as `Maker` does, of what people read instead of what a machine says."""

    def __init__(self, seed: int, recordings: list[list[tuple[np.ndarray, dict]]]):
        self.rng, self.noise, self.recordings = random.Random(seed), np.random.default_rng(seed), recordings

    def speech(self, voices: list, kind: str) -> tuple[np.ndarray, dict]:
        rng = self.rng
        recording = rng.choice(self.recordings)
        first = rng.randrange(len(recording))
        taken = recording[first : first + (rng.randint(2, 6) if kind == "long" else 1)]
        if kind == "two":
            other = rng.choice([r for r in self.recordings if r[0][1]["sex"] != recording[0][1]["sex"]])
            taken.append(rng.choice(other))
        pitch = rng.uniform(0.95, 1.05) if rng.random() < 0.5 else 1.0
        parts, facts, active = [], [], 0.0
        for samples, fact in taken:
            part = sound.trim(sound.to_rate(samples, RATE, pitch))
            if facts and active + len(part) / RATE > LONGEST - 4:
                break
            parts += [np.zeros(int(rng.uniform(0.15, 0.7) * RATE), np.float32)] if facts else []
            parts.append(part / 10 ** (sound.level_db(part) / 20))
            active += len(part) / RATE
            facts.append(fact)
        samples, text = np.concatenate(parts), " ".join(f["text"] for f in facts)
        said = {"text": text, "written": text, "reply": None, "voice": "real/" + facts[0]["speaker"], "who": facts[0]["sex"], "hz": round(sound.pitch_hz(samples))}
        said["rate"] = round(sound.syllables(text) / active, 2)
        said["pace"] = pace(said["rate"])
        if len(facts) == 2 and facts[0]["sex"] != facts[1]["sex"]:
            said.update(who="two", pace=None, order=[f["sex"] for f in facts])
        if kind == "one" and rng.random() < 0.2:
            said["contour"] = rng.choice(["rising", "falling"])
            samples = sound.bend(samples, 1.45 if said["contour"] == "rising" else 0.7)
        return samples, said


def sexes(folder: common.Path) -> dict[str, str]:
    """Who is a man and who a woman, by SPEAKERS.TXT."""
    lines = next(folder.rglob("SPEAKERS.TXT")).read_text(errors="replace").splitlines()
    return {id.strip(): {"M": "man", "F": "woman"}[sex.strip()] for id, sex, *_ in (line.split("|") for line in lines if line[:1].isdigit())}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=common.Path, required=True)
    parser.add_argument("--whisper", type=common.Path, required=True)
    parser.add_argument("--tokenizer", type=common.Path, required=True, help="Whisper's tokenizer.json")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--sure", type=float, default=-0.3, help="mean log-probability of a token that a piece is kept from")
    args = parser.parse_args()
    common.start(args)
    folder, parts = args.work / "clips", args.work / "real.jsonl"
    folder.mkdir(exist_ok=True)
    whisper, tokenizer, pause = Whisper(args.whisper, common.product_type()), Tokenizer.from_file(str(args.tokenizer)), common.Pause(args.pause_file)
    prompt = [tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")]
    end = tokenizer.token_to_id("<|endoftext|>")
    sex = sexes(args.recordings)
    done = {json.loads(line)["recording"] for line in parts.read_text().splitlines()} if parts.exists() else set()
    files = sorted(args.recordings.rglob("*-*-*.flac"))
    for file in tqdm(files, desc="recordings"):
        if file.stem in done:
            continue
        pause.wait()
        heard = []
        for piece in pieces(soundfile.read(file, dtype="float32")[0]):
            tokens, sure = listen(whisper, piece[: 30 * RATE], prompt, end)
            heard.append({"samples": len(piece), "text": tokenizer.decode(tokens).strip(), "sure": round(sure, 3)})
        common.append_json(parts, {"recording": file.stem, "pieces": heard})
    said = {record["recording"]: record["pieces"] for record in map(json.loads, parts.read_text().splitlines())}
    kept: list[list[tuple[np.ndarray, dict]]] = []
    for file in files:
        speaker, recording = file.stem.split("-")[0], []
        for piece, heard in zip(pieces(soundfile.read(file, dtype="float32")[0]), said[file.stem]):
            if heard["sure"] > args.sure and heard["text"] and len(piece) >= SHORTEST * RATE / 2:
                recording.append((piece, {"speaker": speaker, "sex": sex[speaker], "text": heard["text"]}))
        kept += [recording] if recording else []
    lengths = [len(piece) for recording in kept for piece, _ in recording]
    print(json.dumps({"recordings": len(kept), "pieces": len(lengths), "minutes": round(sum(lengths) / RATE / 60, 1)}))
    for number in tqdm(range(args.shards), desc="shards"):
        path = folder / f"train-real-{number:04d}.npz"
        if not path.exists():
            write_shard(Reader(args.seed * 1_000_003 + 700_000 + number, kept), path, SHARD, [], None)


if __name__ == "__main__":
    main()
