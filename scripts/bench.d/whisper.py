"""faster-whisper's side of `scripts/bench peers`: its encoder (CTranslate2) on 30 and 5 seconds of sound, one JSON object a line.

5 s are run as 5 s: CTranslate2 pads nothing, faster-whisper does.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import ctranslate2
import numpy


def folder(nano: str) -> str:
    """nano's weights as CTranslate2 wants to find them: with a vocabulary beside them."""
    with open(os.path.join(nano, "tokenizer.json")) as f:
        tokenizer = json.load(f)
    tokens = {token: i for token, i in tokenizer["model"]["vocab"].items()}
    tokens.update((added["content"], added["id"]) for added in tokenizer["added_tokens"])
    ordered = sorted(tokens, key=tokens.__getitem__)
    out = tempfile.mkdtemp()
    with open(os.path.join(out, "vocabulary.json"), "w") as f:
        json.dump(ordered, f)
    os.symlink(os.path.join(nano, "model.bin"), os.path.join(out, "model.bin"))
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="nano's folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    path = folder(args.model)
    generator = numpy.random.default_rng(1)
    for kind in ["float32", "int8"]:
        model = ctranslate2.models.Whisper(
            path, device="cpu", compute_type=kind, intra_threads=args.threads, inter_threads=1
        )
        for seconds in [30, 5]:
            mel = generator.standard_normal((1, model.n_mels, seconds * 100)).astype(numpy.float32)
            features = ctranslate2.StorageView.from_array(mel)

            def run() -> float:
                begun = time.perf_counter()
                numpy.array(model.encode(features, to_cpu=True))
                return time.perf_counter() - begun

            run()
            times = [run() for _ in range(args.runs)]
            ms = statistics.median(times) * 1e3
            row = {"name": f"encoder {seconds} s", "kind": kind, "ms": ms, "best_ms": min(times) * 1e3}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
