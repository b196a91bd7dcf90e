"""The audio encoder and adaptor: transformers' Qwen2AudioEncoder, and a plain PyTorch twin.

The transformers class takes mel of one fixed length, so shorter input is zero-padded and masked.
The twin runs the unpadded input, so that agreement on the valid frames proves that neither the
padding nor the mask reaches them.
"""

import torch
import torch.nn.functional as F
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig

Weights = dict[str, torch.Tensor]

BLOCK_NAMES = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}


def transformers_name(name: str) -> str:
    """`encoder.blocks.0.mlp.2.bias` and its like, as Qwen2AudioEncoder calls them."""
    name = name.removeprefix("encoder.")
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        stem, kind = rest.rsplit(".", 1)
        return f"layers.{index}.{BLOCK_NAMES[stem]}.{kind}"
    name = name.replace("positional_embedding", "embed_positions")
    return name.replace("after_norm", "layer_norm")


def transformers_encoder(shape: dict, weights: Weights) -> Qwen2AudioEncoder:
    """Qwen2AudioEncoder with our weights and one position more than the context.

    A full context of real frames comes with two padding frames, hence one more frame at 50 Hz. It is
    masked and cut, so its position is never seen; zero will do.
    """
    config = Qwen2AudioEncoderConfig(
        num_mel_bins=shape["n_mels"],
        d_model=shape["n_audio_state"],
        encoder_layers=shape["n_audio_layer"],
        encoder_attention_heads=shape["n_audio_head"],
        encoder_ffn_dim=4 * shape["n_audio_state"],
        max_source_positions=shape["n_audio_ctx"] + 1,
        attn_implementation="eager",
    )
    model = Qwen2AudioEncoder(config).eval()
    state = {transformers_name(k): v.float() for k, v in weights.items() if k.startswith("encoder.")}
    state["embed_positions.weight"] = F.pad(state["embed_positions.weight"], (0, 0, 0, 1))
    model.load_state_dict(state, strict=True)
    return model


def key_mask(valid: torch.Tensor, width: int) -> torch.Tensor:
    """Additive attention mask [batch, 1, width, width] that hides keys past each item's end."""
    hidden = torch.arange(width)[None, :] >= valid[:, None]
    mask = torch.zeros(hidden.shape).masked_fill(hidden, -1e10)
    return mask[:, None, None, :].expand(-1, 1, width, width).contiguous()


@torch.no_grad()
def run_transformers(model: Qwen2AudioEncoder, mels: list[torch.Tensor], valid: list[int]) -> list[torch.Tensor]:
    """25 Hz output of each mel in one padded batch, cut to its valid frames."""
    positions = model.config.max_source_positions
    batch = torch.stack([F.pad(m, (0, 2 * positions - m.shape[1])) for m in mels])
    out = model(batch, attention_mask=key_mask(torch.tensor(valid), positions)).last_hidden_state
    return [row[: n // 2] for row, n in zip(out, valid)]


def linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """`name` as a linear layer, with a bias if it has one."""
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """`name` as a layer norm, eps 1e-5."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(weights: Weights, name: str, x: torch.Tensor, heads: int, valid: int) -> torch.Tensor:
    """Full attention of all frames [frames, state] over the first `valid`."""
    frames, state = x.shape
    scale = (state // heads) ** -0.25
    q, k, v = (
        linear(weights, f"{name}.{part}", x).view(frames, heads, -1).transpose(0, 1)
        for part in ("query", "key", "value")
    )
    scores = (q * scale) @ (k[:, :valid] * scale).transpose(1, 2)
    mixed = scores.softmax(-1) @ v[:, :valid]
    return linear(weights, f"{name}.out", mixed.transpose(0, 1).reshape(frames, state))


@torch.no_grad()
def run_plain(shape: dict, weights: Weights, mel: torch.Tensor, valid: int, keep: int) -> torch.Tensor:
    """25 Hz output of one unpadded mel from the first `keep` frames at 50 Hz.

    keep == valid is our rule. keep > valid also carries the masked frame that stands on the two
    padding frames, which the published model pools into one more 25 Hz frame when `valid` is odd.
    """
    x = F.gelu(F.conv1d(mel[None], weights["encoder.conv1.weight"], weights["encoder.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, weights["encoder.conv2.weight"], weights["encoder.conv2.bias"], stride=2, padding=1))
    x = x[0].T[:keep]
    if keep < 2:
        return x[:0]
    x = x + weights["encoder.positional_embedding.weight"][: len(x)]
    for layer in range(shape["n_audio_layer"]):
        block = f"encoder.blocks.{layer}"
        heard = norm(weights, f"{block}.attn_ln", x)
        x = x + attention(weights, f"{block}.attn", heard, shape["n_audio_head"], valid)
        inner = F.gelu(linear(weights, f"{block}.mlp.0", norm(weights, f"{block}.mlp_ln", x)))
        x = x + linear(weights, f"{block}.mlp.2", inner)
    return norm(weights, "encoder.after_norm", F.avg_pool1d(x.T[None], 2)[0].T)


@torch.no_grad()
def adaptor(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Adaptor over [frames, state] at 25 Hz; what is past the last frame given counts as zero."""
    width = weights["adapter.linear2.weight"].shape[0]
    if not len(x):
        return x.new_zeros(0, width)
    x = F.conv1d(x.T[None], weights["adapter.conv.weight"], weights["adapter.conv.bias"], stride=2, padding=1)
    x = F.relu(linear(weights, "adapter.linear1", F.gelu(x)[0].T))
    return linear(weights, "adapter.linear2", x)
