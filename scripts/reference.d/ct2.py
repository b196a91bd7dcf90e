"""Reading CTranslate2's model.bin, to run Whisper base's encoder in transformers as well."""

import struct
from pathlib import Path

import numpy as np
import torch

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
LAYERS = 6


class Reader:
    """Little-endian reads over the whole file."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        """One integer in `struct`'s notation."""
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        """A string with its length, which counts the final zero."""
        size = self.number("H")
        self.at += size
        return self.data[self.at - size : self.at - 1].decode()

    def tensor(self) -> tuple[str, np.ndarray]:
        """One named variable."""
        name = self.text()
        dims = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(DTYPES[self.number("B")])
        size = self.number("I")
        self.at += size
        raw = np.frombuffer(self.data, dtype, size // dtype.itemsize, self.at - size)
        return name, raw.reshape(dims)


def variables(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a model.bin by name."""
    reader = Reader(path.read_bytes())
    reader.number("I"), reader.text(), reader.number("I")
    return dict(reader.tensor() for _ in range(reader.number("I")))


def encoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """Whisper's encoder under Step-Audio's names, f32."""
    found = variables(path)
    out: dict[str, torch.Tensor] = {}

    def put(name: str, value: np.ndarray) -> None:
        out[name] = torch.from_numpy(value.astype(np.float32))

    def both(name: str, source: str, weight: str = "weight", bias: str = "bias") -> None:
        put(f"{name}.weight", found[f"encoder/{source}/{weight}"])
        put(f"{name}.bias", found[f"encoder/{source}/{bias}"])

    both("encoder.conv1", "conv1")
    both("encoder.conv2", "conv2")
    both("encoder.after_norm", "layer_norm", "gamma", "beta")
    put("encoder.positional_embedding.weight", found["encoder/position_encodings/encodings"])
    for n in range(LAYERS):
        block, source = f"encoder.blocks.{n}", f"layer_{n}"
        both(f"{block}.attn_ln", f"{source}/self_attention/layer_norm", "gamma", "beta")
        both(f"{block}.attn.out", f"{source}/self_attention/linear_1")
        both(f"{block}.mlp_ln", f"{source}/ffn/layer_norm", "gamma", "beta")
        both(f"{block}.mlp.0", f"{source}/ffn/linear_0")
        both(f"{block}.mlp.2", f"{source}/ffn/linear_1")
        fused = [np.split(found[f"encoder/{source}/self_attention/linear_0/{kind}"], 3) for kind in ("weight", "bias")]
        for part, weight, bias in zip(("query", "key", "value"), *fused):
            put(f"{block}.attn.{part}.weight", weight)
            if part != "key":
                put(f"{block}.attn.{part}.bias", bias)
            elif bias.any():
                raise SystemExit("Whisper's keys have no bias, but this file gives them one")
    return out
