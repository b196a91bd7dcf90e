"""What block attention costs the frozen Whisper encoder: cosine distance, and how surprised Whisper's own
decoder is by the true words (nats a token). `--decode` adds its greedy word errors, for which clips should
be padded to 30 s (`--pad`): unpadded, Whisper's decoder repeats itself whatever the attention.

    python -m scripts.train.block_attention --whisper model.bin --tokenizer tokenizer.json --real DIR --sets known unseen
"""

import json

import jiwer
import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common
from .dataset import read_clips
from .measure import plain
from .whisper import FULL, Form, Whisper, log_mel

PEAK = 1.5


def forms() -> dict[str, Form]:
    """The forms compared, by name."""
    table = {"full": FULL, "full, constant peak": Form(peak=PEAK)}
    for block in (0.48, 0.96, 2.0, 4.0):
        table[f"block {block} s, all left"] = Form(block, None, PEAK)
    for block, left in ((0.96, 3.84), (0.96, 7.68), (2.0, 4.0), (2.0, 8.0), (4.0, 8.0)):
        table[f"block {block} s, left {left} s"] = Form(block, left, PEAK)
    return table


def load(args) -> dict[str, list[tuple[np.ndarray, str]]]:
    """Clips and their words by set."""
    sets = {}
    if args.real:
        paths = sorted(args.real.glob("*.wav"))
        sets["real"] = [(soundfile.read(p, dtype="float32")[0], p.with_suffix(".txt").read_text()) for p in paths]
    for name in args.sets:
        clips = read_clips(args.work / "clips" / f"{name}-0000.npz")[: args.clips]
        sets[name] = [(samples.astype(np.float32) / 32768, facts["text"]) for samples, facts in clips]
    return sets


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--whisper", type=common.Path, required=True)
    parser.add_argument("--tokenizer", type=common.Path, required=True, help="Whisper's tokenizer.json")
    parser.add_argument("--real", type=common.Path, help="folder of wav files with a txt beside each")
    parser.add_argument("--sets", nargs="*", default=[])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--pad", type=float, default=0.0, help="fill each clip with silence to this many seconds")
    parser.add_argument("--decode", action="store_true")
    args = parser.parse_args()
    common.start(args)
    whisper, tokenizer, pause = Whisper(args.whisper), Tokenizer.from_file(str(args.tokenizer)), common.Pause(args.pause_file)
    start = [tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")]
    end = tokenizer.token_to_id("<|endoftext|>")
    for set_name, clips in load(args).items():
        clips = [(np.pad(s, (0, max(0, int(args.pad * common.RATE) - len(s)))), t.strip()) for s, t in clips]
        reference = [whisper.encode([log_mel(s)])[0] for s, _ in clips]
        for name, form in tqdm(forms().items(), desc=set_name):
            pause.wait()
            distance, surprise, heard = [], [], []
            for (samples, text), whole in zip(clips, reference):
                mel = log_mel(samples, form.peak)
                near = torch.cosine_similarity(whisper.encode([mel], form)[0], whole, dim=-1)
                distance.append(1 - near.mean().item())
                encoded = whisper.encode([mel], form, pool=False)[0]
                surprise.append(whisper.surprise(encoded, start, tokenizer.encode(" " + text, add_special_tokens=False).ids))
                if args.decode:
                    heard.append(tokenizer.decode(whisper.words(encoded, start, end)))
            record = {"set": set_name, "pad": args.pad, "form": name}
            record |= {"distance": round(float(np.mean(distance)), 4), "surprise": round(float(np.mean(surprise)), 3)}
            if args.decode:
                record["wer"] = round(100 * jiwer.wer([plain(t) for _, t in clips], [plain(h) for h in heard]), 1)
            common.append_json(args.work / "block_attention.jsonl", record)
            tqdm.write(json.dumps(record))


if __name__ == "__main__":
    main()
