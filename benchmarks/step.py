"""CPU seconds of a training step of the tiny model, for different row lengths and widths, side by side.

usage: python benchmarks/step.py [--parts 24] [--steps 4]

Makes synthetic parts without points and pictures in a temporary folder, and times the same steps (same samples, process
time on one thread) with each setting. Read the last
column: the ratio to the first row.
"""
import tempfile
import time
from dataclasses import replace

import torch

from cad_mllm.config import tiny
from cad_mllm.data import synthesize
from cad_mllm.training import open_data, Trainer
from common import make_parser

NARROW = dict(hidden_size=128, intermediate_size=384, num_attention_heads=4, num_key_value_heads=2)
SETTINGS = {
    "rows of 1,024 tokens": (1024, {}), "rows of 512": (512, {}), "rows of 320 (the recipe)": (320, {}),
    "rows of 320, width 128": (320, NARROW)
}


def seconds_a_step(folder, max_tokens, llm, steps):
    "Process time of a step, after one to warm up."
    model, training = tiny()
    training = replace(
        training, data_root=f"{folder}/data", output_dir=f"{folder}/out", max_tokens_per_batch=max_tokens,
        num_val_samples=0
    )
    trainer = Trainer(replace(model, llm_config=llm), training)
    trainer.state.output_dir.mkdir(exist_ok=True)
    open_data(trainer.state, trainer.output)
    trainer.state.progress.next_stage(0)
    trainer.optimization.begin_stage()
    trainer.state.model.train()
    plan = trainer.state.plan()
    stream = trainer.stepper.micro_batches(plan)
    trainer.stepper.train_step(stream, plan)
    began = time.process_time()
    for _ in range(steps): trainer.stepper.train_step(stream, plan)
    return (time.process_time() - began)/steps


def main():
    parser = make_parser(__doc__, out=False)
    parser.add_argument("--parts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        synthesize(f"{folder}/data", num=args.parts)
        rows = {name: seconds_a_step(folder, *setting, args.steps) for name, setting in SETTINGS.items()}
    first = next(iter(rows.values()))
    print("| setting | CPU seconds a step | ratio |\n|---|---|---|")
    for name, s in rows.items(): print(f"| {name} | {s:.2f} | {s/first:.2f} |")


if __name__ == "__main__":
    main()
