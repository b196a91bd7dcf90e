"""Stage export: a training checkpoint as adaptor.safetensors, lora.safetensors (f16) and train.json.

With only an align checkpoint, the low-rank updates are taken from --lora.

    python -m scripts.train.export --out DIR
"""

import json

import torch
from safetensors.torch import load_file, save_file

from . import common
from .decoder import form


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--out", type=common.Path, required=True)
    parser.add_argument("--checkpoint", default="instruct.pt", help="instruct.pt or align.pt, inside --work")
    parser.add_argument("--lora", type=common.Path, help="lora.safetensors to go with an align checkpoint")
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--block", type=float, default=2.0)
    parser.add_argument("--left", type=float, default=8.0)
    parser.add_argument("--peak", type=float, default=1.5)
    args = parser.parse_args()
    common.start(args)
    state = torch.load(args.work / args.checkpoint)
    low_rank = state.get("low_rank") or load_file(args.lora)
    adaptor = {n.replace("adaptor.", "adapter."): t for n, t in state["aligner"].items() if n.startswith("adaptor.")}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("adaptor", adaptor), ("lora", low_rank)):
        save_file({n: t.detach().half().contiguous() for n, t in tensors.items()}, args.out / f"{name}.safetensors")
    _, rank = form(low_rank)
    settings = {
        "lora": {"rank": rank, "alpha": args.scale * rank, "scale": args.scale},
        "encoder": {"attention": "block", "block_s": args.block, "left_s": args.left, "log_mel_peak": args.peak},
        "steps": state["step"],
        "seconds": round(state["spent"]),
    }
    (args.out / "train.json").write_text(json.dumps(settings, indent=1) + "\n")


if __name__ == "__main__":
    main()
