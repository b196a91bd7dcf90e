"""Stage prepare: the decoder's GGUF file, dequantised once, and its tokeniser.

The Rust runtime multiplies with the same dequantised values, so what is trained here fits them.

    python -m scripts.train.prepare --decoder model.gguf
"""

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tqdm import tqdm

from . import common

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Qwen2's byte-level BPE from the file's own vocabulary and merges."""
    fields = reader.fields

    def strings(key: str) -> list[str]:
        return [bytes(fields[key].parts[i]).decode() for i in fields[key].data]

    tokens, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    vocabulary = {t: i for i, t in enumerate(tokens) if kinds[i] == 1}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(m.split(" ")) for m in merges]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    made.decoder = decoders.ByteLevel()
    special = [t for i, t in enumerate(tokens) if kinds[i] in (3, 4) and i <= 151_664]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return made


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--decoder", type=common.Path, required=True, help="GGUF file")
    args = parser.parse_args()
    common.start(args)
    reader, pause = gguf.GGUFReader(args.decoder), common.Pause(args.pause_file)
    tokenizer(reader).save(str(args.work / "tokenizer.json"))
    weights = {}
    for tensor in tqdm(reader.tensors):
        pause.wait()
        weights[tensor.name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    temporary = args.work / "decoder.tmp"
    save_file(weights, temporary)
    temporary.rename(args.work / "decoder.safetensors")


if __name__ == "__main__":
    main()
