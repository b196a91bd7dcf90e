"""A small byte-level BPE tokenizer with Qwen's pipeline and Step-Audio's added tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB = 512
# Those that a reader of the decoded text must see are not "special", as in Qwen's own files.
SPECIAL = ("<|endoftext|>", "<|BOT|>", "<|EOT|>", "<audio_start>", "<audio_end>", "<audio_patch>")
VISIBLE = ("<think>", "</think>", "<tool_call>", "</tool_call>")

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = """system human assistant tool_json_schemas function_output function
You are a helpful assistant who listens. What do you hear? What did the person say?
I hear a woman who speaks quickly, then a door that closes, then rain on a window.
She sounds tired; he sounds glad. The answer is seven. Answer in one short sentence.
Think first about the voice, the pace, the pauses and the noise in the room, then reply.
The rain in the street was louder than the voice of the speaker, and the speaker waited.
12 345 6789 {"name": "time", "arguments": {"zone": "UTC"}} [1, 2, 3]
"""

SAMPLES = (
    "",
    "What do you hear?",
    "<|BOT|>human\nHello there!<|EOT|><|BOT|>assistant\n<think>\n",
    "<audio_start><audio_patch><audio_patch><audio_end>",
    "<think>\n\n</think>\nIt's raining.",
    "  two  spaces\n\n\ttab and 12345 digits",
    "naïve façade, 你好，世界, здравствуй, 🎧👂🏽",
    "e\u0301 composes to \u00e9",
    "<tool_call>function\ntime\n{\"zone\": \"UTC\"}</tool_call>",
    "a<|EOT|>b <|EOT|> c",
)


def train() -> Tokenizer:
    """Train the tokenizer; the result depends only on CORPUS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(VISIBLE),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in VISIBLE])
    if tokenizer.get_vocab_size() > VOCAB:
        raise SystemExit("the tokenizer outgrew its vocabulary")
    return tokenizer


def config(tokenizer: Tokenizer) -> dict:
    """tokenizer_config.json in transformers' form."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL,
        }
        for token in SPECIAL + VISIBLE
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|EOT|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def save(folder: Path) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json; give the tokenizer back."""
    tokenizer = train()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    text = json.dumps(config(tokenizer), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return tokenizer


def golden(tokenizer: Tokenizer) -> list[dict]:
    """Texts, their ids, and what the ids decode to with and without special tokens."""
    rows = []
    for text in SAMPLES:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        shown = tokenizer.decode(ids, skip_special_tokens=True)
        whole = tokenizer.decode(ids, skip_special_tokens=False)
        rows.append({"text": text, "ids": ids, "decoded": whole, "decoded_without_special": shown})
    return rows
