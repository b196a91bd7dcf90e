"""Ours against llama.cpp and faster-whisper: the same weights, threads and lengths, alternately, as a table in Markdown.

Needs what `scripts/bench peers` brings: a built `hearken`, nano's files, and a Python environment with llama-cpp-python and faster-whisper.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
# Ours, and what it is called on the other side.
DECODER = ["prefill 512", "prefill 13 at 500", "decode at 128", "decode at 2048", "decode 8 streams at 128"]
ENCODER = ["encoder 30 s", "encoder 5 s"]


def plain(nano: str) -> str:
    """nano without its low-rank updates: the very weights that llama.cpp reads."""
    out = tempfile.mkdtemp()
    for name in ["model.bin", "tokenizer.json", QWEN]:
        os.symlink(os.path.join(nano, name), os.path.join(out, name))
    trained = os.path.join(ROOT, "models", "nano")
    os.symlink(os.path.join(trained, "adaptor.safetensors"), os.path.join(out, "adaptor.safetensors"))
    with open(os.path.join(trained, "config.json")) as f:
        config = json.load(f)
    config.pop("lora", None)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f)
    return out


def rows(command: list[str], threads: int) -> list[dict]:
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def text() -> bytes:
    """A few hundred tokens anybody may use: the transcripts of the test clips, and our README."""
    audio = os.path.join(ROOT, "tests", "audio")
    parts = []
    for name in sorted(os.listdir(audio)):
        if name.endswith(".txt"):
            with open(os.path.join(audio, name), "rb") as f:
                parts.append(f.read())
    with open(os.path.join(ROOT, "README.md"), "rb") as f:
        parts.append(f.read())
    return b"\n".join(parts)


def machine() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return f"{names[0]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hearken")
    parser.add_argument("nano", help="the folder of nano's files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    model = plain(args.nano)
    python, gguf = sys.executable, os.path.join(args.nano, QWEN)
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}

    def note(into: dict[str, list[float]], name: str, row: dict) -> None:
        into.setdefault(name, []).append(row["ms"])

    def bench(only: str) -> None:
        command = [args.hearken, "bench", "--json", "--runs", str(args.runs), "--only", only, "--model", model]
        for row in rows(command, args.threads):
            note(ours, row["name"].removesuffix(" (with mel)"), row)

    def script(name: str, *more: str) -> list[dict]:
        return rows([python, os.path.join(HERE, name), *more, "--threads", str(args.threads)], args.threads)

    for _ in range(args.rounds):
        for name in DECODER:
            bench(name)
            for row in script("llama.py", gguf, "--runs", str(args.runs), "--only", name):
                note(theirs, row["name"], row)
        bench("encoder")
        for row in script("whisper.py", args.nano, "--runs", str(args.runs)):
            note(theirs, f"{row['name']} {row['kind']}", row)

    amounts = {"prefill 512": 512, "prefill 13 at 500": 52, "decode at 128": 16, "decode at 2048": 16}
    amounts["decode 8 streams at 128"] = 64
    print(f"{datetime.date.today()}, {machine()}, {args.threads} threads; medians of {args.rounds} × {args.runs} runs\n")
    print("| work | ours | theirs | ratio |\n|---|---|---|---|")
    for name in DECODER:
        a, b = statistics.median(ours[name]), statistics.median(theirs[name])
        rate = [f"{amounts[name] / ms * 1e3:.0f} tokens/s" for ms in (a, b)]
        print(f"| {name} | {rate[0]} | llama.cpp {rate[1]} | {b / a:.2f} |")
    for name in ENCODER:
        a = statistics.median(ours[name])
        for kind in ["float32", "int8"]:
            b = statistics.median(theirs[f"{name} {kind}"])
            print(f"| {name} | {a:.0f} ms | CTranslate2 {kind} {b:.0f} ms | {b / a:.2f} |")

    with tempfile.NamedTemporaryFile(suffix=".txt") as plain_text, tempfile.NamedTemporaryFile("w", suffix=".json") as ids:
        plain_text.write(text())
        plain_text.flush()
        tokens = script("llama.py", gguf, "--tokens", plain_text.name)[0][:1024]
        json.dump(tokens, ids)
        ids.flush()
        b = script("llama.py", gguf, "--perplexity", ids.name)[0]["value"]
        command = [args.hearken, "bench", "--json", "--perplexity", ids.name, "--model", model]
        a = next(row["value"] for row in rows(command, args.threads) if row["name"] == "perplexity")
    print(f"| perplexity, {len(tokens)} tokens | {a:.3f} | llama.cpp {b:.3f} | {100 * (a / b - 1):+.2f} % |")


if __name__ == "__main__":
    main()
