"""llama.cpp's side of `scripts/bench peers`: the same works as `hearken bench`, one JSON object a line.

Token ids, contexts and passes are those of agent/engine/local/measure.rs, so that both sides do the same sums.
"""

import argparse
import ctypes
import json
import math
import statistics
import time

import llama_cpp as llama

# name, context, tokens a pass, streams, passes
WORKS = [
    ("prefill 512", 0, 512, 1, 1),
    ("prefill 13 at 500", 500, 13, 1, 4),
    ("decode at 128", 128, 1, 1, 16),
    ("decode at 2048", 2048, 1, 1, 16),
    ("decode 8 streams at 128", 128, 1, 8, 8),
]


class Model:
    def __init__(self, path: str, threads: int) -> None:
        # Kept alive: the library holds on to the callback.
        self.silent = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot open {path}")
        params = llama.llama_context_default_params()
        params.n_ctx = 8 * 512 + 512
        params.n_batch = params.n_ubatch = 2048
        params.n_seq_max = 8
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, params)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(4096, 0, 8)

    def tokens(self, text: bytes) -> list[int]:
        out = (llama.llama_token * len(text))()
        vocabulary = llama.llama_model_get_vocab(self.model)
        n = llama.llama_tokenize(vocabulary, text, len(text), out, len(text), False, False)
        return list(out[:n])

    def clear(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def step(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One pass over rows of (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wanted
        if llama.llama_decode(self.context, self.batch) != 0:
            raise SystemExit("llama_decode failed")

    def logits(self, row: int) -> list[float]:
        return llama.llama_get_logits_ith(self.context, row)[: self.vocabulary]


def ids(n: int) -> list[int]:
    return [i * 37 % 500 + 100 for i in range(n)]


def work(model: Model, context: int, tokens: int, streams: int, passes: int) -> float:
    model.clear()
    for stream in range(streams):
        if context:
            model.step([(t, i, stream, False) for i, t in enumerate(ids(context))])
    all_ids = ids(tokens * streams)
    begun = time.perf_counter()
    for p in range(passes):
        rows = []
        for stream in range(streams):
            for i in range(tokens):
                place = context + p * tokens + i
                rows.append((all_ids[stream * tokens + i], place, stream, i == tokens - 1))
        model.step(rows)
        for stream in range(streams):
            llama.llama_get_logits_ith(model.context, (stream + 1) * tokens - 1)[0]
    return time.perf_counter() - begun


def perplexity(model: Model, tokens: list[int]) -> float:
    model.clear()
    model.step([(t, i, 0, True) for i, t in enumerate(tokens)])
    total = 0.0
    for i, following in enumerate(tokens[1:]):
        row = model.logits(i)
        peak = max(row)
        total += math.log(sum(math.exp(x - peak) for x in row)) + peak - row[following]
    return math.exp(total / (len(tokens) - 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--tokens", help="a text, of which the token ids are printed, and nothing else is done")
    parser.add_argument("--perplexity", help="a file of token ids, and nothing else is done")
    args = parser.parse_args()
    model = Model(args.model, args.threads)
    if args.tokens:
        with open(args.tokens, "rb") as f:
            print(json.dumps(model.tokens(f.read())))
        return
    if args.perplexity:
        with open(args.perplexity) as f:
            print(json.dumps({"name": "perplexity", "value": perplexity(model, json.load(f))}))
        return
    for name, *shape in WORKS:
        if args.only in name:
            work(model, *shape)
            times = [work(model, *shape) * 1e3 for _ in range(args.runs)]
            ms = statistics.median(times)
            rate = f"{shape[1] * shape[2] * shape[3] / ms * 1e3:.1f} tokens/s"
            print(json.dumps({"name": name, "ms": ms, "best_ms": min(times), "rate": rate}), flush=True)


if __name__ == "__main__":
    main()
