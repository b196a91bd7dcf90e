"""The same GGUF in f32: gguf-py's dequantisation and transformers' Qwen2ForCausalLM.

llama.cpp rounds activations to 8 bits before each product, so its logits are a few hundredths away
from what the stored weights mean. These are what they mean, and can be compared with tightly.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from transformers import Qwen2Config, Qwen2ForCausalLM

TOP = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def transformers_name(name: str) -> str:
    """`blk.3.attn_q.weight` and its like, as transformers calls them."""
    stem, kind = name.rsplit(".", 1)
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{BLOCK[part]}.{kind}"


def config(reader: GGUFReader, tied: bool) -> Qwen2Config:
    """The model's shape, from the file's own fields."""

    def field(name: str):
        return reader.fields[f"qwen2.{name}"].contents()

    return Qwen2Config(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=field("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=tied,
    )


def load(path: Path) -> Qwen2ForCausalLM:
    """The whole model in f32; the file's `output.weight`, if there is one, is the head."""
    reader = GGUFReader(path)
    state = {
        transformers_name(t.name): torch.from_numpy(np.array(dequantize(t.data, t.tensor_type), np.float32))
        for t in reader.tensors
    }
    model = Qwen2ForCausalLM(config(reader, "lm_head.weight" not in state)).eval()
    model.load_state_dict(state, strict="lm_head.weight" in state, assign=True)
    return model


class Model:
    """One pass over a whole sequence."""

    def __init__(self, path: Path):
        self.inner = load(path)

    @torch.no_grad()
    def feed(self, ids: list[int]) -> np.ndarray:
        """Logits after every one of `ids`."""
        return self.inner(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
