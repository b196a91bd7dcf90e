"""Stage questions: the sound of what `hearken eval` asks, in voices that are never trained, as small Opus files.

The spoken questions of tests/eval/questions.json stand there already, with their keys; here they are said. The acoustic questions are made whole,
tests/eval/acoustic.json and its sound: no transcript answers them, each kind is balanced over its answers, and a clip is asked whatever is settled
about it. Files that are there are left as they are.

With --people it writes something else, `<work>/people.json`: what people say whom no stage hears, and whether a man or a woman does, asked of recordings
that stay where they are. DIR is laid out as LibriSpeech is (SPEAKER/…/SPEAKER-CHAPTER-NUMBER.flac, its words in SPEAKER-CHAPTER.trans.txt, SPEAKERS.TXT).

    python -m scripts.train.questions --voices DIR
    python -m scripts.train.questions --people DIR
"""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from . import common, real, sound, texts
from .common import RATE
from .data import Maker, pace
from .tasks import DENIALS, NO, YES
from .voices import HELD_OUT, Voices, pick

ASKED = {  # kind: (question, answers by the value of the fact)
    "sex": ("Is the speaker a man or a woman?", {"man": ["man"], "woman": ["woman"]}),
    "pace": ("How fast does the person speak?", {"slow": ["slow", "slowly"], "normal": ["normal"], "fast": ["fast", "quickly"]}),
    "volume": ("How loud is the sound?", {"quiet": ["quiet"], "medium": ["medium"], "loud": ["loud"]}),
    "pitch": ("Is the voice deep or high?", {"low": ["deep", "low"], "high": ["high"]}),
    "noise": ("Is there noise in the background?", {True: YES, False: NO}),
    "kind of noise": (
        "Which noise is in the background, hiss, a low rumble, wind or music?",
        {"hiss": ["hiss"], "rumble": ["rumble"], "wind": ["wind"], "music": ["music"]},
    ),
    "speakers": ("How many people are speaking?", {1: ["one", "1"], 2: ["two", "2"]}),
    "first speaker": ("Who speaks first, a man or a woman?", {"man": ["man"], "woman": ["woman"]}),
    "end": ("Does the voice rise or fall at the end?", {"rising": ["rises", "rise", "rising"], "falling": ["falls", "fall", "falling"]}),
    "beeps": ("How many beeps do you hear?", {n: [word, str(n)] for n, word in enumerate(["one", "two", "three", "four"], 1)}),
    "knocks": ("How many knocks do you hear?", {n: [word, str(n)] for n, word in enumerate(["one", "two", "three", "four"], 1)}),
    "beeps or knocks": ("Do you hear beeps or knocks?", {"beep": ["beep", "beeps"], "knock": ["knock", "knocks"]}),
    "speech": ("Does anybody speak?", {True: YES, False: NO}),
}
EACH = 24  # questions of a kind, about


def save(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    peak = max(1.0, np.abs(samples).max())
    soundfile.write(path, (samples / peak).astype(np.float32), RATE, format="OGG", subtype="OPUS", compression_level=0.95)


PROBES = {  # question: what denies that it hears, beside DENIALS
    "Can you hear me?": NO, "Can you hear this recording?": NO, "Did you listen to what I said?": NO, "Are you able to process audio?": NO,
    "Do you hear my voice?": NO, "Is there sound in this message?": NO, "What do you hear?": [], "Describe the voice that you hear.": [],
    "Does my voice reach you?": NO, "Can you tell how I sound?": NO, "Are you a text model, or can you listen?": ["text model"],
    "Tell me what the recording sounds like.": [], "Please listen, and say what you notice.": [], "Can you understand speech?": NO, "Do you only read text?": YES,
    "How does the speaker sound?": [], "Can you perceive a tone of voice?": NO, "Is my microphone working?": NO, "Could you listen to this?": NO,
    "Am I loud enough for you?": [],
}  # fmt: skip


def cognition(folder: Path) -> None:
    """Self-cognition (the paper's section 4.3): each probe behind ten spoken questions; who hears does not say that it cannot."""
    tasks = [{"kind": "hears", "sound": f"questions/{10 * n + 5:03}.opus", "question": probe, "wrong": wrong} for probe, wrong in PROBES.items() for n in range(10)]
    lines = ",\n".join("  " + json.dumps(task) for task in tasks)
    head = f' "wrong": {json.dumps(DENIALS)},\n'
    (folder / "cognition.json").write_text('{\n "name": "cognition",\n' + head + ' "tasks": [\n' + lines + "\n ]\n}\n")


class Asker:
    """Clips with one thing settled on purpose, and short sentences in them."""

    def __init__(self, seed: int, voices: Voices, sentences: list[str]):
        self.maker = Maker(seed, voices, [s for s in sentences if 5 <= len(s.split()) <= 9], held_out=True)
        self.rng, self.noise = random.Random(seed), np.random.default_rng(seed)

    def speech(self, sex: str | None = None, speed: float = 0.9, pitch: float = 1.0) -> tuple[np.ndarray, dict]:
        voice, text = pick(self.rng, HELD_OUT, sex), self.rng.choice(self.maker.sentences)
        samples = self.maker.utterance(voice, text, pitch, speed)
        return samples / 10 ** (sound.level_db(samples) / 20), {"words": text, "sex": voice.sex}

    def clip(self, kind: str, value) -> tuple[np.ndarray, dict]:
        """A clip of which `value` is the truth about `kind`, and everything else that is settled about it."""
        rng, wordless = self.rng, kind == "speech" and not value
        about = {"noise": False, "speakers": 1, "speech": True}
        if kind in ("beeps", "knocks"):
            samples, words = self.speech()
            event = sound.events(kind[:-1], value, self.noise)
            samples, about = np.concatenate([event, samples]), {"beeps or knocks": kind[:-1]}
        elif wordless:
            length = int(rng.uniform(2, 4) * RATE)
            words = {"words": ""}
            samples = sound.noise(rng.choice(["hiss", "wind", "music"]), length, self.noise) if rng.random() < 0.5 else sound.events("knock", 3, self.noise) * 3
            about = {"speech": False}
        elif kind in ("first speaker", "speakers") and value != 1:
            first = value if kind == "first speaker" else rng.choice(["man", "woman"])
            (a, words), (b, more) = self.speech(first), self.speech("man" if first == "woman" else "woman")
            samples, words = np.concatenate([a, np.zeros(RATE // 3, np.float32), b]), {"words": words["words"] + " " + more["words"]}
            about |= {"speakers": 2, "first speaker": first}
        else:
            sex = value if kind == "sex" else None
            pitch = {"low": 0.9, "high": 1.1}.get(value, 1.0)
            sex = {"low": "man", "high": "woman"}.get(value, sex)
            speed = {"slow": 0.62, "fast": 1.35}.get(value, 0.9)
            samples, words = self.speech(sex, speed, pitch)
            while kind == "pace" and pace(sound.syllables(words["words"]) / (len(samples) / RATE)) != value:
                samples, words = self.speech(sex, speed, pitch)
        if kind == "end":
            samples = sound.bend(samples, 1.45 if value == "rising" else 0.7)
        samples = np.concatenate([np.zeros(RATE // 5, np.float32), samples, np.zeros(RATE // 5, np.float32)])
        noise = value if kind == "kind of noise" else None
        if noise:
            samples = samples + sound.noise(noise, len(samples), self.noise) * 10 ** (-rng.uniform(8, 14) / 20)
            about["noise"] = True
        level = {"quiet": -42, "loud": -11}.get(value, -25) if kind == "volume" else -25
        samples = samples * 10 ** ((level - sound.level_db(samples)) / 20)
        if level == -11:
            samples = np.tanh(samples * 0.8) / 0.8
        return samples, about | words | {kind: value}


def acoustic(voices: Voices, sentences: list[str], folder: Path, seed: int) -> None:
    """Clips for the kinds whose value must be made, then questions on all clips, balanced."""
    asker, clips = Asker(seed, voices, sentences), []
    settled = {"noise", "beeps or knocks", "speakers"}  # by the clips of other kinds, as is that somebody speaks
    made = [(kind, value) for kind, (_, answers) in ASKED.items() if kind not in settled for value in answers if value is not True]
    for kind, value in tqdm(made, desc="acoustic"):
        clips += [asker.clip(kind, value) for _ in range(EACH // len(ASKED[kind][1]))]
    places = defaultdict(list)
    for number, (samples, about) in enumerate(clips):
        for kind in ASKED:
            if kind in about:
                places[kind, about[kind]].append(number)
    tasks, used = [], set()
    for kind, (question, answers) in ASKED.items():
        each = min([EACH // len(answers), *(len(places[kind, value]) for value in answers)])
        for value, right in answers.items():
            for number in asker.rng.sample(places[kind, value], each):
                task = {"kind": kind, "sound": f"acoustic/{number:03}.opus", "question": question + " Answer directly.", "answers": right}
                others = [word for other in answers.values() if other is not right for word in other]
                tasks.append(task | {"wrong": others, "words": clips[number][1]["words"]})
                used.add(number)
    for number in used:
        save(folder / f"acoustic/{number:03}.opus", clips[number][0])
    lines = ",\n".join("  " + json.dumps(task) for task in tasks)
    (folder / "acoustic.json").write_text('{\n "name": "acoustic",\n "tasks": [\n' + lines + "\n ]\n}\n")


def people(folder: Path, each: int, target: Path) -> None:
    """`each` recordings of 2 to 9 s of each speaker, the first ones."""
    sexes, words, tasks, taken = real.sexes(folder), {}, [], Counter()
    for file in folder.rglob("*.trans.txt"):
        words |= dict(line.split(" ", 1) for line in file.read_text().splitlines())
    for file in sorted(folder.rglob("*-*-*.flac")):
        speaker, info = file.stem.split("-")[0], soundfile.info(file)
        if taken[speaker] == each or not 2 <= info.duration <= 9:
            continue
        taken[speaker] += 1
        question, answers = ASKED["sex"]
        wrong = answers["man" if sexes[speaker] == "woman" else "woman"]
        task = {"sound": str(file.resolve()), "words": words[file.stem].lower()}
        tasks += [{"kind": "words"} | task, {"kind": "sex", "question": question + " Answer directly.", "answers": answers[sexes[speaker]], "wrong": wrong} | task]
    target.write_text(json.dumps({"name": "people", "tasks": tasks}, indent=1) + "\n")


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--voices", type=Path, help="as of `data`")
    parser.add_argument("--people", type=Path)
    parser.add_argument("--each", type=int, default=5, help="recordings of each of these people")
    parser.add_argument("--fortunes", type=Path, default="/usr/share/games/fortunes")
    parser.add_argument("--wordnet", type=Path, default="/usr/share/wordnet")
    args = parser.parse_args()
    common.start(args)
    if args.people:
        return people(args.people, args.each, args.work / "people.json")
    folder, voices, pause = Path(__file__).parents[2] / "tests/eval", Voices(args.voices), common.Pause(args.pause_file)
    for number, task in enumerate(tqdm(json.loads((folder / "questions.json").read_text())["tasks"], desc="questions")):
        path = folder / task["sound"]
        pause.wait()
        if not path.exists():
            voice = HELD_OUT[number % len(HELD_OUT)]
            samples, rate = voices.say(voice, task["words"], 0.95)
            samples = sound.trim(sound.to_rate(samples, rate))
            edge = np.zeros(RATE // 4, np.float32)
            samples = np.concatenate([edge, samples * 10 ** ((-24 - sound.level_db(samples)) / 20), edge])
            save(path, samples)
    cognition(folder)
    if not (folder / "acoustic.json").exists():
        acoustic(voices, texts.sentences(args.fortunes, args.wordnet), folder, args.seed)


if __name__ == "__main__":
    main()
