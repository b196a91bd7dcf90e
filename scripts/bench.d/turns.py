"""Makes what `scripts/bench turns` speaks: utterances with a pause in the middle, where a speaker would look for a word.

    turns.py FOLDER [dev]   writes wav files (16 kHz) and turns.json, a list of {"file", "kind", "pauses": [[from, to], …] in seconds, "text"}

The voices are espeak-ng's and flite's, hibari's where that is installed, and the recordings of tests/audio. One half of the utterances is cut at a word's
end in the sound of the whole, so that the voice stops in mid flow; the other half is spoken in two pieces, so that it falls as if the sentence were over,
and only the words tell. With `dev` other sentences are spoken and no recordings: what thresholds were chosen by.
"""

import json
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np

RATE = 16_000
PAUSES = [0.6, 0.9, 1.2, 1.5, 2.5]

# The bar is where the speaker hesitates.
SAID = """
What is the capital | of France?
Can you tell me how far it is from | London to Paris?
I would like to book a table for | four people on Friday evening.
Please remind me to call my | sister tomorrow at nine.
How many apples are left if I take | three from a box of twelve?
My name is | Martin and I live in Leeds.
Turn off the lights in the | kitchen and the hall.
Who wrote the book about | the white whale?
I need to fly to | Madrid on the second of May.
Play something by | Miles Davis, please.
The problem started when | I updated my phone last night.
Could you explain what a | black hole is?
We should meet at the | station around noon.
What time does the next | train to Oxford leave?
I'm looking for a restaurant that | serves fish and is not too expensive.
Set an alarm for | half past six.
Do you think it will | rain this afternoon?
Send a message to | Anna and tell her I am late.
The weather was so bad that | we stayed at home.
How do you say | good morning in Spanish?
"""
DEV = """
What is the tallest mountain | in Africa?
Can you help me with | my homework tonight?
I want to order a large | pizza with mushrooms.
Please write down that I | owe Peter twenty pounds.
How much is eleven | times seven?
My address is | forty two Park Road.
Close the window in | the living room.
Who was the first | person on the moon?
I have to be in | Berlin by ten o'clock.
Show me the photos from | our trip to Norway.
The car makes a noise when | I turn left.
Could you tell me why the | sky is blue?
She said that her | brother works in a bank.
When does the | museum open on Sundays?
I am afraid that I | forgot my password.
Add milk and | two loaves of bread to the list.
Is it going to be | cold tomorrow?
Tell my wife that I | will be home at eight.
He was so tired that he | fell asleep on the sofa.
What is the word for | tree in German?
"""


def read(path):
    """Samples of a 16-bit wav at 16 kHz."""
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
        return resample(sound, file.getframerate())


def resample(sound, rate):
    if rate == RATE:
        return sound
    count = int(len(sound) * RATE / rate)
    # By the spectrum: exact for what both rates can hold.
    spectrum = np.fft.rfft(sound)
    wanted = count // 2 + 1
    spectrum = spectrum[:wanted] if len(spectrum) >= wanted else np.pad(spectrum, (0, wanted - len(spectrum)))
    return (np.fft.irfft(spectrum, count) * count / len(sound)).astype(np.float32)


def write(path, sound):
    with wave.open(str(path), "w") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes())


def command(*words):
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run([*words, file.name], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return read(file.name)


def trim(sound):
    """Without the silence around it."""
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    return sound[loud[0] : loud[-1] + 1]


def quietest(sound, near):
    """The quietest 20 ms within a fifth of a second of a place."""
    power = np.convolve(sound**2, np.ones(320), "same")
    low, high = max(near - 3200, 0), min(near + 3200, len(sound) - 1)
    return low + int(np.argmin(power[low:high]))


class Voices:
    def __init__(self):
        self.all = [("espeak-ng", lambda text: command("espeak-ng", "-v", "en-us", "-s", "150", text, "-w"))]
        self.all.append(("espeak-ng", lambda text: command("espeak-ng", "-v", "en-gb+f3", "-s", "160", text, "-w")))
        for name in ("slt", "rms"):
            self.all.append(("flite", lambda text, name=name: command("flite", "-voice", name, "-t", text, "-o")))
        try:
            from hibari import Hibari

            engine = Hibari(threads=1)
            say = lambda text: resample(np.asarray(engine(text), np.float32), 24_000)  # noqa: E731
            self.all += [("hibari", say)] * 2
        except ImportError:
            print("hibari is not installed: only robots speak", file=sys.stderr)


def hesitate(sound, at, seconds):
    """The pause, with faint noise in it as any room has."""
    noise = np.random.default_rng(at).normal(0, 2e-4, int(seconds * RATE)).astype(np.float32)
    fade = np.linspace(1, 0, 80, dtype=np.float32)
    before, after = sound[:at].copy(), sound[at:].copy()
    before[-80:] *= fade
    after[:80] *= fade[::-1]
    return np.concatenate([before, noise, after]), [at / RATE, at / RATE + seconds]


def pauses(sound):
    """Where a recording itself falls silent for 250 ms and more."""
    frames = sound[: len(sound) // 320 * 320].reshape(-1, 320)
    loud = np.sqrt((frames**2).mean(1))
    quiet = loud < 0.1 * np.percentile(loud, 90)
    found, begun = [], None
    for i, silent in enumerate([*quiet, False]):
        if silent and begun is None:
            begun = i
        elif not silent and begun is not None:
            if i - begun >= 13 and begun > 25 and i < len(quiet) - 10:
                found.append([begun * 0.02, i * 0.02])
            begun = None
    return found


def main(folder, dev):
    folder.mkdir(parents=True, exist_ok=True)
    made = []

    def keep(kind, voice, sound, spans, text):
        name = f"{len(made):03}-{voice}.wav"
        write(folder / name, np.pad(sound, (RATE // 2, 0)))
        spans = [[a + 0.5, b + 0.5] for a, b in spans]
        made.append({"file": name, "kind": kind, "pauses": spans, "text": text})

    voices = Voices().all
    lines = (DEV if dev else SAID).strip().splitlines()
    for n, line in enumerate(lines):
        before, after = (part.strip() for part in line.split("|"))
        text = f"{before} {after}"
        for v, (voice, say) in enumerate(voices[n % 2 :: 2]):
            whole, first = trim(say(text)), trim(say(before))
            if (n // 2 + v) % 2:
                kind, sound, at = "in two pieces", np.concatenate([first, trim(say(after))]), len(first)
            else:
                kind, sound, at = "cut in flow", whole, quietest(whole, min(len(first), len(whole) - RATE // 4))
            sound, span = hesitate(sound, at, PAUSES[(n + v) % len(PAUSES)])
            keep(kind, voice, sound, [span], f"{before} … {after}")
    if not dev:
        root = Path(__file__).parents[2] / "tests/audio"
        for n, path in enumerate(sorted(root.glob("*.wav"))):
            if path.with_suffix(".txt").exists():
                sound, text = trim(read(path)), path.with_suffix(".txt").read_text().strip()
                keep("recording", "recording", sound, pauses(sound), text)
                # And with a hesitation where the reader made none.
                at = quietest(sound, int(len(sound) * 0.45))
                sound, span = hesitate(sound, at, PAUSES[1 + n % 4])
                keep("recording", "recording", sound, [span], text)
    (folder / "turns.json").write_text(json.dumps(made, indent=1))
    print(f"{len(made)} utterances in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "dev" in sys.argv[2:])
