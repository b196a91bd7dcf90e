"""Golden vectors for the Rust parity tests, made by code that is not ours.

tiny     two small random checkpoints and everything computed from them (transformers, torch.stft)
whisper  Whisper base on real clips (CTranslate2, faster-whisper, transformers)
llama    Qwen2.5-Coder-0.5B-Instruct Q4_K_M (llama.cpp)
all      the three of them
"""

import argparse
from pathlib import Path

HERE = Path(__file__).resolve().parent


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("all", "tiny", "whisper", "llama"))
    parser.add_argument(
        "--nano",
        type=Path,
        help="folder with model.bin, config.json, tokenizer.json and vocabulary.txt of Whisper base in CTranslate2 form, "
        "and the decoder's GGUF (whisper, llama)",
    )
    parser.add_argument("--audio", type=Path, help="folder of 16 kHz mono PCM16 wav files (whisper)")
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "tests" / "golden", help="default: %(default)s")
    given = parser.parse_args()
    if given.part != "tiny" and not given.nano:
        parser.error(f"{given.part} needs --nano")
    if given.part in ("all", "whisper") and not given.audio:
        parser.error(f"{given.part} needs --audio")
    return given


def main() -> None:
    """Run the parts asked for; imports are late, so that each part needs only its own packages."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part in ("all", "tiny"):
        import tiny

        tiny.run(given.out)
    if given.part in ("all", "whisper"):
        import whisper_base

        whisper_base.run(given.nano, given.audio, given.out)
    if given.part in ("all", "llama"):
        import llama

        llama.run(given.nano, given.out)


if __name__ == "__main__":
    main()
