"""Calls of two made voices against the scripts they were made from: talk ratio, interruptions, words, as a table in Markdown.

    scripts/bench calls [--calls N]
    scripts/bench.d/calls.py --make tests/audio/call    # the call of the tests: call.ogg, and call.json with who says what when

Needs flite, espeak-ng and sox. Each call is a stereo file, one party a channel, of voices that differ; lines follow one another, come a little early, are
broken into, or are agreed to by a word in the middle, which is no interruption. The server hears it by POST /v1/calls, as anybody's file.
"""

import argparse
import array
import datetime
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
import urllib.request
import wave

from common import errors, plain, serve

RATE = 16_000
VOICES = ["flite:rms", "flite:slt", "flite:awb", "flite:kal16", "espeak-ng:en-us", "espeak-ng:en-gb-x-rp", "espeak-ng:en-us+f3", "espeak-ng:en-gb-scotland"]
# (party, words, how it begins, decibels, semitones): after a pause of so many seconds, or, where that is negative, so long before the other's line
# ends: an interruption. "early" is a turn taken 0.2 s before the end; "agrees" a word in the middle of the other's line.
THE_CALL = [
    (1, "Good morning, this is the service desk, how can I help you today?", 0.8, 0, 0),
    (0, "Hello. I have been waiting for my new router since the first of May.", 0.7, 0, 0),
    (1, "I am sorry to hear that. Could you tell me the number of your order?", "early", 0, 0),
    (0, "Yes, it is four seven one one.", 0.9, 0, 0),
    (1, "Thank you, let me look that up for you. I can see that it was sent to the old address, and that it came back to us last week", 0.5, 0, 0),
    (0, "That can not be true, I gave you the new address twice already!", -1.6, 5, 2),
    (1, "I understand. We will send it again tomorrow, by express.", 0.6, 0, 0),
    (0, "Tomorrow is too late. I work from home and I need it now, this is the third time that I have called about the very same thing", 0.4, 6, 3),
    (1, "Please let me finish, I can offer you a mobile router until then.", -1.3, 0, 0),
    (0, "All right. That would help me, but if it is not here by noon then I want to cancel my contract.", 2.4, 3, 1),
    (1, "Of course.", "agrees", 0, 0),
    (1, "You will have it by noon. Is there anything else that I can do?", 0.8, 0, 0),
    (0, "No, that is all. Thank you, goodbye.", 0.6, 0, 0),
    (1, "Goodbye, and thank you for calling.", 0.5, 0, 0),
]


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def say(voice: str, text: str, decibels: float, semitones: float, folder: str) -> array.array:
    """16 kHz samples without the silence at their ends."""
    program, name = voice.split(":")
    raw, out = os.path.join(folder, "raw.wav"), os.path.join(folder, "out.wav")
    if program == "flite":
        run("flite", "-voice", name, "-t", text, "-o", raw)
    else:
        run("espeak-ng", "-v", name, "-w", raw, text)
    trim = ["silence", "1", "0.02", "0.5%", "reverse"] * 2
    run("sox", raw, "-r", str(RATE), "-c", "1", "-b", "16", out, "norm", "-12", "pitch", str(100 * semitones), "gain", str(decibels), *trim)
    with wave.open(out) as file:
        return array.array("h", file.readframes(file.getnframes()))


class Call:
    """Two channels, and who says what when."""

    def __init__(self) -> None:
        self.channels = [array.array("h"), array.array("h")]
        self.lines: list[dict] = []

    def say(self, party: int, at: float, sound: array.array, words: str, interrupts: bool) -> None:
        channel, first = self.channels[party], int(at * RATE)
        channel.extend([0] * (first - len(channel)))
        channel.extend(sound)
        self.lines.append({"party": party, "start": first / RATE, "end": len(channel) / RATE, "words": words, "interrupts": interrupts})

    def write(self, path: str, tail: float = 2.0) -> None:
        """Stereo, with noise as quiet as a line has it."""
        length = max(map(len, self.channels)) + int(tail * RATE)
        noise = random.Random(1)
        frames = array.array("h")
        for i in range(length):
            frames.extend((channel[i] if i < len(channel) else 0) + noise.randint(-12, 12) for channel in self.channels)
        with wave.open(path, "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(frames.tobytes())


def make(lines: list, voices: list[str]) -> Call:
    call, at = Call(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for party, words, begins, decibels, semitones in lines:
            sound = say(voices[party], words, decibels, semitones, folder)
            before = call.lines[-1] if call.lines else {"start": 0.0, "end": 0.0}
            if begins == "early":
                start = before["end"] - 0.2
            elif begins == "agrees":
                start = (before["start"] + before["end"]) / 2
            else:
                start = at + begins
            call.say(party, start, sound, words, not isinstance(begins, str) and begins < 0)
            at = max(at, call.lines[-1]["end"])
    return call


def anew(seed: int) -> tuple[list, list[str]]:
    """The lines of the call in another course, by other voices."""
    chance = random.Random(seed)
    voices = chance.sample(VOICES, 2)
    long, short = [line[1] for line in THE_CALL if len(line[1]) > 50], ["Yes.", "Of course.", "I see."]
    lines, party, chosen = [], chance.randint(0, 1), chance.sample(long, len(long))
    for n, words in enumerate(chosen):
        # Who breaks in is let finish, so that each interruption is one turn that breaks into one other.
        free = n > 0 and not (lines[-1][2] != "early" and not isinstance(lines[-1][2], str) and lines[-1][2] < 0)
        begins = chance.choice([0.3, 0.6, 1.2, 2.5, "early", -1.2, -1.8]) if free else chance.choice([0.5, 0.9])
        lines.append((party, words, begins, chance.choice([0, 0, 3, -4]), chance.choice([0, 0, 1])))
        if chance.random() < 0.25:
            lines.append((1 - party, chance.choice(short), "agrees", 0, 0))
            lines.append((party, chance.choice(long), 1.0, 0, 0))
        party = 1 - party
    return lines, voices


def heard(url: str, path: str) -> dict:
    """What the server makes of it, once all is read."""
    boundary = "hearken-calls"
    with open(path, "rb") as file:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="call.wav"\r\n\r\n'.encode()
        body = head + file.read() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(f"{url}/v1/calls", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    call = json.load(urllib.request.urlopen(request, timeout=60))
    while call["state"] != "ended":
        time.sleep(0.2)
        call = json.load(urllib.request.urlopen(f"{url}/v1/calls/{call['id']}", timeout=60))
    return call


def compare(call: Call, found: dict) -> dict:
    """How far what was found is from the script."""
    talk = [sum(line["end"] - line["start"] for line in call.lines if line["party"] == n) for n in (0, 1)]
    ratio = talk[0] / sum(talk)
    wanted = [(line["party"], line["start"]) for line in call.lines if line["interrupts"]]
    names = [party["name"] for party in found["parties"]]
    told = [(names.index(turn["party"]), turn["start"]) for turn in found["turns"] if turn["interrupts"]]
    met = sum(any(p == q and abs(a - b) < 0.4 for q, b in told) for p, a in wanted)
    wrong = words = 0
    for n, name in enumerate(names):
        script = [word for line in call.lines if line["party"] == n for word in plain(line["words"])]
        read = [word for turn in found["turns"] if turn["party"] == name for word in plain(turn.get("words", ""))]
        wrong, words = wrong + errors(script, read), words + len(script)
    return {"ratio": 100 * abs(found["parties"][0]["talk_ratio"] - ratio), "wanted": len(wanted), "met": met, "false": len(told) - met, "wrong": wrong, "words": words}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("hearken", nargs="?")
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--make", metavar="PATH")
    args = parser.parse_args()
    if args.make:
        call = make(THE_CALL, ["flite:rms", "flite:slt"])
        call.write(args.make + ".wav")
        run("sox", args.make + ".wav", "-C", "4", args.make + ".ogg")
        os.remove(args.make + ".wav")
        with open(args.make + ".json", "w") as file:
            file.write("[\n" + ",\n".join("  " + json.dumps(line) for line in call.lines) + "\n]\n")
        return
    rows = []
    with serve(args.hearken, "calls.notes=false") as url, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "call.wav")
        for seed in range(args.calls):
            lines, voices = (THE_CALL, ["flite:rms", "flite:slt"]) if seed == 0 else anew(seed)
            call = make(lines, voices)
            call.write(path)
            found = heard(url, path)
            rows.append((" and ".join(voices), found["seconds"], compare(call, found)))
    print(f"{datetime.date.today()}, {len(rows)} calls, {sum(row[1] for row in rows):.0f} s\n")
    print("| voices | seconds | talk ratio off by | interruptions found, of | found and not there | word errors |\n|---|---|---|---|---|---|")
    for voices, seconds, row in rows:
        rate = 100 * row["wrong"] / row["words"]
        print(f"| {voices} | {seconds:.0f} | {row['ratio']:.1f} points | {row['met']} of {row['wanted']} | {row['false']} | {rate:.0f} % |")
    total = {key: sum(row[2][key] for row in rows) for key in rows[0][2]}
    ratios = [row[2]["ratio"] for row in rows]
    rate = 100 * total["wrong"] / total["words"]
    print(f"| all | | {statistics.median(ratios):.1f} (median), {max(ratios):.1f} (worst) | {total['met']} of {total['wanted']} | {total['false']} | {rate:.0f} % |")


if __name__ == "__main__":
    main()
