"""Stage agree: whether the runtime says what PyTorch says, token by token, about the same sound.

The runtime multiplies 4-bit and 8-bit numbers where this side multiplies floats, so at near ties the two may choose another token. For each clip:
whether all tokens are the same, and if not, by how much PyTorch prefers its own token to the runtime's where they first part (nats). A repetition penalty, which this side
has not, would part them elsewhere.

    hearken eval tests/eval/questions.json --json --set model.words=none --set sampling.repetition_penalty=1 > said.jsonl
    python -m scripts.train.agree --checkpoint models/nano --said said.jsonl --sounds tests/eval --whisper WHISPER.bin
"""

import json

import soundfile
import torch

from . import common, sound
from .common import RATE
from .decoder import generate
from .evaluate import Listener
from .tasks import BEGIN, END, REST
from .whisper import Form, Whisper, log_mel

BEGUN, BEHIND = "<think>\n", "\n</think>\n\n"


@torch.no_grad()
def parted(listener: Listener, prompt: torch.Tensor, mine: list[int], theirs: list[int]) -> tuple[int, float] | None:
    """Where the runtime's tokens first differ and how much likelier PyTorch's own is there; None if they are the same."""
    place = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), min(len(mine), len(theirs)))
    if place == len(mine) == len(theirs):
        return None
    end = listener.tokenizer.token_to_id(END)
    x = torch.cat([prompt, listener.decoder.embeddings[mine[:place]]])[None]
    places = torch.arange(x.shape[1])[None]
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    likely = listener.decoder.scores(listener.decoder(x, places, mask)[:, -1]).log_softmax(-1)[0]
    own, other = (tokens[place] if place < len(tokens) else end for tokens in (mine, theirs))
    return place, (likely[own] - likely[other]).item()


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=common.Path, required=True)
    parser.add_argument("--said", type=common.Path, required=True, help="of hearken eval --json")
    parser.add_argument("--sounds", type=common.Path, required=True, help="the folder of the task file")
    parser.add_argument("--whisper", type=common.Path, required=True)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--most", type=int, default=160, help="tokens a clip")
    args = parser.parse_args()
    common.start(args)
    listener, whisper, form = Listener(args.checkpoint, args.work, common.Pause(args.pause_file)), Whisper(args.whisper), Form(2.0, 8.0, 1.5)
    said = [line for line in map(json.loads, args.said.read_text().splitlines()) if "reply" in line][: args.clips]

    def ids(text: str) -> list[int]:
        return listener.tokenizer.encode(text).ids

    same = 0
    for line in said:
        samples = sound.to_rate(*soundfile.read(args.sounds / line["sound"], dtype="float32"))
        features = whisper.encode([log_mel(samples, form.peak)], form)[0]
        with torch.no_grad():
            prompt = torch.cat([listener.embed(BEGIN), listener.adaptor(features[None])[0], listener.embed(REST + BEGUN)])
            mine = generate(listener.decoder, [prompt], listener.tokenizer.token_to_id(END), args.most)[0][0]
        text = listener.tokenizer.decode(mine, skip_special_tokens=False).removesuffix(END)
        theirs = line["reasoning"] + BEHIND + line["reply"]
        where = None if text.strip() == theirs.strip() else parted(listener, prompt, ids(text), ids(theirs))
        same += where is None
        record = {"sound": line["sound"], "seconds": round(len(samples) / RATE, 1), "same": where is None}
        if where:
            record |= {"at": where[0], "of": len(mine), "nats": round(where[1], 3), "here": text, "runtime": theirs}
        print(json.dumps(record), flush=True)
    print(json.dumps({"checkpoint": args.checkpoint.name, "clips": len(said), "same": same}))


if __name__ == "__main__":
    main()
