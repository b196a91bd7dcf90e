"""Stage data: synthetic clips with everything a listener could be asked about known by construction.

Writes shards of clips, `<work>/clips/<set>-NNNN.npz`: samples as int16, and for each clip its words,
its reply where it has one, and its truths (who speaks, pace, volume, pitch, sound, events).

    python -m scripts.train.data --voices DIR --shards 200 --worker 0 --workers 2
"""

import json
import random

import numpy as np
from tqdm import tqdm

from . import common, sound, texts
from .common import RATE
from .voices import HELD_OUT, TRAINED, Voice, Voices, pick

LONGEST = 25.0
SHARD = 120
NOISES = ["hiss", "rumble", "wind", "music"]


def pace(rate: float) -> str | None:
    """Syllables a second in a word; None between the classes, where listeners would not agree."""
    return "slow" if rate < 3.4 else "fast" if rate > 5.2 else "normal" if 3.7 < rate < 4.9 else None


class Maker:
    """Makes clips from one seed."""

    def __init__(self, seed: int, voices: Voices, sentences: list[str], held_out: bool):
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)
        self.voices, self.held_out = voices, held_out
        self.sentences = [s for s in sentences if texts.is_held_out(s) == held_out]

    def item(self) -> dict:
        """A sentence, or a question or request with its reply; never one of the other split."""
        if self.rng.random() < 0.5:
            return {"text": self.rng.choice(self.sentences), "reply": None}
        while True:
            made = texts.made(self.rng)
            if texts.is_held_out(made["text"]) == self.held_out:
                return made

    def utterance(self, voice: Voice, text: str, pitch: float, speed: float) -> np.ndarray:
        samples, rate = self.voices.say(voice, text, speed / pitch)
        return sound.trim(sound.to_rate(samples, rate, pitch))

    def manner(self) -> tuple[float, float]:
        """Pitch and speed factors of one speaker. Natural: most of it stays near 1."""
        rng = self.rng
        pitch = rng.uniform(0.94, 1.06) if rng.random() < 0.7 else rng.uniform(0.82, 1.18)
        kind = rng.random()
        speed = rng.uniform(0.85, 1.05) if kind < 0.55 else rng.uniform(1.12, 1.35) if kind < 0.73 else rng.uniform(0.56, 0.72)
        return pitch, speed

    def speech(self, voices: list[Voice], kind: str) -> tuple[np.ndarray, dict]:
        """Clean speech and its truths: one utterance, several in a row, or two speakers in turn."""
        rng = self.rng
        voice, (pitch, speed) = pick(rng, voices), self.manner()
        speakers = [voice] * {"one": 1, "two": 2, "long": rng.randint(2, 6)}[kind]
        if kind == "two":
            speakers[1] = pick(rng, [v for v in voices if v.sex and v.sex != voice.sex])
        pieces, items, active = [], [], 0.0
        for speaker in speakers:
            item = self.item()
            piece = self.utterance(speaker, item["text"], pitch if speaker is voice else 1.0, speed)
            if items and active + len(piece) / RATE > LONGEST - 4:
                break
            if items:
                pieces.append(np.zeros(int(rng.uniform(0.15, 0.9) * RATE), np.float32))
            pieces.append(piece / 10 ** (sound.level_db(piece) / 20))
            active += len(piece) / RATE
            items.append(item)
        samples = np.concatenate(pieces)
        facts = {
            "text": " ".join(i["text"] for i in items),
            "written": " ".join(i.get("written", i["text"]) for i in items),
            "reply": items[-1]["reply"],
            "voice": f"{voice.engine}/{voice.name}",
            "who": voice.sex if abs(pitch - 1) < 0.12 else None,
            "hz": round(sound.pitch_hz(samples)),
        }
        facts["rate"] = round(sound.syllables(facts["text"]) / active, 2)
        facts["pace"] = pace(facts["rate"])
        if kind == "two" and len(items) == 2:
            facts.update(who="two", pace=None)
            if speakers[0].sex:
                facts["order"] = [speakers[0].sex, speakers[1].sex]
        if kind == "one" and rng.random() < 0.25:
            facts["contour"] = rng.choice(["rising", "falling"])
            samples = sound.bend(samples, 1.45 if facts["contour"] == "rising" else 0.7)
        if kind == "one" and rng.random() < 0.1 and len(samples) > 2 * RATE:
            samples = self.insert_pause(samples, facts)
        return samples, facts

    def insert_pause(self, samples: np.ndarray, facts: dict) -> np.ndarray:
        """Cuts at the quietest place of the middle half and leaves one to two seconds of silence."""
        window = np.convolve(samples**2, np.ones(800) / 800, "same")
        quarter = len(samples) // 4
        at = quarter + int(window[quarter:-quarter].argmin())
        facts["pause"] = True
        return np.concatenate([samples[:at], np.zeros(int(self.rng.uniform(1.2, 2.2) * RATE), np.float32), samples[at:]])

    def wordless(self) -> tuple[np.ndarray, dict]:
        """Sound with nothing to understand: noise, music, events, or speech played backwards."""
        rng = self.rng
        kind = rng.choice(["noise", "music", "events", "events", "backwards", "silence"])
        length = int(rng.uniform(1.0, 8.0) * RATE)
        facts = {"text": "", "written": "", "reply": None, "voice": "none", "who": "nobody", "pace": None, "hz": 0}
        if kind == "noise":
            facts["noise"] = rng.choice(["hiss", "rumble", "wind"])
            return sound.noise(facts["noise"], length, self.noise), facts
        if kind == "music":
            facts["noise"] = "music"
            return sound.noise("music", length, self.noise), facts
        if kind == "events":
            facts["event"], facts["count"] = rng.choice(["beep", "knock"]), rng.randint(1, 5)
            return rng.uniform(1, 3) * sound.events(facts["event"], facts["count"], self.noise), facts
        if kind == "silence":
            return np.zeros(length, np.float32) + 1e-3 * self.noise.standard_normal(length).astype(np.float32), {**facts, "silence": True}
        samples, said = self.speech(TRAINED, "one")
        return samples[::-1].copy(), {**facts, "who": said["who"], "backwards": True}

    def clip(self, voices: list[Voice], condition: str | None = None) -> tuple[np.ndarray, dict]:
        """One clip. `condition` (clean, noise, telephone) fixes what evaluation sets need fixed."""
        rng = self.rng
        kind = "one" if condition else rng.choices(["one", "long", "two", "none"], [0.64, 0.13, 0.14, 0.09])[0]
        samples, facts = self.wordless() if kind == "none" else self.speech(voices, kind)
        facts["kind"] = kind
        if not condition and kind == "one" and rng.random() < 0.22:
            facts["event"], facts["count"] = rng.choice(["beep", "knock"]), rng.randint(1, 4)
            added = rng.uniform(1, 3) * sound.events(facts["event"], facts["count"], self.noise)
            facts["place"] = rng.choice(["before", "after"])
            samples = np.concatenate([added, samples] if facts["place"] == "before" else [samples, added])
        edge = [np.zeros(int(rng.uniform(0.0, 0.5) * RATE), np.float32) for _ in range(2)]
        samples = np.concatenate([edge[0], samples, edge[1]])
        if not condition and rng.random() < 0.08:
            facts["echo"], samples = True, sound.echo(samples, self.noise)
        if (condition in (None, "noise")) and kind != "none":
            samples = self.add_noise(samples, facts, condition)
        if condition == "telephone" or (condition is None and rng.random() < 0.1):
            facts["telephone"], samples = True, sound.telephone(samples)
        return self.set_level(samples, facts, condition), facts

    def add_noise(self, samples: np.ndarray, facts: dict, condition: str | None) -> np.ndarray:
        """Noise at a level one clearly hears, or a trace that one does not call noise."""
        level, rng = 10 ** (sound.level_db(samples) / 20), self.rng
        if condition == "noise" or rng.random() < 0.3:
            facts["noise"] = rng.choice(NOISES)
            ratio = 10.0 if condition == "noise" else rng.uniform(8, 22)
            return samples + sound.noise(facts["noise"], len(samples), self.noise) * level * 10 ** (-ratio / 20)
        return samples + sound.noise("hiss", len(samples), self.noise) * level * 10 ** (-rng.uniform(38, 65) / 20)

    def set_level(self, samples: np.ndarray, facts: dict, condition: str | None) -> np.ndarray:
        rng = self.rng
        volume = "medium" if condition else rng.choices(["quiet", "medium", "loud"], [0.3, 0.4, 0.3])[0]
        wanted = {"quiet": rng.uniform(-48, -37), "medium": rng.uniform(-28, -21), "loud": rng.uniform(-14, -9)}[volume]
        if not facts.get("silence"):
            facts["volume"] = volume
            samples = samples * 10 ** ((wanted - sound.level_db(samples)) / 20)
        return np.tanh(samples * 0.8) / 0.8 if volume == "loud" else samples


def write_shard(maker: Maker, path, count: int, voices: list[Voice], condition: str | None) -> None:
    clips, facts = [], []
    while len(clips) < count:
        try:
            samples, truth = maker.clip(voices, condition)
        except Exception as error:  # a voice that cannot say a text must not end the run
            print("skipped:", repr(error)[:120], flush=True)
            continue
        if 0.5 < len(samples) / RATE <= LONGEST:
            clips.append((np.clip(samples, -1, 1) * 32767).astype(np.int16))
            facts.append(truth)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, samples=np.concatenate(clips), lengths=[len(c) for c in clips], facts=json.dumps(facts))
    temporary.rename(path)


EVALUATION = {  # name: (voices, condition)
    "known": (TRAINED, "clean"),
    "unseen": (HELD_OUT, "clean"),
    "noise": (HELD_OUT, "noise"),
    "telephone": (HELD_OUT, "telephone"),
    "mixed": (TRAINED, None),
}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--voices", type=common.Path, required=True, help="folder with kokoro.onnx, kokoro.json, kokoro-styles/")
    parser.add_argument("--fortunes", type=common.Path, default="/usr/share/games/fortunes")
    parser.add_argument("--wordnet", type=common.Path, default="/usr/share/wordnet")
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--natural", type=int, default=0, help="beside them, shards by recorded-like voices only (Kokoro), ten times as dear")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--evaluation", type=int, help="instead of training shards, write held-out sets of this many clips")
    parser.add_argument("--sets", nargs="*", default=list(EVALUATION), help="which of them")
    args = parser.parse_args()
    common.start(args)
    pause, voices = common.Pause(args.pause_file), Voices(args.voices)
    sentences = texts.sentences(args.fortunes, args.wordnet)
    folder = args.work / "clips"
    folder.mkdir(exist_ok=True)
    if args.evaluation:
        for number, (name, (speakers, condition)) in enumerate(tqdm(EVALUATION.items())):
            path, count = folder / f"{name}-0000.npz", args.evaluation * (2 if name == "mixed" else 1)
            pause.wait()
            if name in args.sets and not path.exists():
                maker = Maker(args.seed * 1_000_003 + 900_000 + number, voices, sentences, held_out=True)
                write_shard(maker, path, count, speakers, condition)
        return
    natural = [v for v in TRAINED if v.engine == "kokoro"]
    shards = [(n, f"train-{n:04d}.npz", TRAINED) for n in range(args.shards)]
    shards += [(500_000 + n, f"train-natural-{n:04d}.npz", natural) for n in range(args.natural)]
    for seed, name, speakers in tqdm(shards[args.worker :: args.workers], desc="shards"):
        pause.wait()
        if not (folder / name).exists():
            write_shard(Maker(args.seed * 1_000_003 + seed, voices, sentences, held_out=False), folder / name, SHARD, speakers, None)


if __name__ == "__main__":
    main()
