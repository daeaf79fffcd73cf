#!/usr/bin/env python3
"""What `cad-mllm plan` predicts beside what was measured.

    python benchmarks/train.py OMNI_CAD_ROOT --tokenizer QWEN3_FOLDER --shape qwen3_0_6b --device cuda --out
    train_gpu.md      # on a machine with a GPU; writes train_gpu.json too
    python benchmarks/plan.py train_gpu.json [--gpu h200] [--out benchmarks/results/plan.md]

Memory: the peak of one training step of the 0.6B shape with LoRA, by tokens of the batch, without and with gradient
checkpointing. Time: seconds of the same number of tokens, as the model is written and compiled.
"""
import json
from dataclasses import replace
from pathlib import Path

from cad_mllm.config import recipe
from cad_mllm.training import CARDS, flops, memory, reached, shape_of
from common import make_parser, table_head, write_out


def main():
    parser = make_parser(__doc__)
    parser.add_argument("measured", help="what benchmarks/train.py wrote")
    parser.add_argument("--gpu", default="h200", choices=list(CARDS))
    args = parser.parse_args()
    measured, card = json.loads(Path(args.measured).read_text()), CARDS[args.gpu]
    config = replace(recipe("qwen3_0_6b")[0], dtype="bfloat16")
    shape, chunk = shape_of(config), int(min(2**28, card.memory//256))
    lines = [
        f"Memory of a step on a {card.name}, Qwen3-0.6B with LoRA:", "",
        *table_head(
            "tokens", "to predict", "gradient checkpointing", "predicted, GB", "measured, GB", "predicted / measured"
        )
    ]
    for row in measured["ours"]["memory_by_tokens"]:
        predicted = sum(memory(shape, config, row["tokens"], row["predicted"], row["checkpointing"], chunk).values())
        lines.append(
            f"| {row['tokens']:,} | {row['predicted']:,} | {'yes' if row['checkpointing'] else 'no'} | "
            f"{predicted/1e9:.1f} | {row['peak']/1e9:.1f} | {predicted/row['peak']:.2f} |"
        )
    lines += ["", *table_head("", "predicted, tokens/s", "measured, tokens/s", "predicted / measured")]
    for name, compiled in (("ours", False), ("ours+compile", True)):
        if name not in measured: continue
        r = measured[name]
        tokens = r["tokens_per_second"]*r["step_seconds"]
        predicted = tokens/(
            flops(
                shape, config, tokens,
                tokens*sum(x["predicted"] for x in measured["ours"]["memory_by_tokens"])/sum(
                    x["tokens"] for x in measured["ours"]["memory_by_tokens"]
                )
            )/reached(card, compiled)
        )
        lines.append(
            f"| {'compiled' if compiled else 'as written'} | {predicted:,.0f} | {r['tokens_per_second']:,.0f} | "
            f"{predicted/r['tokens_per_second']:.2f} |"
        )
    print("\n".join(lines))
    write_out(args.out, "\n".join(lines))


if __name__ == "__main__":
    main()
