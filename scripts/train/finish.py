"""Stage finish: whether a speaker has finished, one row of weights over the decoder's state (models/nano/finish.safetensors).

    python -m scripts.train.finish make FOLDER [COUNT]    utterances with a pause in the middle, as scripts/bench turns has them, of other sentences
    hearken bench turns --speech FOLDER --states FILE     what the decoder makes of each, finished and cut at the pause
    python -m scripts.train.finish fit FILE [HELD_OUT]    learns the row, and says how it ranks the held-out states

`make` needs flite, espeak-ng and the Debian packages fortunes and wordnet-base; a cut utterance stops in mid flow or was spoken in two pieces, and may hold an
earlier pause, a finished one may hold its pause or not: where a pause came before, or how long it was spoken, says nothing.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

from . import texts

sys.path.insert(0, str(Path(__file__).parents[1] / "bench.d"))
import turns  # noqa: E402

FORTUNES, WORDNET = Path("/usr/share/games/fortunes"), Path("/usr/share/wordnet")
# Of the penalty on large weights, by the ranking of held-out sentences.
PENALTY = 100


def make(folder, count):
    from hibari import Hibari

    engine = Hibari(threads=1)

    def flite(name):
        return lambda text, speed: turns.command("flite", "-voice", name, "--setf", f"duration_stretch={1 / speed:.3f}", "-t", text, "-o")

    def espeak(name):
        return lambda text, speed: turns.command("espeak-ng", "-v", name, "-s", str(int(160 * speed)), text, "-w")

    voices = [(lambda text, speed: turns.resample(np.asarray(engine(text, speed=speed), np.float32), 24_000), 5)]
    voices += [(flite(name), 1) for name in ("slt", "rms", "awb", "kal16")]
    voices += [(espeak(name), 0.5) for name in ("en-us", "en-gb", "en-us+f2", "en-gb+m3", "en-gb-scotland", "en-us+m5")]
    rng = random.Random(7)
    sentences = [s for s in texts.sentences(FORTUNES, WORDNET) if 4 <= len(s.split()) <= 16]
    known = (turns.SAID + turns.DEV).replace("| ", "").lower()
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    while len(made) < count:
        text = texts.made(rng)["text"] if rng.random() < 0.4 else rng.choice(sentences)
        words = text.split()
        if not 4 <= len(words) <= 22 or text.lower() in known:
            continue
        say, speed = rng.choices(*zip(*voices, strict=True))[0], rng.uniform(0.85, 1.25)
        at = rng.randint(max(1, len(words) // 5), len(words) - 1)
        before, after = " ".join(words[:at]), " ".join(words[at:])
        in_pieces = rng.random() < 0.5
        first = turns.trim(say(before + (rng.choice(["", ",", "..."]) if in_pieces else ""), speed))
        whole = np.concatenate([first, turns.trim(say(after, speed))]) if in_pieces else turns.trim(say(text, speed))
        place = len(first) if in_pieces else turns.quietest(whole, min(len(first), len(whole) - 3000))
        if len(whole) < turns.RATE // 2 or not 400 < place < len(whole) - 400:
            continue
        sound, span = turns.hesitate(whole * rng.uniform(0.2, 1.0), place, rng.uniform(0.5, 1.8))
        noise = np.random.default_rng(len(made)).normal(0, rng.choice([1e-5, 2e-4, 2e-3]), turns.RATE // 2)
        name = f"{len(made):05}.wav"
        turns.write(folder / name, np.concatenate([noise.astype(np.float32), sound]))
        span = [edge + 0.5 for edge in span]
        made.append({"file": name, "kind": "train", "pauses": [span], "text": f"{before} … {after}"})
    (folder / "turns.json").write_text(json.dumps(made, indent=1))


def read(path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return np.array([row["state"] for row in rows]), np.array([float(row["finished"]) for row in rows])


def regress(states, finished):
    """Logistic regression by Newton's method, on states of mean 0 and deviation 1."""
    mean, deviation = states.mean(0), states.std(0) + 1e-6
    x = np.c_[(states - mean) / deviation, np.ones(len(states))]
    row, penalty = np.zeros(x.shape[1]), np.eye(x.shape[1]) * PENALTY
    penalty[-1, -1] = 1e-6
    for _ in range(25):
        chance = 1 / (1 + np.exp(-x @ row))
        slope = x.T @ (chance - finished) + penalty @ row
        step = np.linalg.solve((x * (chance * (1 - chance) + 1e-6)[:, None]).T @ x + penalty, slope)
        row -= step
        if np.abs(step).max() < 1e-4:
            break
    weight = row[:-1] / deviation
    return weight, row[-1] - weight @ mean


def ranking(odds, finished):
    """The share of pairs of a finished and a cut one in which the finished one is ahead."""
    ahead = odds[finished == 1][:, None] - odds[finished == 0][None, :]
    return (ahead > 0).mean() + (ahead == 0).mean() / 2


def fit(path, held_out):
    from safetensors.numpy import save_file

    states, finished = read(path)
    weight, bias = regress(states, finished)
    print(f"{len(states)} states, ranked {ranking(states @ weight, finished):.3f}")
    if held_out:
        states, finished = read(held_out)
        print(f"held out: {len(states)} states, ranked {ranking(states @ weight, finished):.3f}")
    out = Path(__file__).parents[2] / "models/nano/finish.safetensors"
    save_file({"weight": weight.astype(np.float32), "bias": np.array([bias], np.float32)}, out)


if sys.argv[1] == "make":
    make(Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 400)
else:
    fit(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
