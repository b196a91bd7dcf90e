"""What the clients in Python say: question.wav ("What is the capital of France?") as they send it."""

import pathlib
import struct
import wave

QUESTION = pathlib.Path(__file__).parents[1] / "browser/question.wav"


def question(rate: int = 24_000) -> bytes:
    """The question as PCM16 at this rate, with half a second of silence before it."""
    with wave.open(str(QUESTION)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth()) == (1, 2)
        given, frames = wav.getframerate(), wav.getnframes()
        samples = struct.unpack(f"<{frames}h", wav.readframes(frames))
    said = []
    for n in range(frames * rate // given - 1):
        at, part = divmod(n * given, rate)
        said.append(samples[at] + (samples[min(at + 1, frames - 1)] - samples[at]) * part // rate)
    return bytes(rate) + struct.pack(f"<{len(said)}h", *said)
