"""Small random checkpoints in the official Step-Audio layout, and golden vectors from them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

import clips
import encoder
import frontend
import tiny_tokenizer

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_attention_groups": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_seq_len": 1024,
    "vocab_size": tiny_tokenizer.VOCAB,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 1024,
    "rope_scaling": None,
}
AUDIO = {
    "n_mels": 128,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 4,
    "n_audio_layer": 2,
    "n_codebook_size": 4096,
    "llm_dim": 64,
    "kernel_size": 3,
    "adapter_stride": 2,
}
GREEDY = 64
# Greedy equality is a fair test only if no step is nearly a tie, and only if it does not just repeat itself.
MIN_GAP, MIN_DISTINCT = 5e-3, 12
AUDIO_CLIP = 16_000
BATCH = (16_001, 12_345, 400)
ENCODER_AGREE, BATCH_AGREE = 2e-5, 2e-5


@dataclass(frozen=True)
class Kind:
    """What makes one checkpoint differ from the other."""

    name: str
    n_mels: int
    dtype: torch.dtype
    tied: bool
    adaptor_width: int


KINDS = (
    Kind("tiny", 128, torch.bfloat16, tied=False, adaptor_width=2048),
    Kind("tiny80", 80, torch.float16, tied=True, adaptor_width=256),
)


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint by its official name."""
    state, layers, ctx = AUDIO["n_audio_state"], AUDIO["n_audio_layer"], AUDIO["n_audio_ctx"]
    hidden, ffn, vocab = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["vocab_size"]
    kv = hidden // TEXT["num_attention_heads"] * TEXT["num_key_value_heads"]
    out: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *dims: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = dims
        if bias:
            out[f"{name}.bias"] = dims[:1]

    layer("encoder.conv1", state, kind.n_mels, 3)
    layer("encoder.conv2", state, state, 3)
    layer("encoder.positional_embedding", ctx, state, bias=False)
    for n in range(layers):
        block = f"encoder.blocks.{n}"
        for part in ("query", "key", "value", "out"):
            layer(f"{block}.attn.{part}", state, state, bias=part != "key")
        layer(f"{block}.attn_ln", state)
        layer(f"{block}.mlp.0", 4 * state, state)
        layer(f"{block}.mlp.2", state, 4 * state)
        layer(f"{block}.mlp_ln", state)
    layer("encoder.after_norm", state)
    layer("adapter.conv", state, state, AUDIO["kernel_size"])
    layer("adapter.linear1", kind.adaptor_width, state)
    layer("adapter.linear2", AUDIO["llm_dim"], kind.adaptor_width)
    layer("model.embed_tokens", vocab, hidden, bias=False)
    for n in range(TEXT["num_hidden_layers"]):
        block = f"model.layers.{n}"
        for part, rows in (("q", hidden), ("k", kv), ("v", kv)):
            layer(f"{block}.self_attn.{part}_proj", rows, hidden)
        layer(f"{block}.self_attn.o_proj", hidden, hidden, bias=False)
        layer(f"{block}.mlp.gate_proj", ffn, hidden, bias=False)
        layer(f"{block}.mlp.up_proj", ffn, hidden, bias=False)
        layer(f"{block}.mlp.down_proj", hidden, ffn, bias=False)
        layer(f"{block}.input_layernorm", hidden, bias=False)
        layer(f"{block}.post_attention_layernorm", hidden, bias=False)
    layer("model.norm", hidden, bias=False)
    if not kind.tied:
        layer("lm_head", vocab, hidden, bias=False)
    return out


def is_norm(name: str) -> bool:
    """Whether a tensor is the weight or bias of a normalisation."""
    return "norm" in name or "_ln." in name


def random_weights(kind: Kind, seed: int) -> encoder.Weights:
    """Random weights, representable in the checkpoint's dtype, scaled so that signals neither die nor explode.

    The key bias is large, as Qwen2.5's is: an implementation that forgets it, or rounds keys, fails.
    """
    rng = torch.Generator().manual_seed(seed)
    out = {}
    for name, dims in shapes(kind).items():
        value = torch.randn(dims, generator=rng)
        if is_norm(name):
            value = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            value = value * (4.0 if "k_proj" in name else 0.1)
        elif "embed" in name:
            value = value * 0.5
        else:
            fan_in = value[0].numel()
            value = value * (1.5 / fan_in**0.5)
        out[name] = value.to(kind.dtype)
    return out


def config(kind: Kind, tokenizer) -> dict:
    """config.json. A separate head is told by the presence of lm_head.weight, as in the official files."""
    dtype = str(kind.dtype).removeprefix("torch.")
    stop, pad = tokenizer.token_to_id("<|EOT|>"), tokenizer.token_to_id("<|endoftext|>")
    tied = {"tie_word_embeddings": True} if kind.tied else {}
    return {
        "architectures": ["StepAudio2ForCausalLM"],
        "model_type": "step_audio_2",
        "eos_token_id": stop,
        "pad_token_id": pad,
        "vocab_size": TEXT["vocab_size"],
        "torch_dtype": dtype,
        **tied,
        "text_config": {"model_type": "qwen2", **TEXT, "eos_token_id": stop, "pad_token_id": pad, "torch_dtype": dtype, **tied},
        "audio_encoder_config": {**AUDIO, "n_mels": kind.n_mels},
    }


def write_json(path: Path, value) -> None:
    """JSON with one item a line at the top, so that diffs can be read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_shards(folder: Path, weights: encoder.Weights) -> None:
    """Two shards and their index; the cut falls inside the decoder, as it does in big checkpoints."""
    names = list(weights)
    cut = names.index("model.layers.1.self_attn.q_proj.weight")
    files, where = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], {}
    for file, part in zip(files, (names[:cut], names[cut:])):
        save_file({n: weights[n].contiguous() for n in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def decoder(kind: Kind, weights: encoder.Weights) -> Qwen2ForCausalLM:
    """transformers' Qwen2ForCausalLM in f32 with our weights."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings")
    rope = {"rope_type": "default", "rope_theta": TEXT["rope_theta"]}
    settings = Qwen2Config(
        **{k: TEXT[k] for k in names + more},
        rope_parameters=rope,
        tie_word_embeddings=kind.tied,
        attn_implementation="eager",
    )
    model = Qwen2ForCausalLM(settings).eval()
    state = {k: v.float() for k, v in weights.items() if k.startswith(("model.", "lm_head."))}
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or set(missing) - ({"lm_head.weight"} if kind.tied else set()):
        raise SystemExit(f"decoder weights do not fit: {missing} {unknown}")
    model.tie_weights()
    return model


@torch.no_grad()
def prefill_logits(model: Qwen2ForCausalLM, embeds: torch.Tensor) -> torch.Tensor:
    """Logits [positions, vocab] of one prompt given as embeddings."""
    return model(inputs_embeds=embeds[None]).logits[0]


@torch.no_grad()
def greedy(model: Qwen2ForCausalLM, embeds: torch.Tensor) -> tuple[list[int], list[float]]:
    """GREEDY tokens, stopping at nothing, and the top-2 logit gap at each; no cache, so that none can be wrong."""
    ids, gaps = [], []
    for _ in range(GREEDY):
        logits = model(inputs_embeds=embeds[None]).logits[0, -1]
        best = logits.topk(2)
        ids.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        embeds = torch.cat([embeds, model.model.embed_tokens(best.indices[:1])])
    return ids, gaps


def prompts(tokenizer, audio_tokens: int) -> dict[str, list[int]]:
    """Token ids of a text prompt, one with audio in the middle, and one past position 256."""
    patches = "<audio_patch>" * audio_tokens
    head = "<|BOT|>system\nYou are a helpful assistant who listens.<|EOT|><|BOT|>human\n"
    tail = "<|EOT|><|BOT|>assistant\n<think>\n"
    texts = {
        "text": f"{head}What is the answer?{tail}",
        "audio": f"{head}<audio_start>{patches}<audio_end>What do you hear?{tail}",
        "long": head + "The rain in the street was louder than the voice. " * 40 + tail,
    }
    return {name: tokenizer.encode(text, add_special_tokens=False).ids for name, text in texts.items()}


def embed(model: Qwen2ForCausalLM, ids: list[int], patch: int, audio: torch.Tensor) -> torch.Tensor:
    """Embeddings of a prompt with every audio patch replaced by its adaptor frame."""
    tokens = torch.tensor(ids)
    rows = model.model.embed_tokens(tokens).detach().clone()
    if (tokens == patch).any():
        rows[tokens == patch] = audio
    return rows


def frame_subset(count: int, every: int) -> list[int]:
    """All frames of a short output; the first and last 8 and every `every`th of a long one."""
    if count <= 24:
        return list(range(count))
    return sorted({*range(8), *range(count - 8, count), *range(0, count, every)})


class Clip:
    """One segment through front end, encoder and adaptor, every stage checked against a second opinion."""

    def __init__(self, length: int, shape: dict, weights: encoder.Weights, model):
        self.length = length
        self.counts = frontend.counts(length)
        mel, self.mel_apart = frontend.log_mel(clips.as_float(clips.samples(length)), shape["n_mels"])
        self.mel = torch.from_numpy(mel)
        valid = self.counts["at_50hz"]
        self.encoded = encoder.run_transformers(model, [self.mel], [valid])[0]
        plain = encoder.run_plain(shape, weights, self.mel, valid, valid)
        self.encoder_apart = float((self.encoded - plain).abs().max()) if len(plain) else 0.0
        if plain.shape != self.encoded.shape or self.encoder_apart > ENCODER_AGREE:
            raise SystemExit(f"encoders are {self.encoder_apart} apart on {length} samples")
        self.tokens = encoder.adaptor(weights, self.encoded)
        self.published = self.published_tokens(shape, weights)
        if self.mel.shape[1] != self.counts["mel"] or len(self.tokens) != self.counts["tokens"]:
            raise SystemExit(f"counts are wrong on {length} samples")

    def published_tokens(self, shape: dict, weights: encoder.Weights) -> torch.Tensor | None:
        """What the published model makes of this clip alone, where it can run and differs from `tokens`."""
        frames = (self.counts["mel"] + 1) // 2
        if not len(self.tokens) or frames > shape["n_audio_ctx"]:
            return None
        encoded = encoder.run_plain(shape, weights, self.mel, self.counts["at_50hz"], frames)
        tokens = encoder.adaptor(weights, encoded)[: len(self.tokens)]
        return tokens if (tokens - self.tokens).abs().max() > 1e-4 else None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The frames to be stored."""
        out = {}
        for stage, rows in (("mel", self.mel.T), ("encoder", self.encoded), ("adaptor", self.tokens)):
            frames = frame_subset(len(rows), 100 if stage == "mel" else 50)
            if frames:
                out[f"{self.length}.{stage}"] = rows[frames].float().contiguous()
                out[f"{self.length}.{stage}.frames"] = torch.tensor(frames, dtype=torch.int32)
        if self.published is not None:
            out[f"{self.length}.adaptor_published_last"] = self.published[-1].contiguous()
        return out

    def facts(self) -> dict:
        """What the JSON says about this clip."""
        pcm = clips.samples(self.length)
        return {
            "samples": self.length,
            "fnv1a": clips.fnv1a(pcm),
            "first": pcm[:16].tolist(),
            "frames": self.counts,
            "published_model_differs": self.published is not None,
        }


def check_batch(made: dict[int, Clip], weights: encoder.Weights, model) -> float:
    """A padded batch must equal its items alone, up to the order of sums."""
    items = [made[n] for n in BATCH]
    batch = encoder.run_transformers(model, [c.mel for c in items], [c.counts["at_50hz"] for c in items])
    apart = max(float((encoder.adaptor(weights, row) - c.tokens).abs().max()) for row, c in zip(batch, items))
    if apart > BATCH_AGREE:
        raise SystemExit(f"a padded batch is {apart} away from its items alone")
    return apart


def decode(kind: Kind, weights: encoder.Weights, ids: dict[str, list[int]], patch: int, audio: torch.Tensor) -> dict:
    """Logits and greedy continuations of every prompt."""
    model, out = decoder(kind, weights), {}
    for name, prompt in ids.items():
        rows = embed(model, prompt, patch, audio)
        logits = prefill_logits(model, rows)
        tokens, gaps = greedy(model, rows) if name != "long" else ([], [])
        out[name] = {"ids": prompt, "logits": logits, "greedy": tokens, "gaps": gaps}
    return out


def is_fair(runs: dict) -> bool:
    """Whether greedy equality means something for these weights."""
    runs = [r for r in runs.values() if r["greedy"]]
    return all(min(r["gaps"]) >= MIN_GAP and len(set(r["greedy"])) >= MIN_DISTINCT for r in runs)


def find_weights(kind: Kind, shape: dict, tokenizer) -> tuple[int, encoder.Weights, dict]:
    """The first seed whose greedy continuations are a fair test, its weights, and its decoder runs."""
    ids = prompts(tokenizer, frontend.counts(AUDIO_CLIP)["tokens"])
    patch = tokenizer.token_to_id("<audio_patch>")
    for seed in range(1, 200):
        stored = random_weights(kind, seed)
        weights = {k: v.float() for k, v in stored.items()}
        clip = Clip(AUDIO_CLIP, shape, weights, encoder.transformers_encoder(shape, weights))
        runs = decode(kind, weights, ids, patch, clip.tokens)
        if is_fair(runs):
            return seed, stored, runs
    raise SystemExit("no seed gives a fair greedy test")


def stored_logits(runs: dict) -> dict[str, torch.Tensor]:
    """The logit rows that are kept: few, because each is a whole vocabulary."""
    rows = {"text": None, "audio": 8, "long": 2}
    return {f"logits.{name}": (r["logits"] if not rows[name] else r["logits"][-rows[name] :]).contiguous() for name, r in runs.items()}


def make(kind: Kind, out: Path) -> None:
    """One checkpoint folder with its golden.safetensors and golden.json."""
    folder = out / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    shape = {**AUDIO, "n_mels": kind.n_mels}
    tokenizer = tiny_tokenizer.save(folder)
    seed, stored, runs = find_weights(kind, shape, tokenizer)
    write_json(folder / "config.json", config(kind, tokenizer))
    save_shards(folder, stored)
    weights = {k: v.float() for k, v in stored.items()}
    model = encoder.transformers_encoder(shape, weights)
    made = {n: Clip(n, shape, weights, model) for n in clips.LENGTHS}
    batch_apart = check_batch(made, weights, model)
    tensors = {k: v for clip in made.values() for k, v in clip.tensors().items()}
    save_file(tensors | stored_logits(runs), folder / "golden.safetensors")
    facts = {
        "seed": seed,
        "clips": [clip.facts() for clip in made.values()],
        "batch": list(BATCH),
        "audio_clip": AUDIO_CLIP,
        "prompts": {n: {k: r[k] for k in ("ids", "greedy")} | {"min_gap": min(r["gaps"], default=None)} for n, r in runs.items()},
        "tokenizer": tiny_tokenizer.golden(tokenizer),
    }
    (folder / "golden.json").write_text(compact(facts), encoding="utf-8")
    print(f"{kind.name}: seed {seed}; largest disagreement of two implementations:",
          f"mel {max(c.mel_apart for c in made.values()):.1e},",
          f"encoder {max(c.encoder_apart for c in made.values()):.1e}, batch {batch_apart:.1e}")


def compact(value, depth: int = 0) -> str:
    """JSON with objects indented and lists of numbers on one line."""
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        body = ",\n".join(f"{pad}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items())
        text = f"{{\n{body}\n{end}}}"
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        body = ",\n".join(pad + compact(v, depth + 1) for v in value)
        text = f"[\n{body}\n{end}]"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if depth else text + "\n"


def run(out: Path) -> None:
    """Both checkpoints."""
    torch.set_num_threads(1)
    for kind in KINDS:
        make(kind, out)
