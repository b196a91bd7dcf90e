"""Live captions against faster-whisper on the same clips: words erased, delay behind the speaker, word errors, as a table in Markdown.

    scripts/bench captions [--threads N]

A server is started and each clip of tests/audio is sent to it as it would be spoken, 20 ms at a time, with silence behind it. Of each word that
is committed it is noted when it came. faster-whisper (base, the very weights of nano's word ear, greedy, whole files) then says of the same clip
which words it hears and when each of them ended: from there to when ours came is the delay behind the speaker. Normalised erasure is how many words
were taken back for each word of the final text (Arivazhagan et al. 2020): of what is committed, and of all that is shown, tentative words included.
"""

import argparse
import asyncio
import datetime
import difflib
import json
import os
import statistics
import sys
import tempfile
import time
import wave

import faster_whisper
import websockets

from common import errors, plain, serve

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
AUDIO = os.path.join(ROOT, "tests", "audio")
RATE = 16_000
PACKET = RATE // 50
SILENCE = 3.0
# Of Whisper base, from its own generation settings: its languages, and the attention heads that follow the sound in time.
LANGUAGES = list(range(50259, 50358))
HEADS = [[3, 1], [4, 2], [4, 3], [4, 7], [5, 1], [5, 2], [5, 4], [5, 6]]


def clips() -> list[tuple[str, bytes, list[str]]]:
    found = []
    for name in sorted(os.listdir(AUDIO)):
        if name.endswith(".wav"):
            with wave.open(os.path.join(AUDIO, name)) as file:
                assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), name
                pcm = file.readframes(file.getnframes())
            with open(os.path.join(AUDIO, name[:-4] + ".txt")) as file:
                found.append((name, pcm, plain(file.read())))
    return found


async def caption(url: str, pcm: bytes) -> tuple[list[tuple[str, float]], str, int, int]:
    """Each committed word with the seconds after which it came, the final words, how many committed words were not in them, and how many shown words
    were taken back."""
    async with websockets.connect(url, max_size=None) as socket:
        vad = {"type": "server_vad", "create_response": False}
        sound = {"format": {"type": "audio/pcm", "rate": RATE}, "transcription": {}, "turn_detection": vad}
        session = {"type": "realtime", "audio": {"input": sound}, "include": ["hearken.captions.tentative"]}
        await socket.send(json.dumps({"type": "session.update", "session": session}))
        told: dict[str, list[tuple[str, float]]] = {}
        final: dict[str, str] = {}
        shown: dict[str, list[str]] = {}
        retracted = 0
        open_items: set[str] = set()
        begun = 0.0

        def show(item: str, text: str) -> None:
            nonlocal retracted
            before, now = shown.get(item, []), plain(text)
            same = next((i for i, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))
            retracted += len(before) - same
            shown[item] = now

        async def listen() -> None:
            async for frame in socket:
                now = time.perf_counter() - begun
                event = json.loads(frame)
                kind = event["type"]
                if kind == "input_audio_buffer.speech_started":
                    open_items.add(event["item_id"])
                elif kind.endswith("input_audio_transcription.delta"):
                    pieces = told.setdefault(event["item_id"], [])
                    pieces.append((event["delta"], now))
                elif kind == "hearken.input_audio_transcription.tentative":
                    item = event["item_id"]
                    show(item, "".join(piece for piece, _ in told.get(item, [])) + " " + event["text"])
                elif kind.endswith("input_audio_transcription.completed"):
                    final[event["item_id"]] = event["transcript"]
                    show(event["item_id"], event["transcript"])
                    open_items.discard(event["item_id"])

        listener = asyncio.create_task(listen())
        begun = time.perf_counter()
        pcm += bytes(int(SILENCE * RATE) * 2)
        for n, at in enumerate(range(0, len(pcm), PACKET * 2)):
            await asyncio.sleep(max(0.0, begun + (n + 1) * 0.02 - time.perf_counter()))
            await socket.send(pcm[at : at + PACKET * 2])
        patience = time.perf_counter() + 20
        while (open_items or not final) and time.perf_counter() < patience:
            await asyncio.sleep(0.05)
        listener.cancel()
    times, erased = [], 0
    for item, pieces in told.items():
        text = "".join(piece for piece, _ in pieces)
        whole = final.get(item, text)
        if not whole.strip().startswith(text.strip()):
            erased += errors(plain(text), plain(whole)[: len(plain(text))])
        count = 0
        for i, (_, now) in enumerate(pieces):
            upto = plain("".join(piece for piece, _ in pieces[: i + 1]))
            times += [(word, now) for word in upto[count:]]
            count = max(count, len(upto))
    return times, " ".join(final.values()), erased, retracted


def whisper(nano: str, threads: int) -> faster_whisper.WhisperModel:
    """nano's word ear as faster-whisper wants to find it."""
    with open(os.path.join(nano, "tokenizer.json")) as file:
        tokenizer = json.load(file)
    tokens = {token: i for token, i in tokenizer["model"]["vocab"].items()}
    tokens.update((added["content"], added["id"]) for added in tokenizer["added_tokens"])
    out = tempfile.mkdtemp()
    with open(os.path.join(out, "vocabulary.json"), "w") as file:
        # The tokenizer leaves the times out that the model knows.
        json.dump(sorted(tokens, key=tokens.__getitem__) + [f"<|{i * 0.02:.2f}|>" for i in range(1501)], file)
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump({"alignment_heads": HEADS, "suppress_ids": [], "suppress_ids_begin": [220, 50257], "lang_ids": LANGUAGES}, file)
    for name in ["model.bin", "tokenizer.json"]:
        os.symlink(os.path.join(nano, name), os.path.join(out, name))
    return faster_whisper.WhisperModel(out, device="cpu", compute_type="float32", cpu_threads=threads)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("hearken")
    parser.add_argument("nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print each word with its delay")
    args = parser.parse_args()
    with serve(args.hearken, f"model.threads={args.threads}") as url:
        ours = [asyncio.run(caption(f"{url.replace('http', 'ws', 1)}/v1/realtime", pcm)) for _, pcm, _ in clips()]
    model = whisper(args.nano, args.threads)
    count = wrong = theirs_wrong = erased = retracted = told = 0
    delays: list[float] = []
    took = length = 0.0
    for (name, pcm, wanted), (times, final, gone, taken_back) in zip(clips(), ours):
        begun = time.perf_counter()
        segments, _ = model.transcribe(
            os.path.join(AUDIO, name), language="en", beam_size=1, temperature=0, word_timestamps=True
        )
        timed = [(word, each.end) for segment in segments for each in segment.words for word in plain(each.word)]
        took += time.perf_counter() - begun
        length += len(pcm) / 2 / RATE
        count += len(wanted)
        wrong += errors(wanted, plain(final))
        theirs_wrong += errors(wanted, [word for word, _ in timed])
        erased += gone
        retracted += taken_back
        told += len(times)
        pairs = difflib.SequenceMatcher(None, [w for w, _ in timed], [w for w, _ in times], autojunk=False)
        for a, b, size in pairs.get_matching_blocks():
            for i in range(size):
                delay = times[b + i][1] - timed[a + i][1]
                delays.append(delay)
                if args.verbose:
                    print(f"{name} {times[b + i][0]:<14} ended {timed[a + i][1]:6.2f} s, told {times[b + i][1]:6.2f} s: {delay:5.2f} s")
        print(f"{name}: {final}", file=sys.stderr)
    delays.sort()
    print(f"{datetime.date.today()}, {args.threads} threads, {len(ours)} clips, {length:.0f} s, {count} words, sent in real time\n")
    print("| | Hearken, live | faster-whisper base, whole files |\n|---|---|---|")
    print(f"| word errors | {wrong} ({100 * wrong / count:.1f} %) | {theirs_wrong} ({100 * theirs_wrong / count:.1f} %) |")
    print(f"| committed words that were erased (normalised erasure) | {erased} of {told} ({erased / told:.2f}) | – |")
    print(f"| normalised erasure of all that is shown, tentative words included | {retracted / told:.2f} | – |")
    print(f"| a word behind its speaker, median | {statistics.median(delays):.2f} s | – |")
    print(f"| the same, 95th of a hundred | {delays[min(len(delays) - 1, int(0.95 * len(delays)))]:.2f} s | – |")
    print(f"| time for all | as long as they are spoken | {took:.1f} s |")
    print(f"\nDelays of {len(delays)} words that both heard, from when faster-whisper says that each ended.")


if __name__ == "__main__":
    main()
